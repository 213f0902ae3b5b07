"""Builds the stage of a run from its settings."""

from __future__ import annotations

from setokim.training.base_settings import Settings
from setokim.training.stage import Stage


def build_stage(settings: Settings) -> Stage:
    """Build the stage of a run, with weights sampled from torch's global generator.

    Args:
        settings: settings of the run.

    Raises:
        TypeError, ValueError: a setting is not valid.
    """
    # Imported here: each stage needs packages that the other does not.
    if settings.stage == 1:
        from setokim.training.stage1.stage import Stage1

        return Stage1(settings)
    if settings.stage == "codes":
        from setokim.training.codes.stage import Codes

        return Codes(settings)
    from setokim.training.stage2.stage import Instruct

    return Instruct(settings)
