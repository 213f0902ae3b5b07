"""The parts of a source: what a name on the command line stands for, cut into shards."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from setok_kernels.extras import from_extra
from setokim.corpus.entries import (
    ArchivePart,
    DatasetPart,
    FilesPart,
    HubPart,
    ParquetPart,
    Part,
    load_hub,
)
from setokim.corpus.settings import SourceSettings
from setokim.data import ENDLESS
from setokim.data.archives import expand, open_seekable
from setokim.data.image_processing import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES
from setokim.data.settings import DataSettings
from setokim.utils.files import UNFINISHED
from setokim.utils.parsing import from_plain, import_modules, read_yaml

HUB = "hub:"
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PARQUET = ".parquet"
_YAML = (".yaml", ".yml")
# Images that cannot be read here count as broken.
_IMAGE_ENDINGS = tuple(IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES)
# Files that `save_to_disk` of the package datasets writes.
_SAVED = ("state.json", "dataset_dict.json")
# Columns in the order in which they are looked for.
_IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture")
_CAPTIONS = ("caption", "text", "TEXT", "txt", "captions")
_KEYS = ("key", "__key__")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Parts of all sources, in order.

    Attributes:
        parts: parts; part i becomes shard i.
        conversations: flag of samples that are conversations.
    """

    parts: tuple[Part, ...]
    conversations: bool

    def checksum(self) -> str:
        """Return the SHA-256 of the descriptions of all parts."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(part.describe().encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()


def plan_parts(settings: SourceSettings) -> Plan:
    """Cut the sources into parts.

    Raises:
        ImportError: a source needs a package that is not installed.
        OSError: a file cannot be read.
        ValueError: a name stands for nothing, or options do not fit.
    """
    found: list[Part] = []
    for name in settings.names:
        found.extend(_parts(name, settings))
    if not found:
        raise ValueError(f"source: expected images, got none in {', '.join(settings.names)}")
    kinds = {isinstance(part, DatasetPart) and _is_conversations(part) for part in found}
    if len(kinds) > 1:
        raise ValueError("source: expected only conversations or only images, got both")
    if settings.samples is not None and not all(isinstance(part, DatasetPart) for part in found):
        raise ValueError("samples: expected None but for a YAML file of settings")
    return Plan(tuple(found), kinds == {True})


def _parts(name: str, settings: SourceSettings) -> Iterator[Part]:
    if name.startswith(HUB):
        return _hub_parts(name.removeprefix(HUB), settings)
    if os.path.isdir(name):
        return _folder_parts(name, settings)
    # A URL may have a query.
    plain = name.partition("?")[0].lower()
    if plain.endswith(_YAML):
        return _dataset_parts(Path(name), settings)
    if plain.endswith(_TARS):
        return map(ArchivePart, expand(name))
    if plain.endswith(_PARQUET):
        return (part for one in expand(name) for part in _parquet_parts(one, settings))
    if plain.endswith(_IMAGE_ENDINGS):
        return _file_parts(os.path.dirname(name), expand(name), settings)
    expected = "a folder, images, tar archives, parquet files, hub:NAME or a YAML file of settings"
    raise ValueError(f"source: expected {expected}, got {name!r}")


def _folder_parts(name: str, settings: SourceSettings) -> Iterator[Part]:
    if any(os.path.exists(os.path.join(name, one)) for one in _SAVED):
        yield from _hub_parts(name, settings)
        return
    listed = sorted(_walk(name))
    endings = {"tar archives": _TARS, "parquet files": (_PARQUET,), "images": _IMAGE_ENDINGS}
    found = {
        kind: [path for path in listed if path.lower().endswith(ends)]
        for kind, ends in endings.items()
    }
    present = [kind for kind, paths in found.items() if paths]
    if len(present) > 1:
        got = " and ".join(present)
        raise ValueError(f"source: expected files of one kind, got {got} in {name}")
    tars, tables, images = found.values()
    yield from map(ArchivePart, tars)
    for table in tables:
        yield from _parquet_parts(table, settings)
    yield from _file_parts(name, images, settings)


def _walk(folder: str) -> Iterator[str]:
    """Yield all names below a folder but those of unfinished files; broken links too."""
    for parent, _, names in os.walk(folder, onerror=_raise):
        yield from (os.path.join(parent, name) for name in names if not name.startswith(UNFINISHED))


def _raise(error: OSError) -> None:
    raise error


def _file_parts(root: str, files: Sequence[str], settings: SourceSettings) -> Iterator[Part]:
    for start, stop in _ranges(len(files), settings.shard_size):
        yield FilesPart(root, tuple(files[start:stop]))


def _parquet_parts(name: str, settings: SourceSettings) -> Iterator[Part]:
    with from_extra("tokenize"):
        import pyarrow.parquet
    with open_seekable(name) as stream:
        try:
            with pyarrow.parquet.ParquetFile(stream) as file:
                schema, metadata = file.schema_arrow, file.metadata
        except (pyarrow.ArrowException, ValueError) as error:
            raise ValueError(f"source: expected a parquet file, got {name}: {error}") from error
    columns = _image_columns(schema)
    image = _choose("image", settings.image, columns, _IMAGES, schema.names, name)
    caption = _optional("caption", settings.caption, _CAPTIONS, schema.names, name)
    key = next((one for one in _KEYS if one in schema.names), None)
    start = first = rows = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= settings.shard_size or group == metadata.num_row_groups - 1:
            yield ParquetPart(name, (start, group + 1), image, caption, key, first)
            start, first, rows = group + 1, first + rows, 0


def _hub_parts(name: str, settings: SourceSettings) -> Iterator[Part]:
    rows: Any = load_hub(name, settings.split)
    names = list(rows.features)
    with from_extra("datasets"):
        import datasets
    columns = [one for one in names if isinstance(rows.features[one], datasets.Image)]
    image = _choose("image", settings.image, columns, _IMAGES, names, name)
    caption = _optional("caption", settings.caption, _CAPTIONS, names, name)
    for span in _ranges(len(rows), settings.shard_size):
        yield HubPart(name, settings.split, span, image, caption)


def _dataset_parts(path: Path, settings: SourceSettings) -> Iterator[Part]:
    try:
        values = read_yaml(path)
    except FileNotFoundError as error:
        raise ValueError(f"source: expected a file, got {path}") from error
    imports = values.get("imports", [])
    import_modules(imports, path.parent)
    if "kind" not in values:
        if not isinstance(values.get(settings.section), dict):
            expected = f"kind, or the settings of a run with {settings.section}"
            raise ValueError(f"source: expected {expected}, got {path} with {sorted(values)}")
        values = values[settings.section]
    data: DataSettings = from_plain(
        DataSettings, {name: value for name, value in values.items() if name != "imports"}
    )
    if settings.samples is not None:
        limits = [one for one in (data.samples, settings.samples) if one is not None]
        data = dataclasses.replace(data, samples=min(limits))
    length = len(data.build())
    if length >= ENDLESS:
        raise ValueError("samples: expected a number for an endless data set, got None")
    found = tuple(imports), str(path.parent)
    for span in _ranges(length, settings.shard_size):
        yield DatasetPart(data, span, found)


def _is_conversations(part: DatasetPart) -> bool:
    from setokim.corpus.entries import first_readable
    from setokim.data import Conversation

    return isinstance(first_readable(part), Conversation)


def _ranges(length: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, size):
        yield start, min(start + size, length)


def _image_columns(schema: Any) -> list[str]:
    """Return the columns of bytes, or of {"bytes": bytes, …}."""
    import pyarrow.types as types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = []
    for field in schema:
        kind = field.type
        if types.is_struct(kind):
            inner = kind.get_field_index("bytes")
            if inner >= 0 and is_bytes(kind.field(inner).type):
                found.append(field.name)
        elif is_bytes(kind):
            found.append(field.name)
    return found


def _choose(
    option: str,
    given: str | None,
    fitting: Sequence[str],
    known: Sequence[str],
    names: Sequence[str],
    source: str,
) -> str:
    """Return the column of an option: the given one, the first known one, or the only one."""
    if given is not None:
        if given in fitting:
            return given
    else:
        chosen = [name for name in known if name in fitting] or list(fitting)
        if len(chosen) == 1 or (chosen and chosen[0] in known):
            return chosen[0]
    expected = f"a column of images, {', '.join(fitting) or 'of which there is none'}"
    got = f"{given!r} in {source} with {', '.join(names)}"
    raise ValueError(f"{option}_column: expected {expected}, got {got}")


def _optional(
    option: str, given: str | None, known: Sequence[str], names: Sequence[str], source: str
) -> str | None:
    if given is not None and given not in names:
        expected = f"one of {', '.join(names)} of {source}"
        raise ValueError(f"{option}_column: expected {expected}, got {given!r}")
    return given or next((name for name in known if name in names), None)
