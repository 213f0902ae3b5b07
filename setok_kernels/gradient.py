"""Whether a call wants gradients, which the compiled backends leave to the reference."""

import torch
from torch import Tensor

from setok_kernels.result import Clusters


def needs_gradient(*values) -> bool:
    """Whether autograd records and one of the values, tensors or not, requires it."""
    return torch.is_grad_enabled() and any(
        isinstance(v, Tensor) and v.requires_grad for v in values
    )


def masks_of(out: Clusters, mode: str) -> tuple[Tensor, ...]:
    """What a merge differentiates besides the tokens."""
    return (out.masks,) if mode == "soft" else ()
