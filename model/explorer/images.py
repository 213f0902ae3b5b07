"""Images of the explorer by key: those of the command line, photographs, and uploads."""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from setokim.data.image_processing import NamedBytes, UnreadableImageError, load_image
from setokim.data.photographs import PHOTOGRAPHS, photograph
from setokim.utils.file_names import printable_name

# A photograph of 64 megapixels takes two seconds and 200 MB; no encoder reads as many.
MAX_PIXELS = 64_000_000
MAX_UPLOAD = 64 * 2**20
_MAX_ALL_UPLOADS = 512 * 2**20
_UPLOAD = "upload-"
_FILTERS = threading.Lock()


class Images:
    """Images by key. Uploads are kept while the process runs, the last 512 MB of them.

    An upload's key is a checksum of its content, so that only who has the image or a link to it
    can ask for it.

    Args:
        files: image files to begin with.
        photographs: flag: the photographs of scikit-image follow.
    """

    def __init__(self, files: Sequence[Path] = (), photographs: bool = True):
        self._files: dict[str, Path] = {}
        for file in files:
            self._files[_free_key(printable_name(file.name), self._files)] = file
        self._photographs = [n for n in PHOTOGRAPHS if photographs and n not in self._files]
        self._uploads: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def at_hand(self) -> list[str]:
        """Keys of all images but uploads; the first is shown at the start."""
        return [*self._files, *self._photographs]

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._files or key in self._photographs or key in self._uploads

    def add(self, path: str | Path, name: str) -> str:
        """Take in an uploaded file.

        Args:
            path: file of the upload.
            name: name of the file on the user's machine.

        Returns:
            The key of the image.

        Raises:
            UnreadableImageError: it is no image, or too large.
        """
        path = Path(path)
        if path.stat().st_size > MAX_UPLOAD:
            raise UnreadableImageError(
                f"image: expected a file of at most {MAX_UPLOAD >> 20} MB, got {name} of "
                f"{path.stat().st_size / 2**20:.0f} MB"
            )
        content = path.read_bytes()
        _load(NamedBytes(content, name))
        key = _UPLOAD + hashlib.sha256(content).hexdigest()[:32]
        with self._lock:
            self._uploads[key] = (name, content)
            self._uploads.move_to_end(key)
            while sum(len(kept) for _, kept in self._uploads.values()) > _MAX_ALL_UPLOADS:
                self._uploads.popitem(last=False)
        return key

    def name(self, key: str) -> str:
        """Return the name of an image's file, or the key of a photograph."""
        with self._lock:
            return self._uploads[key][0] if key in self._uploads else key

    def is_photograph(self, key: str) -> bool:
        """Return whether this is a photograph of scikit-image."""
        return key in self._photographs

    def path(self, key: str) -> Path | None:
        """Return the file of an image of the command line; None for the others."""
        return self._files.get(key)

    def load(self, key: str) -> Image.Image:
        """Return an image, RGB and upright.

        Raises:
            UnreadableImageError: there is no image of this key, or it cannot be read.
        """
        if key in self._files:
            return _load(self._files[key])
        if key in self._photographs:
            return photograph(key).convert("RGB")
        with self._lock:
            upload = self._uploads.get(key)
        if upload is None:
            raise UnreadableImageError(missing(key))
        return _load(NamedBytes(upload[1], upload[0]))


def missing(key: str) -> str:
    """Return the message about a key that belongs to no image."""
    got = "an upload that is not there any more" if key.startswith(_UPLOAD) else repr(key[:80])
    return f"image: expected one that this explorer has, got {got}"


def _load(source: Path | io.BytesIO) -> Image.Image:
    # Pillow's own warning begins above our limit. Filters are those of the process.
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return load_image(source, max_pixels=MAX_PIXELS)


def _free_key(name: str, taken: dict[str, Path]) -> str:
    number, key = 1, name
    while key in taken:
        number += 1
        key = f"{name} ({number})"
    return key
