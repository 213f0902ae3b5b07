"""`setok chat`: words and pictures with SeTokim, in turns."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError
from setokim.cli._speaking import (
    Speaker,
    add_speaking_options,
    make_folder,
    make_speaker,
    mask_of,
    read_picture,
    save_image,
    save_mask,
    user_message,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from setokim.vlm.generation import Answer

_PICTURE, _MASK = "answer-{:03}.png", "mask-{:03}.png"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `setok`."""
    parser = commands.add_parser(
        "chat",
        help="talk with a model about pictures",
        description="Answers TEXT; without TEXT, line after line of the standard input until its "
        'end or "exit", and remembers the conversation. Pictures and masks go into --out and are '
        "named where they come.",
    )
    parser.add_argument("text", nargs="?", metavar="TEXT", help="one message to answer")
    parser.add_argument(
        "--image",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FILE",
        help="pictures of the first message; -- ends the list before TEXT",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where pictures and masks go, over those of an earlier chat",
    )
    add_speaking_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Talks; returns 1 if a message could not be answered, else 0.

    Raises:
        UsageError: it cannot be done as asked.
    """
    images = [read_picture(path) for path in arguments.image]
    if arguments.out is not None:
        make_folder(arguments.out)
    chat = Chat(make_speaker(arguments), images, arguments.out)
    if arguments.text is not None:
        try:
            chat.say(arguments.text)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return 0
    code = 0
    for line in _lines():
        try:
            chat.say(line)
        except ValueError as error:
            # One bad line does not end a conversation.
            print(f"setok chat: {error}", file=sys.stderr)
            code = 1
    return code


class Chat:
    """A conversation whose answers are printed as they come.

    Args:
        speaker: that answers.
        images: of the first message.
        out: folder of pictures and masks; None to keep none.
    """

    def __init__(self, speaker: Speaker, images: list[Image.Image], out: Path | None):
        self._speaker, self._images, self._out = speaker, images, out
        self._messages: list[dict[str, Any]] = []
        self._pictures = self._masks = 0

    def say(self, text: str) -> None:
        """Answers a message; one that fails is forgotten.

        Raises:
            ValueError: the message or an option does not fit.
        """
        from setokim.data.image_processing import to_image

        asked = user_message(text, self._images)
        printer = Printer(self._speaker, self._pictures, self._masks)
        answer = self._speaker.answer([*self._messages, asked], printer)
        self._images = []
        drawn = [to_image(picture) for picture in answer.images]
        self._keep(answer, drawn)
        self._messages += [asked, answer_message(self._speaker, answer, drawn)]
        if not answer.finished:
            print("setok chat: cut off by --max-new-tokens", file=sys.stderr)

    def _keep(self, answer: Answer, drawn: list[Image.Image]) -> None:
        if self._out is None and (drawn or answer.masks):
            print("setok chat: pictures and masks are kept only with --out", file=sys.stderr)
        for picture in drawn:
            self._pictures += 1
            if self._out is not None:
                save_image(picture, self._out / _PICTURE.format(self._pictures))
        for mask in answer.masks:
            self._masks += 1
            if self._out is not None:
                save_mask(mask_of(mask), self._out / _MASK.format(self._masks))


class Printer:
    """Prints words as they come, as `transformers.TextStreamer` does, and names of files.

    Args:
        speaker: whose words they are.
        pictures: number of pictures before this answer.
        masks: number of masks before it.
    """

    def __init__(self, speaker: Speaker, pictures: int, masks: int):
        self._processor, self._config = speaker.processor, speaker.model.config
        self._pictures, self._masks = pictures, masks
        self._ids: list[int] | None = None  # since the last name; None before the prompt
        self._printed = 0
        self._line_is_empty = True

    def put(self, value: Tensor) -> None:
        """The prompt first, then (1,) ids."""
        if self._ids is None:
            self._ids = []
            return
        [token] = value.tolist()
        if token == self._config.image_start_id:
            self._pictures += 1
            self._name(_PICTURE.format(self._pictures))
        elif token == self._config.segment_id:
            self._masks += 1
            self._name(_MASK.format(self._masks))
        elif token not in (self._config.image_token_id, self._config.image_end_id):
            self._ids.append(token)
            self._show()

    def end(self) -> None:
        """Ends the line."""
        print(flush=True)

    def _show(self) -> None:
        text = self._processor.decode(self._ids)
        # Half a character, whose other tokens are still to come.
        if text.endswith("\N{REPLACEMENT CHARACTER}") or len(text) <= self._printed:
            return
        self._write(text[self._printed :], new=self._printed == 0)
        self._printed = len(text)

    def _name(self, name: str) -> None:
        self._write(f"[{name}]", new=True)
        self._ids, self._printed = [], 0

    def _write(self, text: str, new: bool) -> None:
        gap = " " if new and not self._line_is_empty else ""
        print(f"{gap}{text}", end="", flush=True)
        self._line_is_empty = False


def answer_message(speaker: Speaker, answer: Answer, drawn: list[Image.Image]) -> dict[str, Any]:
    """What was said as a message of the conversation, pictures and masks in their places."""
    config, processor = speaker.model.config, speaker.processor
    parts: list[dict[str, Any]] = []
    words: list[int] = []
    pictures = iter(drawn)

    def end_words() -> None:
        if text := processor.decode(words):
            parts.append({"type": "text", "text": text})
        words.clear()

    for token in answer.ids:
        if token == config.image_end_id:
            end_words()
            parts.append({"type": "image", "image": next(pictures)})
        elif token == config.segment_id:
            end_words()
            parts.append({"type": "mask"})
        elif token not in (config.image_token_id, config.image_start_id):
            words.append(token)
    end_words()
    return {"role": "assistant", "content": parts or [{"type": "text", "text": ""}]}


def _lines() -> Iterator[str]:
    """Of the standard input, without empty ones, until its end or "exit"."""
    if sys.stdin is None:
        raise UsageError("text: expected a message or an open standard input, got neither")
    # A line that is no UTF-8 is still a line.
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "exit":
            return
        if line.strip():
            yield line.strip()
