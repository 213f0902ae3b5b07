"""Texts that no tokenizer takes."""

import json
import os

import pytest

from setokim.utils.text_cleaning import replace_surrogates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a red cat, é, 猫, 😀", "a red cat, é, 猫, 😀"),
        (json.loads(r'"a \ud800 cat"'), "a \ufffd cat"),
        (json.loads(r'"\udc00\ud800"'), "\ufffd\ufffd"),
        ("\ud83d" + "\ude00", "😀"),
        (os.fsdecode(b"caf\xe9 \xff"), "caf\ufffd \ufffd"),
        ("\ufeffa", "\ufeffa"),
    ],
)
def test_only_lone_surrogates_are_replaced(text, expected):
    found = replace_surrogates(text)
    assert found == expected
    found.encode()
