"""Checks that a run of stage 2 or 3 can use the stored tokens of its data."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from setokim.data.tokens.contents import Contents, StoredData
from setokim.tokenizer.identity import PARTS, differing_parts, folder_identity, saved_config
from setokim.training.stage2.settings import InstructSettings
from setokim.utils.saved_tensors import SavedTensors

# What each loss reads of images beside their tokens.
_NEEDS = {"names": ("masks",), "mask": ("masks", "features")}


def check_stored_data(
    settings: InstructSettings, data: Contents, held_out: Contents
) -> dict[str, str]:
    """Raise an error unless a run can use the stored tokens of its data.

    Args:
        settings: settings of the run.
        data: contents of the training data.
        held_out: contents of the held-out data.

    Returns:
        Fingerprint of each part of the run's tokenizer; empty without stored tokens.

    Raises:
        ValueError: the tokens are of another tokenizer than the run's, or a loss or a part to train
            needs what is not stored.
    """
    stored = {"data": data.stored, "held_out": held_out.stored}
    if not any(stored.values()):
        return {}
    for name, sets in stored.items():
        for one in sets:
            if not {"tokens", "features"} & set(one.what):
                expected = "stored tokens or features"
                raise ValueError(f"{name}: expected {expected}, got {', '.join(one.what)} alone")
    trains = "tokenizer" in settings.train
    if trains:
        _check_trained_tokenizer(settings, stored)
    elif settings.parallel == "fsdp":
        _check_sharding(data)
    _check_losses(settings, data, trains)
    origin = tokenizer_folder(settings)
    expected = folder_identity(origin)
    for name, sets in stored.items():
        for one in sets:
            parts = PARTS if reads_tokens(one, trains) else PARTS[:1]
            differing = differing_parts(expected, one.model["fingerprint"], parts)
            if differing:
                verb = "differs" if len(differing) == 1 else "differ"
                raise ValueError(
                    f"{name}: expected tokens of the tokenizer in {origin}, got those of another "
                    f"({' and '.join(differing)} {verb})"
                )
    return expected


def tokenizer_folder(settings: InstructSettings) -> Path:
    """Return the folder of the run's visual tokenizer."""
    return Path(settings.setok if settings.start is None else settings.start)  # type: ignore[arg-type]


def stored_encoder(folder: Path, fingerprint: str) -> dict[str, Tensor]:
    """Read the weights of the vision encoder in a folder, by their names in a `SetokimModel`.

    Args:
        folder: folder of a `SetokModel` or `SetokimModel`.
        fingerprint: fingerprint of the encoder at the start of the run.

    Raises:
        OSError, ValueError: the folder is missing or damaged, or has another encoder by now.
    """
    found = folder_identity(folder)["encoder"]
    if found != fingerprint:
        expected = f"the vision encoder in {folder} as it was when the run began"
        raise ValueError(f"export: expected {expected}, got another")
    _, prefix = saved_config(folder)
    weights = SavedTensors(folder).under(f"{prefix}encoder.")
    return {f"setok.encoder.{name}": value for name, value in weights.items()}


def reads_tokens(stored: StoredData, trains: bool) -> bool:
    """Return whether a run uses the stored tokens of a data set, not only their features."""
    return "tokens" in stored.what and not trains


def _check_trained_tokenizer(
    settings: InstructSettings, stored: dict[str, tuple[StoredData, ...]]
) -> None:
    for name, sets in stored.items():
        if not all("features" in one.what for one in sets):
            expected = f"no tokenizer with {name} of stored tokens without features"
            raise ValueError(f"train: expected {expected}, got {list(settings.train)}")
    config, _ = saved_config(tokenizer_folder(settings))
    if config.encoder_trainable:
        raise ValueError(
            "train: expected no tokenizer with a trainable encoder, which stored features leave "
            f"out, got {list(settings.train)}"
        )


def _check_sharding(data: Contents) -> None:
    ways = {reads_tokens(one, trains=False) for one in data.stored}
    if data.images or len(ways) > 1:
        # A process whose batch has stored tokens alone would not join the others' gathering.
        expected = "ddp for data of both stored tokens and images or features to tokenize"
        raise ValueError(f"parallel: expected {expected}, got fsdp")


def _check_losses(settings: InstructSettings, data: Contents, trains: bool) -> None:
    losses = settings.losses
    if losses.reconstruction and data.stored:
        raise ValueError(
            "losses.reconstruction: expected 0 for data of stored tokens, which have no pixels, "
            f"got {losses.reconstruction}"
        )
    for name, needed in _NEEDS.items():
        weight = getattr(losses, name)
        for one in data.stored if weight else ():
            lacking = [field for field in needed if field not in one.what]
            if lacking and reads_tokens(one, trains):
                expected = f"0 for data of stored tokens without {' and '.join(lacking)}"
                raise ValueError(f"losses.{name}: expected {expected}, got {weight}")
