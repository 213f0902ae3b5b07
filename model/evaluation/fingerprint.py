"""What answers depend on beside the questions: a model's files, and the versions that read them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import transformers

from setok_kernels import __version__

# Whatever a model, its processor and its tokenizer are loaded from.
_LOADED = (
    *("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json"),
    *("*config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges.txt", "chat_template*", "*.model"),
)
_PIECE = 1 << 20


def fingerprint(folder: str | Path) -> str:
    """SHA-256 of all files in a folder that a model is loaded from, names included.

    All bytes are read, as loading reads them too: weights that were trained further differ
    anywhere, and neither size nor time of a file tells.

    Args:
        folder: of the model.

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
    """Versions of the packages that make answers of weights."""
    return {
        "setok_kernels": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
