"""What the commands that let SeTokim speak have in common."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.device import usable_device
from setok_cli.errors import UsageError, missing_package, one_line
from setok_cli.options import add_trust_option

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from setokim.vlm.generation import Answer, Streamer
    from setokim.vlm.modeling_setokim import SetokimModel
    from setokim.vlm.processing_setokim import SetokimProcessor


@dataclass
class Speaker:
    """A model that answers.

    Attributes:
        model: on its device.
        processor: of the model.
        options: of `setokim.vlm.generation.generate`.
        generator: that goes on from answer to answer.
    """

    model: SetokimModel
    processor: SetokimProcessor
    options: dict[str, Any]
    generator: torch.Generator

    def answer(
        self, messages: Sequence[dict[str, Any]], streamer: Streamer | None = None
    ) -> Answer:
        """What the model says next; masks have the size of the last picture.

        Raises:
            ValueError: a message or an option does not fit.
            UsageError: what is generated needs a package that is not installed.
        """
        prompt = self.processor([messages], add_generation_prompt=True)
        pictures = [
            part["image"]
            for message in messages
            for part in message["content"]
            if part["type"] == "image"
        ]
        options = dict(self.options)
        if pictures:
            options["mask_size"] = (pictures[-1].height, pictures[-1].width)
        on_device = {name: value.to(self.model.device) for name, value in prompt.items()}
        try:
            [found] = self.model.generate(
                **on_device, generators=[self.generator], streamer=streamer, **options
            )
        except ImportError as error:
            # Only an answer with an image needs all of them.
            raise missing_package(error) from error
        return found


def add_speaking_options(parser: argparse.ArgumentParser) -> None:
    """Adds the model's folder and how it speaks."""
    parser.add_argument(
        "--model", required=True, type=Path, metavar="DIR", help="what `setok train` wrote"
    )
    parser.add_argument(
        "--device", default="cpu", help="where the model runs (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="NUMBER",
        help="of the words; 0, the default, takes the likeliest",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="draw words from the likeliest that have this much probability (default: all)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="COUNT",
        help="longest answer, visual tokens included (default: %(default)s)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="NUMBER",
        help="how strictly pictures follow the prompt (default: %(default)s, no guidance)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=25,
        metavar="COUNT",
        help="of the diffusion, for each visual token (default: %(default)s)",
    )
    parser.add_argument(
        "--image-temperature",
        type=float,
        default=1.0,
        metavar="NUMBER",
        help="of the noise that pictures begin as; 0 draws the typical one (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of all that is drawn by chance (default: %(default)s)"
    )
    add_trust_option(parser)


def load_model(
    folder: Path, device: str, trust_remote_code: bool = False
) -> tuple[SetokimModel, SetokimProcessor]:
    """A model in evaluation mode, and its processor.

    Args:
        folder: what `setok train` wrote.
        device: where the model runs.
        trust_remote_code: run Python code that the folder brings for its tokenizer.

    Raises:
        UsageError: it is not there, damaged or does not fit, or a package is not installed.
    """
    try:
        from setokim.utils.pretrained import load_whole
        from setokim.vlm.modeling_setokim import SetokimModel
        from setokim.vlm.processing_setokim import SetokimProcessor
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"--model: expected a folder with a SeTokim model, got {folder}: {error}"
        ) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "setokim":
        raise UsageError(f"--model: expected a SeTokim model in {folder}, got one of type {kind!r}")
    usable = usable_device(device)
    try:
        model = load_whole(SetokimModel, folder)
        processor = SetokimProcessor.from_pretrained(folder, trust_remote_code)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        # Files of several kinds, each read by a library of its own, may hold anything.
        raise UsageError(f"--model: cannot load {folder}: {one_line(error)}") from error
    except ImportError as error:
        raise missing_package(error, subject=f"--model {folder} ") from error
    return model.to(usable).eval(), processor


def make_speaker(arguments: argparse.Namespace) -> Speaker:
    """The model that the options of `add_speaking_options` name.

    Raises:
        UsageError: as of `load_model`.
    """
    import torch

    model, processor = load_model(arguments.model, arguments.device, arguments.trust_remote_code)
    options = {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "guidance": arguments.guidance,
        "sampling_steps": arguments.steps,
        "image_temperature": arguments.image_temperature,
    }
    generator = torch.Generator().manual_seed(arguments.seed)
    return Speaker(model, processor, options, generator)


def answer_once(
    speaker: Speaker,
    text: str,
    images: Sequence[Image.Image] = (),
) -> Answer:
    """The answer to a first message.

    Raises:
        UsageError: the text or an option does not fit.
    """
    try:
        return speaker.answer([user_message(text, images)])
    except ValueError as error:
        raise UsageError(str(error)) from error


def user_message(text: str, images: Sequence[Image.Image] = ()) -> dict[str, Any]:
    """Pictures, then words."""
    pictures = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def read_picture(path: Path) -> Image.Image:
    """A picture that a user named.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        from setokim.data.image_processing import UnreadableImageError, load_image
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    try:
        return load_image(path)
    except UnreadableImageError as error:
        raise UsageError(f"--image: {error}") from error


def check_out(path: Path, suffixes: Sequence[str]) -> None:
    """Before the work: a picture of that name can be written.

    Raises:
        UsageError: it cannot.
    """
    if path.suffix.lower() not in suffixes:
        expected = f"a file name ending in {' or '.join(suffixes)}"
        raise UsageError(f"--out: expected {expected}, got {path}")
    make_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder for results.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"--out: cannot make the folder {folder}: {error}") from error


def mask_of(logits: torch.Tensor) -> np.ndarray:
    """(h, w) bool of an answer's mask."""
    return (logits > 0).cpu().numpy()


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Writes white where the mask is, else black."""
    from PIL import Image

    save_image(Image.fromarray(mask).convert("L"), path)


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image as a whole, in the place of what is there.

    Raises:
        UsageError: the folder cannot be written, or the disk is full.
    """
    from setokim.utils.files import replacing

    try:
        with replacing(path) as beside:
            image.save(beside)
    except OSError as error:
        raise UsageError(f"--out: cannot write {path}: {error}") from error


def words_of(speaker: Speaker, answer: Answer) -> str:
    """What was said, for a message to the user; never empty."""
    return speaker.processor.decode(answer.ids) or "nothing"


def draw_one(command: str, arguments: argparse.Namespace, images: Sequence[Path]) -> int:
    """Lets the model draw one picture and writes it; returns 1 where it drew none.

    Args:
        command: whose name is in messages.
        arguments: `text`, `out` and those of `add_speaking_options`.
        images: files of the prompt.

    Raises:
        UsageError: it cannot be done as asked.
    """
    pictures = [read_picture(path) for path in images]
    check_out(arguments.out, (".png", ".jpg", ".jpeg", ".webp"))
    speaker = make_speaker(arguments)
    from setokim.data.image_processing import to_image

    answer = answer_once(speaker, arguments.text, pictures)
    if not answer.images:
        said = words_of(speaker, answer)
        print(f"setok {command}: the model drew nothing; it said: {said}", file=sys.stderr)
        return 1
    save_image(to_image(answer.images[0]), arguments.out)
    print(f"Picture of {len(answer.tokens[0])} visual tokens is in {arguments.out}")
    if len(answer.images) > 1:
        print(
            f"setok {command}: the model drew {len(answer.images)} pictures, this is the first",
            file=sys.stderr,
        )
    return 0
