"""The device of the option `--device`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from setok_cli.errors import UsageError

if TYPE_CHECKING:
    import torch


def usable_device(name: str) -> torch.device:
    """Return the device of `--device`.

    Args:
        name: name as torch has it, such as "cuda:1".

    Raises:
        UsageError: there is no such device, or it cannot be used here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        # AssertionError is what a torch without CUDA raises for a CUDA device.
        raise UsageError(f"--device {name} cannot be used: {error}") from error
    return device
