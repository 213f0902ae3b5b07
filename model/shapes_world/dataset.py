"""ShapesWorld: an endless data set of rendered scenes with captions, concepts and masks."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import numpy as np

from setok_kernels.config import check_count, check_number
from setokim.data.build import GENERATED
from setokim.data.samples import Sample, check_index, check_natural
from setokim.shapes_world.render import footprint, render
from setokim.shapes_world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Object, Scene

_TURN = 0.35  # max rotation in radians; a diamond stays upright enough not to look like a square
_GRADIENT = 16.0  # levels
_CANVAS_SIDE = 128  # of the canvas on which visibility is measured
_POSITIONS = 20

T = TypeVar("T")


@GENERATED.register("shapes-world")
class ShapesWorld:
    """Scenes of simple overlapping shapes; sample i depends on the seed and on i only.

    At least the fraction `visible` of every object shows, measured on a fine canvas. The masks
    assign each pixel to one object, which may cost a twentieth of it: at 64 pixels, `visible` of
    one half guarantees 45 %. Objects are listed from left to right, so that a caption has one
    possible order.
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
        """Check and store the settings; nothing is rendered yet.

        Args:
            seed: random seed of the scenes.
            length: number of samples.
            size: height and width of the images in pixels.
            objects: min and max number of objects of a scene, at most the number of colours.
            repeat_colours: probability that an object may take a colour already in the scene.
            contrast: contrast of the textures, from 0 (all objects look plain) to 1.
            visible: min visible fraction of an object, from 0 (it may be hidden) to 1 (no overlaps,
                and slow sampling of many objects).

        Raises:
            TypeError, ValueError: an argument does not fit its description.
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
                f"objects: expected two ascending numbers from 1 to {len(COLOURS)}, got {objects!r}"
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
        """Return the scene of sample `index`.

        Raises:
            IndexError: `index` is out of range.
        """
        check_index(index, self._length)
        generator = np.random.default_rng((self.seed, index))
        min_objects, max_objects = self._objects
        number = int(generator.integers(min_objects, max_objects + 1))
        background = pick(generator, BACKGROUNDS)
        gradient = generator.uniform(-_GRADIENT, _GRADIENT, 2).tolist()
        # Objects without room are all sampled again, sizes included, so this ends.
        objects = None
        while objects is None:
            objects = self._sample_objects(generator, number)
        objects.sort(key=lambda one: (one.x, one.y))
        return Scene(tuple(objects), background, tuple(gradient), self._contrast)

    def _sample_objects(self, generator: np.random.Generator, number: int) -> list[Object] | None:
        """Sample objects from the farthest to the nearest; None if one of them has no room."""
        objects: list[Object] = []
        owner = np.zeros((_CANVAS_SIDE, _CANVAS_SIDE), np.int64)
        visible = np.zeros(number + 1, np.int64)
        required = np.zeros(number + 1)
        for label, colour in enumerate(self._colours(generator, number), 1):
            kind = pick(generator, SHAPES), pick(generator, SIZES), colour
            texture = pick(generator, TEXTURES)
            margin = SIZES[kind[1]]
            rotation = generator.uniform(-_TURN, _TURN)
            for y, x in generator.uniform(margin, 1 - margin, (_POSITIONS, 2)).tolist():
                candidate = Object(*kind, texture, y, x, rotation, label - 1)
                box, inside, _ = footprint(candidate, _CANVAS_SIDE)
                left = visible - np.bincount(owner[box][inside], minlength=number + 1)
                if (left[1:label] >= required[1:label]).all():
                    break
            else:
                return None
            owner[box][inside] = label
            visible = left
            visible[label] = inside.sum()
            required[label] = self._visible * visible[label]
            objects.append(candidate)
        return objects

    def _colours(self, generator: np.random.Generator, number: int) -> list[str]:
        chosen: list[str] = []
        for _ in range(number):
            anything = generator.random() < self._repeat_colours
            chosen.append(pick(generator, [c for c in COLOURS if anything or c not in chosen]))
        return chosen


def visible_fractions(scene: Scene) -> np.ndarray:
    """Return the visible fraction of each object, (n,) float64."""
    owner = np.full((_CANVAS_SIDE, _CANVAS_SIDE), -1)
    whole = np.zeros(len(scene.objects), np.int64)
    for number in sorted(range(len(whole)), key=lambda number: scene.objects[number].depth):
        box, inside, _ = footprint(scene.objects[number], _CANVAS_SIDE)
        owner[box][inside] = number
        whole[number] = inside.sum()
    return np.bincount(owner[owner >= 0], minlength=len(whole)) / whole


def pick(generator: np.random.Generator, options: Collection[T]) -> T:
    """Sample one of some options, all equally likely."""
    options = list(options)
    return options[generator.integers(len(options))]
