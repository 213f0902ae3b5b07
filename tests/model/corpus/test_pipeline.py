"""Work on one part: order, batches, broken samples, images that occur twice."""

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.stored import stored_image
from setokim.corpus.entries import LazyEntry
from setokim.corpus.pipeline import Clock, UnreadableSourceError, process
from setokim.data import BrokenSampleError, Conversation, Sample
from setokim.data.conversations import message


class FakeTokenizer:
    """Tokenizer that keeps its batches; an image's only pixel value says which image it is."""

    def __init__(self):
        self.batches = []

    def preprocess(self, images):
        return torch.stack(
            [torch.full((3, 1, 1), float(image.getpixel((0, 0))[0])) for image in images]
        )

    def tokenize(self, pixels, sizes):
        assert len(pixels) == len(sizes)
        self.batches.append([int(one.max()) for one in pixels])
        return [stored_image(int(one.max()), 3) for one in pixels]


class Sink:
    """Sink that keeps everything."""

    def __init__(self):
        self.rows, self.lines, self.broken = [], [], []

    def add_row(self, row):
        self.rows.append(row)

    def add_conversation(self, line):
        self.lines.append(line)

    def add_broken(self, key, reason):
        self.broken.append((key, reason))


def picture(number):
    return Image.new("RGB", (4, 3), (number, 0, 0))


def sample_entry(number, broken=False, seconds=0.0):
    def load():
        time.sleep(seconds)
        if broken:
            raise BrokenSampleError(f"file: {number}", "no image")
        return Sample(picture(number), f"caption {number}" if number % 2 else "", (), None, "file")

    return LazyEntry(f"k{number}", f"file: {number}", load)


def run(entries, batch_size=3, decoders=0):
    tokenizer, sink, clock = FakeTokenizer(), Sink(), Clock()
    process(entries, tokenizer, batch_size, decoders, sink, clock)
    return tokenizer, sink, clock


@pytest.mark.parametrize("decoders", [0, 1, 3])
def test_batches_and_rows_follow_the_order_of_readable_samples(decoders):
    # The first samples take longest, so that threads finish in another order.
    entries = [sample_entry(i, i in (2, 5), 0.02 if i < 3 else 0.0) for i in range(10)]
    tokenizer, sink, _ = run(entries, 3, decoders)
    assert tokenizer.batches == [[0, 1, 3], [4, 6, 7], [8, 9]]
    assert [row.key for row in sink.rows] == [f"k{i}" for i in (0, 1, 3, 4, 6, 7, 8, 9)]
    assert [row.caption for row in sink.rows[:2]] == [None, "caption 1"]
    assert sink.broken == [("k2", "no image"), ("k5", "no image")]
    wanted = [stored_image(i, 3).tokens for i in (0, 1, 3, 4, 6, 7, 8, 9)]
    assert all(torch.equal(row.image.tokens, x) for row, x in zip(sink.rows, wanted, strict=True))


def conversation(*numbers):
    turns = [
        message("user", *map(picture, numbers[:-1]), "go"),
        message("assistant", picture(numbers[-1])),
    ]
    return Conversation("edit", tuple(turns), facts={"numbers": list(numbers)})


@pytest.mark.parametrize("decoders", [0, 2])
def test_an_image_of_several_conversations_is_stored_once(decoders):
    samples = [conversation(1, 2), conversation(2, 3), conversation(1, 1)]
    entries = [LazyEntry(f"c{i}", "file", lambda one=one: one) for i, one in enumerate(samples)]
    tokenizer, sink, _ = run(entries, 2, decoders)
    assert tokenizer.batches == [[1, 2], [3]]
    numbers = [
        [
            part["image"]
            for turn in line["messages"]
            for part in turn["content"]
            if part["type"] == "image"
        ]
        for line in sink.lines
    ]
    assert numbers == [[0, 1], [1, 2], [0, 0]]
    assert [line["facts"]["numbers"] for line in sink.lines] == [[1, 2], [2, 3], [1, 1]]


def test_images_of_equal_bytes_but_other_sizes_are_two():
    images = [Image.fromarray(np.zeros(shape, np.uint8)) for shape in ((2, 6, 3), (3, 4, 3))]
    turns = message("user", *images, "which?"), message("assistant", "the first")
    _, sink, _ = run([LazyEntry("c", "file", lambda: Conversation("vqa", turns))])
    assert len(sink.rows) == 2


def test_a_source_that_ends_early_is_an_error():
    def entries():
        yield sample_entry(0)
        raise OSError("connection lost")

    with pytest.raises(UnreadableSourceError, match=r"^connection lost$"):
        run(entries())


def test_an_unexpected_error_makes_a_sample_a_broken_one():
    def load():
        raise KeyError("bug")

    for decoders in (0, 2):
        _, sink, _ = run([LazyEntry("k", "file", load), sample_entry(1)], decoders=decoders)
        [(key, reason)] = sink.broken
        assert (key, len(sink.rows)) == ("k", 1)
        assert reason.startswith("KeyError: 'bug' (test_pipeline.py:")


@pytest.mark.parametrize("decoders", [0, 2])
def test_an_error_of_the_tokenizer_ends_the_work(decoders):
    class Faulty(FakeTokenizer):
        def preprocess(self, images):
            raise MemoryError("no memory")

    with pytest.raises(MemoryError, match=r"no memory"):
        process(map(sample_entry, range(9)), Faulty(), 3, decoders, Sink(), Clock())


def test_few_samples_are_decoded_ahead():
    loaded, started = [], threading.Event()

    def entries():
        for i in range(1000):
            loaded.append(i)
            yield sample_entry(i % 200)

    class Slow(FakeTokenizer):
        def tokenize(self, pixels, sizes):
            started.set()
            assert len(loaded) - 4 * len(self.batches) < 40
            return super().tokenize(pixels, sizes)

    process(entries(), Slow(), 4, 2, Sink(), Clock())
    assert started.is_set()


def test_the_clock_tells_the_steps():
    _, _, clock = run([sample_entry(i, seconds=0.01) for i in range(4)])
    assert clock.seconds["decode"] >= 0.04
    assert set(clock.seconds) == {"read", "decode", "encode", "write"}
