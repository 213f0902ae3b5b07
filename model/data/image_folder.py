"""Folder of images, with or without caption files beside them."""

from __future__ import annotations

from pathlib import Path

from setokim.data.file_dataset import FileDataset
from setokim.data.image_processing import UnreadableImageError, find_images, load_image
from setokim.data.samples import BrokenSampleError, Sample, split_concepts


class ImageFolder(FileDataset):
    """All images of a folder and its subfolders, in sorted order.

    The caption of `NAME.jpg` is the text of `NAME.txt` in the same folder, in UTF-8; without that
    file it is empty. Concepts are cut out of the caption by `split_concepts`.
    """

    def __init__(self, root: str | Path, captions: bool = True):
        """List the files without opening any.

        Args:
            root: folder of the images.
            captions: use of the caption files; False leaves all captions empty.

        Raises:
            ValueError: the folder does not exist or has no image.
        """
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(f"root: expected a folder, got {str(root)!r}")
        self._files = find_images([self.root], recursive=True)
        if not self._files:
            raise ValueError(f"root: expected a folder with images, got none in {str(root)!r}")
        self._captions = captions

    def __len__(self) -> int:
        return len(self._files)

    def _source(self, index: int) -> str:
        return str(self._files[index])

    def _read(self, index: int, source: str) -> Sample:
        return read_captioned(self._files[index], self._captions)


def read_captioned(file: Path, captions: bool = True) -> Sample:
    """Read an image file with the caption in the text file beside it.

    Args:
        file: image file.
        captions: use of the text file; False leaves the caption empty.

    Raises:
        BrokenSampleError: one of the files cannot be read.
    """
    try:
        image = load_image(file)
    except UnreadableImageError as error:
        reason = str(error).removeprefix(f"cannot read {file}: ")
        raise BrokenSampleError(str(file), reason) from error
    caption = _caption(file) if captions else ""
    return Sample(image, caption, split_concepts(caption), None, str(file))


def _caption(file: Path) -> str:
    text = file.with_suffix(".txt")
    try:
        return text.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenSampleError(str(file), f"cannot read {text.name}: {error}") from error
