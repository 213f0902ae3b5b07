"""An endless data set of drawn scenes, each with its caption, its concepts and its masks."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import numpy as np

from setok_kernels.config import check_count, check_number
from setokim.data.build import GENERATED
from setokim.data.samples import Sample, check_index, check_natural
from setokim.shapes_world.render import footprint, render
from setokim.shapes_world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Object, Scene

_TURN = 0.35  # radians either way; a diamond stays upright enough to be told from a square
_GRADIENT = 16.0  # levels
_JUDGED_SIDE = 128  # of the canvas on which visibility is judged
_POSITIONS = 20

T = TypeVar("T")


@GENERATED.register("shapes-world")
class ShapesWorld:
    """Scenes of simple shapes that overlap; sample i depends on the seed and on i only.

    Of every object at least the share `visible` shows, as judged on a fine canvas. The masks give
    each pixel to one owner, which may cost a twentieth of the object: at 64 pixels 45 % are
    promised where `visible` is one half. Objects are listed from left to right, so that a caption
    has one possible order.
    """

    def __init__(
        self,
        seed: int,
        length: int = 2**31,
        size: int = 64,
        objects: tuple[int, int] = (2, 8),
        repeat_colours: float = 0.0,
        contrast: float = 1.0,
        visible: float = 0.5,
    ):
        """Takes the settings; nothing is drawn yet.

        Args:
            seed: Other seeds give other scenes.
            length: Number of samples.
            size: Height and width of the pictures in pixels.
            objects: Fewest and most objects of a scene, at most as many as there are colours.
            repeat_colours: The probability that an object may take a colour that is in the scene
                already.
            contrast: Of the textures, from 0 (all objects look plain) to 1.
            visible: The least share of an object that later ones leave visible, from 0 (it may
                vanish) to 1 (none overlap, and many objects are slow to find room).

        Raises:
            TypeError, ValueError: An argument is none of these.
        """
        check_natural("seed", seed)
        check_count("length", length)
        check_count("size", size)
        check_number("repeat_colours", repeat_colours, least=0, most=1)
        check_number("contrast", contrast, least=0, most=1)
        check_number("visible", visible, least=0, most=1)
        for number in objects:
            check_count("objects", number)
        if len(objects) != 2 or not objects[0] <= objects[1] <= len(COLOURS):
            raise ValueError(
                f"objects: expected two rising numbers from 1 to {len(COLOURS)}, got {objects!r}"
            )
        self.seed = seed
        self.size = size
        self._length = length
        self._objects = tuple(objects)
        self._repeat_colours = repeat_colours
        self._contrast = contrast
        self._visible = visible

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        scene = self.scene(index)
        image, masks = render(scene, self.size)
        return Sample(image, scene.caption, scene.concepts, masks, f"shapes-world #{index}")

    def scene(self, index: int) -> Scene:
        """What sample `index` shows.

        Raises:
            IndexError: There is no such sample.
        """
        check_index(index, self._length)
        generator = np.random.default_rng((self.seed, index))
        fewest, most = self._objects
        number = int(generator.integers(fewest, most + 1))
        background = pick(generator, BACKGROUNDS)
        gradient = generator.uniform(-_GRADIENT, _GRADIENT, 2).tolist()
        # A set of objects that finds no room is drawn anew, sizes included, so this ends.
        things = None
        while things is None:
            things = self._place(generator, number)
        things.sort(key=lambda thing: (thing.x, thing.y))
        return Scene(tuple(things), background, tuple(gradient), self._contrast)

    def _place(self, generator: np.random.Generator, number: int) -> list[Object] | None:
        """Draws objects from the farthest to the nearest; None if one of them finds no room."""
        things: list[Object] = []
        owner = np.zeros((_JUDGED_SIDE, _JUDGED_SIDE), np.int64)
        visible = np.zeros(number + 1, np.int64)
        least = np.zeros(number + 1)
        for label, colour in enumerate(self._colours(generator, number), 1):
            kind = pick(generator, SHAPES), pick(generator, SIZES), colour
            texture = pick(generator, TEXTURES)
            margin = SIZES[kind[1]]
            rotation = generator.uniform(-_TURN, _TURN)
            for y, x in generator.uniform(margin, 1 - margin, (_POSITIONS, 2)).tolist():
                thing = Object(*kind, texture, y, x, rotation, label - 1)
                box, inside, _ = footprint(thing, _JUDGED_SIDE)
                left = visible - np.bincount(owner[box][inside], minlength=number + 1)
                if (left[1:label] >= least[1:label]).all():
                    break
            else:
                return None
            owner[box][inside] = label
            visible = left
            visible[label] = inside.sum()
            least[label] = self._visible * visible[label]
            things.append(thing)
        return things

    def _colours(self, generator: np.random.Generator, number: int) -> list[str]:
        chosen: list[str] = []
        for _ in range(number):
            anything = generator.random() < self._repeat_colours
            chosen.append(pick(generator, [c for c in COLOURS if anything or c not in chosen]))
        return chosen


def visible_shares(scene: Scene) -> np.ndarray:
    """(n,) float64: how much of each object shows, of what would show if it were alone."""
    owner = np.full((_JUDGED_SIDE, _JUDGED_SIDE), -1)
    whole = np.zeros(len(scene.objects), np.int64)
    for number in sorted(range(len(whole)), key=lambda number: scene.objects[number].depth):
        box, inside, _ = footprint(scene.objects[number], _JUDGED_SIDE)
        owner[box][inside] = number
        whole[number] = inside.sum()
    return np.bincount(owner[owner >= 0], minlength=len(whole)) / whole


def pick(generator: np.random.Generator, options: Collection[T]) -> T:
    """One of some options, all equally likely."""
    options = list(options)
    return options[generator.integers(len(options))]
