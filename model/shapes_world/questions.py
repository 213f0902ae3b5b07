"""Questions about scenes whose answers do not follow from the words alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from setok_kernels.config import check_count
from setokim.shapes_world.dataset import pick
from setokim.shapes_world.scene import COLOURS, SHAPES, SIZES, Object, Scene

QUESTION_KINDS = ("count", "colour", "shape", "relation")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five"),
    *("six", "seven", "eight", "nine", "ten", "eleven"),
)
# For each coordinate of a centre, its words for less and for more.
RELATIONS = {"x": ("left of", "right of"), "y": ("above", "below")}
# Centres that differ by less, in sides of the picture, are asked nothing about.
_CLEAR = 0.1

# What earlier questions told: ("number", "" or a size), ("look", object) for its colour and shape,
# (coordinate, lower object, higher object).
_Told = frozenset[tuple[Hashable, ...]]


@dataclass(frozen=True)
class Question:
    """A question, its answer, and what the two give away.

    Attributes:
        kind: One of `QUESTION_KINDS`.
        text: With its question mark.
        answer: One word.
        choices: All answers that fit the kind.
        gives: What is known once the question is answered, so that no other asks for it.
    """

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...]
    gives: _Told = frozenset()


def ask(
    scene: Scene, generator: np.random.Generator, kind: str, asked: Sequence[Question] = ()
) -> Question | None:
    """Draws a question about a scene.

    Answers are evened out: a "relation" holds in half of the cases whatever it names, and where
    "count" asks for a size, the numbers that the sizes of the scene have are equally likely. The
    answers to "colour" and "shape" are as even as the objects.

    Args:
        scene: What is asked about.
        generator: Of random numbers.
        kind: One of `QUESTION_KINDS`.
        asked: Questions that came before about the same scene. None of them is repeated, nor is
            anything asked that follows from them and their answers.

    Returns:
        The question, or None where the scene allows none of this kind.

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in QUESTION_KINDS:
        raise ValueError(f"kind: expected one of {', '.join(QUESTION_KINDS)}, got {kind!r}")
    told = frozenset().union(*(question.gives for question in asked))
    return _DRAWN[kind](scene, generator, told)


def interview(
    scene: Scene,
    generator: np.random.Generator,
    turns: int,
    kinds: Mapping[str, float] | None = None,
) -> list[Question]:
    """Draws several questions about a scene, each of a kind drawn among the possible ones.

    Args:
        scene: What is asked about.
        generator: Of random numbers.
        turns: How many; fewer where the scene allows no more.
        kinds: How often each kind is drawn, relative to the others; None for all alike.

    Raises:
        TypeError, ValueError: `turns` is no integer of at least 1.
    """
    check_count("turns", turns)
    names = [kind for kind in QUESTION_KINDS if kinds is None or kinds.get(kind)]
    weights = np.array([1.0 if kinds is None else kinds[kind] for kind in names])
    asked: list[Question] = []
    for _ in range(turns):
        order = generator.choice(len(names), len(names), False, weights / weights.sum())
        drawn = (ask(scene, generator, names[number], asked) for number in order)
        question = next((one for one in drawn if one is not None), None)
        if question is None:
            break
        asked.append(question)
    return asked


def chance(questions: Sequence[Question]) -> float:
    """The accuracy of who knows the kind of each question and the commonest answer to each kind.

    Raises:
        ValueError: There is no question.
    """
    if not questions:
        raise ValueError("questions: expected at least one, got none")
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        answers[question.kind][question.answer] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(questions)


def only_ones(objects: Sequence[Object], *fields: str) -> list[int]:
    """The objects that no other equals in all of these fields, so that a phrase can name them."""
    looks = [tuple(getattr(thing, name) for name in fields) for thing in objects]
    return [number for number, look in enumerate(looks) if looks.count(look) == 1]


def _count(scene: Scene, generator: np.random.Generator, told: _Told) -> Question | None:
    if len(scene.objects) >= len(NUMBERS):
        return None
    number = {size: 0 for size in SIZES}
    for thing in scene.objects:
        number[thing.size] += 1
    sizes = [size for size in SIZES if ("number", size) not in told]
    whole_is_known = ("number", "") in told or not sizes
    # With the whole known, the last size follows, and so do all once nothing is left for them.
    if whole_is_known and (len(sizes) <= 1 or not sum(number[size] for size in sizes)):
        return None
    if not whole_is_known and generator.random() < 0.5:
        size, which, answer = "", "", len(scene.objects)
    else:
        answer = pick(generator, sorted({number[size] for size in sizes}))
        size = pick(generator, [size for size in sizes if number[size] == answer])
        which = f"{size} "
    text = f"how many {which}objects are there?"
    return Question("count", text, NUMBERS[answer], NUMBERS, frozenset({("number", size)}))


def _colour(scene: Scene, generator: np.random.Generator, told: _Told) -> Question | None:
    things = scene.objects
    names = {number: f"{things[number].size} " for number in only_ones(things, "size", "shape")}
    names |= dict.fromkeys(only_ones(things, "shape"), "")
    unknown = [number for number in names if ("look", number) not in told]
    if not unknown:
        return None
    number = pick(generator, sorted(unknown))
    text = f"what colour is the {names[number]}{things[number].shape}?"
    gives = frozenset({("look", number)})
    return Question("colour", text, things[number].colour, tuple(COLOURS), gives)


def _shape(scene: Scene, generator: np.random.Generator, told: _Told) -> Question | None:
    unknown = [
        number for number in only_ones(scene.objects, "colour") if ("look", number) not in told
    ]
    if not unknown:
        return None
    number = pick(generator, unknown)
    text = f"what shape is the {scene.objects[number].colour} object?"
    gives = frozenset({("look", number)})
    return Question("shape", text, scene.objects[number].shape, SHAPES, gives)


def _relation(scene: Scene, generator: np.random.Generator, told: _Told) -> Question | None:
    things = scene.objects
    named = only_ones(things, "colour", "shape")
    possible = []
    for axis in RELATIONS:
        known = _closure({fact[1:] for fact in told if fact[0] == axis})
        for pair in combinations(named, 2):
            low, high = sorted(pair, key=lambda number: getattr(things[number], axis))
            apart = getattr(things[high], axis) - getattr(things[low], axis)
            if apart >= _CLEAR and (low, high) not in known:
                possible.append((axis, low, high))
    if not possible:
        return None
    axis, low, high = pick(generator, possible)
    # Who comes first is drawn apart from the answer, so that the words alone say nothing.
    holds, turned = generator.integers(2, size=2).tolist()
    first, second = (high, low) if turned else (low, high)
    relation = RELATIONS[axis][turned if holds else 1 - turned]
    names = [f"the {things[number].colour} {things[number].shape}" for number in (first, second)]
    gives = frozenset({(axis, low, high), ("look", low), ("look", high)})
    answer = "yes" if holds else "no"
    text = f"is {names[0]} {relation} {names[1]}?"
    return Question("relation", text, answer, ("yes", "no"), gives)


_DRAWN = {"count": _count, "colour": _colour, "shape": _shape, "relation": _relation}


def _closure(pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """All pairs that follow, as a before b and b before c make a before c."""
    while new := {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs:
        pairs = pairs | new
    return pairs
