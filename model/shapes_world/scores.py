"""Scores of generated images, captions, edits and answers about ShapesWorld.

Objects are matched by their colours, so a scene must not show one colour twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from statistics import fmean

from setokim.shapes_world.parser import Seen
from setokim.shapes_world.scene import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Object,
    Scene,
    place_name,
)

# In sides of the image.
_CELL_TOLERANCE = 0.06
_MAX_DISTANCE = 0.1
_BETWEEN_PHRASES = re.compile(r"[,.;:!?\n]|\band\b")
_LOCATED = ("colour", "shape", "size", "place")
_PLACE_WORDS = {word for row in PLACES for name in row for word in name.split()}
_DESCRIBED = ("size", "colour", "texture", "shape")


def generation_scores(seen: Sequence[Seen], wanted: Scene) -> dict[str, float]:
    """Compare the objects of a generated image with the wanted ones.

    Every wanted object is compared with the seen object of its colour, the nearest if there are
    several.

    Args:
        seen: result of `parser.parse`.
        wanted: scene in the prompt.

    Returns:
        The fractions of the wanted objects whose "colour" is there, and whose "shape", "size" and
        "place" are right as well; "accuracy", the mean of the four; and "extra", the number of
        unwanted objects. The place is right if the centre lies in the same cell of `PLACES` as the
        wanted centre, or at most 0.06 of the side beyond it in height and in width.

    Raises:
        ValueError: a colour occurs twice in `wanted`.
    """
    _check_colours("wanted", wanted)
    right: list[dict[str, bool]] = []
    for obj in wanted.objects:
        found = _nearest(seen, obj)
        right.append(
            dict.fromkeys(_LOCATED, False)
            if found is None
            else {
                "colour": True,
                "shape": found.shape == obj.shape,
                "size": found.size == obj.size,
                "place": _in_cell(found, place_name(obj.y, obj.x)),
            }
        )
    return _fractions(right, _LOCATED, len(seen))


def caption_scores(text: str, scene: Scene) -> dict[str, float]:
    """Compare a caption with the scene of its image.

    A phrase ends at a comma, another stop, or "and". It describes the object of its colour; the
    first of several phrases with one colour counts. The order of phrases and of words in a phrase
    does not matter, unknown words are ignored, and a phrase without a texture means "plain". Two
    words of one kind in a phrase, like "small large", count as none.

    Args:
        text: caption to judge, any text.
        scene: scene of the image.

    Returns:
        The fractions of the objects whose "colour" is named, and whose "size", "texture" and
        "shape" are right as well; "accuracy", the mean of the four; and "extra", the number of
        phrases without an object.

    Raises:
        ValueError: a colour occurs twice in `scene`.
    """
    _check_colours("scene", scene)
    phrases = [phrase.split() for phrase in _BETWEEN_PHRASES.split(text.lower())]
    phrases = [words for words in phrases if words]
    described: dict[str | None, dict[str, str | None]] = {}
    for words in phrases:
        textures = [word for word in words if word in TEXTURES] or ["plain"]
        described.setdefault(
            _only(words, COLOURS),
            {
                "size": _only(words, SIZES),
                "texture": _only(textures, TEXTURES),
                "shape": _only(words, SHAPES),
            },
        )
    right = []
    for obj in scene.objects:
        found = described.get(obj.colour)
        right.append(
            dict.fromkeys(_DESCRIBED, False)
            if found is None
            else {"colour": True} | {name: found[name] == getattr(obj, name) for name in found}
        )
    return _fractions(right, _DESCRIBED, len(phrases))


def locating_scores(text: str, scene: Scene) -> dict[str, float]:
    """Compare the shapes, sizes and positions in a text with the scene of its image.

    Each phrase, which ends at a comma or a full stop, describes the object of its colour; the first
    of several with one colour counts.

    Args:
        text: text to judge, in the form of `locate`.
        scene: scene of the image.

    Returns:
        The fractions of the objects whose "colour" is named, and whose "shape", "size" and "place"
        are right as well, with the same tolerance of positions as in `generation_scores`;
        "accuracy", the mean of the four; and "extra", the number of phrases without an object.

    Raises:
        ValueError: a colour occurs twice in `scene`.
    """
    _check_colours("scene", scene)
    phrases = [phrase.split() for phrase in re.split(r"[,.]", text.lower())]
    phrases = [words for words in phrases if words]
    described: dict[str | None, list[str]] = {}
    for words in phrases:
        described.setdefault(_only(words, COLOURS), words)
    right: list[dict[str, bool]] = []
    for obj in scene.objects:
        words = described.get(obj.colour, [])
        right.append(
            {
                "colour": bool(words),
                "shape": _only(words, SHAPES) == obj.shape,
                "size": _only(words, SIZES) == obj.size,
                "place": _in_cell(obj, _place(words)),
            }
        )
    return _fractions(right, _LOCATED, len(phrases))


def edit_scores(seen: Sequence[Seen], before: Scene, wanted: Scene) -> dict[str, float]:
    """Score the parts of an edit.

    A seen object matches a wanted one if it has its colour and their centres are at most 0.1 of the
    side apart.

    Args:
        seen: result of `parser.parse` for the edited image.
        before: scene before the edit.
        wanted: scene after the edit, in which one object is removed or has another colour or size.

    Returns:
        "changed", 1 if the change was made, else 0: no object has the old colour, the object of the
        new colour is at its position, or the object has its new size. "kept", the fraction of the
        other objects that remain (1 if there are none), with any shape and size. "extra", the
        number of objects that match no wanted one.

    Raises:
        ValueError: a colour occurs twice in a scene, or the scenes differ in anything else.
    """
    _check_colours("before", before)
    _check_colours("wanted", wanted)
    old, new = _difference(before, wanted)
    there = {obj.colour: _match(seen, obj) for obj in wanted.objects}
    others = [there[obj.colour] is not None for obj in wanted.objects if obj != new]
    changed = True
    if new is None or new.colour != old.colour:
        changed = all(obj.colour != old.colour for obj in seen)
    if new is not None:
        found = there[new.colour]
        # "recolour" requires a new colour only.
        resized = new.size != old.size
        changed &= found is not None and (not resized or found.size == new.size)
    return {
        "changed": float(changed),
        "kept": fmean(others) if others else 1.0,
        "extra": float(len(seen) - sum(found is not None for found in there.values())),
    }


def edit_success(seen: Sequence[Seen], before: Scene, wanted: Scene) -> bool:
    """Return whether an image shows the wanted change, all other objects and nothing else.

    Arguments and errors are those of `edit_scores`.
    """
    scores = edit_scores(seen, before, wanted)
    return scores == {"changed": 1.0, "kept": 1.0, "extra": 0.0}


def answer_accuracy(
    predicted: Sequence[str], wanted: Sequence[str], kinds: Sequence[str]
) -> dict[str, float]:
    """Return the accuracy of answers, up to case, surrounding spaces and a final full stop.

    Args:
        predicted: answers of the model, at least one.
        wanted: right answers.
        kinds: kinds of the questions.

    Returns:
        "overall", and the accuracy of each kind, in sorted order.

    Raises:
        ValueError: there are no answers, the lengths differ, or a kind is "overall".
    """
    if not len(predicted) == len(wanted) == len(kinds) > 0:
        raise ValueError(
            "predicted: expected as many as wanted and kinds, at least 1, "
            f"got {len(predicted)}, {len(wanted)} and {len(kinds)}"
        )
    if "overall" in kinds:
        raise ValueError("kinds: expected names of kinds, got 'overall'")
    right = [_plain(a) == _plain(b) for a, b in zip(predicted, wanted, strict=True)]
    by_kind = {
        kind: fmean(hit for hit, other in zip(right, kinds, strict=True) if other == kind)
        for kind in sorted(set(kinds))
    }
    return {"overall": fmean(right), **by_kind}


def _check_colours(name: str, scene: Scene) -> None:
    colours = [obj.colour for obj in scene.objects]
    if len(set(colours)) < len(colours):
        raise ValueError(f"{name}: expected objects of different colours, got {colours}")


def _fractions(
    right: Sequence[dict[str, bool]], names: Sequence[str], number: int
) -> dict[str, float]:
    """Average over the objects; `number` is that of all seen objects or phrases."""
    fractions = {name: fmean(one[name] for one in right) for name in names}
    surplus = number - sum(one["colour"] for one in right)
    return fractions | {"accuracy": fmean(fractions.values()), "extra": float(surplus)}


def _distance(found: Seen, obj: Object) -> float:
    return math.hypot(found.y - obj.y, found.x - obj.x)


def _nearest(seen: Sequence[Seen], obj: Object) -> Seen | None:
    same = [found for found in seen if found.colour == obj.colour]
    return min(same, key=lambda found: _distance(found, obj), default=None)


def _match(seen: Sequence[Seen], obj: Object) -> Seen | None:
    found = _nearest(seen, obj)
    return found if found is not None and _distance(found, obj) <= _MAX_DISTANCE else None


def _place(words: Sequence[str]) -> str | None:
    """Return the name in `PLACES` that the words of positions form in their order, or None."""
    name = " ".join(word for word in words if word in _PLACE_WORDS)
    return name if any(name in row for row in PLACES) else None


def _in_cell(found: Seen | Object, name: str | None) -> bool:
    if name is None:
        return False
    row, column = next(
        (row, column)
        for row, names in enumerate(PLACES)
        for column, place in enumerate(names)
        if place == name
    )
    return all(
        cell / 3 - _CELL_TOLERANCE <= centre <= (cell + 1) / 3 + _CELL_TOLERANCE
        for cell, centre in ((row, found.y), (column, found.x))
    )


def _difference(before: Scene, wanted: Scene) -> tuple[Object, Object | None]:
    """Return the object that changes, and its new form, or None if it is removed."""
    old = [obj for obj in before.objects if obj not in wanted.objects]
    new = [obj for obj in wanted.objects if obj not in before.objects]
    one = len(old) == 1 and len(new) <= 1
    allowed = one and all(
        obj in (replace(old[0], colour=obj.colour), replace(old[0], size=obj.size)) for obj in new
    )
    if not allowed:
        raise ValueError(
            "wanted: expected the scene before with one object removed, or of another colour or "
            f"size, got {wanted.caption!r} after {before.caption!r}"
        )
    return old[0], new[0] if new else None


def _only(words: Sequence[str], known: Collection[str]) -> str | None:
    """Return the only known word; None without one, or with several different ones."""
    found = {word for word in words if word in known}
    return found.pop() if len(found) == 1 else None


def _plain(answer: str) -> str:
    return answer.strip().lower().removesuffix(".").strip()
