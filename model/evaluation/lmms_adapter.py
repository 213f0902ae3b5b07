"""Adapter that lets lmms-eval run SeTokim by its entry point; see docs/data.md."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms
from PIL import Image

from setokim.data.conversations import message
from setokim.evaluation.prompting import generate_answers
from setokim.utils.pretrained import load_whole
from setokim.vlm.generation_config import SetokimGenerationConfig
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance

_LONGEST = 64


class GreedyAdapter(lmms, abc.ABC):
    """Model of lmms-eval that answers in batches, by greedy decoding.

    A subclass sets `model` and has `answer`.

    Args:
        device: device of the model; None for a GPU if there is one, one for each process.
        batch_size: number of questions in a batch.
        max_batch_size: None only, since the batch size is not searched for.

    Raises:
        ValueError: a batch size is not a positive number.
    """

    is_simple = True
    # Name of the model on the command line of lmms-eval.
    name = ""

    def __init__(
        self,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if max_batch_size is not None or not str(batch_size).isdecimal() or int(batch_size) < 1:
            got = batch_size if max_batch_size is None else f"max_batch_size {max_batch_size}"
            raise ValueError(f"batch_size: expected a number of at least 1, got {got}")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.accelerator = Accelerator()
        self._rank = self.accelerator.local_process_index
        self._world_size = self.accelerator.num_processes
        self._device = torch.device(
            f"cuda:{self._rank}" if self._world_size > 1 and device == "cuda" else device
        )
        self.batch_size = int(batch_size)

    @abc.abstractmethod
    def answer(self, prompts: Sequence[list[dict[str, Any]]], max_new_tokens: int) -> list[str]:
        """Return the answer to each conversation of a batch.

        Args:
            prompts: conversations that end with the user.
            max_new_tokens: max number of tokens of an answer.
        """

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return the answer to each request, in order.

        Raises:
            ValueError: a request needs sampling or beam search, or has something other than images.
        """
        texts: dict[int, str] = {}
        for longest, numbers in self._batches(requests):
            prompts = [self._prompt(requests[number]) for number in numbers]
            for number, text in zip(numbers, self.answer(prompts, longest), strict=True):
                texts[number] = _until(text, requests[number].args[1].get("until"))
        return [texts[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raise an error: tasks of several rounds are not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{self.name}: expected a task of one round, got one of several")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Raise an error: tasks that rank given answers are not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{self.name}: expected a task that generates, got one that ranks"
        )

    def _batches(self, requests: Sequence[Instance]) -> Iterator[tuple[int, list[int]]]:
        """Yield max lengths and indices of requests with them, up to `batch_size` at a time."""
        groups: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_longest(request.args[1]), []).append(number)
        for longest, numbers in groups.items():
            for start in range(0, len(numbers), self.batch_size):
                yield longest, numbers[start : start + self.batch_size]

    def _prompt(self, request: Instance) -> list[dict[str, Any]]:
        context, _, to_visual, number, task, split = request.args
        images = list(_images(to_visual(self.task_dict[task][split][number])))
        # The template places the images. An `<image>` beyond their number is text.
        text = context.replace("<image>", "", len(images)).strip()
        return [message("user", *images, text)]


class Setokim(GreedyAdapter):
    """Model of lmms-eval with a trained SeTokim, which decodes greedily.

    Args:
        pretrained: folder of a model, as written by `setok train`.
        options: arguments of `GreedyAdapter`.

    Raises:
        OSError: the model cannot be read.
        ValueError: the folder has no such model, or a batch size is not a positive number.
    """

    name = "setokim"

    def __init__(self, pretrained: str, **options: Any):
        super().__init__(**options)
        # A missing folder must not be taken for a name on the hub.
        self.model = load_whole(SetokimModel, pretrained).to(self._device).eval()
        self.processor = SetokimProcessor.from_pretrained(pretrained)

    def answer(self, prompts: Sequence[list[dict[str, Any]]], max_new_tokens: int) -> list[str]:
        """Return the answer to each conversation of a batch, as of `GreedyAdapter.answer`."""
        config = SetokimGenerationConfig(max_new_tokens=max_new_tokens)
        found = generate_answers(self.model, self.processor, prompts, config)
        return [self.processor.decode(answer.ids) for answer in found]


def manifest():
    """Return the entry that lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("setokim", simple_class_path=f"{__name__}.{Setokim.__name__}")


def _longest(options: dict[str, Any]) -> int:
    """Return the max length of an answer from a task's options.

    Raises:
        ValueError: the options need sampling or beam search.
    """
    beams, temperature = options.get("num_beams"), options.get("temperature")
    if beams not in (1, None):
        raise ValueError(f"num_beams: expected 1, got {beams}")
    samples = options.get("do_sample")
    # Without sampling neither temperature nor top_p changes anything.
    if temperature != 0 and (bool(temperature) if samples is None else samples):
        raise ValueError(f"temperature: expected 0, got {temperature}")
    return options.get("max_new_tokens", _LONGEST)


def _images(visuals: Any) -> Iterable[Image.Image]:
    for one in visuals or ():
        if not isinstance(one, Image.Image):
            raise ValueError(f"doc_to_visual: expected images, got {type(one).__name__}")
        yield one.convert("RGB")


def _until(text: str, ends: str | Sequence[str] | None) -> str:
    for end in [ends] if isinstance(ends, str) else ends or ():
        text = text.split(end)[0] if end else text
    return text.strip()
