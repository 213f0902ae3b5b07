"""ShapesWorld scenes as plain data: objects, their positions, and their names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from setok_kernels.config import check_number
from setokim.data.samples import check_natural

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "hexagon")
TEXTURES = ("plain", "striped", "dotted", "checked")
# About the radius of a shape, over the side of the image.
SIZES = {"small": 0.095, "medium": 0.135, "large": 0.19}
COLOURS = {
    "red": (220, 40, 40),
    "orange": (255, 145, 20),
    "yellow": (250, 225, 50),
    "green": (40, 165, 60),
    "cyan": (50, 220, 235),
    "blue": (40, 80, 225),
    "purple": (135, 40, 185),
    "pink": (255, 135, 195),
    "brown": (105, 55, 20),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
BACKGROUNDS = {
    "grey": (150, 150, 150),
    "beige": (192, 180, 158),
    "slate": (132, 146, 162),
    "sage": (146, 162, 136),
    "mauve": (160, 140, 156),
    "rose": (180, 156, 152),
}
# Rows and columns of a 3 x 3 grid over the image.
PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
# A label and a flag for the texture share one byte in the renderer.
_MAX_OBJECTS = 127


@dataclass(frozen=True)
class Object:
    """An object of a scene.

    Attributes:
        shape: name in `SHAPES`.
        size: name in `SIZES`.
        colour: name in `COLOURS`.
        texture: name in `TEXTURES`.
        y: coordinate of the centre, from 0 at the top of the image to 1 at the bottom.
        x: coordinate of the centre, from 0 at the left of the image to 1 at the right.
        rotation: angle in radians, clockwise.
        depth: rank in rendering order: 0 is the farthest, and later objects cover earlier ones.

    Raises:
        TypeError, ValueError: a field does not fit its description.
    """

    shape: str
    size: str
    colour: str
    texture: str
    y: float
    x: float
    rotation: float = 0.0
    depth: int = 0

    def __post_init__(self):
        _check_choice("shape", self.shape, SHAPES)
        _check_choice("size", self.size, SIZES)
        _check_choice("colour", self.colour, COLOURS)
        _check_choice("texture", self.texture, TEXTURES)
        check_number("y", self.y, least=0, most=1)
        check_number("x", self.x, least=0, most=1)
        check_number("rotation", self.rotation)
        check_natural("depth", self.depth)

    @property
    def radius(self) -> float:
        """About half the width of the shape, over the side of the image."""
        return SIZES[self.size]

    @property
    def phrase(self) -> str:
        """Size, colour, texture and shape; the texture "plain" is omitted."""
        texture = () if self.texture == "plain" else (self.texture,)
        return " ".join((self.size, self.colour, *texture, self.shape))


@dataclass(frozen=True)
class Scene:
    """Content of an image; relations follow from the positions.

    Attributes:
        objects: objects with different depths; label i of the masks is `objects[i - 1]`.
        background: name in `BACKGROUNDS`.
        gradient: increase of the background's brightness from top to bottom and from left to right,
            in levels of 255.
        contrast: contrast of the textures, from 0 (all objects look plain) to 1.

    Raises:
        TypeError, ValueError: a field does not fit its description.
    """

    objects: tuple[Object, ...]
    background: str
    gradient: tuple[float, float] = (0.0, 0.0)
    contrast: float = 1.0

    def __post_init__(self):
        if not 1 <= len(self.objects) <= _MAX_OBJECTS:
            raise ValueError(f"objects: expected 1 to {_MAX_OBJECTS}, got {len(self.objects)}")
        depths = [thing.depth for thing in self.objects]
        if len(set(depths)) < len(depths):
            raise ValueError(f"objects: expected different depths, got {depths}")
        _check_choice("background", self.background, BACKGROUNDS)
        if len(self.gradient) != 2 or not all(map(math.isfinite, self.gradient)):
            raise ValueError(f"gradient: expected two finite numbers, got {self.gradient!r}")
        check_number("contrast", self.contrast, least=0, most=1)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Phrases of the objects, in their order."""
        return tuple(thing.phrase for thing in self.objects)

    @property
    def caption(self) -> str:
        """List of all objects in their order: "a large red circle, a small blue ring and a ..."."""
        *others, last = (f"a {phrase}" for phrase in self.concepts)
        return f"{', '.join(others)} and {last}" if others else last

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as plain values for JSON."""
        plain = dataclasses.asdict(self)
        return plain | {"objects": list(plain["objects"]), "gradient": list(self.gradient)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Scene:
        """Build a scene from the values of `to_dict`.

        Raises:
            TypeError, ValueError: a field is missing, unknown, or has a wrong value.
        """
        try:
            objects = tuple(Object(**thing) for thing in plain["objects"])
            rest = {name: value for name, value in plain.items() if name != "objects"}
            return cls(objects, **rest | {"gradient": tuple(plain["gradient"])})
        except KeyError as error:
            raise ValueError(f"plain: expected the key {error}, got {sorted(plain)}") from error


def place_name(y: float, x: float) -> str:
    """Return the name in `PLACES` of the grid cell that holds a point.

    Args:
        y: coordinate from 0 at the top of the image to 1 at the bottom.
        x: coordinate from 0 at the left of the image to 1 at the right. A point between two cells
            belongs to the one below or to the right.

    Raises:
        TypeError, ValueError: a coordinate is no number from 0 to 1.
    """
    check_number("y", y, least=0, most=1)
    check_number("x", x, least=0, most=1)
    return PLACES[min(2, int(3 * y))][min(2, int(3 * x))]


def _check_choice(name: str, value: str, known) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
