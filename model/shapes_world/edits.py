"""Edits of scenes: an instruction and the changed scene."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from setok_kernels.config import check_number
from setokim.shapes_world.dataset import visible_fractions
from setokim.shapes_world.questions import only_ones
from setokim.shapes_world.scene import COLOURS, SIZES, Object, Scene

EDIT_KINDS = ("recolour", "remove", "resize")


@dataclass(frozen=True)
class Edit:
    """An instruction and the scene after it.

    Attributes:
        instruction: sentence with its full stop, which names the object by colour and shape.
        scene: scene after the edit, otherwise equal to the scene before.
        kind: name in `EDIT_KINDS`.
    """

    instruction: str
    scene: Scene
    kind: str


def edit(scene: Scene, generator: np.random.Generator, visible: float = 0.5) -> Edit | None:
    """Sample a change of one object: first its kind, uniformly among the possible ones.

    "recolour" takes a colour that is not in the scene, "remove" leaves at least one object, and
    after "resize" the object still lies within the image.

    Args:
        scene: scene before the edit.
        generator: random number generator.
        visible: min visible fraction of every object after a change of size.

    Returns:
        The change, or None if no object differs from all others in colour or shape.

    Raises:
        TypeError, ValueError: `visible` is no number from 0 to 1.
    """
    check_number("visible", visible, least=0, most=1)
    for kind in generator.permutation(EDIT_KINDS).tolist():
        changes = _changes(scene, kind)
        for chosen in generator.permutation(len(changes)).tolist():
            change = _edit(scene, kind, *changes[chosen])
            # A change of colour hides nothing.
            if kind != "resize" or (visible_fractions(change.scene) >= visible).all():
                return change
    return None


def edit_between(before: Scene, after: Scene) -> Edit | None:
    """Return the edit that leads from one scene to another; None if no single one does.

    Args:
        before: scene before the edit.
        after: scene after it, whose objects are visible enough.
    """
    for kind in EDIT_KINDS:
        for number, value in _changes(before, kind):
            change = _edit(before, kind, number, value)
            if change.scene == after:
                return change
    return None


def _edit(scene: Scene, kind: str, number: int, value: str) -> Edit:
    objects = list(scene.objects)
    name = f"the {objects[number].colour} {objects[number].shape}"
    if kind == "remove":
        del objects[number]
        return Edit(f"remove {name}.", replace(scene, objects=tuple(objects)), kind)
    field = "colour" if kind == "recolour" else "size"
    objects[number] = replace(objects[number], **{field: value})
    return Edit(f"make {name} {value}.", replace(scene, objects=tuple(objects)), kind)


def _changes(scene: Scene, kind: str) -> list[tuple[int, str]]:
    """Return indices of objects with their possible new colours or sizes; "" for a removal."""
    objects = scene.objects
    named = only_ones(objects, "colour", "shape")
    if kind == "remove":
        return [(number, "") for number in named if len(objects) > 1]
    if kind == "recolour":
        free = [colour for colour in COLOURS if colour not in {one.colour for one in objects}]
        return [(number, colour) for number in named for colour in free]
    return [
        (number, size)
        for number in named
        for size in SIZES
        if size != objects[number].size and _fits(objects[number], SIZES[size])
    ]


def _fits(one: Object, radius: float) -> bool:
    return all(radius <= centre <= 1 - radius for centre in (one.y, one.x))
