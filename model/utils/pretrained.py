"""Finding and loading of pretrained models, ours or Hugging Face's, without running their code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Folders of the embedded models, which come with the package, by name; the first is the default.
EMBEDDED = {"small-world": Path(__file__).parents[1] / "pretrained" / "small_world"}


def is_embedded(name: str | Path | None) -> bool:
    """Return whether `resolve_model` takes this for an embedded model.

    Args:
        name: folder, name, or None.
    """
    # A `Path` is never a name, and neither is "./small-world".
    return name is None or (isinstance(name, str) and name in EMBEDDED and not os.path.isdir(name))


def resolve_model(name: str | Path | None = None) -> Path:
    """Return the folder of a model.

    As on the Hugging Face hub, an existing folder comes before a model of the same name.

    Args:
        name: folder of a model, or name of an embedded one; None for the default embedded model.

    Raises:
        ValueError: there is neither such a folder nor such a name, or this installation lacks the
            embedded model.
    """
    if is_embedded(name):
        known = next(iter(EMBEDDED)) if name is None else str(name)
        folder = EMBEDDED[known]
        if not (folder / "config.json").is_file():
            raise ValueError(
                "model: expected the folder of a model, since this installation lacks the "
                f"embedded model {known} ({folder}), got {name}"
            )
        return folder
    folder = Path(name or "")
    if not name or not folder.is_dir():
        known = " or ".join(EMBEDDED)
        raise ValueError(
            f"model: expected a folder with a SeTokim model, or the name {known}, got {str(name)!r}"
        )
    return folder


def locate(name: str | Path | None) -> str | Path:
    """Return the folder of an embedded model, or any other folder or name unchanged.

    Args:
        name: folder, name, or None for the default embedded model.

    Raises:
        ValueError: this installation lacks the embedded model.
    """
    return resolve_model(name) if name is None or is_embedded(name) else name


def load_pretrained(
    kind: type, name: str | Path, trust_remote_code: bool = False, **options: Any
) -> Any:
    """Call `from_pretrained`, which then never prompts for permission to run foreign code.

    Args:
        kind: class of transformers, or one of ours with its `from_pretrained`.
        name: folder, or name on the Hugging Face hub.
        trust_remote_code: permission to run the model's own Python files (`auto_map`).
        options: further arguments of `from_pretrained`.

    Raises:
        ValueError: the model does not exist, is damaged, or needs Python files of its own.
        ImportError: a package is missing.
    """
    _require_folder_or_hub_name(name)
    try:
        return kind.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        # Damaged files make the readers of safetensors, pickle and JSON raise nearly anything.
        raise ValueError(_reason(error)) from error


def load_whole(kind: type, folder: str | Path, unused: Sequence[str] = (), **options: Any) -> Any:
    """Load a model whose weights are all in a folder, so that none stays random.

    Args:
        kind: class of transformers, or one of ours with its `from_pretrained`.
        folder: folder written by `save_pretrained`; never a name on the hub.
        unused: names of modules whose weights may be missing, since their output is not used.
        options: further arguments of `from_pretrained`.

    Raises:
        ValueError: the folder does not exist, or its weights are damaged, incomplete or of another
            shape.
        ImportError: a package is missing.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"expected the folder of a model with a config.json, got {folder}")
    # The loop below refuses weights of other shapes, by name.
    options |= {"local_files_only": True, "ignore_mismatched_sizes": True}
    model, info = load_pretrained(kind, folder, output_loading_info=True, **options)
    for name, found in {"lacks": "missing_keys", "has others of": "mismatched_keys"}.items():
        # A mismatched key is a tuple with its shapes.
        keys = (key if isinstance(key, str) else key[0] for key in info[found])
        wanted = sorted(key for key in keys if not set(unused) & set(key.split(".")))
        if wanted:
            raise ValueError(
                f"expected all weights of the model in config.json, but the folder {name} "
                f"{len(wanted)}, such as {wanted[0]}"
            )
    return model


def _require_folder_or_hub_name(name: str | Path) -> None:
    """Refuse a mistyped path, as opposed to a name on the hub, which may have one slash."""
    text = os.fspath(name)
    if os.path.isdir(text):
        return
    if os.path.exists(text):
        raise ValueError("expected a folder, got a file")
    first = text.replace(os.sep, "/").partition("/")[0]
    is_path = isinstance(name, Path) or text.startswith(("/", ".", "~")) or text.count("/") > 1
    if is_path or (os.sep != "/" and os.sep in text) or os.path.isdir(first):
        raise ValueError("there is no such folder")


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError
    from safetensors import SafetensorError

    message = " ".join(str(error).split())
    if isinstance(error, SafetensorError | pickle.UnpicklingError | EOFError):
        return f"expected whole weights, got a damaged file: {message}"
    if isinstance(error.__cause__, LocalEntryNotFoundError):
        return (
            "it is not in the local cache and the hub cannot be reached; nor is there a folder of "
            "that name"
        )
    if "trust_remote_code" in message:
        return (
            "it brings Python code of its own, which is run only where you allow it: "
            "trust_remote_code=True, on the command line --trust-remote-code, in settings "
            "trust_remote_code: true"
        )
    return message or type(error).__name__
