"""Words of captions against those of Stanford's PTBTokenizer 3.4.1, as pycocoevalcap calls it."""

import json
from pathlib import Path

import pytest

from setokim.evaluation.ptb_tokenizer import tokenize_caption

# Result of `pycocoevalcap.tokenizer.PTBTokenizer` for each text, with "A man is here ." as the next
# caption of its file: a period at the end depends on how the next one begins.
GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "ptb_words.json").read_text("utf-8"))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["text"][:30])
def test_as_the_official_tokenizer(case):
    assert tokenize_caption(case["text"]) == case["words"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t ", []),
        ("a\nb", ["a", "b"]),
        ("A dog\u2028a cat\x85a cow", ["a", "dog", "a", "cat", "a", "cow"]),
        ("\ud800a\udfff", ["a"]),
        ("." * 10_000, []),
        ("a" * 10_000, ["a" * 10_000]),
    ],
)
def test_texts_of_all_kinds(text, expected):
    assert tokenize_caption(text) == expected
