"""Fingerprint of a model's files and versions of packages, on which its answers depend."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import transformers

from setok_kernels import __version__

# Files from which a model, its processor and its tokenizer are loaded.
_LOADED = (
    *("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json"),
    *("*config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges.txt", "chat_template*", "*.model"),
)
_PIECE = 1 << 20


def fingerprint(folder: str | Path) -> str:
    """Compute the SHA-256 of all files from which a model is loaded, names included.

    All bytes are read, as by loading: further training changes any of the weights, but neither size
    nor time of a file is reliable.

    Args:
        folder: folder of the model.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: a file cannot be read.
    """
    names = {path for pattern in _LOADED for path in Path(folder).glob(pattern) if path.is_file()}
    whole = hashlib.sha256()
    for path in sorted(names):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        whole.update(f"{digest.hexdigest()} {path.name}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that run the model."""
    return {
        "setok_kernels": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
