"""Whatever a reader raises is a broken record; text has no lone surrogates."""

import csv
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from setokim.data import BrokenSampleError, Conversation, Guarded, ImageFolder, Sample
from setokim.data.conversations import message
from setokim.data.file_dataset import FileDataset

ERRORS = [
    RecursionError("deep"),
    csv.Error("no line"),
    TypeError("no type"),
    MemoryError(),
    OSError(22, "Invalid argument"),
    struct.error("short"),
    zlib.error("damaged"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no start"),
    KeyError("id"),
    AttributeError("no attribute"),
    OverflowError("too large"),
    IndexError("list index out of range"),
    StopIteration(),
    ValueError("no value"),
    ZeroDivisionError("division by zero"),
]


class Failing(FileDataset):
    """Data set that raises the given errors, followed by one good sample."""

    def __init__(self, errors):
        self.errors = errors

    def __len__(self):
        return len(self.errors) + 1

    def _source(self, index):
        return f"a.json: [{index}]"

    def _read(self, index, source):
        if index < len(self.errors):
            raise self.errors[index]
        return Sample(Image.new("RGB", (2, 2)), "good", (), None, source)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_is_a_broken_record(error):
    with pytest.raises(BrokenSampleError) as found:
        Failing([error])[0]
    assert found.value.source == "a.json: [0]" and found.value.__cause__ is error
    name, rest = type(error).__name__, found.value.reason
    assert rest.startswith(f"{name}: {error}"[:60])
    # The innermost line, so that a fault of ours can be found.
    assert rest.rsplit("(", 1)[1].startswith("test_file_dataset.py:")


def test_the_run_goes_on_and_counts_them():
    dataset = Failing(ERRORS)
    # An IndexError of a record does not end the iteration, one for the index does.
    assert len(dataset) == len(ERRORS) + 1
    with pytest.raises(IndexError, match=r"^index: expected less than 16, got 16$"):
        dataset[16]
    with pytest.raises(TypeError, match=r"^index: expected an int, got 'a'$"):
        dataset["a"]
    guarded = Guarded(dataset, max_share=1.0)
    sample, reading = guarded[0]
    assert sample.caption == "good" and len(reading.broken) == len(ERRORS)
    guarded.count(reading)
    assert guarded.summary().startswith(
        "15 of 16 samples could not be read: a.json: [0]: RecursionError: deep (test_file_dataset"
    )


@pytest.mark.parametrize("error", [ImportError("pip install"), KeyboardInterrupt(15)])
def test_errors_that_are_no_fault_of_the_record_pass(error):
    with pytest.raises(type(error)):
        Failing([error])[0]


def test_sources_never_raise():
    class Nameless(Failing):
        def _source(self, index):
            raise KeyError("id")

    assert Failing([]).source(7) == "a.json: [7]"
    assert Nameless([]).source(7) == "Nameless: sample 7"
    with pytest.raises(BrokenSampleError, match=r"^Nameless: sample 0: TypeError: "):
        Nameless([TypeError("a")])[0]


def test_lone_surrogates_are_replaced():
    class Said(Failing):
        def _read(self, index, source):
            image = Image.new("RGB", (2, 2))
            if index:
                return Sample(image, "a \ud800", ("\udfff", "b"), np.zeros((2, 2), int), source)
            turns = message("user", image, "a \ud800?"), message("assistant", "\udcff")
            facts = {"question": "a \ud800?", "answers": ["b", "\udcff"], "n": 1, "\udcff": None}
            return Conversation("vqa", turns, (), source, facts)

    said, shown = Said([None])
    assert said.messages[0]["content"][1] == {"type": "text", "text": "a \ufffd?"}
    assert said.messages[1]["content"] == [{"type": "text", "text": "\ufffd"}]
    assert said.facts == {
        "question": "a \ufffd?",
        "answers": ["b", "\ufffd"],
        "n": 1,
        "\ufffd": None,
    }
    assert (shown.caption, shown.concepts) == ("a \ufffd", ("\ufffd", "b"))
    assert shown.masks.shape == (2, 2)


def test_names_of_files_that_are_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/bad\xff.png"
    try:
        with open(path, "wb") as file:
            Image.new("RGB", (2, 2)).save(file, "PNG")
        with open(path[:-4] + b".jpg", "wb") as file:
            file.write(b"no picture")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    dataset = ImageFolder(tmp_path)
    with pytest.raises(BrokenSampleError) as error:
        dataset[0]
    for text in (dataset[1].source, error.value.source, str(error.value)):
        assert "bad\ufffd." in text and text.encode()
