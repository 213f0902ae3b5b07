"""Builds the stage of a run from its settings."""

from __future__ import annotations

from setokim.data.tokens.contents import Contents
from setokim.training.base_settings import Settings
from setokim.training.stage import Stage


def build_stage(
    settings: Settings, data: Contents | None = None, held_out: Contents | None = None
) -> Stage:
    """Build the stage of a run, with weights sampled from torch's global generator.

    Args:
        settings: settings of the run.
        data: contents of the training data; None for images.
        held_out: contents of the held-out data; None for images.

    Raises:
        TypeError, ValueError: a setting is not valid, or the stage cannot use the data.
    """
    data, held_out = data or Contents(), held_out or Contents()
    # Imported here: each stage needs packages that the other does not.
    if settings.stage in (1, "codes"):
        _refuse_tokens(settings, data, held_out)
    if settings.stage == 1:
        from setokim.training.stage1.stage import Stage1

        return Stage1(settings)
    if settings.stage == "codes":
        from setokim.training.codes.stage import Codes

        return Codes(settings)
    from setokim.training.stage2.stage import Instruct

    return Instruct(settings, data, held_out)


def _refuse_tokens(settings: Settings, data: Contents, held_out: Contents) -> None:
    for name, contents in (("data", data), ("held_out", held_out)):
        if contents.stored:
            raise ValueError(
                f"{name}: expected images for stage {settings.stage}, which reconstructs them, "
                "got stored tokens"
            )
