"""Results as containers of tensors: pytrees, moves between devices and dtypes, trusted files."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

# Fields without tensors: part of the structure of a tree, not leaves.
STATIC = ("grid", "max_seqlen", "num_rows")

_Class = TypeVar("_Class", bound=type)
_Record = TypeVar("_Record")


def register(cls: _Class) -> _Class:
    """Class decorator: make a dataclass of tensors a pytree that `torch.load` trusts.

    Tensors and nested records are children, without those that are None. Fields named in `STATIC`
    are context. Subclasses need a registration of their own.
    """
    _pytree.register_pytree_node(
        cls,
        lambda record: (list(_children(record).values()), _context(record)),
        lambda children, context: _build(cls, children, context),
        serialized_type_name=f"{cls.__module__.split('.')[0]}.{cls.__qualname__}",
        to_dumpable_context=_dump,
        from_dumpable_context=_load,
        flatten_with_keys_fn=lambda record: (
            [(_pytree.GetAttrKey(name), child) for name, child in _children(record).items()],
            _context(record),
        ),
    )
    torch.serialization.add_safe_globals([cls])
    return cls


class TensorRecord:
    """Base class of dataclasses of tensors, which move together."""

    def to(
        self: _Record,
        device: torch.device | str | int | torch.dtype | Tensor | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> _Record:
        """Return the result with all tensors moved, as `Tensor.to` does; carries gradient.

        Args:
            device: target device; or a dtype; or a tensor whose device and dtype to take.
            dtype: floating dtype of the floating values. Indices and counts keep theirs.
            non_blocking: flag: copy from pinned memory without waiting.

        Raises:
            TypeError: an argument has the wrong type.
        """
        target: Any = device
        if isinstance(device, torch.dtype | Tensor):
            if dtype is not None:
                raise TypeError(f"dtype: expected None after a dtype or a tensor, got {dtype}")
            if isinstance(device, Tensor):
                target, dtype = device.device, device.dtype
            else:
                target, dtype = None, device
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype: expected a floating dtype, got {dtype!r}")

        def move(_, value):
            kept = value.dtype if dtype is None or not value.is_floating_point() else dtype
            return value.to(target, kept, non_blocking=non_blocking)

        return map_tensors(self, move)


def map_tensors(record: _Record, function: Callable[[str, Tensor], Tensor]) -> _Record:
    """Return a record with `function(name, tensor)` in place of each tensor, nested ones too."""
    changed: dict[str, Any] = {}
    for name, value in _children(record).items():
        if isinstance(value, Tensor):
            changed[name] = function(name, value)
        elif dataclasses.is_dataclass(value):
            changed[name] = map_tensors(value, function)
    decisions = getattr(record, "decisions", None)
    if decisions is not None and decisions.counts is getattr(record, "counts", None):
        # One tensor stays one tensor.
        changed["counts"] = changed["decisions"].counts
    return dataclasses.replace(record, **changed)  # type: ignore[type-var]


def _children(record) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(record) if field.name not in STATIC]
    values = {name: getattr(record, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _context(record) -> tuple:
    """Return names of the children, and names and values of the static fields."""
    names = [field.name for field in dataclasses.fields(record) if field.name in STATIC]
    # A list would not be equal to the tuple that comes back from a file.
    return tuple(_children(record)), tuple((name, _frozen(getattr(record, name))) for name in names)


def _build(cls, children, context):
    names, static = context
    return cls(**dict(zip(names, children, strict=True)), **dict(static))


def _frozen(value):
    return tuple(value) if isinstance(value, list) else value


def _dump(context) -> list:
    """Return a context as JSON takes it."""
    names, static = context
    for name, value in static:
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | None):
                raise ValueError(f"{name}: expected static sizes in a saved program, got {value}")
    return [list(names), dict(static)]


def _load(dumped) -> tuple:
    names, static = dumped
    return tuple(names), tuple((name, _frozen(value)) for name, value in static.items())
