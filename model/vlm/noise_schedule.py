"""How much noise each timestep of the diffusion has, by the schedules of diffusers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from torch import Tensor

from setok_kernels.extras import from_extra

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def scheduler(schedule: str, steps: int) -> DDIMScheduler:
    """The sampler of clean tokens.

    Args:
        schedule: one of `SCHEDULES`.
        steps: of the diffusion in training.

    Raises:
        MissingExtraError: diffusers is not installed.
    """
    # Here, because importing diffusers takes longer than importing torch, and only who generates
    # images, or trains it, needs it.
    with from_extra("generate"):
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        steps,
        beta_schedule=schedule,
        clip_sample=False,
        # The others start below the noisiest timestep, or their steps are uneven.
        timestep_spacing="trailing",
        prediction_type="sample",
    )


@functools.lru_cache
def signal_levels(schedule: str, steps: int) -> Tensor:
    """(steps,) float32, a² of each timestep; raises as `scheduler` does."""
    return scheduler(schedule, steps).alphas_cumprod
