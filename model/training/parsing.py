"""Nested plain values to dataclasses, with errors that name the place, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def from_plain(kind: type, values: Any, where: str = ""):
    """A dataclass from nested dicts, its types checked.

    Args:
        kind: of the dataclass.
        values: by the names of its fields.
        where: dotted name of the group that `values` is, with a dot at its end.

    Raises:
        ValueError: a name is unknown or a value does not fit.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where.rstrip('.')}: expected keys and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    arguments = {}
    for name, value in values.items():
        if name not in known:
            expected = f"one of {', '.join(sorted(known))}"
            raise ValueError(f"{where}{name}: expected {expected}, got {name!r}")
        arguments[name] = _convert(hints[name], value, f"{where}{name}")
    return kind(**arguments)


def to_plain(value: Any) -> Any:
    """Nested dicts and lists, as YAML and JSON take them, of a dataclass or of such values."""
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    return value


def _convert(kind: Any, value: Any, where: str):
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    options = typing.get_args(kind) if is_union else (kind,)
    if value is None and type(None) in options:
        return None
    targets = [option for option in options if option is not type(None)]
    if len(targets) > 1:
        names = " or ".join(target.__name__ for target in map(_bare, targets))
        fitting = [target for target in targets if isinstance(value, _bare(target))]
        if not fitting:
            raise ValueError(f"{where}: expected {names}, got {value!r}")
        targets = fitting
    return _convert_to(targets[0], value, where)


def _convert_to(target: Any, value: Any, where: str):
    if dataclasses.is_dataclass(target):
        return from_plain(target, value, f"{where}.")
    origin = _bare(target)
    if origin is float and isinstance(value, str):
        # YAML 1.1 reads 5e-4 as text.
        try:
            return float(value)
        except ValueError:
            pass
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple and isinstance(value, list):
        entries = typing.get_args(target)
        if entries[-1] is Ellipsis:
            entries = entries[:1] * len(value)
        if len(value) != len(entries):
            raise ValueError(f"{where}: expected {len(entries)} values, got {value!r}")
        return tuple(_convert(*pair, where) for pair in zip(entries, value, strict=True))
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        expected = "a list" if origin is tuple and typing.get_args(target)[-1] is Ellipsis else None
        raise ValueError(f"{where}: expected {expected or origin.__name__}, got {value!r}")
    return value


def _bare(target: Any) -> type:
    return typing.get_origin(target) or target
