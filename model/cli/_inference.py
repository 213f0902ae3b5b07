"""Options, loading and answers of a trained model, shared by the commands that run one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.device import usable_device
from setok_cli.errors import UsageError, missing_package, one_line
from setok_cli.options import add_device_option, add_trust_option

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from setokim.tokenizer.modeling_setok import SetokModel
    from setokim.vlm.generation import Answer, Streamer
    from setokim.vlm.generation_config import SetokimGenerationConfig
    from setokim.vlm.modeling_setokim import SetokimModel
    from setokim.vlm.processing_setokim import SetokimProcessor

# Type, default and help text of each option of SetokimGenerationConfig. The defaults are repeated
# here, since importing the class imports torch, for which `--help` must not wait.
# tests/model/cli/test_inference.py compares both.
_NUMBER, _COUNT = (float, "NUMBER"), (int, "COUNT")
GENERATION_OPTIONS: dict[str, tuple[tuple[type, str], Any, str]] = {
    "max_new_tokens": (_COUNT, 256, "max length of an answer in tokens, visual tokens included"),
    "temperature": (_NUMBER, 0.0, "temperature of the text; 0 takes the most probable token"),
    "top_p": (
        (float, "PROBABILITY"),
        1.0,
        "sample text from the most probable tokens of this probability together",
    ),
    "guidance": (
        _NUMBER,
        1.0,
        "scale of classifier-free guidance of generated images; 1 is no guidance",
    ),
    "sampling_steps": (_COUNT, 25, "diffusion steps of each visual token"),
    "image_temperature": (
        _NUMBER,
        1.0,
        "standard deviation of the noise that images start from; 0 gives the typical one",
    ),
    "max_image_tokens": (
        _COUNT,
        None,
        "max number of tokens of a generated image; none: as many as the visual tokenizer makes",
    ),
}
# Options with another name than their field, or with an earlier one.
_FLAGS = {"sampling_steps": ("--steps", "--sampling-steps")}


def add_generation_options(
    parser: argparse.ArgumentParser, defaults: dict[str, Any] | None = None
) -> None:
    """Add an option for each field of `GENERATION_OPTIONS`.

    Args:
        parser: parser of the command.
        defaults: values that the command has in place of the default ones, for `--help`.
    """
    group = parser.add_argument_group(
        "generation",
        "The model's own options, in the file generation_config.json of its folder, come before "
        "these defaults.",
    )
    for name, ((kind, metavar), default, text) in GENERATION_OPTIONS.items():
        default = (defaults or {}).get(name, default)
        shown = "none" if default is None else default
        group.add_argument(
            *_FLAGS.get(name, (f"--{name.replace('_', '-')}",)),
            dest=name,
            type=kind,
            metavar=metavar,
            # Absent unless given, so that the options of a benchmark are not overridden.
            default=argparse.SUPPRESS,
            help=f"{text} (default: {shown})",
        )


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of generation on the command line, by the names of their fields."""
    return {name: value for name, value in vars(arguments).items() if name in GENERATION_OPTIONS}


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--device` and `--trust-remote-code`."""
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="folder that `setok train` wrote (default: small-world, the embedded model, which "
        "comes with the package)",
    )
    add_device_option(parser, "the model")
    add_trust_option(parser)


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `make_assistant`."""
    add_model_option(parser)
    add_generation_options(parser)
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of text and noise (default: %(default)s)"
    )


class Assistant:
    """A model that answers messages.

    Args:
        model: model on its device.
        processor: tokenizer and image processor of the model.
        config: options of generation.
        generator: random generator, which goes on from answer to answer.
    """

    def __init__(
        self,
        model: SetokimModel,
        processor: SetokimProcessor,
        config: SetokimGenerationConfig,
        generator: torch.Generator,
    ):
        self.model, self.processor = model, processor
        self._config, self._generator = config, generator

    def answer(
        self, messages: Sequence[dict[str, Any]], streamer: Streamer | None = None
    ) -> Answer:
        """Return the answer to a conversation; its masks have the size of the last image.

        Args:
            messages: conversation that ends with the user.
            streamer: receiver of the prompt's ids and each new token.

        Raises:
            ValueError: a message or an option does not fit.
            UsageError: the answer needs a package that is not installed.
        """
        prompt = self.processor([messages], add_generation_prompt=True)
        images = [
            part["image"]
            for message in messages
            for part in message["content"]
            if part["type"] == "image"
        ]
        options = {"mask_size": (images[-1].height, images[-1].width)} if images else {}
        try:
            [found] = self.model.generate(
                **{name: value.to(self.model.device) for name, value in prompt.items()},
                generation_config=self._config,
                generators=[self._generator],
                streamer=streamer,
                **options,
            )
        except ImportError as error:
            # Only an answer with an image needs all packages.
            raise missing_package(error) from error
        return found

    def answer_once(self, text: str, images: Sequence[Image.Image] = ()) -> Answer:
        """Return the answer to a first message.

        Args:
            text: text of the message.
            images: images before the text.

        Raises:
            UsageError: the text or an option does not fit.
        """
        try:
            return self.answer([user_message(text, images)])
        except ValueError as error:
            raise UsageError(str(error)) from error

    def text_of(self, answer: Answer) -> str:
        """Return the text of an answer for a message to the user; never empty."""
        return self.processor.decode(answer.ids) or "nothing"


def make_assistant(arguments: argparse.Namespace) -> Assistant:
    """Load the model that the options of `add_inference_options` name.

    Raises:
        UsageError: an option of generation does not fit, or as of `load_model`.
    """
    try:
        import torch

        from setokim.vlm.generation_config import SetokimGenerationConfig
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    try:
        # Before the model, which takes seconds to load.
        SetokimGenerationConfig(**given_options(arguments))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    folder = model_folder(arguments)
    model, processor = load_model(folder, arguments.device, arguments.trust_remote_code)
    config = model.generation_config.replace(**given_options(arguments))
    return Assistant(model, processor, config, torch.Generator().manual_seed(arguments.seed))


def model_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder of `--model`; without the option, that of the embedded model.

    Raises:
        UsageError: there is no such folder, this installation lacks the embedded model, or a
            package is missing.
    """
    try:
        from setokim.utils.pretrained import resolve_model
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    try:
        return resolve_model(arguments.model)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def load_model(
    folder: Path, device: str, trust_remote_code: bool = False
) -> tuple[SetokimModel, SetokimProcessor]:
    """Load a model in evaluation mode, and its processor.

    Args:
        folder: folder of a model, as written by `setok train`.
        device: name of the device of the model.
        trust_remote_code: permission to run Python code in the folder, for its tokenizer.

    Raises:
        UsageError: the model is absent, damaged or of another kind, or a package is missing.
    """
    try:
        from setokim.utils.pretrained import load_whole
        from setokim.vlm.modeling_setokim import SetokimModel
        from setokim.vlm.processing_setokim import SetokimProcessor
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    kind = _kind_of(folder)
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


def is_tokenizer(folder: Path) -> bool:
    """Return whether a folder has a visual tokenizer alone, as stage 1 writes it.

    Raises:
        UsageError: the folder has no model.
    """
    return _kind_of(folder) == "setok"


def load_tokenizer(folder: Path, device: str) -> SetokModel:
    """Load a visual tokenizer in evaluation mode.

    Args:
        folder: folder for which `is_tokenizer` is true.
        device: name of the device of the model.

    Raises:
        UsageError: the model is damaged, or a package is missing.
    """
    try:
        from setokim.tokenizer.modeling_setok import SetokModel
        from setokim.utils.pretrained import load_whole

        return load_whole(SetokModel, folder).to(usable_device(device)).eval()
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"--model: cannot load {folder}: {one_line(error)}") from error


def _kind_of(folder: Path) -> str | None:
    """Return the type of the model in a folder; None if its file does not say.

    Raises:
        UsageError: the folder has no model.
    """
    import json

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"--model: expected a folder with a SeTokim model, got {folder}: {error}"
        ) from error
    return config.get("model_type") if isinstance(config, dict) else None


def user_message(text: str, images: Sequence[Image.Image] = ()) -> dict[str, Any]:
    """Return a message of the user.

    Args:
        text: text of the message.
        images: images before the text.
    """
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
