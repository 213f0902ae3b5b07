"""An endless data set of conversations about drawn scenes: the tasks of stages 2 and 3."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from setok_kernels.config import check_count, check_number
from setokim.data.build import GENERATED
from setokim.data.conversations import MASK, TASKS, Conversation, message
from setokim.data.order import ENDLESS
from setokim.data.samples import check_index
from setokim.shapes_world.dataset import ShapesWorld, pick
from setokim.shapes_world.edits import edit
from setokim.shapes_world.questions import (
    NUMBERS,
    QUESTION_KINDS,
    RELATIONS,
    interview,
    only_ones,
)
from setokim.shapes_world.render import render
from setokim.shapes_world.scene import COLOURS, PLACES, SHAPES, SIZES, TEXTURES, Scene, place_name

# Sums of two numbers, as sum and first addend; each sum is drawn as often as any other.
_SUMS = [(total, first) for total in range(10) for first in range(total + 1)]
_SUM_WEIGHTS = [1 / (10 * (total + 1)) for total, _ in _SUMS]
# What a phrase may name an object by, "object" standing in for its shape.
_PHRASES = (("colour", "shape"), ("size", "colour"), ("size", "shape"), ("colour",), ("shape",))
_SENTENCES = (
    "how many objects are there? what colour is the? what shape is the? is the? yes no "
    "describe the picture. where is everything? draw a, a and a at the. make the. remove the. "
    "segment the object. what is and?"
)
# All words and signs that the texts can hold, sorted.
WORDS = tuple(
    sorted(
        {*COLOURS, *SHAPES, *SIZES, *NUMBERS, *TEXTURES}.union(
            *(words.split() for pair in RELATIONS.values() for words in pair)
        )
        .union(*(words.split() for row in PLACES for words in row))
        .union(re.findall(r"\w+|[.,?]", _SENTENCES))
        # Things without a texture are named by the rest.
        .difference({"plain"})
    )
)

# Messages, masks and facts of a conversation.
_Parts = tuple[list[dict[str, Any]], list[np.ndarray], dict[str, Any]]


@GENERATED.register("shapes-tasks")
class ShapesTasks:
    """Conversations about the scenes of `ShapesWorld`; item i depends on the settings and i only.

    Item i is about scene i of the world with the same settings, or about scene i modulo `scenes`.
    The change that an "edit" asks for depends on the scene alone, so that the pictures are no more
    than twice as many as the scenes. A scene without an object that a
    phrase can single out, which repeated colours make possible, is passed over in "edit" and
    "segment", and one that allows no question of the kinds wanted in "vqa": the next one takes its
    place.

    The tasks, and what `Conversation.facts` holds beside the "scene" as `Scene.to_dict` gives it:

    - "vqa": questions of `scene_questions`. "kinds" and "answers", a list of each.
    - "caption": "describe the picture." "answers" has the caption.
    - "locate": "where is everything?" "answers" has what `locate` says.
    - "generate": "draw" and what `describe` says; the answer is the picture. "wanted" is the scene.
    - "edit": a picture and an instruction; the answer is a picture. "kinds" has the kind of the
      change, "wanted" the changed scene.
    - "segment": the answers are masks. "objects" are the numbers of the objects asked for.
    - "text": sums in words, without a picture and a scene. "kinds" (all "sum") and "answers".
    """

    def __init__(
        self,
        seed: int,
        length: int = ENDLESS,
        size: int = 64,
        tasks: Mapping[str, float] | None = None,
        turns: int = 6,
        objects: tuple[int, int] = (2, 8),
        visible: float = 0.5,
        contrast: float = 1.0,
        repeat_colours: float = 0.0,
        scenes: int = ENDLESS,
        questions: Mapping[str, float] | None = None,
    ):
        """Takes the settings; nothing is drawn yet.

        Args:
            seed: Other seeds give other scenes and tasks.
            length: Number of items.
            size: Height and width of the pictures in pixels.
            tasks: How often each task comes, relative to the others; None for all alike.
            turns: Most questions of a conversation ("vqa", "segment" and "text"); there are fewer
                where the scene has no more to ask for.
            objects: See `ShapesWorld`, as for the rest.
            visible: Holds after an edit too.
            contrast: Of the textures.
            repeat_colours: The probability that an object may take a colour that is there already.
            scenes: Number of scenes that the items are about.
            questions: How often each kind of question comes in "vqa", as `tasks` says it of tasks.

        Raises:
            TypeError, ValueError: An argument is none of these.
        """
        check_count("length", length)
        check_count("turns", turns)
        check_count("scenes", scenes)
        weights = _checked("tasks", tasks, TASKS)
        self._kinds = _checked("questions", questions, QUESTION_KINDS)
        # In one order, so that the order of a settings file does not count.
        self._tasks = [task for task in TASKS if weights.get(task)]
        self._weights = np.array([weights[task] for task in self._tasks], np.float64)
        self._weights /= self._weights.sum()
        self._world = ShapesWorld(seed, ENDLESS, size, objects, repeat_colours, contrast, visible)
        self._seed = seed
        self._length = length
        self._size = size
        self._turns = turns
        self._scenes = scenes
        self._visible = visible
        # What comes back is drawn once.
        self._scenes_drawn: dict[int, Scene] = {}
        self._pictures: dict[Scene, tuple[Image.Image, np.ndarray]] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Conversation:
        check_index(index, self._length)
        # The world draws scene `index` from (seed, index).
        generator = np.random.default_rng((self._seed, index, 1))
        task = self._tasks[generator.choice(len(self._tasks), p=self._weights)]
        for step in range(self._scenes):
            parts = getattr(self, f"_{task}")((index + step) % self._scenes, generator)
            if parts is not None:
                break
        else:
            raise ValueError(f"scenes: expected one for {task!r}, got none among {self._scenes}")
        messages, masks, facts = parts
        return Conversation(task, tuple(messages), tuple(masks), f"shapes-tasks #{index}", facts)

    def _scene(self, index: int) -> Scene:
        if self._scenes >= ENDLESS:
            return self._world.scene(index)
        if index not in self._scenes_drawn:
            self._scenes_drawn[index] = self._world.scene(index)
        return self._scenes_drawn[index]

    def _draw(self, scene: Scene) -> tuple[Image.Image, np.ndarray]:
        if self._scenes >= ENDLESS:
            return render(scene, self._size)
        if scene not in self._pictures:
            self._pictures[scene] = render(scene, self._size)
        return self._pictures[scene]

    def _vqa(self, index: int, generator: np.random.Generator) -> _Parts | None:
        scene = self._scene(index)
        questions = interview(scene, generator, self._turns, self._kinds)
        if not questions:
            return None
        image, _ = self._draw(scene)
        facts = {
            "scene": scene.to_dict(),
            "kinds": [question.kind for question in questions],
            "answers": [question.answer for question in questions],
        }
        turns = [(question.text, question.answer) for question in questions]
        return _messages(turns, image), [], facts

    def _caption(self, index: int, generator: np.random.Generator) -> _Parts:
        scene = self._scene(index)
        image, _ = self._draw(scene)
        facts = {"scene": scene.to_dict(), "answers": [scene.caption]}
        return _messages([("describe the picture.", scene.caption)], image), [], facts

    def _locate(self, index: int, generator: np.random.Generator) -> _Parts:
        scene = self._scene(index)
        image, _ = self._draw(scene)
        text = locate(scene)
        facts = {"scene": scene.to_dict(), "answers": [text]}
        return _messages([("where is everything?", text)], image), [], facts

    def _generate(self, index: int, generator: np.random.Generator) -> _Parts:
        scene = self._scene(index)
        image, _ = self._draw(scene)
        facts = {"scene": scene.to_dict(), "wanted": scene.to_dict()}
        return _messages([(f"draw {describe(scene)}.", image)]), [], facts

    def _edit(self, index: int, generator: np.random.Generator) -> _Parts | None:
        scene = self._scene(index)
        own = np.random.default_rng((self._seed, index, 2))
        change = edit(scene, own, self._visible)
        if change is None:
            return None
        before, after = (self._draw(one)[0] for one in (scene, change.scene))
        facts = {
            "scene": scene.to_dict(),
            "kinds": [change.kind],
            "wanted": change.scene.to_dict(),
        }
        return _messages([(change.instruction, after)], before), [], facts

    def _segment(self, index: int, generator: np.random.Generator) -> _Parts | None:
        scene = self._scene(index)
        phrases = _phrases(scene)
        if not phrases:
            return None
        chosen = generator.permutation(list(phrases))[: self._turns].tolist()
        image, labels = self._draw(scene)
        turns = [(f"segment the {pick(generator, phrases[number])}.", MASK) for number in chosen]
        facts = {"scene": scene.to_dict(), "objects": chosen}
        masks = [labels == number + 1 for number in chosen]
        return _messages(turns, image), masks, facts

    def _text(self, index: int, generator: np.random.Generator) -> _Parts:
        number = min(self._turns, len(_SUMS))
        chosen = generator.choice(len(_SUMS), number, replace=False, p=_SUM_WEIGHTS)
        turns = [
            (f"what is {NUMBERS[first]} and {NUMBERS[total - first]}?", NUMBERS[total])
            for total, first in (_SUMS[number] for number in chosen)
        ]
        facts = {"kinds": ["sum"] * len(turns), "answers": [answer for _, answer in turns]}
        return _messages(turns), [], facts


def describe(scene: Scene) -> str:
    """All objects from the top down, with their places in a grid of three by three.

    "a large red circle at the top left, a small blue star at the centre and a ..."; the centre of
    an object says where it is. The order is that of visual tokens in raster order, so that who
    draws them one after the other knows what is next.
    """
    downwards = sorted(scene.objects, key=lambda thing: (thing.y, thing.x))
    *others, last = (
        f"a {thing.phrase} at the {place_name(thing.y, thing.x)}" for thing in downwards
    )
    return f"{', '.join(others)} and {last}" if others else last


def locate(scene: Scene) -> str:
    """All objects in their order, what is told of them the other way round.

    "the circle at the top left is large and red, the star at the centre is small and blue."
    """
    told = (
        f"the {thing.shape} at the {place_name(thing.y, thing.x)} is {thing.size} and "
        f"{thing.colour}"
        for thing in scene.objects
    )
    return f"{', '.join(told)}."


def _phrases(scene: Scene) -> dict[int, list[str]]:
    """For each object that can be told from all others by a phrase, its phrases."""
    phrases: dict[int, list[str]] = {}
    for fields in _PHRASES:
        for number in only_ones(scene.objects, *fields):
            words = [getattr(scene.objects[number], name) for name in fields]
            words += [] if "shape" in fields else ["object"]
            phrases.setdefault(number, []).append(" ".join(words))
    return phrases


def _messages(
    turns: list[tuple[str, str | Image.Image | Mapping[str, str]]], image: Image.Image | None = None
) -> list[dict[str, Any]]:
    """Questions and answers in turn, with a picture before the first question or without."""
    messages = []
    for question, answer in turns:
        messages += [message("user", question), message("assistant", answer)]
    if image is not None:
        messages[0] = message("user", image, turns[0][0])
    return messages


def _checked(
    name: str, weights: Mapping[str, float] | None, known: Sequence[str]
) -> dict[str, float]:
    """Weights of known names; None stands for all alike."""
    if weights is None:
        return dict.fromkeys(known, 1.0)
    if not isinstance(weights, Mapping):
        raise TypeError(f"{name}: expected a mapping of names to weights, got {weights!r}")
    for key, weight in weights.items():
        if key not in known:
            raise ValueError(f"{name}: expected names of {', '.join(known)}, got {key!r}")
        check_number(f"{name}[{key!r}]", weight, least=0)
    if not any(weights.values()):
        raise ValueError(f"{name}: expected a weight of more than 0, got {dict(weights)!r}")
    return dict(weights)
