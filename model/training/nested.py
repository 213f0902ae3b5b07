"""Nested states, such as an optimizer's, as tensors and what JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from setokim.utils.distributed import local_shard


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Takes a nested state, such as an optimizer's, apart into tensors and what JSON can hold.

    Args:
        state: dicts, lists and tuples of tensors, numbers, strings, booleans and None; the keys of
            dicts are of these kinds too, tensors excepted.

    Returns:
        Tensors by the dotted path at which each was found first, and the structure around them.
        A tensor found twice is there once.

    Raises:
        TypeError: the state holds anything else.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[tuple, str] = {}

    def take(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor):
            identity = _identity(value)
            if identity not in names:
                name = ".".join(path)
                # Keys may have dots in them.
                while name in tensors:
                    name += "_"
                names[identity] = name
                tensors[name] = value.detach()
            return {"tensor": names[identity]}
        if isinstance(value, dict):
            if any(isinstance(key, Tensor) for key in value):
                raise TypeError(f"state: expected no tensors as keys, got one at {'.'.join(path)}")
            items = value.items()
            return {"dict": [[take(k, (*path, "key")), take(v, (*path, str(k)))] for k, v in items]}
        if type(value) in (list, tuple):
            items = [take(v, (*path, str(i))) for i, v in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(
            f"state: expected tensors, dicts, lists, tuples, numbers, strings, booleans and None, "
            f"got {type(value).__name__} at {'.'.join(path) or 'the top'}"
        )

    return tensors, take(state, ())


def unflatten_state(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """Puts together what `flatten_state` took apart.

    Args:
        tensors: those of `flatten_state`; more do no harm.
        structure: that of `flatten_state`, also after JSON.

    Returns:
        The state; a tensor that was there twice is one object in two places.

    Raises:
        ValueError: a tensor is missing, or the structure is none.
    """
    if isinstance(structure, list):
        return [unflatten_state(tensors, item) for item in structure]
    if not isinstance(structure, dict):
        return structure
    match structure:
        case {"tensor": str(name)}:
            if name not in tensors:
                raise ValueError(f"tensors: expected one named {name!r}, got none")
            return tensors[name]
        case {"tuple": [*items]}:
            return tuple(unflatten_state(tensors, item) for item in items)
        case {"dict": [*items]}:
            return {
                unflatten_state(tensors, key): unflatten_state(tensors, value)
                for key, value in items
            }
    raise ValueError(f"structure: expected one of flatten_state, got keys {sorted(structure)}")


def _identity(tensor: Tensor) -> tuple:
    """Equal for two tensors that are the same elements of the same memory."""
    # A part of a distributed tensor has an address, the whole has none.
    tensor = local_shard(tensor)
    if not tensor.numel():
        return (id(tensor),)
    place = (tensor.device, tensor.data_ptr(), tensor.dtype)
    return (*place, tuple(tensor.shape), tensor.stride())
