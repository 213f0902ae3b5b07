"""Questions about scenes, whose answers do not follow from their text alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from setok_kernels.config import check_count
from setokim.shapes_world.dataset import pick
from setokim.shapes_world.scene import COLOURS, PLACES, SHAPES, SIZES, Object, Scene, place_name

# Kinds of questions that are asked unless others are named.
QUESTION_KINDS = ("count", "colour", "shape", "relation")
# "place" is for training: relations are learned much faster beside it.
ALL_KINDS = (*QUESTION_KINDS, "place")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five"),
    *("six", "seven", "eight", "nine", "ten", "eleven"),
)
# Phrases for a smaller and a larger coordinate of a centre.
RELATIONS = {"x": ("left of", "right of"), "y": ("above", "below")}
# Min difference of two centres for a question about them, in sides of the image.
_MIN_DISTANCE = 0.1

# Facts that earlier questions revealed: ("number", "" or a size), ("look", object) for its colour
# and shape, ("place", object), (coordinate, lower object, higher object).
_Facts = frozenset[tuple[Hashable, ...]]


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the facts that they reveal.

    Attributes:
        kind: name in `ALL_KINDS`.
        text: sentence with its question mark.
        answer: single word, or a name of `PLACES`.
        choices: possible answers of the kind.
        gives: facts known after the answer, which no other question asks for.
    """

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...]
    gives: _Facts = frozenset()


