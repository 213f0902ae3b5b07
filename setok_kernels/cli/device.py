"""The device that a command's option names."""

from __future__ import annotations

import torch

from setok_kernels.cli.errors import UsageError


def usable_device(name: str) -> torch.device:
    """The device of `--device`.

    Raises:
        UsageError: there is none of that name, or it cannot be used here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        # AssertionError is what a torch without CUDA raises for a CUDA device.
        raise UsageError(f"--device {name} cannot be used: {error}") from error
    return device
