from dataclasses import replace

import numpy as np
import pytest

from setokim.data import Object, Scene, ShapesWorld, render
from setokim.shapes_world.parser import Seen, parse
from setokim.shapes_world.scores import (
    answer_accuracy,
    caption_scores,
    edit_scores,
    edit_success,
    generation_scores,
    locating_scores,
)
from setokim.shapes_world.tasks import locate

CIRCLE = Object("circle", "large", "red", "striped", 0.2, 0.2, depth=0)
STAR = Object("star", "small", "blue", "plain", 0.5, 0.6, depth=1)
RING = Object("ring", "medium", "green", "dotted", 0.8, 0.85, depth=2)
SCENE = Scene((CIRCLE, STAR, RING), "grey")
CAPTION = SCENE.caption  # "a large red striped circle, a small blue star and a medium green ..."


def seen(thing, **changes):
    fields = {name: getattr(thing, name) for name in ("shape", "size", "colour", "y", "x")}
    return Seen(**fields | changes, mask=np.ones((4, 4), bool), overlap=1.0)


ALL = (seen(CIRCLE), seen(STAR), seen(RING))
DRAWN = {"colour": 1, "shape": 1, "size": 1, "place": 1, "accuracy": 1, "extra": 0}
TOLD = {"size": 1, "colour": 1, "texture": 1, "shape": 1, "accuracy": 1, "extra": 0}


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (ALL, {}),
        (ALL[::-1], {}),
        ((seen(CIRCLE, shape="hexagon"), *ALL[1:]), {"shape": 2 / 3, "accuracy": 11 / 12}),
        ((seen(CIRCLE, size="medium"), *ALL[1:]), {"size": 2 / 3, "accuracy": 11 / 12}),
        ((seen(CIRCLE, y=0.9), *ALL[1:]), {"place": 2 / 3, "accuracy": 11 / 12}),
        # Of the wrong colour it is both missing and surplus.
        (
            (seen(CIRCLE, colour="pink"), *ALL[1:]),
            dict.fromkeys(("colour", "shape", "size", "place", "accuracy"), 2 / 3) | {"extra": 1},
        ),
        (ALL[1:], dict.fromkeys(("colour", "shape", "size", "place", "accuracy"), 2 / 3)),
        ((), dict.fromkeys(("colour", "shape", "size", "place", "accuracy"), 0)),
        ((*ALL, seen(CIRCLE, colour="black")), {"extra": 1}),
        # Of two red objects the nearer one is compared.
        ((*ALL, seen(CIRCLE, shape="star", y=0.4)), {"extra": 1}),
        ((seen(CIRCLE, shape="star", y=0.4), *ALL), {"extra": 1}),
    ],
)
def test_generation_scores(found, changes):
    assert generation_scores(found, SCENE) == pytest.approx(DRAWN | changes)


@pytest.mark.parametrize(
    ("y", "x", "right"),
    [
        # The cell of the star at (0.5, 0.6) reaches from 1/3 to 2/3.
        (0.35, 0.65, True),
        (0.28, 0.5, True),
        (0.5, 0.72, True),
        (0.28, 0.72, True),
        (0.27, 0.5, False),
        (0.5, 0.73, False),
        (0.73, 0.5, False),
        (0.5, 0.27, False),
    ],
)
def test_positions_reach_a_little_beyond_their_cell(y, x, right):
    scores = generation_scores((seen(STAR, y=y, x=x),), Scene((STAR,), "grey"))
    assert scores["place"] == right and scores["shape"] == 1


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (CAPTION, {}),
        (CAPTION.upper() + ".", {}),
        ("green dotted medium ring; Blue small star\na circle large, striped red", None),
        (
            "a medium green dotted ring, a small blue star and a large red striped circle",
            {},
        ),
        ("there is a large red striped circle, " + CAPTION.split(", ")[1], {}),
        (CAPTION.replace("circle", "ring"), {"shape": 2 / 3, "accuracy": 11 / 12}),
        (CAPTION.replace("small", "large"), {"size": 2 / 3, "accuracy": 11 / 12}),
        (CAPTION.replace("striped ", ""), {"texture": 2 / 3, "accuracy": 11 / 12}),
        (CAPTION.replace("blue", "blue checked"), {"texture": 2 / 3, "accuracy": 11 / 12}),
        # A colour that is not there names nothing: all about that object is missing.
        (
            CAPTION.replace("red", "pink"),
            dict.fromkeys(("size", "colour", "texture", "shape", "accuracy"), 2 / 3) | {"extra": 1},
        ),
        (CAPTION + ", a small black star", {"extra": 1}),
        (CAPTION + ", a small blue star", {"extra": 1}),
        # The first phrase of a colour counts.
        ("a small blue ring, " + CAPTION, {"shape": 2 / 3, "accuracy": 11 / 12, "extra": 1}),
        # Two words of one kind count as none.
        (CAPTION.replace("small", "small large"), {"size": 2 / 3, "accuracy": 11 / 12}),
        (
            CAPTION.replace("red", "red pink"),
            dict.fromkeys(("size", "colour", "texture", "shape", "accuracy"), 2 / 3) | {"extra": 1},
        ),
    ],
)
def test_caption_scores(text, changes):
    if changes is None:
        # The comma parts "striped red" from its circle, which then has a size and a shape only.
        changes = {"size": 2 / 3, "shape": 2 / 3, "accuracy": 10 / 12, "extra": 1}
    assert caption_scores(text, SCENE) == pytest.approx(TOLD | changes)


