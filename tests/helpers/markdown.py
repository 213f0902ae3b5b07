"""Code blocks of Markdown pages, and what marks them."""

import re
import textwrap
from dataclasses import dataclass

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*) *$")
_MARK = re.compile(r"^ *<!-- (?P<mark>run|not run: (?P<reason>.+?)) -->$")


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        language: name behind the fence, "" for none.
        code: text without the fence and its indentation.
        line: number of the line of the fence, from 1.
        run: whether `<!-- run -->` stands on the line before.
        reason: text of `<!-- not run: ... -->` on the line before, or None.
    """

    language: str
    code: str
    line: int
    run: bool
    reason: str | None


def code_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page.

    Raises:
        ValueError: a fence is left open, or a mark has no block behind it.
    """
    blocks, lines = [], text.splitlines()
    number = 0
    while number < len(lines):
        start = _FENCE.match(lines[number])
        if start is None:
            if _MARK.match(lines[number]) and not _opens(lines, number + 1):
                raise ValueError(f"line {number + 1}: expected a block behind the mark")
            number += 1
            continue
        end = number + 1
        while end < len(lines) and lines[end].strip() != "```":
            end += 1
        if end == len(lines):
            raise ValueError(f"line {number + 1}: expected a closing fence")
        mark = _MARK.match(lines[number - 1]) if number else None
        blocks.append(
            Block(
                start["language"],
                textwrap.dedent("\n".join(lines[number + 1 : end])) + "\n",
                number + 1,
                mark is not None and mark["mark"] == "run",
                mark and mark["reason"],
            )
        )
        number = end + 1
    return blocks


def _opens(lines: list[str], number: int) -> bool:
    return number < len(lines) and _FENCE.match(lines[number]) is not None


def commands(code: str) -> list[str]:
    """Return the command lines of a shell block; a backslash at the end joins two lines."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]
