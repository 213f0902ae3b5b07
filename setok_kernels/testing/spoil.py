"""Generators of invalid arguments in place of valid tensors, numbers and records."""

import dataclasses
import math
import random

import torch
from torch import Tensor

from setok_kernels.result import Clusters, Decisions, HardClusters

# Indices at and beyond valid ranges.
INDICES = (-2, -1, 0, 1, 7, 40, 10**6, 2**31, 2**40, -(2**40), 2**63 - 1, -(2**63))
# No values in between: those would be valid and allocate that much memory.
COUNTS = (-(2**63), -(2**31), -1, 0, 2**31, 2**40, 2**62, 2**63 - 1, True, None, 1.5, "2")
NUMBERS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e308, 5e-324, None, "0.5", 10**400)
DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
)


def _length(random: random.Random, tensor: Tensor) -> Tensor:
    """Drop a row, or double the rows, along a random axis."""
    if tensor.dim() == 0:
        return tensor.expand(3).clone()
    axis = random.randrange(tensor.dim())
    if random.random() < 0.5 and tensor.shape[axis] > 0:
        return tensor.narrow(axis, 0, tensor.shape[axis] - 1).clone()
    return torch.cat([tensor, tensor], axis)


def _rank(random: random.Random, tensor: Tensor) -> Tensor:
    if tensor.dim() and random.random() < 0.5:
        return random.choice([tensor.flatten(), tensor.sum().to(tensor.dtype)])
    return tensor.unsqueeze(random.randint(0, tensor.dim()))


def _strides(random: random.Random, tensor: Tensor) -> Tensor:
    """Return the same values with other strides."""
    if tensor.dim() == 0:
        return tensor
    if random.random() < 0.3 and tensor.shape[0] > 1:
        return tensor[:1].expand_as(tensor)
    return tensor.repeat_interleave(2, -1)[..., ::2]


def _values(random: random.Random, tensor: Tensor) -> Tensor:
    """Replace some elements by invalid indices or non-finite numbers."""
    if tensor.numel() == 0 or tensor.dtype == torch.bool:
        return tensor
    changed = tensor.detach().clone().flatten()
    for _ in range(random.randint(1, 3)):
        if tensor.dtype.is_floating_point:
            value = random.choice([math.nan, math.inf, -math.inf, -1.0, 1e30])
        else:
            limits = torch.iinfo(tensor.dtype)
            value = min(max(random.choice(INDICES), limits.min), limits.max)
        changed[random.randrange(changed.numel())] = value
    return changed.reshape(tensor.shape)


def _shape(random: random.Random, tensor: Tensor) -> Tensor:
    shape = [random.randint(0, 4) for _ in range(random.randint(0, 4))]
    return torch.zeros(shape, dtype=tensor.dtype)


# Changes that public functions must reject; torch itself crashes on a freed storage.
TENSORS = (
    _length,
    _length,
    _rank,
    _strides,
    _values,
    _values,
    _shape,
    lambda random, tensor: tensor.detach().to(random.choice(DTYPES)),
    lambda random, tensor: tensor.detach().to("meta"),
    lambda random, tensor: tensor[:0] if tensor.dim() else tensor.new_empty(0),
    lambda random, tensor: random.choice([None, 3, [1.0], "x"]),
)


def _freed(random: random.Random, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().clone()
    tensor.untyped_storage().resize_(random.choice([0, tensor.nbytes // 2]))
    return tensor


OPERANDS = (*TENSORS, _freed, lambda random, tensor: tensor.detach().to_sparse())


def spoiled(random: random.Random, value, tensors=TENSORS):
    """Return a value of another type, size or range in place of `value`; sometimes a valid one.

    Args:
        random: source of the choices.
        value: valid argument: None, a number, a tensor, or a record with tensors in its fields.
        tensors: functions that change a tensor.
    """
    if isinstance(value, Tensor):
        return random.choice(tensors)(random, value)
    if isinstance(value, Decisions | Clusters | HardClusters):
        field = random.choice(dataclasses.fields(value)).name
        wrong = spoiled(random, getattr(value, field), tensors)
        return dataclasses.replace(value, **{field: wrong})
    if value is None:
        return spoiled(random, torch.zeros(random.randint(0, 3), random.randint(1, 9)), tensors)
    if isinstance(value, bool):
        return random.choice([not value, None, "x", 2])
    if isinstance(value, int):
        return random.choice(COUNTS)
    if isinstance(value, float):
        return random.choice(NUMBERS)
    return random.choice([None, 3, "x", [value]])
