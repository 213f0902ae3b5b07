"""Models from folders, whole: what transformers would fill up with random weights is refused."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel


def load_whole(
    kind: type, folder: str | Path, unused: Sequence[str] = (), **options: Any
) -> PreTrainedModel:
    """Read a model all of whose weights are in a folder.

    Args:
        kind: class of transformers, or of ours, that has `from_pretrained`.
        folder: what `save_pretrained` wrote; never a name on the hub.
        unused: names of modules whose weights may be missing, as nobody asks for their output.
        **options: further arguments of `from_pretrained`.

    Raises:
        OSError: a file is not there.
        ValueError: there is no such folder, or its weights are damaged, of another shape, or not
            all there.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"expected the folder of a model with a config.json, got {folder}")
    try:
        model, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            # They are refused below, by name.
            ignore_mismatched_sizes=True,
            **options,
        )
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"expected whole weights, got a damaged file: {error}") from error
    for name, found in {"lacks": "missing_keys", "has others of": "mismatched_keys"}.items():
        # A mismatch comes with its shapes.
        keys = (key if isinstance(key, str) else key[0] for key in info[found])
        wanted = sorted(key for key in keys if not set(unused) & set(key.split(".")))
        if wanted:
            raise ValueError(
                f"expected all weights that config.json speaks of, but the folder {name} "
                f"{len(wanted)}, such as {wanted[0]}"
            )
    return model
