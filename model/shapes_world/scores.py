"""Right or wrong: scores of drawn pictures, captions, edits and answers about the shapes world.

Objects are told apart by their colours, so the scenes here must not show one colour twice.
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

# Over the side of the picture.
_BESIDE_CELL = 0.06
_SAME_PLACE = 0.1
_BETWEEN_PHRASES = re.compile(r"[,.;:!?\n]|\band\b")
_DRAWN = ("colour", "shape", "size", "place")
_PLACE_WORDS = {word for row in PLACES for name in row for word in name.split()}
_TOLD = ("size", "colour", "texture", "shape")


def generation_scores(seen: Sequence[Seen], wanted: Scene) -> dict[str, float]:
    """Compares what a picture shows with what it should show.

    Every wanted object is compared with the seen one of its colour; of several with the one that is
    nearest to its place.

    Args:
        seen: What `scene_parser.parse` found.
        wanted: The scene that was asked for.

    Returns:
        The shares of the wanted objects whose "colour" is there, and whose "shape", "size" and
        "place" are right as well; "accuracy", the mean of the four; and "extra", how many things
        nobody asked for. A place is right if the centre lies in the cell of `PLACES` that the
        wanted centre lies in, or at most 0.06 of the side beyond it in height and in width.

    Raises:
        ValueError: A colour occurs twice in `wanted`.
    """
    _check_colours("wanted", wanted)
    right: list[dict[str, bool]] = []
    for thing in wanted.objects:
        found = _nearest(seen, thing)
        right.append(
            dict.fromkeys(_DRAWN, False)
            if found is None
            else {
                "colour": True,
                "shape": found.shape == thing.shape,
                "size": found.size == thing.size,
                "place": _in_cell(found, place_name(thing.y, thing.x)),
            }
        )
    return _shares(right, _DRAWN, len(seen))


def caption_scores(text: str, scene: Scene) -> dict[str, float]:
    """Compares a caption with what its picture shows.

    A phrase ends at a comma, another stop, or "and". It speaks of the object of its colour; the
    first of several phrases with one colour counts. The order of phrases and of the words in them
    does not matter, words that describe nothing are passed over, and a phrase without a texture
    says "plain". A phrase that says two things of one sort, like "small large", says neither.

    Args:
        text: Any text at all.
        scene: What the picture shows.

    Returns:
        The shares of the objects whose "colour" is named, and whose "size", "texture" and "shape"
        are right as well; "accuracy", the mean of the four; and "extra", how many phrases speak of
        nothing that is there.

    Raises:
        ValueError: A colour occurs twice in `scene`.
    """
    _check_colours("scene", scene)
    phrases = [phrase.split() for phrase in _BETWEEN_PHRASES.split(text.lower())]
    phrases = [words for words in phrases if words]
    told: dict[str | None, dict[str, str | None]] = {}
    for words in phrases:
        textures = [word for word in words if word in TEXTURES] or ["plain"]
        told.setdefault(
            _only(words, COLOURS),
            {
                "size": _only(words, SIZES),
                "texture": _only(textures, TEXTURES),
                "shape": _only(words, SHAPES),
            },
        )
    right = []
    for thing in scene.objects:
        said = told.get(thing.colour)
        right.append(
            dict.fromkeys(_TOLD, False)
            if said is None
            else {"colour": True} | {name: said[name] == getattr(thing, name) for name in said}
        )
    return _shares(right, _TOLD, len(phrases))


def locating_scores(text: str, scene: Scene) -> dict[str, float]:
    """Compares what a text says of shapes and places with what its picture shows.

    Each phrase, which ends at a comma or a full stop, speaks of the object of its colour; the first
    of several with one colour counts.

    Args:
        text: Any text at all, such as `locate` gives.
        scene: What the picture shows.

    Returns:
        The shares of the objects whose "colour" is named, and whose "shape", "size" and "place" are
        right as well, with the same leave for a place as in `generation_scores`; "accuracy", the
        mean of the four; and "extra", how many phrases speak of nothing that is there.

    Raises:
        ValueError: A colour occurs twice in `scene`.
    """
    _check_colours("scene", scene)
    phrases = [phrase.split() for phrase in re.split(r"[,.]", text.lower())]
    phrases = [words for words in phrases if words]
    told: dict[str | None, list[str]] = {}
    for words in phrases:
        told.setdefault(_only(words, COLOURS), words)
    right: list[dict[str, bool]] = []
    for thing in scene.objects:
        words = told.get(thing.colour, [])
        right.append(
            {
                "colour": bool(words),
                "shape": _only(words, SHAPES) == thing.shape,
                "size": _only(words, SIZES) == thing.size,
                "place": _in_cell(thing, _place(words)),
            }
        )
    return _shares(right, _DRAWN, len(phrases))


def edit_scores(seen: Sequence[Seen], before: Scene, wanted: Scene) -> dict[str, float]:
    """Says which parts of an edit succeeded.

    A seen object stands for a wanted one if it has its colour and their centres are no more than
    0.1 of the side apart.

    Args:
        seen: What `scene_parser.parse` found in the edited picture.
        before: The scene before the edit.
        wanted: The scene that was asked for, which differs in one object: it is gone, or has
            another colour or another size.

    Returns:
        "changed", 1 if the change was made, else 0: nothing has the colour that should be gone, the
        object of the new colour is at its place, or the object has its new size. "kept", the share
        of the other objects that are still there (1 if there are none), whatever their shape and
        size. "extra", how many things stand for no wanted object.

    Raises:
        ValueError: A colour occurs twice in a scene, or the scenes differ in anything else.
    """
    _check_colours("before", before)
    _check_colours("wanted", wanted)
    old, new = _difference(before, wanted)
    there = {thing.colour: _in_place(seen, thing) for thing in wanted.objects}
    others = [there[thing.colour] is not None for thing in wanted.objects if thing != new]
    changed = True
    if new is None or new.colour != old.colour:
        changed = all(thing.colour != old.colour for thing in seen)
    if new is not None:
        found = there[new.colour]
        # A new colour is all that "recolour" asks for.
        resized = new.size != old.size
        changed &= found is not None and (not resized or found.size == new.size)
    return {
        "changed": float(changed),
        "kept": fmean(others) if others else 1.0,
        "extra": float(len(seen) - sum(found is not None for found in there.values())),
    }


def edit_success(seen: Sequence[Seen], before: Scene, wanted: Scene) -> bool:
    """Whether a picture shows the wanted change, all other objects and nothing else.

    Arguments and errors are those of `edit_scores`.
    """
    scores = edit_scores(seen, before, wanted)
    return scores == {"changed": 1.0, "kept": 1.0, "extra": 0.0}


def answer_accuracy(
    predicted: Sequence[str], wanted: Sequence[str], kinds: Sequence[str]
) -> dict[str, float]:
    """The share of answers that are right, but for case, spaces around them and a final full stop.

    Args:
        predicted: Answers, at least one.
        wanted: The right answers.
        kinds: Of the questions.

    Returns:
        "overall", and one number for each kind, in sorted order.

    Raises:
        ValueError: There are no answers, not equally many of the three, or a kind is "overall".
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
    colours = [thing.colour for thing in scene.objects]
    if len(set(colours)) < len(colours):
        raise ValueError(f"{name}: expected objects of different colours, got {colours}")


