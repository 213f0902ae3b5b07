"""YAML files and nested plain values to dataclasses, with errors that name the key, and back."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
import typing
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def from_plain(kind: type, values: Any, where: str = ""):
    """A dataclass from nested dicts, its types checked.

    Args:
        kind: class of the result.
        values: values by the names of its fields.
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


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the nested values of a YAML file.

    Args:
        path: path of the file.
        overrides: "key=value" texts, with dots for nested keys; values are YAML.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML with keys and values, or an override does not fit.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML, got {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, got {values!r}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override: expected key=value, got {override!r}")
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ValueError(f"override: {key!r} goes through {parent!r}, which is no group")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{key}: expected YAML, got {text!r}") from error
    return values


def import_modules(names: Any, folder: Path) -> None:
    """Import the modules that settings name, so that they register what they add.

    Args:
        names: list of module names, or of paths that end in .py.
        folder: folder that relative paths start from.

    Raises:
        ValueError: one is not there, or importing it raises an error.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"imports: expected a list of modules, got {names!r}")
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file((folder / name).resolve())
            else:
                importlib.import_module(name)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            expected = "a module that can be imported"
            raise ValueError(f"imports: expected {expected}, got {name!r}: {reason}") from error


def _import_file(path: Path) -> None:
    # Once in a process: what a module registers has to stay the same.
    name = f"setokim_imports.{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


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
