"""`setok chat`, `generate`, `edit` and `segment`: the answers of a trained model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError
from setokim.cli._images import (
    binary_mask,
    check_out,
    make_folder,
    read_image,
    save_image,
    save_mask,
)
from setokim.cli._inference import Assistant, add_inference_options, make_assistant, user_message

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from setokim.vlm.generation import Answer

_IMAGE, _MASK = "answer-{:03}.png", "mask-{:03}.png"


def add_chat(commands: argparse._SubParsersAction) -> None:
    """Add `setok chat`."""
    parser = commands.add_parser(
        "chat",
        help="talk with a model about images",
        description="Answers TEXT; without TEXT, each line of the standard input until its end or "
        '"exit", and remembers the conversation. Images and masks go into --out; their names are '
        "printed in their places.",
    )
    parser.add_argument("text", nargs="?", metavar="TEXT", help="a single message to answer")
    parser.add_argument(
        "--image",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FILE",
        help="images of the first message; -- ends the list before TEXT",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of images and masks, which replace those of an earlier chat",
    )
    add_inference_options(parser)
    parser.set_defaults(run=run_chat)


def add_generate(commands: argparse._SubParsersAction) -> None:
    """Add `setok generate`."""
    parser = commands.add_parser(
        "generate",
        help="generate an image from a text",
        description="Gives the text to the model as it is and writes the image it generates.",
    )
    parser.add_argument("text", metavar="TEXT", help="description, in words of the training data")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the image")
    add_inference_options(parser)
    parser.set_defaults(run=run_generate)


def add_edit(commands: argparse._SubParsersAction) -> None:
    """Add `setok edit`."""
    parser = commands.add_parser(
        "edit",
        help="edit an image as a text asks",
        description="Gives image and text to the model and writes the image it generates.",
    )
    parser.add_argument("text", metavar="TEXT", help="the edit, in words of the training data")
    parser.add_argument(
        "--image", required=True, type=Path, metavar="FILE", help="the image to edit"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the new image")
    add_inference_options(parser)
    parser.set_defaults(run=run_generate)


def add_segment(commands: argparse._SubParsersAction) -> None:
    """Add `setok segment`."""
    parser = commands.add_parser(
        "segment",
        help="mask what a text asks for",
        description="Gives image and text to the model and writes its mask, white on black, in the "
        "image's own size.",
    )
    parser.add_argument("text", metavar="TEXT", help="the object, in words of the training data")
    parser.add_argument("--image", required=True, type=Path, metavar="FILE", help="the image")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the mask, a PNG")
    add_inference_options(parser)
    parser.set_defaults(run=run_segment)


def run_generate(arguments: argparse.Namespace) -> int:
    """Generate or edit an image; return 1 if the answer has none, else 0.

    Raises:
        UsageError: an argument does not fit, or a package is not installed.
    """
    command = arguments.command
    images = [read_image(arguments.image)] if command == "edit" else []
    check_out(arguments.out, (".png", ".jpg", ".jpeg", ".webp"))
    assistant = make_assistant(arguments)
    from setokim.data.image_processing import to_image

    answer = assistant.answer_once(arguments.text, images)
    if not answer.images:
        _report(command, f"the model generated no image; its text: {assistant.text_of(answer)}")
        return 1
    save_image(to_image(answer.images[0]), arguments.out)
    print(f"Image of {len(answer.tokens[0])} visual tokens is in {arguments.out}")
    if len(answer.images) > 1:
        _report(command, f"the model generated {len(answer.images)} images, this is the first")
    return 0


def run_segment(arguments: argparse.Namespace) -> int:
    """Segment an image; return 1 if the answer has no mask, else 0.

    Raises:
        UsageError: an argument does not fit, or a package is not installed.
    """
    image = read_image(arguments.image)
    # Other formats blur the boundary.
    check_out(arguments.out, (".png",))
    assistant = make_assistant(arguments)
    answer = assistant.answer_once(arguments.text, [image])
    if not answer.masks:
        _report("segment", f"the model predicted no mask; its text: {assistant.text_of(answer)}")
        return 1
    mask = binary_mask(answer.masks[0])
    save_mask(mask, arguments.out)
    print(f"Mask of {mask.mean():.1%} of the pixels is in {arguments.out}")
    if len(answer.masks) > 1:
        _report("segment", f"the model predicted {len(answer.masks)} masks, this is the first")
    return 0


def run_chat(arguments: argparse.Namespace) -> int:
    """Answer messages; return 1 if one could not be answered, else 0.

    Raises:
        UsageError: an argument does not fit, or a package is not installed.
    """
    images = [read_image(path) for path in arguments.image]
    if arguments.out is not None:
        make_folder(arguments.out)
    chat = Chat(make_assistant(arguments), images, arguments.out)
    if arguments.text is not None:
        try:
            chat.answer(arguments.text)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return 0
    code = 0
    for line in _lines():
        try:
            chat.answer(line)
        except ValueError as error:
            # One bad line does not end a conversation.
            _report("chat", str(error))
            code = 1
    return code


class Chat:
    """A conversation whose answers are printed as they are generated.

    Args:
        assistant: model that answers.
        images: images of the first message.
        out: folder of images and masks; None to keep none.
    """

    def __init__(self, assistant: Assistant, images: Sequence[Image.Image], out: Path | None):
        self._assistant, self._pending, self._out = assistant, images, out
        self._messages: list[dict[str, Any]] = []
        self._images = self._masks = 0

    def answer(self, text: str) -> None:
        """Answer a message and print the answer; a message that fails is forgotten.

        Raises:
            ValueError: the message or an option does not fit.
        """
        from setokim.data.image_processing import to_image

        question = user_message(text, self._pending)
        printer = Printer(self._assistant, self._images, self._masks)
        answer = self._assistant.answer([*self._messages, question], printer)
        self._pending = ()
        images = [to_image(image) for image in answer.images]
        self._keep(answer, images)
        self._messages += [question, answer_message(self._assistant, answer, images)]
        if not answer.finished:
            _report("chat", "cut off by --max-new-tokens")

    def _keep(self, answer: Answer, images: list[Image.Image]) -> None:
        if self._out is None and (images or answer.masks):
            _report("chat", "images and masks are kept only with --out")
        for image in images:
            self._images += 1
            if self._out is not None:
                save_image(image, self._out / _IMAGE.format(self._images))
        for mask in answer.masks:
            self._masks += 1
            if self._out is not None:
                save_mask(binary_mask(mask), self._out / _MASK.format(self._masks))


class Printer:
    """A streamer that prints text, as `transformers.TextStreamer` does, and names of files.

    Args:
        assistant: model that answers.
        images: number of images before this answer.
        masks: number of masks before this answer.
    """

    def __init__(self, assistant: Assistant, images: int, masks: int):
        self._processor, self._config = assistant.processor, assistant.model.config
        self._images, self._masks = images, masks
        self._ids: list[int] | None = None  # since the last name; None before the prompt
        self._printed = 0
        self._line_is_empty = True

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then (1,) ids."""
        if self._ids is None:
            self._ids = []
            return
        [token] = value.tolist()
        if token == self._config.image_start_id:
            self._images += 1
            self._name(_IMAGE.format(self._images))
        elif token == self._config.segment_id:
            self._masks += 1
            self._name(_MASK.format(self._masks))
        elif token not in (self._config.image_token_id, self._config.image_end_id):
            self._ids.append(token)
            self._show()

    def end(self) -> None:
        """End the line."""
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


def answer_message(
    assistant: Assistant, answer: Answer, images: list[Image.Image]
) -> dict[str, Any]:
    """Return an answer as a message of the conversation, images and masks in their positions.

    Args:
        assistant: model that answered.
        answer: answer.
        images: images of the answer.
    """
    config, processor = assistant.model.config, assistant.processor
    parts: list[dict[str, Any]] = []
    ids: list[int] = []
    remaining = iter(images)

    def end_text() -> None:
        if text := processor.decode(ids):
            parts.append({"type": "text", "text": text})
        ids.clear()

    for token in answer.ids:
        if token == config.image_end_id:
            end_text()
            parts.append({"type": "image", "image": next(remaining)})
        elif token == config.segment_id:
            end_text()
            parts.append({"type": "mask"})
        elif token not in (config.image_token_id, config.image_start_id):
            ids.append(token)
    end_text()
    return {"role": "assistant", "content": parts or [{"type": "text", "text": ""}]}


def _lines() -> Iterator[str]:
    """Yield the lines of the standard input, without empty ones, until its end or "exit"."""
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


def _report(command: str, text: str) -> None:
    print(f"setok {command}: {text}", file=sys.stderr)
