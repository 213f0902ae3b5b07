"""Splits nested states, such as an optimizer's, into tensors and JSON values, and joins them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from setokim.utils.distributed import local_shard


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a nested state, such as an optimizer's, into tensors and a JSON structure.

    Args:
        state: nested dicts, lists and tuples of tensors, numbers, strings, booleans and None. Keys
            of dicts may have these types too, except tensors.

    Returns:
        Tensors by the dotted path of their first occurrence, and the structure around them. A
        tensor that occurs twice is returned once.

    Raises:
        TypeError: the state has a value of another type.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[tuple, str] = {}

    def take(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor):
            identity = _identity(value)
            if identity not in names:
                name = ".".join(path)
                # Keys may contain dots.
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
    """Rebuild the state that `flatten_state` has split.

    Args:
        tensors: tensors of `flatten_state`; further ones are ignored.
        structure: structure of `flatten_state`, also after a round trip through JSON.

    Returns:
        Nested state; a tensor that occurred twice is one object.

    Raises:
        ValueError: a tensor is missing, or the structure is not one of `flatten_state`.
    """
    if isinstance(structure, list):
        return [unflatten_state(tensors, item) for item in structure]
    if not isinstance(structure, dict):
        return structure
    match structure:
        case {"tensor": str(name)}:
            if name not in tensors:
                raise ValueError(f"tensors: expected a tensor named {name!r}, got none")
            return tensors[name]
        case {"tuple": [*items]}:
            return tuple(unflatten_state(tensors, item) for item in items)
        case {"dict": [*items]}:
            return {
                unflatten_state(tensors, key): unflatten_state(tensors, value)
                for key, value in items
            }
    raise ValueError(f"structure: expected that of flatten_state, got keys {sorted(structure)}")


def _identity(tensor: Tensor) -> tuple:
    """Return a key that is equal for tensors with the same elements in the same memory."""
    # Only the local part of a distributed tensor has an address.
    tensor = local_shard(tensor)
    if not tensor.numel():
        return (id(tensor),)
    memory = (tensor.device, tensor.data_ptr(), tensor.dtype)
    return (*memory, tuple(tensor.shape), tensor.stride())
