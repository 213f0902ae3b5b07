"""Loads the settings of a training run from a YAML file and `key=value` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from setokim.training.base_settings import (
    DataSettings,
    EverySettings,
    OptimizerSettings,
    Settings,
)
from setokim.training.codes.settings import CodesSettings
from setokim.training.stage1.losses import LossSettings
from setokim.training.stage1.settings import Stage1Settings
from setokim.training.stage2.settings import InstructSettings
from setokim.utils.parsing import from_plain, import_modules, read_yaml

__all__ = [
    "CodesSettings",
    "DataSettings",
    "EverySettings",
    "InstructSettings",
    "LossSettings",
    "OptimizerSettings",
    "Settings",
    "Stage1Settings",
    "load_settings",
]


_KINDS: dict[int | str, type[Settings]] = {
    1: Stage1Settings,
    "codes": CodesSettings,
    2: InstructSettings,
    3: InstructSettings,
}


def load_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Load the settings of a run from a YAML file.

    Args:
        path: path of the file.
        overrides: assignments "key=value", with dots for nested keys; values are YAML.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not YAML, the stage has no such key, or a value is not valid.
    """
    values = read_yaml(path, overrides)
    import_modules(values.get("imports", []), path.parent)
    stage = values.get("stage", 1)
    if not isinstance(stage, int | str) or stage not in _KINDS:
        raise ValueError(f"stage: expected 1, codes, 2 or 3, got {stage!r}")
    return from_plain(_KINDS[stage], values)
