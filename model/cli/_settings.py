"""Settings of a run on the command line: the YAML file, `key=value`, and `--help-keys`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from setok_cli.errors import UsageError, missing_package

_WIDTH = 100


def add_settings_options(parser: argparse.ArgumentParser, *required: argparse.Action) -> None:
    """Add `--config`, `key=value` and `--help-keys`.

    Args:
        parser: parser of the command.
        *required: required options of the command, which `--help-keys` does without.
    """
    config = parser.add_argument(
        "--config", required=True, type=Path, metavar="FILE", help="YAML file of settings"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings in place of the file's, such as optimizer.lr=1e-4",
    )
    parser.add_argument(
        "--set",
        dest="more_overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="the same, between other options",
    )
    parser.add_argument(
        "--help-keys",
        action=_Alone,
        nargs=0,
        default=False,
        others=(config, *required),
        help="list every key with type, default and meaning, of the stage of FILE or of all, and "
        "exit",
    )


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """Return the overrides, those of `--set` last."""
    return [*arguments.overrides, *arguments.more_overrides]


class _Alone(argparse.Action):
    """Switch with which some required options may be absent."""

    def __init__(self, *args, others: Sequence[argparse.Action], **kwargs):
        super().__init__(*args, **kwargs)
        self._others = others

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, True)
        for action in self._others:
            action.required = False


def show_keys(arguments: argparse.Namespace, stages: Sequence[int]) -> int:
    """Print the keys of the stage of `--config`, or of all stages; return 0.

    Args:
        arguments: options of `add_settings_options`.
        stages: stages that the command knows.

    Raises:
        UsageError: the settings do not fit, or a package is not installed.
    """
    try:
        from setokim.training.settings import (
            CodesSettings,
            InstructSettings,
            Stage1Settings,
            load_settings,
        )
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    kinds: dict[str, tuple[type, Any]] = {}
    if arguments.config is not None:
        try:
            settings = load_settings(arguments.config, overrides_of(arguments))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        kinds[f"stage {settings.stage}"] = (type(settings), settings)
    else:
        if 1 in stages:
            kinds["stage 1"] = (Stage1Settings, None)
            kinds["stage codes"] = (CodesSettings, None)
        kinds["stages 2 and 3"] = (InstructSettings, None)
    for number, (title, (kind, settings)) in enumerate(kinds.items()):
        print(f"{chr(10) if number else ''}Keys of {title}:")
        for line in describe_keys(kind, settings):
            print(line)
    return 0


def describe_keys(kind: type, values: Any = None) -> Iterator[str]:
    """Yield lines about every key of a class of settings: type, default and meaning.

    Args:
        kind: dataclass of settings.
        values: settings whose values are shown where they are not the default; None for none.
    """
    import dataclasses

    for field in dataclasses.fields(kind):
        value = None if values is None else getattr(values, field.name)
        yield from _describe_field(kind, field.name, _default(field), value, "")
        if field.name == "model":
            yield from _describe_model(kind, value)


def _describe_field(kind: type, name: str, default: Any, value: Any, prefix: str) -> Iterator[str]:
    """Yield lines about a key, and about the keys of the group that it may be."""
    import dataclasses
    import typing

    hint = typing.get_type_hints(kind)[name]
    group = next((one for one in _options(hint) if dataclasses.is_dataclass(one)), None)
    shown = None if group is not None and default is not None else (default, value)
    yield from _describe(f"{prefix}{name}", hint, shown, _descriptions(kind)[name])
    if group is None:
        return
    for field in dataclasses.fields(group):
        own = _default(field) if default is None else getattr(default, field.name)
        given = None if value is None else getattr(value, field.name)
        yield from _describe_field(group, field.name, own, given, f"{prefix}{name}.")


def _describe_model(kind: type, values: dict[str, Any] | None) -> Iterator[str]:
    """Yield lines about the fields of the model's configuration that settings may have."""
    import inspect
    import typing

    from setokim.tokenizer.configuration_setok import SetokConfig
    from setokim.training.settings import Stage1Settings
    from setokim.vlm.configuration_setokim import SetokimConfig

    config = SetokConfig if kind is Stage1Settings else SetokimConfig
    hints, texts = typing.get_type_hints(config.__init__), _descriptions(config)
    for name, parameter in inspect.signature(config).parameters.items():
        # The models that a run starts from, and their processor, set these; `lora` is a key itself.
        if name in ("kwargs", "setok", "llm", "lora") or name.endswith("_id"):
            continue
        value = None if values is None else values.get(name, parameter.default)
        yield from _describe(f"model.{name}", hints[name], (parameter.default, value), texts[name])


def _describe(
    name: str, hint: Any, default_and_value: tuple[Any, Any] | None, text: str
) -> Iterator[str]:
    """Yield the lines of one key; a value that is None or the default is not shown."""
    import textwrap

    line = f"  {name}: {_type_name(hint)}"
    if default_and_value is not None:
        default, value = default_and_value
        line += f" = {_show(default)}"
        if value is not None and value != default:
            line += f"  (here {_show(value)})"
    yield line
    indent = " " * 6
    yield from textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _descriptions(kind: type) -> dict[str, str]:
    """Return the text of each attribute, from the docstrings of a class and its bases."""
    import inspect

    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(vars(part).get("__doc__") or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \S)", "\n" + section.split("\n\n")[0]):
            name, colon, text = entry.strip().partition(": ")
            if colon:
                found[name] = " ".join(text.split())
    return found


def _default(field: Any) -> Any:
    import dataclasses

    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _options(hint: Any) -> tuple[Any, ...]:
    import types
    import typing

    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _type_name(hint: Any) -> str:
    import dataclasses
    import typing

    names = []
    for one in _options(hint):
        if one is type(None):
            names.append("null")
        elif dataclasses.is_dataclass(one):
            names.append("group")
        elif isinstance(one, type) and not typing.get_args(one):
            names.append(one.__name__)
        else:
            names.append(str(one).replace("typing.", ""))
    return " or ".join(names)


def _show(value: Any) -> str:
    """Return a value as YAML has it."""
    import json

    from setokim.utils.parsing import to_plain

    return json.dumps(to_plain(value))