@pytest.mark.parametrize("text", ["", " ", ",,, and .", "and", "🙂 \x00", "circle", "a " * 999])
def test_captions_of_any_text_score_0(text):
    scores = caption_scores(text, SCENE)
    assert scores.pop("extra") <= 1
    assert set(scores.values()) == {0.0}


def scene_with(*things):
    return replace(SCENE, objects=things)


PINK = replace(CIRCLE, colour="pink")
SMALL = replace(CIRCLE, size="small")
RECOLOURED, REMOVED, RESIZED = (scene_with(*first, STAR, RING) for first in ((PINK,), (), (SMALL,)))
OTHERS = ALL[1:]


LOCATED = locate(SCENE)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (LOCATED, {}),
        (LOCATED.upper(), {}),
        (LOCATED.replace("star", "cross"), {"shape": 2 / 3, "accuracy": 11 / 12}),
        (LOCATED.replace("small", "large"), {"size": 2 / 3, "accuracy": 11 / 12}),
        (LOCATED.replace("top left", "left"), {"place": 2 / 3, "accuracy": 11 / 12}),
        (LOCATED.replace("at the top left ", ""), {"place": 2 / 3, "accuracy": 11 / 12}),
        (LOCATED.replace("top left", "left top"), {"place": 2 / 3, "accuracy": 11 / 12}),
        (
            LOCATED.replace("red", "pink"),
            dict.fromkeys(("colour", "shape", "size", "place", "accuracy"), 2 / 3) | {"extra": 1},
        ),
        (LOCATED + " the ring is black", {"extra": 1}),
        # The first of two phrases with one colour counts.
        (LOCATED + " the ring at the top is small and red", {"extra": 1}),
        (
            "the ring at the top is small and red, " + LOCATED,
            {"shape": 2 / 3, "size": 2 / 3, "place": 2 / 3, "accuracy": 3 / 4, "extra": 1},
        ),
        ("", dict.fromkeys(("colour", "shape", "size", "place", "accuracy"), 0)),
        ("yes", dict.fromkeys(("colour", "shape", "size", "place", "accuracy"), 0) | {"extra": 1}),
    ],
)
def test_locating_scores(text, changes):
    assert locating_scores(text, SCENE) == pytest.approx(DRAWN | changes)


@pytest.mark.parametrize(
    ("found", "wanted", "changed", "kept", "extra"),
    [
        ((seen(PINK), *OTHERS), RECOLOURED, 1, 1, 0),
        # Neither shape nor size is required.
        ((seen(PINK, shape="star", size="small"), *OTHERS), RECOLOURED, 1, 1, 0),
        ((seen(PINK, y=0.29), *OTHERS), RECOLOURED, 1, 1, 0),
        (ALL, RECOLOURED, 0, 1, 1),
        (OTHERS, RECOLOURED, 0, 1, 0),
        ((seen(PINK, y=0.31), *OTHERS), RECOLOURED, 0, 1, 1),
        ((seen(PINK), *ALL), RECOLOURED, 0, 1, 1),
        ((seen(PINK), seen(RING)), RECOLOURED, 1, 0.5, 0),
        ((seen(PINK), seen(STAR, x=0.71), seen(RING)), RECOLOURED, 1, 0.5, 1),
        ((seen(PINK), seen(STAR, shape="ring", size="large"), seen(RING)), RECOLOURED, 1, 1, 0),
        (OTHERS, REMOVED, 1, 1, 0),
        (ALL, REMOVED, 0, 1, 1),
        # It has only gone elsewhere.
        ((seen(CIRCLE, y=0.9), *OTHERS), REMOVED, 0, 1, 1),
        # Another object is at that position now.
        ((seen(PINK), *OTHERS), REMOVED, 1, 1, 1),
        (OTHERS[:1], REMOVED, 1, 0.5, 0),
        ((), REMOVED, 1, 0, 0),
        ((seen(SMALL), *OTHERS), RESIZED, 1, 1, 0),
        (ALL, RESIZED, 0, 1, 0),
        ((seen(CIRCLE, size="medium"), *OTHERS), RESIZED, 0, 1, 0),
        ((seen(SMALL, x=0.5), *OTHERS), RESIZED, 0, 1, 1),
        ((seen(SMALL, colour="pink"), *OTHERS), RESIZED, 0, 1, 1),
        (OTHERS, RESIZED, 0, 1, 0),
        ((seen(SMALL), *OTHERS, seen(STAR, y=0.9)), RESIZED, 1, 1, 1),
    ],
)
def test_edits(found, wanted, changed, kept, extra):
    expected = {"changed": changed, "kept": kept, "extra": extra}
    assert edit_scores(found, SCENE, wanted) == expected
    assert edit_success(found, SCENE, wanted) is (expected == {"changed": 1, "kept": 1, "extra": 0})


