import os

import pytest

from setokim.utils.file_names import printable_name, utf8_name


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        (b"a.png", "a.png", "a.png"),
        ("größe.png".encode(), "größe.png", "größe.png"),
        (b"bad\xff.png", "bad\udcff.png", r"bad\xff.png"),
        (b"two\nlines\x1b[31m", "two\nlines\x1b[31m", r"two\nlines\x1b[31m"),
    ],
    ids=["ascii", "utf-8", "no-utf-8", "control"],
)
def test_names_as_text(name, text, shown):
    path = os.fsdecode(name)
    assert utf8_name(path) == text and printable_name(path) == shown
    assert os.fsencode(utf8_name(path)) == name
    shown.encode("utf-8")