def _shares(
    right: Sequence[dict[str, bool]], names: Sequence[str], number: int
) -> dict[str, float]:
    """Means over the objects; `number` things were seen or phrases told, one for each colour."""
    shares = {name: fmean(one[name] for one in right) for name in names}
    surplus = number - sum(one["colour"] for one in right)
    return shares | {"accuracy": fmean(shares.values()), "extra": float(surplus)}


def _distance(found: Seen, thing: Object) -> float:
    return math.hypot(found.y - thing.y, found.x - thing.x)


def _nearest(seen: Sequence[Seen], thing: Object) -> Seen | None:
    same = [found for found in seen if found.colour == thing.colour]
    return min(same, key=lambda found: _distance(found, thing), default=None)


def _in_place(seen: Sequence[Seen], thing: Object) -> Seen | None:
    found = _nearest(seen, thing)
    return found if found is not None and _distance(found, thing) <= _SAME_PLACE else None


def _place(words: Sequence[str]) -> str | None:
    """The name of `PLACES` that all words of places make in their order; None if they make none."""
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
        cell / 3 - _BESIDE_CELL <= centre <= (cell + 1) / 3 + _BESIDE_CELL
        for cell, centre in ((row, found.y), (column, found.x))
    )


def _difference(before: Scene, wanted: Scene) -> tuple[Object, Object | None]:
    """The object that changes, and what becomes of it, or None if it goes."""
    old = [thing for thing in before.objects if thing not in wanted.objects]
    new = [thing for thing in wanted.objects if thing not in before.objects]
    one = len(old) == 1 and len(new) <= 1
    allowed = one and all(
        thing in (replace(old[0], colour=thing.colour), replace(old[0], size=thing.size))
        for thing in new
    )
    if not allowed:
        raise ValueError(
            "wanted: expected the scene before with one object gone, of another colour or of "
            f"another size, got {wanted.caption!r} after {before.caption!r}"
        )
    return old[0], new[0] if new else None


def _only(words: Sequence[str], known: Collection[str]) -> str | None:
    """The one word that is known; None if there is none, or another."""
    found = {word for word in words if word in known}
    return found.pop() if len(found) == 1 else None


def _plain(answer: str) -> str:
    return answer.strip().lower().removesuffix(".").strip()
