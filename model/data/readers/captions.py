"""Captioned images: COCO, Flickr30K and LAION-aesthetics in their published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setokim.data.conversations import Conversation, message
from setokim.data.file_dataset import FileDataset
from setokim.data.readers.files import (
    by_key,
    check_root,
    decode_image,
    field_of,
    file_in,
    find_file,
    read_image,
)
from setokim.data.records import DOWNLOADED, JsonList, ParquetRows
from setokim.data.samples import (
    BrokenSampleError,
    Dataset,
    Sample,
    check_index,
    split_concepts,
)

_PROMPT = "describe the picture."
# Tasks of each value of `Pairs.pairs`.
_PAIRS = {"caption": ("caption",), "generate": ("generate",), "both": ("caption", "generate")}
# Files of A. Karpathy and L. Fei-Fei, "Deep visual-semantic alignments for generating image
# descriptions", 2015.
_KARPATHY = {"flickr30k": "dataset_flickr30k.json", "coco": "dataset_coco.json"}
# Samples that are tried for a readable one.
_LOOKED_AT = 100


class CocoCaptions(FileDataset):
    """COCO: an image with all its captions.

    The assistant's answer is the first caption. `facts`: "image_id", "answers" (all captions). With
    `draw` the prompt is the first caption, and the answer is the image. `facts`: "image_id",
    "caption".

    Args:
        root: folder with annotations/captions_SPLIT.json and the folder SPLIT of images.
        split: name of the split, such as "val2017" or "train2014".
        draw: generation of the image from the caption, instead of captioning.

    Raises:
        OSError, ValueError: a file is missing or holds something else.
    """

    def __init__(self, root: str | Path, split: str = "val2017", draw: bool = False):
        self._root, self._split, self._draw = check_root(root), split, draw
        path = find_file(self._root, f"annotations/captions_{split}.json")
        self._images = JsonList(path, "images")
        self._captions = by_key(JsonList(path, "annotations"), "image_id")

    def __len__(self) -> int:
        return len(self._images)

    def _source(self, index: int) -> str:
        return self._images.source(index)

    def _read(self, index: int, source: str) -> Conversation:
        record = self._images[index]
        number = field_of(record, "id", int, source)
        name = field_of(record, "file_name", str, source)
        image = read_image(file_in(self._root, f"{self._split}/{name}", source), source)
        texts = (one.get("caption") for one in self._captions.get(number, []))
        captions = [text.strip() for text in texts if isinstance(text, str)]
        facts = {"image_id": number}
        if self._draw:
            return _generation(image, captions, source, facts)
        return captioning(image, captions, source, facts)


class KarpathyCaptions(FileDataset):
    """Flickr30K and COCO in Karpathy's splits: an image and usually five captions.

    `facts`: "image_id" (COCO's number, or the file's name of Flickr30K), "answers".

    Args:
        root: folder with dataset_flickr30k.json and the folder flickr30k-images, or with
            dataset_coco.json and the folders train2014 and val2014.
        name: "flickr30k" or "coco".
        split: "train", "val" or "test"; also "restval" of COCO, which is usually trained on too.

    Raises:
        OSError, ValueError: a file is missing or holds something else, or the split is empty.
    """

    def __init__(self, root: str | Path, name: str, split: str = "test"):
        if name not in _KARPATHY:
            raise ValueError(f"name: expected one of {', '.join(_KARPATHY)}, got {name!r}")
        self._root, self._name = check_root(root), name
        self._records = JsonList(find_file(self._root, _KARPATHY[name]), "images")
        self._chosen = [
            index
            for index in range(len(self._records))
            if isinstance(self._records[index], dict) and self._records[index].get("split") == split
        ]
        if not self._chosen:
            raise ValueError(f"split: expected one of the file's, got {split!r}")

    def __len__(self) -> int:
        return len(self._chosen)

    def _source(self, index: int) -> str:
        return self._records.source(self._chosen[index])

    def _read(self, index: int, source: str) -> Conversation:
        record = self._records[self._chosen[index]]
        number = name = field_of(record, "filename", str, source)
        folder = "flickr30k-images"
        if self._name == "coco":
            folder = field_of(record, "filepath", str, source)
            number = field_of(record, "cocoid", int, source)
        sentences = field_of(record, "sentences", list, source)
        captions = [field_of(one, "raw", str, source).strip() for one in sentences]
        image = read_image(file_in(self._root, f"{folder}/{name}", source), source)
        return captioning(image, captions, source, {"image_id": number})


class CaptionedParquet(FileDataset):
    """LAION-aesthetics with its images in parquet files, as downloaders write them.

    Rows whose column "status" is not "success", img2dataset's mark of failed downloads, are left
    out. A null caption becomes empty. For tar archives see `setokim.data.Shards`.

    Args:
        root: folder with *.parquet.
        image: column of the images, bytes or {"bytes", "path"}.
        caption: column of the texts.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the folder does not exist or has no such file.
    """

    def __init__(self, root: str | Path, image: str = "jpg", caption: str = "caption"):
        paths = sorted(check_root(root).rglob("*.parquet"))
        if not paths:
            raise ValueError(f"root: expected *.parquet in {root}, got none")
        self._records = ParquetRows(paths, where=DOWNLOADED)
        self._image, self._caption = image, caption

    def __len__(self) -> int:
        return len(self._records)

    def _source(self, index: int) -> str:
        return self._records.source(index)

    def _read(self, index: int, source: str) -> Sample:
        record = self._records[index]
        caption = _caption(record, self._caption, source)
        image = decode_image(record.get(self._image), source, self._image)
        return Sample(image, caption, split_concepts(caption), None, source)


def _caption(record: dict[str, Any], name: str, source: str) -> str:
    if name in record and record[name] is None:
        return ""
    return field_of(record, name, str, source).strip()


def _generation(image, captions: list[str], source: str, facts: dict[str, Any]) -> Conversation:
    _check_captions(captions, source)
    turns = message("user", f"draw {captions[0]}"), message("assistant", image)
    return Conversation("generate", turns, (), source, facts | {"caption": captions[0]})


def _check_captions(captions: list[str], source: str) -> None:
    if not captions:
        raise BrokenSampleError(source, "it has no caption")


def captioning(image, captions: list[str], source: str, facts: dict[str, Any]) -> Conversation:
    """Return the conversation about a captioned image, with all captions as "answers".

    Raises:
        BrokenSampleError: there is no caption.
    """
    _check_captions(captions, source)
    turns = message("user", image, _PROMPT), message("assistant", captions[0])
    return Conversation("caption", turns, (), source, facts | {"answers": captions})


class Pairs:
    """Conversations about the captioned images of another data set, for stages 2 and 3.

    A "caption" task asks for the text of an image, a "generate" task for the image of a text, both
    in the words of `CocoCaptions`, whose `facts` they have without "image_id". Samples without a
    caption are broken.

    Args:
        dataset: images with captions, at least one sample.
        pairs: "caption", "generate", or "both", which gives two conversations a sample.

    Raises:
        ValueError: `pairs` is unknown, or `dataset` has conversations already.
    """

    def __init__(self, dataset: Dataset, pairs: str):
        if pairs not in _PAIRS:
            raise ValueError(f"pairs: expected one of {', '.join(_PAIRS)}, got {pairs!r}")
        self._dataset, self._tasks = dataset, _PAIRS[pairs]
        self._check_samples(pairs)

    @property
    def datasets(self) -> tuple[Dataset]:
        """Data set inside, for `contents_of`."""
        return (self._dataset,)

    def __len__(self) -> int:
        return len(self._dataset) * len(self._tasks)

    def __getitem__(self, index: int) -> Conversation:
        check_index(index, len(self))
        number, turn = divmod(index, len(self._tasks))
        sample = self._dataset[number]
        make = captioning if self._tasks[turn] == "caption" else _generation
        return make(sample.image, [sample.caption] if sample.caption else [], sample.source, {})

    def _check_samples(self, pairs: str) -> None:
        # A wrong kind of samples would end the run at a step that reads one.
        for index in range(min(_LOOKED_AT, len(self._dataset))):
            try:
                sample = self._dataset[index]
            except BrokenSampleError:
                continue
            if not isinstance(sample, Sample):
                expected = f"None for a data set of {type(sample).__name__}"
                raise ValueError(f"pairs: expected {expected}, got {pairs!r}")
            return
