"""Changes to scenes in words: which object, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from setok_kernels.config import check_number
from setokim.shapes_world.dataset import visible_shares
from setokim.shapes_world.questions import only_ones
from setokim.shapes_world.scene import COLOURS, SIZES, Object, Scene

EDIT_KINDS = ("recolour", "remove", "resize")


@dataclass(frozen=True)
class Edit:
    """An instruction, and what a scene is after it was followed.

    Attributes:
        instruction: With its full stop; names the object by colour and shape.
        scene: Like the scene before in everything else.
        kind: One of `EDIT_KINDS`.
    """

    instruction: str
    scene: Scene
    kind: str


def edit(scene: Scene, generator: np.random.Generator, visible: float = 0.5) -> Edit | None:
    """Draws a change of one object: first its kind, evenly among the possible ones.

    "recolour" takes a colour that is not in the scene, "remove" leaves at least one object, and
    after "resize" the object still lies within the picture.

    Args:
        scene: What is changed.
        generator: Of random numbers.
        visible: The least share of every object that a change of size leaves visible.

    Returns:
        The change, or None where no object differs from all others in colour or shape.

    Raises:
        TypeError, ValueError: `visible` is no number from 0 to 1.
    """
    check_number("visible", visible, least=0, most=1)
    for kind in generator.permutation(EDIT_KINDS).tolist():
        changes = _changes(scene, kind)
        for chosen in generator.permutation(len(changes)).tolist():
            number, value = changes[chosen]
            things = list(scene.objects)
            name = f"the {things[number].colour} {things[number].shape}"
            if kind == "remove":
                del things[number]
                return Edit(f"remove {name}.", replace(scene, objects=tuple(things)), kind)
            field = "colour" if kind == "recolour" else "size"
            things[number] = replace(things[number], **{field: value})
            changed = replace(scene, objects=tuple(things))
            # Nothing that keeps its size hides more than before.
            if kind == "recolour" or (visible_shares(changed) >= visible).all():
                return Edit(f"make {name} {value}.", changed, kind)
    return None


def _changes(scene: Scene, kind: str) -> list[tuple[int, str]]:
    """Numbers of objects, and the colour or the size that each may get; "" for none."""
    things = scene.objects
    named = only_ones(things, "colour", "shape")
    if kind == "remove":
        return [(number, "") for number in named if len(things) > 1]
    if kind == "recolour":
        free = [colour for colour in COLOURS if colour not in {thing.colour for thing in things}]
        return [(number, colour) for number in named for colour in free]
    return [
        (number, size)
        for number in named
        for size in SIZES
        if size != things[number].size and _fits(things[number], SIZES[size])
    ]


def _fits(thing: Object, radius: float) -> bool:
    return all(radius <= centre <= 1 - radius for centre in (thing.y, thing.x))
