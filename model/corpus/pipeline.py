"""The work on one part: decode, tokenize in batches of one size, and hand on rows in order."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from setokim.corpus.entries import Entry
from setokim.data import BrokenSampleError, Conversation, Sample
from setokim.data.conversations import images_of
from setokim.data.file_dataset import read_guarded
from setokim.data.stored_image import StoredImage
from setokim.data.tokens import conversations
from setokim.data.tokens.layout import TokenRow

STEPS = ("read", "decode", "encode", "write")


class ImageTokenizer(Protocol):
    """Visual tokenizer of a corpus."""

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn B RGB images into pixels (B, 3, height, width); several threads may do so."""

    def tokenize(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[StoredImage]:
        """Tokenize B images of some heights and widths."""


class UnreadableSourceError(Exception):
    """Error for a source that cannot be read on; the message is that of its cause."""


class Clock:
    """Seconds spent in each of `STEPS`; those of several threads add up."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEPS, 0.0)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[step] += time.perf_counter() - started


@dataclass(frozen=True, eq=False)
class Decoded:
    """A sample with the pixels of its images.

    Attributes:
        entry: entry of the sample.
        sample: sample, or the error of reading it.
        images: key, height and width, and pixels (1, 3, h, w) of each image.
    """

    entry: Entry
    sample: Sample | Conversation | BrokenSampleError
    images: tuple[tuple[str, tuple[int, int], Tensor], ...] = ()


class RowSink(Protocol):
    """Receiver of what becomes of a part."""

    def add_row(self, row: TokenRow) -> None:
        """Receive an image; images are numbered in this order."""

    def add_conversation(self, line: dict[str, Any]) -> None:
        """Receive a conversation; its images may follow."""

    def add_broken(self, key: str, reason: str) -> None:
        """Receive a sample that could not be read."""


def process(
    entries: Iterable[Entry],
    tokenizer: ImageTokenizer,
    batch_size: int,
    decoders: int,
    sink: RowSink,
    clock: Clock,
) -> None:
    """Tokenize the samples of a part.

    Equal samples and batch sizes give equal rows, however many threads decode: batches are filled
    in the order of the readable images. An image that occurs in several conversations of the part
    is stored once. Memory holds one batch and a few samples.

    Args:
        entries: samples in order.
        tokenizer: visual tokenizer.
        batch_size: number of images in a batch; the last one may be smaller.
        decoders: number of decoding threads; 0 decodes in this one.
        sink: receiver of the rows.
        clock: clock of the steps.

    Raises:
        UnreadableSourceError: the source cannot be read on.
    """
    waiting: list[tuple[str, str | None, tuple[int, int], Tensor]] = []
    numbers: dict[str, int] = {}
    total = 0

    def enqueue(key: str, caption: str | None, size: tuple[int, int], pixels: Tensor) -> int:
        nonlocal total
        waiting.append((key, caption, size, pixels))
        total += 1
        if len(waiting) == batch_size:
            flush()
        return total - 1

    def flush() -> None:
        if not waiting:
            return
        with clock("encode"):
            pixels = torch.cat([one[3] for one in waiting])
            stored = tokenizer.tokenize(pixels, [one[2] for one in waiting])
        with clock("write"):
            for (key, caption, _, _), image in zip(waiting, stored, strict=True):
                sink.add_row(TokenRow(key, caption, image))
        waiting.clear()

    for decoded in _decoded(_read(entries, clock), tokenizer, decoders, clock):
        sample = decoded.sample
        if isinstance(sample, BrokenSampleError):
            sink.add_broken(decoded.entry.key, sample.reason)
        elif isinstance(sample, Sample):
            [(_, size, pixels)] = decoded.images
            enqueue(decoded.entry.key, sample.caption or None, size, pixels)
        else:
            own = []
            for key, size, pixels in decoded.images:
                if key not in numbers:
                    numbers[key] = enqueue(key, None, size, pixels)
                own.append(numbers[key])
            sink.add_conversation(conversations.to_plain(sample, own))
    flush()


def _read(entries: Iterable[Entry], clock: Clock) -> Iterator[Entry]:
    iterator = iter(entries)
    while True:
        try:
            with clock("read"):
                entry = next(iterator, None)
        except (OSError, ValueError) as error:
            raise UnreadableSourceError(str(error)) from error
        if entry is None:
            return
        yield entry


def _decoded(
    entries: Iterator[Entry], tokenizer: ImageTokenizer, decoders: int, clock: Clock
) -> Iterator[Decoded]:
    """Yield the entries, decoded, in their order; threads work ahead by a few each."""
    if not decoders:
        for entry in entries:
            yield _decode(entry, tokenizer, clock)
        return
    ahead: collections.deque[concurrent.futures.Future[Decoded]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(decoders) as pool:
        try:
            for entry in entries:
                ahead.append(pool.submit(_decode, entry, tokenizer, clock))
                if len(ahead) > 4 * decoders:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _decode(entry: Entry, tokenizer: ImageTokenizer, clock: Clock) -> Decoded:
    with clock("decode"):
        try:
            sample = read_guarded(entry.load, entry.source)
        except BrokenSampleError as error:
            return Decoded(entry, error)
        if isinstance(sample, Sample):
            images = [(entry.key, sample.image)]
        else:
            images = [(_key(image), image) for image in images_of(sample)]
        return Decoded(
            entry,
            sample,
            tuple(
                (key, (image.height, image.width), tokenizer.preprocess([image]))
                for key, image in images
            ),
        )


def _key(image: Image.Image) -> str:
    """Return a key that equal images share."""
    size = f"{image.width} {image.height} ".encode()
    return hashlib.blake2b(size + image.tobytes(), digest_size=16).hexdigest()
