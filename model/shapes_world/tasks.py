"""ShapesTasks: an endless data set of conversations about scenes, for stages 2 and 3."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from PIL import Image

from setok_kernels.config import check_count, check_number
from setokim.data.build import GENERATED
from setokim.data.conversations import MASK, TASKS, Conversation, Regions, message
from setokim.data.order import ENDLESS
from setokim.data.samples import check_index, check_natural
from setokim.shapes_world.dataset import ShapesWorld, pick
from setokim.shapes_world.edits import Edit, edit, edit_between
from setokim.shapes_world.questions import (
    ALL_KINDS,
    NUMBERS,
    QUESTION_KINDS,
    RELATIONS,
    interview,
    only_ones,
)
from setokim.shapes_world.render import render
from setokim.shapes_world.scene import COLOURS, PLACES, SHAPES, SIZES, TEXTURES, Scene, place_name

# Sums of two numbers, as sum and first addend; all sums are equally likely.
_SUMS = [(total, first) for total in range(10) for first in range(total + 1)]
_SUM_WEIGHTS = [1 / (10 * (total + 1)) for total, _ in _SUMS]
# Fields by which a phrase may name an object; "object" replaces a missing shape.
_PHRASES = (("colour", "shape"), ("size", "colour"), ("size", "shape"), ("colour",), ("shape",))
_SENTENCES = (
    "how many objects are there? what colour is the? what shape is the? is the? yes no "
    "describe the picture. where is everything? draw a, a and a at the. make the. remove the. "
    "segment the object. what is and?"
)
# All words and punctuation marks of the texts, sorted.
WORDS = tuple(
    sorted(
        {*COLOURS, *SHAPES, *SIZES, *NUMBERS, *TEXTURES}.union(
            *(words.split() for pair in RELATIONS.values() for words in pair)
        )
        .union(*(words.split() for row in PLACES for words in row))
        .union(re.findall(r"\w+|[.,?]", _SENTENCES))
        # The texture "plain" is never named.
        .difference({"plain"})
    )
)

# Messages, masks and facts of a conversation, and scene and labels of each of its images.
_Parts = tuple[
    list[dict[str, Any]], list[np.ndarray], dict[str, Any], list[tuple[Scene, np.ndarray]]
]
# Scenes with an edit of each, by the kind of the edit.
_Changes = dict[str, list[tuple[Scene, Edit]]]


@GENERATED.register("shapes-tasks")
class ShapesTasks:
    """Conversations about the scenes of `ShapesWorld`; item i depends on the settings and i only.

    Item i is about scene i of the world with the same settings, or about scene i modulo `scenes`.
    Without `variants`, the change of an "edit" depends on the scene alone, so that there are at
    most twice as many images as scenes. "edit" and "segment" skip a scene without an object that a
    phrase identifies, which repeated colours make possible, and "vqa" skips one without a question
    of the wanted kinds. The next scene replaces a skipped one.

    The tasks, and the content of `Conversation.facts` beside the "scene" from `Scene.to_dict`:

    - "vqa": questions of `interview`. "kinds" and "answers", a list of each.
    - "caption": "describe the picture." "answers" has the caption.
    - "locate": "where is everything?" "answers" has the text of `locate`.
    - "generate": "draw" and the text of `describe`; the answer is the image. "wanted" is the scene.
    - "edit": an image and an instruction; the answer is an image. "kinds" has the kind of the
      change, "wanted" the changed scene.
    - "segment": the answers are masks. "objects" are the indices of the objects.
    - "text": sums in words, without an image and a scene. "kinds" (all "sum") and "answers".
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
        run: int = 1,
        variants: int = 0,
    ):
        """Check and store the settings; nothing is rendered yet.

        Args:
            seed: random seed of the scenes and tasks.
            length: number of items.
            size: height and width of the images in pixels.
            tasks: weights of the tasks in the sampling; None for equal weights.
            turns: max number of questions of a conversation ("vqa", "segment" and "text"); a scene
                may allow fewer.
            objects: min and max number of objects of a scene.
            visible: min visible fraction of an object, also after an edit.
            contrast: contrast of the textures.
            repeat_colours: probability that an object may take a colour already in the scene.
            scenes: number of different scenes.
            questions: weights of the kinds of questions in "vqa"; None for equal weights of those
                in `QUESTION_KINDS`.
            run: number of successive items of one task. With that of a batch, its rows have like
                lengths and little padding.
            variants: max number of changed scenes beside each scene. Above 0, all tasks use them
                too, and an "edit" leads from one of these scenes to another, also back: from three
                images there are up to six edits.

        Raises:
            TypeError, ValueError: an argument does not fit its description.
        """
        check_count("length", length)
        check_count("turns", turns)
        check_count("scenes", scenes)
        check_count("run", run)
        check_natural("variants", variants)
        weights = _checked("tasks", tasks, TASKS)
        if questions is None:
            questions = dict.fromkeys(QUESTION_KINDS, 1.0)
        self._kinds = _checked("questions", questions, ALL_KINDS)
        # In a fixed order, so that the order in a settings file does not matter.
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
        self._run, self._variants = run, variants
        # Recurring scenes are sampled and rendered once.
        self._known_scenes: dict[int, tuple[Scene, ...]] = {}
        self._known_changes: dict[int, _Changes] = {}
        self._renderings: dict[Scene, tuple[Image.Image, np.ndarray]] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Conversation:
        check_index(index, self._length)
        # The world samples scene `index` from (seed, index).
        generator = np.random.default_rng((self._seed, index, 1))
        chooser = generator
        if self._run > 1:
            chooser = np.random.default_rng((self._seed, index // self._run, 3))
        task = self._tasks[chooser.choice(len(self._tasks), p=self._weights)]
        for step in range(self._scenes):
            parts = getattr(self, f"_{task}")((index + step) % self._scenes, generator)
            if parts is not None:
                break
        else:
            raise ValueError(f"scenes: expected one for {task!r}, got none among {self._scenes}")
        messages, masks, facts, regions = parts
        return Conversation(
            task,
            tuple(messages),
            tuple(masks),
            f"shapes-tasks #{index}",
            facts,
            tuple(Regions(labels, region_names(scene)) for scene, labels in regions),
        )

    def _scene(self, index: int, generator: np.random.Generator) -> Scene:
        """Return scene `index`, or one of its variants."""
        scenes = self._family(index)
        return scenes[0] if len(scenes) == 1 else scenes[generator.integers(len(scenes))]

    def _family(self, index: int) -> tuple[Scene, ...]:
        """Return scene `index` and its variants."""
        if index in self._known_scenes:
            return self._known_scenes[index]
        scene = self._world.scene(index)
        own = np.random.default_rng((self._seed, index, 2))
        changes = (edit(scene, own, self._visible) for _ in range(self._variants))
        scenes = dict.fromkeys([scene, *(one.scene for one in changes if one is not None)])
        if self._scenes < ENDLESS:
            self._known_scenes[index] = tuple(scenes)
        return tuple(scenes)

    def _change(self, index: int, generator: np.random.Generator) -> tuple[Scene, Edit] | None:
        """Return a scene of a family with an edit of it, or None without one."""
        if not self._variants:
            scene = self._family(index)[0]
            change = edit(scene, np.random.default_rng((self._seed, index, 2)), self._visible)
            return None if change is None else (scene, change)
        if index not in self._known_changes:
            changes = _changes_within(self._family(index))
            if self._scenes >= ENDLESS:
                return _pick_change(changes, generator)
            self._known_changes[index] = changes
        return _pick_change(self._known_changes[index], generator)

    def _render(self, scene: Scene) -> tuple[Image.Image, np.ndarray]:
        if self._scenes >= ENDLESS:
            return render(scene, self._size)
        if scene not in self._renderings:
            self._renderings[scene] = render(scene, self._size)
        return self._renderings[scene]

    def _vqa(self, index: int, generator: np.random.Generator) -> _Parts | None:
        scene = self._scene(index, generator)
        questions = interview(scene, generator, self._turns, self._kinds)
        if not questions:
            return None
        image, labels = self._render(scene)
        facts = {
            "scene": scene.to_dict(),
            "kinds": [question.kind for question in questions],
            "answers": [question.answer for question in questions],
        }
        turns = [(question.text, question.answer) for question in questions]
        return _messages(turns, image), [], facts, [(scene, labels)]

    def _caption(self, index: int, generator: np.random.Generator) -> _Parts:
        scene = self._scene(index, generator)
        image, labels = self._render(scene)
        facts = {"scene": scene.to_dict(), "answers": [scene.caption]}
        return (
            _messages([("describe the picture.", scene.caption)], image),
            [],
            facts,
            [(scene, labels)],
        )

    def _locate(self, index: int, generator: np.random.Generator) -> _Parts:
        scene = self._scene(index, generator)
        image, labels = self._render(scene)
        text = locate(scene)
        facts = {"scene": scene.to_dict(), "answers": [text]}
        return _messages([("where is everything?", text)], image), [], facts, [(scene, labels)]

    def _generate(self, index: int, generator: np.random.Generator) -> _Parts:
        scene = self._scene(index, generator)
        image, labels = self._render(scene)
        facts = {"scene": scene.to_dict(), "wanted": scene.to_dict()}
        return _messages([(f"draw {describe(scene)}.", image)]), [], facts, [(scene, labels)]

    def _edit(self, index: int, generator: np.random.Generator) -> _Parts | None:
        found = self._change(index, generator)
        if found is None:
            return None
        scene, change = found
        (before, own), (after, changed) = (self._render(one) for one in (scene, change.scene))
        facts = {
            "scene": scene.to_dict(),
            "kinds": [change.kind],
            "wanted": change.scene.to_dict(),
        }
        regions = [(scene, own), (change.scene, changed)]
        return _messages([(change.instruction, after)], before), [], facts, regions

    def _segment(self, index: int, generator: np.random.Generator) -> _Parts | None:
        scene = self._scene(index, generator)
        phrases = _phrases(scene)
        if not phrases:
            return None
        chosen = generator.permutation(list(phrases))[: self._turns].tolist()
        image, labels = self._render(scene)
        turns = [(f"segment the {pick(generator, phrases[number])}.", MASK) for number in chosen]
        facts = {"scene": scene.to_dict(), "objects": chosen}
        masks = [labels == number + 1 for number in chosen]
        return _messages(turns, image), masks, facts, [(scene, labels)]

    def _text(self, index: int, generator: np.random.Generator) -> _Parts:
        number = min(self._turns, len(_SUMS))
        chosen = generator.choice(len(_SUMS), number, replace=False, p=_SUM_WEIGHTS)
        turns = [
            (f"what is {NUMBERS[first]} and {NUMBERS[total - first]}?", NUMBERS[total])
            for total, first in (_SUMS[number] for number in chosen)
        ]
        facts = {"kinds": ["sum"] * len(turns), "answers": [answer for _, answer in turns]}
        return _messages(turns), [], facts, []


def _changes_within(scenes: Sequence[Scene]) -> _Changes:
    """Return all edits that lead from one of the scenes to another."""
    found: _Changes = {}
    for before, after in permutations(scenes, 2):
        if (change := edit_between(before, after)) is not None:
            found.setdefault(change.kind, []).append((before, change))
    return found


def _pick_change(changes: _Changes, generator: np.random.Generator) -> tuple[Scene, Edit] | None:
    """Sample an edit, first its kind; None if there is none."""
    if not changes:
        return None
    own = changes[pick(generator, sorted(changes))]
    return own[generator.integers(len(own))]


def describe(scene: Scene) -> str:
    """Describe all objects from the top down, with their positions in a grid of three by three.

    "a large red circle at the top left, a small blue star at the centre and a ..."; the position is
    that of an object's centre. The order matches visual tokens in raster order, so that a model
    that generates them one by one can follow the text.
    """
    downwards = sorted(scene.objects, key=lambda obj: (obj.y, obj.x))
    *others, last = (f"a {obj.phrase} at the {place_name(obj.y, obj.x)}" for obj in downwards)
    return f"{', '.join(others)} and {last}" if others else last


def region_names(scene: Scene) -> tuple[str, ...]:
    """Return the phrase and position of each object, after "" for the background."""
    return ("", *(f"{obj.phrase} {place_name(obj.y, obj.x)}" for obj in scene.objects))


def locate(scene: Scene) -> str:
    """Describe shapes and positions of all objects first, then their sizes and colours.

    "the circle at the top left is large and red, the star at the centre is small and blue."
    """
    clauses = (
        f"the {obj.shape} at the {place_name(obj.y, obj.x)} is {obj.size} and {obj.colour}"
        for obj in scene.objects
    )
    return f"{', '.join(clauses)}."


def _phrases(scene: Scene) -> dict[int, list[str]]:
    """Return the identifying phrases of each object that has any."""
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
    """Build messages of questions and answers, with or without an image before the first."""
    messages = []
    for question, answer in turns:
        messages += [message("user", question), message("assistant", answer)]
    if image is not None:
        messages[0] = message("user", image, turns[0][0])
    return messages


def _checked(
    name: str, weights: Mapping[str, float] | None, known: Sequence[str]
) -> dict[str, float]:
    """Check weights by known names; None stands for equal weights."""
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
