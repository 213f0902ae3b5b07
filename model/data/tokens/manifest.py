"""Manifest of a folder of stored tokens: what it holds, and its finished shards with checksums.

- `manifest.json`: settings, tokenizer and plan of the run, written before the first shard.
- `shards.jsonl`: a line for each finished shard, appended once its files are whole; sorted when the
  last one is there.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from setokim.data.records import parse_json, read_json
from setokim.data.tokens.layout import Layout
from setokim.utils.files import sync, write_file
from setokim.utils.parsing import from_plain, to_plain

MANIFEST = "manifest.json"
SHARDS = "shards.jsonl"
FORMATS = ("parquet", "webdataset")
_VERSION = 1


class TokenFolderError(ValueError):
    """Error for a folder whose tokens cannot be used; the message names the file and the fault."""


@dataclass(frozen=True)
class Manifest:
    """Properties of all shards of a folder. Bytes of a shard depend on these and its source alone.

    Attributes:
        settings: settings of the run, plain values.
        tokenizer: `fingerprint` of the tokenizer's parts by name, `rows`, the max number of tokens
            of an image, `token_dim` and `feature_dim`.
        layout: what is stored of each image.
        format: "parquet" or "webdataset".
        conversations: flag of samples that are conversations, not captioned images.
        parts: number of shards of the whole folder.
        plan: checksum of the source's parts.
        versions: versions of the packages.
        origin: source and tokenizer as the command named them, for the record.
        version: version of the format.

    Raises:
        ValueError: the format or its version is unknown.
    """

    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    layout: Layout
    format: str
    conversations: bool
    parts: int
    plan: str
    versions: dict[str, Any]
    origin: dict[str, Any] = field(default_factory=dict)
    version: int = _VERSION

    def __post_init__(self):
        if self.version != _VERSION:
            raise ValueError(f"version: expected {_VERSION}, got {self.version}")
        if self.format not in FORMATS:
            raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}")


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        part: number of the part of the source, from 0.
        files: name, bytes and SHA-256 of each file.
        samples: number of captioned images or conversations.
        images: number of stored images.
        tokens: number of stored tokens.
        broken: key and reason of each sample that could not be read.
    """

    part: int
    files: tuple[tuple[str, int, str], ...]
    samples: int
    images: int
    tokens: int
    broken: tuple[tuple[str, str], ...] = ()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        TokenFolderError: there is none, or it is damaged.
    """
    try:
        values = read_json(folder / MANIFEST)
        found: Manifest = from_plain(Manifest, values)
    except FileNotFoundError as error:
        expected = f"a folder that `setok tokenize` wrote, with {MANIFEST}"
        raise TokenFolderError(f"path: expected {expected}, got {folder}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise TokenFolderError(f"{folder / MANIFEST}: {error}") from error
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder in one step.

    Raises:
        OSError: the folder cannot be written.
    """
    write_file(folder / MANIFEST, json.dumps(to_plain(manifest), indent=2) + "\n")


def differences(old: Manifest, new: Manifest) -> list[str]:
    """Return dotted names of all values in which two manifests differ, but for their origins."""
    old, new = (dataclasses.replace(one, origin={}) for one in (old, new))
    return list(_differences(to_plain(old), to_plain(new), ""))


def read_shards(folder: Path, parts: int, repair: bool = False) -> dict[int, Shard]:
    """Read the finished shards of a folder.

    Args:
        folder: folder of the tokens.
        parts: number of shards of the whole folder.
        repair: removal of a last line that a killed writer left unfinished; without it such a line
            is skipped.

    Returns:
        Shards by their part.

    Raises:
        TokenFolderError: a line is damaged.
    """
    path = folder / SHARDS
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        os.truncate(path, len(whole))
        sync(path)
    found: dict[int, Shard] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            shard: Shard = from_plain(Shard, parse_json(line.decode("utf-8")))
            if not 0 <= shard.part < parts or shard.part in found:
                raise ValueError(f"part: expected each of 0 to {parts - 1} once, got {shard.part}")
        except (ValueError, TypeError) as error:
            raise TokenFolderError(f"{path}:{number}: {error}") from error
        found[shard.part] = shard
    return found


def append_shard(folder: Path, shard: Shard) -> None:
    """Append a finished shard; after the return it is on disk.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = folder / SHARDS
    is_new = not path.exists()
    with path.open("ab") as file:
        file.write(_line(shard))
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(folder)


def write_shards(folder: Path, shards: Iterable[Shard]) -> None:
    """Write the finished shards in the order of their parts, in one step.

    Raises:
        OSError: the folder cannot be written.
    """
    ordered = sorted(shards, key=lambda shard: shard.part)
    write_file(folder / SHARDS, b"".join(map(_line, ordered)))


def _line(shard: Shard) -> bytes:
    # Escapes of all else but ASCII: file names may hold bytes that are no UTF-8.
    return (json.dumps(dataclasses.asdict(shard)) + "\n").encode("ascii")


def _differences(old: Any, new: Any, where: str) -> Iterable[str]:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if old != new:
            yield where
        return
    for name in sorted(old.keys() | new.keys()):
        below = f"{where}.{name}" if where else name
        yield from _differences(old.get(name), new.get(name), below)
