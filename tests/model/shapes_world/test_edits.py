import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from setokim.data import Object, Scene, ShapesWorld
from setokim.shapes_world.dataset import visible_fractions
from setokim.shapes_world.edits import EDIT_KINDS, edit, edit_between
from setokim.shapes_world.scene import COLOURS, SIZES


def thing(colour, shape="circle", size="small", y=0.5, x=0.5, depth=0):
    return Object(shape, size, colour, "plain", y, x, depth=depth)


def draws(scene, number=200, **options):
    generator = np.random.default_rng(0)
    return [edit(scene, generator, **options) for _ in range(number)]


def followed(instruction, scene):
    """Return the scene after an instruction, by its text alone, and the kind of the change."""
    match = re.fullmatch(r"(make|remove) the (\w+) (\w+)(?: (\w+))?\.", instruction)
    verb, colour, shape, value = match.groups()
    found = [one for one in scene.objects if (one.colour, one.shape) == (colour, shape)]
    assert len(found) == 1 and (value is None) == (verb == "remove")
    if verb == "remove":
        left = tuple(one for one in scene.objects if one is not found[0])
        return replace(scene, objects=left), "remove"
    kind, field = ("resize", "size") if value in SIZES else ("recolour", "colour")
    changed = replace(found[0], **{field: value})
    assert changed != found[0]
    things = tuple(changed if one is found[0] else one for one in scene.objects)
    return replace(scene, objects=things), kind


@pytest.mark.parametrize("repeat_colours", [0.0, 0.6])
def test_scenes_follow_the_instructions(repeat_colours):
    world = ShapesWorld(2, objects=(1, 6), repeat_colours=repeat_colours, visible=0.8)
    generator = np.random.default_rng(1)
    kinds = Counter()
    for index in range(150):
        before = world.scene(index)
        change = edit(before, generator, visible=0.8)
        if change is None:
            looks = Counter((one.colour, one.shape) for one in before.objects)
            assert repeat_colours and min(looks.values()) > 1
            continue
        assert (change.scene, change.kind) == followed(change.instruction, before)
        assert visible_fractions(change.scene).min() >= 0.8
        kinds[change.kind] += 1
        if change.kind == "recolour":
            old = {one.colour for one in before.objects}
            new = {one.colour for one in change.scene.objects} - old
            assert len(new) == 1
    assert set(kinds) == set(EDIT_KINDS) and min(kinds.values()) > 30


def test_kinds_and_changes_come_evenly():
    scene = Scene((thing("red", x=0.3), thing("blue", "star", x=0.7, depth=1)), "grey")
    changes = draws(scene, 600)
    kinds = Counter(change.kind for change in changes)
    assert all(abs(kinds[kind] - 200) < 5 * 11.6 for kind in EDIT_KINDS)
    assert {change.instruction for change in changes if change.kind != "recolour"} == {
        *("remove the red circle.", "remove the blue star."),
        *("make the red circle medium.", "make the red circle large."),
        *("make the blue star medium.", "make the blue star large."),
    }
    colours = {change.instruction.split()[-1] for change in changes if change.kind == "recolour"}
    assert colours == {f"{colour}." for colour in COLOURS} - {"red.", "blue."}


def test_the_last_object_stays():
    assert {change.kind for change in draws(Scene((thing("red"),), "grey"))} == {
        "recolour",
        "resize",
    }


def test_without_a_free_colour_none_is_given():
    things = tuple(thing(colour, depth=i) for i, colour in enumerate(COLOURS))
    assert "recolour" not in {change.kind for change in draws(Scene(things, "grey"), 40)}


def test_objects_grow_within_the_image_only():
    # Large needs 0.19 on every side, medium 0.135.
    for place in ({"y": 0.18}, {"x": 0.82}):
        sizes = {
            change.scene.objects[0].size
            for change in draws(Scene((thing("red", **place),), "grey"))
            if change.kind == "resize"
        }
        assert sizes == {"medium"}


def test_objects_grow_only_where_enough_of_all_stays_visible():
    # A large red circle reaches 0.95 · 0.19 = 0.18 from its centre, over half of the blue one; a
    # medium one 0.13, and leaves it alone.
    things = thing("blue", x=0.3), thing("red", x=0.52, depth=1)

    def sizes(visible):
        changes = draws(Scene(things, "grey"), visible=visible)
        return {change.scene.objects[1].size for change in changes if change.kind == "resize"}

    assert sizes(0.0) == {"small", "medium", "large"}
    assert sizes(0.99) == {"small", "medium"}


def test_objects_without_a_name_are_left_alone():
    twins = thing("red", size="small", x=0.2), thing("red", size="large", x=0.7, depth=1)
    assert draws(Scene(twins, "grey"), 3) == [None] * 3
    third = thing("red", "ring", y=0.2, depth=2)
    changes = draws(Scene((*twins, third), "grey"), 60)
    assert all("the red ring" in change.instruction for change in changes)


def test_errors():
    with pytest.raises(ValueError, match="visible: expected at most 1, got 2"):
        edit(Scene((thing("red"),), "grey"), np.random.default_rng(0), visible=2)


def test_edits_between_scenes_are_those_that_lead_there_and_back():
    world = ShapesWorld(2, objects=(1, 4), visible=0.8)
    generator = np.random.default_rng(1)
    back = Counter()
    for index in range(60):
        before = world.scene(index)
        change = edit(before, generator, visible=0.8)
        assert edit_between(before, change.scene) == change
        other = edit_between(change.scene, before)
        # There is no edit that adds an object.
        assert (other is None) == (change.kind == "remove")
        if other is not None:
            assert (other.scene, other.kind) == followed(other.instruction, change.scene)
        back[change.kind] += 1
        assert edit_between(before, before) is None
        assert edit_between(before, world.scene(index + 1)) is None
    assert set(back) == set(EDIT_KINDS)
