"""Figures of the small world's tasks: what SeTokim answers, draws, changes and segments."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from setokim.data import Conversation, Dataset, Scene
from setokim.data.conversations import message
from setokim.data.scene_parser import parse
from setokim.data.scene_questions import Question, chance
from setokim.generation import Answer
from setokim.images import to_image
from setokim.modeling_setokim import SetokimModel
from setokim.processing_setokim import SetokimProcessor
from setokim.scene_scores import (
    answer_accuracy,
    caption_scores,
    edit_scores,
    edit_success,
    generation_scores,
    locating_scores,
)
from setokim.segmentation_scores import SegmentationScore
from setokim.training.instruct_settings import GenerationSettings

_AT_ONCE = 64

Messages = Sequence[dict[str, Any]]


def evaluate(
    model: SetokimModel,
    processor: SetokimProcessor,
    held_out: Dataset,
    settings: GenerationSettings,
) -> dict[str, float | None]:
    """Answers every turn of held-out conversations by itself and judges what comes.

    Each task that the conversations hold gives its figures:

    - `vqa_accuracy` (exact match) and by kind; `vqa_chance`, the best constant answer to each kind;
      `vqa_language_only`, the same model without the picture;
    - `caption_accuracy`, of size, colour, texture and shape of every object;
    - `locate_accuracy`, of colour, shape, size and place as the text says them;
    - `generation_accuracy`, of colour, shape, size and place of every object, read off the drawn
      picture by `scene_parser.parse`, which knows nothing of the model; and each by itself;
    - `edit_success`, and its parts;
    - `ciou` and `giou` of the masks;
    - `text_accuracy`, of questions without a picture.

    Args:
        model: in the mode that it is in.
        processor: of the model.
        held_out: conversations with the facts of `ShapesTasks`.
        settings: how to generate, and how many conversations.
    """
    number = len(held_out) if settings.samples is None else min(settings.samples, len(held_out))
    samples = [held_out[index] for index in range(number)]
    by_task: dict[str, list[Conversation]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    figures: dict[str, float | None] = {}
    judges = {
        "vqa": _questions,
        "caption": _descriptions,
        "locate": _descriptions,
        "generate": _drawings,
        "edit": _edits,
        "segment": _masks,
        "text": _sums,
    }
    for task, judge in judges.items():
        if task in by_task:
            figures |= judge(model, processor, by_task[task], settings)
    return figures


def answers(
    model: SetokimModel,
    processor: SetokimProcessor,
    prompts: Sequence[Messages],
    settings: GenerationSettings,
    mask_size: tuple[int, int] = (64, 64),
) -> list[Answer]:
    """What the model says to each prompt; the noise of prompt i depends on i alone.

    Args:
        model: in the mode that it is in.
        processor: of the model.
        prompts: conversations that end with the user.
        settings: how to generate.
        mask_size: height and width of the masks.
    """
    found: list[Answer] = []
    for start in range(0, len(prompts), _AT_ONCE):
        part = prompts[start : start + _AT_ONCE]
        inputs = processor(part, add_generation_prompt=True, padding_side="left")
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        found += model.generate(
            **inputs,
            max_new_tokens=settings.max_new_tokens,
            guidance=settings.guidance,
            sampling_steps=settings.sampling_steps,
            mask_size=mask_size,
            generators=[torch.Generator().manual_seed(start + i) for i in range(len(part))],
        )
    return found


def single_turns(sample: Conversation) -> list[Messages]:
    """Each question by itself, with the picture of the first."""
    picture = [part for part in sample.messages[0]["content"] if part["type"] == "image"]
    prompts = []
    for number in range(0, len(sample.messages), 2):
        texts = [part for part in sample.messages[number]["content"] if part["type"] == "text"]
        prompts.append([{"role": "user", "content": picture + texts}])
    return prompts


def _questions(model, processor, samples, settings) -> dict[str, float]:
    prompts = [prompt for sample in samples for prompt in single_turns(sample)]
    kinds = [kind for sample in samples for kind in sample.facts["kinds"]]
    wanted = [answer for sample in samples for answer in sample.facts["answers"]]
    blind = [
        [message("user", *(part["text"] for part in content if part["type"] == "text"))]
        for content in (prompt[0]["content"] for prompt in prompts)
    ]
    said, guessed = (
        [processor.decode(answer.ids) for answer in answers(model, processor, asked, settings)]
        for asked in (prompts, blind)
    )
    scores = answer_accuracy(said, wanted, kinds)
    questions = [Question(kind, "", answer, ()) for kind, answer in zip(kinds, wanted, strict=True)]
    return {
        "vqa_accuracy": scores.pop("overall"),
        **{f"vqa_{kind}": score for kind, score in scores.items()},
        "vqa_chance": chance(questions),
        "vqa_language_only": answer_accuracy(guessed, wanted, kinds)["overall"],
    }


def _sums(model, processor, samples, settings) -> dict[str, float]:
    prompts = [prompt for sample in samples for prompt in single_turns(sample)]
    wanted = [answer for sample in samples for answer in sample.facts["answers"]]
    said = [processor.decode(answer.ids) for answer in answers(model, processor, prompts, settings)]
    return {"text_accuracy": fmean(a == b for a, b in zip(said, wanted, strict=True))}


def _descriptions(model, processor, samples, settings) -> dict[str, float]:
    """Of one task, in which a text tells what there is."""
    task = samples[0].task
    score = {"caption": caption_scores, "locate": locating_scores}[task]
    found = answers(model, processor, [sample.messages[:1] for sample in samples], settings)
    scores = [
        score(processor.decode(answer.ids), _scene(sample, "scene"))
        for answer, sample in zip(found, samples, strict=True)
    ]
    return _means(task, scores)


def _drawings(model, processor, samples, settings) -> dict[str, float]:
    found = answers(model, processor, [sample.messages[:1] for sample in samples], settings)
    scores = [
        generation_scores(_seen(answer), _scene(sample, "wanted"))
        for answer, sample in zip(found, samples, strict=True)
    ]
    return _means("generation", scores)


def _edits(model, processor, samples, settings) -> dict[str, float]:
    found = answers(model, processor, [sample.messages[:1] for sample in samples], settings)
    scores, successes = [], []
    for answer, sample in zip(found, samples, strict=True):
        scenes = _seen(answer), _scene(sample, "scene"), _scene(sample, "wanted")
        scores.append(edit_scores(*scenes))
        successes.append(edit_success(*scenes))
    return {"edit_success": fmean(successes), **_means("edit", scores)}


def _masks(model, processor, samples, settings) -> dict[str, float]:
    prompts = [prompt for sample in samples for prompt in single_turns(sample)]
    wanted = [torch.from_numpy(mask) for sample in samples for mask in sample.masks]
    size = tuple(wanted[0].shape)
    score = SegmentationScore()
    found = answers(model, processor, prompts, settings, size)
    for answer, mask in zip(found, wanted, strict=True):
        # Who says nothing of a mask has masked nothing.
        said = answer.masks[0] > 0 if answer.masks else torch.zeros(size)
        score.add(said.bool().cpu(), mask)
    return {"ciou": score.ciou, "giou": score.giou}


def _seen(answer: Answer):
    return parse(to_image(answer.images[0])) if answer.images else ()


def _scene(sample: Conversation, name: str) -> Scene:
    return Scene.from_dict(sample.facts[name])


def _means(task: str, scores: list[dict[str, float]]) -> dict[str, float]:
    return {f"{task}_{name}": fmean(score[name] for score in scores) for name in scores[0]}