def ask(
    scene: Scene, generator: np.random.Generator, kind: str, asked: Sequence[Question] = ()
) -> Question | None:
    """Sample a question about a scene.

    Answers are balanced: a "relation" holds in half of the cases, and for a "count" of a size the
    numbers of objects that the scene has of its sizes are equally likely. The answers to "colour",
    "shape" and "place" follow the distribution of the objects.

    Args:
        scene: scene of the question.
        generator: random number generator.
        kind: name in `ALL_KINDS`.
        asked: earlier questions about the same scene. The new question is none of them, and its
            answer does not follow from them and their answers.

    Returns:
        The question, or None if the scene allows none of this kind.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in ALL_KINDS:
        raise ValueError(f"kind: expected one of {', '.join(ALL_KINDS)}, got {kind!r}")
    known_facts = frozenset().union(*(question.gives for question in asked))
    return _SAMPLERS[kind](scene, generator, known_facts)


def interview(
    scene: Scene,
    generator: np.random.Generator,
    turns: int,
    kinds: Mapping[str, float] | None = None,
) -> list[Question]:
    """Sample several questions about a scene, each of a kind sampled among the possible ones.

    Args:
        scene: scene of the questions.
        generator: random number generator.
        turns: max number of questions; a scene may allow fewer.
        kinds: weights of the kinds in the sampling; None for equal weights of `QUESTION_KINDS`.

    Raises:
        TypeError, ValueError: `turns` is no integer of at least 1.
    """
    check_count("turns", turns)
    kinds = dict.fromkeys(QUESTION_KINDS, 1.0) if kinds is None else kinds
    names = [kind for kind in ALL_KINDS if kinds.get(kind)]
    weights = np.array([kinds[kind] for kind in names])
    asked: list[Question] = []
    for _ in range(turns):
        order = generator.choice(len(names), len(names), False, weights / weights.sum())
        candidates = (ask(scene, generator, names[number], asked) for number in order)
        question = next((one for one in candidates if one is not None), None)
        if question is None:
            break
        asked.append(question)
    return asked


def chance(questions: Sequence[Question]) -> float:
    """Return the accuracy of the most common answer to each kind of question.

    Raises:
        ValueError: there is no question.
    """
    if not questions:
        raise ValueError("questions: expected at least one, got none")
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        answers[question.kind][question.answer] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(questions)


def only_ones(objects: Sequence[Object], *fields: str) -> list[int]:
    """Return indices of the objects that these fields identify, so that a phrase can name them."""
    looks = [tuple(getattr(thing, name) for name in fields) for thing in objects]
    return [number for number, look in enumerate(looks) if looks.count(look) == 1]


def _count(scene: Scene, generator: np.random.Generator, known_facts: _Facts) -> Question | None:
    if len(scene.objects) >= len(NUMBERS):
        return None
    number = {size: 0 for size in SIZES}
    for thing in scene.objects:
        number[thing.size] += 1
    sizes = [size for size in SIZES if ("number", size) not in known_facts]
    whole_is_known = ("number", "") in known_facts or not sizes
    # Given the total, the last size follows, and so do all sizes once no object is left for them.
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


def _colour(scene: Scene, generator: np.random.Generator, known_facts: _Facts) -> Question | None:
    objects = scene.objects
    names = {number: f"{objects[number].size} " for number in only_ones(objects, "size", "shape")}
    names |= dict.fromkeys(only_ones(objects, "shape"), "")
    unknown = [number for number in names if ("look", number) not in known_facts]
    if not unknown:
        return None
    number = pick(generator, sorted(unknown))
    text = f"what colour is the {names[number]}{objects[number].shape}?"
    gives = frozenset({("look", number)})
    return Question("colour", text, objects[number].colour, tuple(COLOURS), gives)


def _shape(scene: Scene, generator: np.random.Generator, known_facts: _Facts) -> Question | None:
    unknown = [
        number
        for number in only_ones(scene.objects, "colour")
        if ("look", number) not in known_facts
    ]
    if not unknown:
        return None
    number = pick(generator, unknown)
    text = f"what shape is the {scene.objects[number].colour} object?"
    gives = frozenset({("look", number)})
    return Question("shape", text, scene.objects[number].shape, SHAPES, gives)


def _relation(scene: Scene, generator: np.random.Generator, known_facts: _Facts) -> Question | None:
    objects = scene.objects
    named = only_ones(objects, "colour", "shape")
    possible = []
    placed = [fact[1] for fact in known_facts if fact[0] == "place"]
    for axis in RELATIONS:
        told = {fact[1:] for fact in known_facts if fact[0] == axis}
        cells = {number: _cell(objects[number], axis) for number in placed}
        told |= {(a, b) for a in placed for b in placed if cells[a] < cells[b]}
        known = _closure(told)
        for pair in combinations(named, 2):
            low, high = sorted(pair, key=lambda number: getattr(objects[number], axis))
            apart = getattr(objects[high], axis) - getattr(objects[low], axis)
            if apart >= _MIN_DISTANCE and (low, high) not in known:
                possible.append((axis, low, high))
    if not possible:
        return None
    axis, low, high = pick(generator, possible)
    # The order is sampled independently of the answer, so that the text alone predicts nothing.
    holds, turned = generator.integers(2, size=2).tolist()
    first, second = (high, low) if turned else (low, high)
    relation = RELATIONS[axis][turned if holds else 1 - turned]
    names = [f"the {objects[number].colour} {objects[number].shape}" for number in (first, second)]
    gives = frozenset({(axis, low, high), ("look", low), ("look", high)})
    answer = "yes" if holds else "no"
    text = f"is {names[0]} {relation} {names[1]}?"
    return Question("relation", text, answer, ("yes", "no"), gives)


def _place(scene: Scene, generator: np.random.Generator, known_facts: _Facts) -> Question | None:
    objects = scene.objects
    named = only_ones(objects, "colour", "shape")
    unknown = [number for number in named if ("place", number) not in known_facts]
    if not unknown:
        return None
    number = pick(generator, unknown)
    thing = objects[number]
    text = f"where is the {thing.colour} {thing.shape}?"
    gives = frozenset({("place", number), ("look", number)})
    choices = tuple(name for row in PLACES for name in row)
    return Question("place", text, place_name(thing.y, thing.x), choices, gives)


def _cell(thing: Object, axis: str) -> int:
    """Return the row or column of `PLACES` that holds an object."""
    return min(2, int(3 * getattr(thing, axis)))


_SAMPLERS = {
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "relation": _relation,
    "place": _place,
}


def _closure(pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the transitive closure: a before b and b before c give a before c."""
    while new := {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs:
        pairs = pairs | new
    return pairs