def test_an_edit_of_the_only_object():
    alone, wanted = scene_with(CIRCLE), scene_with(PINK)
    assert edit_success((seen(PINK),), alone, wanted)
    assert not edit_success((seen(CIRCLE),), alone, wanted)


def test_true_images_score_1_and_those_of_another_scene_do_not():
    world = ShapesWorld(77, objects=(2, 4), contrast=0.5, visible=0.9)
    for index in range(10):
        scene, other = world.scene(index), world.scene(index + 1)
        found = parse(world[index].image)
        assert generation_scores(found, scene) == DRAWN
        assert caption_scores(scene.caption, scene) == TOLD
        assert generation_scores(found, other)["accuracy"] < 0.6
        assert caption_scores(scene.caption, other)["accuracy"] < 0.6
    before, _ = render(replace(SCENE, contrast=0.5))
    for wanted in (RECOLOURED, REMOVED, RESIZED):
        after, _ = render(replace(wanted, contrast=0.5))
        assert edit_success(parse(after), SCENE, wanted)
        assert not edit_success(parse(before), SCENE, wanted)


def test_answers():
    predicted = ["Yes.", " two", "red", "left of", "three", "no", "yes ."]
    wanted = ["yes", "two", "blue", "left", "three.", "yes", "yes"]
    kinds = ["relation", "count", "colour", "shape", "count", "relation", "relation"]
    scores = answer_accuracy(predicted, wanted, kinds)
    expected = {"overall": 4 / 7, "colour": 0, "count": 1, "relation": 2 / 3, "shape": 0}
    assert scores == pytest.approx(expected) and list(scores) == list(expected)
    assert answer_accuracy(["two.."], ["two"], ["count"])["overall"] == 0


TWO_RED = scene_with(CIRCLE, replace(STAR, colour="red"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generation_scores(ALL, TWO_RED), "wanted: expected objects of different colours"),
        (lambda: locating_scores("", TWO_RED), r"scene: .*got \['red', 'red'\]"),
        (lambda: caption_scores("", TWO_RED), r"scene: .*got \['red', 'red'\]"),
        (lambda: edit_scores(ALL, TWO_RED, SCENE), "before: expected objects of different"),
        (lambda: edit_scores(ALL, SCENE, TWO_RED), "wanted: expected objects of different"),
        (lambda: edit_success(ALL, SCENE, SCENE), "wanted: expected the scene before with one"),
        (lambda: edit_success(ALL, SCENE, scene_with(STAR)), "wanted: .*got 'a small blue star'"),
        (lambda: edit_success(ALL, scene_with(STAR), SCENE), "wanted: expected the scene before"),
        (
            lambda: edit_success(ALL, SCENE, scene_with(replace(PINK, size="small"), STAR, RING)),
            "wanted: expected the scene before",
        ),
        (
            lambda: edit_success(ALL, SCENE, scene_with(replace(CIRCLE, y=0.3), STAR, RING)),
            "wanted: expected the scene before",
        ),
        (lambda: answer_accuracy([], [], []), "predicted: .*at least 1, got 0, 0 and 0"),
        (lambda: answer_accuracy(["a"], ["a", "b"], ["x"]), "predicted: .*got 1, 2 and 1"),
        (lambda: answer_accuracy(["a"], ["a"], ["overall"]), "kinds: .*got 'overall'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
