"""Ceilings of generated images: what the parser reads from reconstructions of the wanted ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from PIL import Image

from setokim.data import Conversation, Dataset
from setokim.data.image_processing import to_image
from setokim.evaluation.figures import Figures
from setokim.evaluation.readable import read_samples
from setokim.shapes_world.parser import parse
from setokim.shapes_world.scene import Scene
from setokim.shapes_world.scores import edit_success, generation_scores
from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens

_BATCH_SIZE = 64
_TASKS = ("generate", "edit")
_DEFINITIONS = {
    "generation": "the accuracy of attributes that the parser reads from",
    "generation_shape": "the accuracy of shapes that the parser reads from",
    "edit": "the success of edits that the parser reads from",
}
_SOURCES = {
    "image": "the wanted images",
    "tokens": "their reconstructions from tokens",
    "codes": "their reconstructions from codes",
}


@torch.no_grad()
def ceiling_metrics(
    setok: SetokModel,
    dataset: Dataset,
    number: int,
    show: Callable[[int], None] = lambda number: None,
) -> Figures:
    """Score the wanted images of ShapesTasks as `shapes_metrics` scores generated ones.

    No language model takes part. Errors of the parser, the tokens, their codes and the detokenizer
    are left, which no language model can avoid.

    Args:
        setok: model in evaluation mode.
        dataset: conversations of `ShapesTasks`.
        number: number of samples, from the beginning.
        show: callback with the number of samples read so far.

    Returns:
        `generation_image` and `edit_image`, the accuracy of attributes and the success of edits in
        the wanted images themselves; `..._tokens` in their reconstructions from tokens, and
        `..._codes` from codes, if the model has them; `generation_shape_...` for shapes alone;
        `samples`, the number of wanted images; `broken`, the number of unreadable samples.
    """
    scores: dict[str, list[float]] = {}
    samples = broken = 0
    for wanted in _batches(dataset, number, show):
        broken += wanted.count(None)
        readable = [sample for sample in wanted if sample is not None]
        samples += len(readable)
        for name, value in _scores(setok, readable):
            scores.setdefault(name, []).append(value)
    found = Figures()
    for name, values in sorted(scores.items()):
        table = found.table([str(index) for index in range(len(values))], "image", name)
        task, _, source = name.rpartition("_")
        table.mean(name, values, f"mean of {_DEFINITIONS[task]} {_SOURCES[source]}")
    found.constant("samples", samples, "wanted images")
    found.constant("broken", broken, "samples that cannot be read")
    return found


def _batches(
    dataset: Dataset, number: int, show: Callable[[int], None]
) -> Iterator[list[Conversation | None]]:
    """Yield the samples of the tasks in batches, with None for each unreadable one."""
    batch: list[Conversation | None] = []
    for sample in read_samples(dataset, number, show):
        if sample is None or sample.task in _TASKS:
            batch.append(sample)
        if len(batch) == _BATCH_SIZE:
            yield batch
            batch = []
    yield batch


def _scores(setok: SetokModel, samples: list[Conversation]) -> Iterator[tuple[str, float]]:
    """Yield name and value of each score of each sample."""
    if not samples:
        return
    wanted = [sample.messages[1]["content"][0]["image"] for sample in samples]
    visual = setok.tokenize(wanted)
    shown = {"image": wanted, "tokens": _images(setok, visual)}
    if setok.codes is not None:
        shown["codes"] = _images(setok, setok.recode(visual))
    for source, images in shown.items():
        for sample, image in zip(samples, images, strict=True):
            seen, scene = parse(image), Scene.from_dict(sample.facts["wanted"])
            if sample.task == "edit":
                before = Scene.from_dict(sample.facts["scene"])
                yield f"edit_{source}", float(edit_success(seen, before, scene))
            else:
                found = generation_scores(seen, scene)
                yield f"generation_{source}", found["accuracy"]
                yield f"generation_shape_{source}", found["shape"]


def _images(setok: SetokModel, visual: VisualTokens) -> list[Image.Image]:
    return [to_image(image) for image in setok.detokenizer(visual.tokens, visual.occupied).float()]
