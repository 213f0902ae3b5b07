"""Builds the stage that some settings are for."""

from __future__ import annotations

from setokim.training.base_settings import Settings
from setokim.training.stage import Stage


def build_stage(settings: Settings) -> Stage:
    """Build the stage of some settings, with weights from torch's random state.

    Raises:
        TypeError, ValueError: a setting does not fit.
    """
    # Each stage needs packages that the others do not need.
    if settings.stage == 1:
        from setokim.training.stage1.stage import Stage1

        return Stage1(settings)
    from setokim.training.stage2.stage import Instruct

    return Instruct(settings)
