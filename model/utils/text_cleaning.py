"""Text from users and files, made fit for tokenizers and UTF-8 files."""

from __future__ import annotations


def replace_surrogates(text: str) -> str:
    r"""Replace each lone surrogate by U+FFFD; surrogate pairs become the character they encode.

    Lone surrogates come from JSON such as "\ud800" and from bytes that are not UTF-8 on the command
    line. Neither tokenizers nor UTF-8 files accept them.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
