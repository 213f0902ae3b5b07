import hashlib
import itertools
import json
import math

import numpy as np
import pytest
import torch

from setokim.data import Object, Scene, ShapesWorld, render
from setokim.shapes_world.dataset import visible_fractions
from setokim.shapes_world.render import footprint
from setokim.shapes_world.scene import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    place_name,
)
from setokim.tokenizer.patch_statistics import srgb_to_oklab

# In radii², from the formulas of geometry.
AREAS = {
    "circle": math.pi * 0.95**2,
    "square": 1.64**2,
    "triangle": 3 * math.sqrt(3) * 0.6**2,
    "star": 5 * 1.25**2 * math.sin(math.radians(18)) / math.sin(math.radians(54)) * 0.587785,
    "cross": 2 * 0.72 * 2.1 - 0.72**2,
    "ring": math.pi * (1 - 0.52**2),
    "diamond": 2 * 0.75 * 1.2,
    "hexagon": 2 * math.sqrt(3) * 0.87**2,
}


def thing(shape="circle", size="large", colour="red", texture="plain", y=0.5, x=0.5, **rest):
    return Object(shape, size, colour, texture, y, x, **rest)


def own_pixels(one, size):
    _, masks = render(Scene((one,), "grey"), size)
    return masks == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_its_area_whatever_its_rotation(shape):
    for rotation in (0.0, 0.7):
        _, inside, _ = footprint(thing(shape, rotation=rotation), 1000)
        area = inside.sum() / (SIZES["large"] * 1000) ** 2
        assert area == pytest.approx(AREAS[shape], rel=0.01)


def test_triangles_point_up_and_turn_clockwise():
    tip = round(1.1 * 0.19 * 100)
    upright = own_pixels(thing("triangle"), 100)
    assert upright[50 - tip, 50] and not upright[50 + tip, 50]
    turned = own_pixels(thing("triangle", rotation=math.pi / 2), 100)
    assert turned[50, 49 + tip] and not turned[50, 50 - tip]


def test_a_ring_shows_what_is_behind_it():
    under = thing("circle", "small", "blue", depth=0)
    image, masks = render(Scene((thing("ring", depth=1), under), "grey"), 64)
    assert masks[32, 32] == 2 and image.getpixel((32, 32)) == COLOURS["blue"]
    assert masks[32, 32 + 9] == 1 and image.getpixel((32 + 9, 32)) == COLOURS["red"]


def test_the_greater_depth_lies_on_top_wherever_it_stands_in_the_list():
    low, high = thing("square", depth=3), thing("square", colour="blue", depth=7)
    assert render(Scene((low, high), "grey"))[1][32, 32] == 2
    assert render(Scene((high, low), "grey"))[1][32, 32] == 1


def test_edges_are_mixed_by_the_samples_they_cover():
    # The right edge stands at (0.5 + 0.82 · 0.19) · 60 = 39.348 pixels. Of the four samples across
    # pixel 39, centred at 39.125, 39.375 and so on, it covers one.
    image, masks = render(Scene((thing("square"),), "grey"), 60)
    red, grey = np.array(COLOURS["red"]), np.array(BACKGROUNDS["grey"])
    assert image.getpixel((38, 30)) == tuple(red)
    assert image.getpixel((39, 30)) == tuple(np.rint(red / 4 + grey * 3 / 4).astype(int))
    assert image.getpixel((40, 30)) == tuple(grey)
    assert masks[30, 37:42].tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("texture", "share"),
    [("plain", 0), ("striped", 0.4), ("checked", 0.5), ("dotted", math.pi * (0.021 / 0.075) ** 2)],
)
def test_marks_cover_their_fraction_in_half_the_lightness(texture, share):
    image, masks = render(Scene((thing("square", texture=texture),), "grey"), 256)
    mean = np.asarray(image)[masks == 1].mean(0)
    expected = np.array(COLOURS["red"]) * (1 - share / 2)
    np.testing.assert_allclose(mean, expected, rtol=0.06 if share else 0.01)


def test_the_background_brightens_along_its_gradient():
    image, masks = render(Scene((thing(size="small"),), "sage", (16.0, -8.0)), 64)
    pixels = np.asarray(image).astype(int)
    y, x = 5, 60
    light = 16 * ((y + 0.5) / 64 - 0.5) - 8 * ((x + 0.5) / 64 - 0.5)
    assert pixels[y, x].tolist() == [round(level + light) for level in BACKGROUNDS["sage"]]
    assert masks[y, x] == 0


def test_masks_and_images_of_rendered_scenes_agree():
    world = ShapesWorld(seed=5)
    checked = 0
    for index in range(40):
        scene, sample = world.scene(index), world[index]
        pixels, masks = np.asarray(sample.image).astype(int), sample.masks
        assert pixels.shape == (64, 64, 3) and masks.shape == (64, 64)
        assert masks.dtype == np.int64
        assert np.unique(masks).tolist() == list(range(len(scene.objects) + 1))
        for label, one in enumerate(scene.objects, 1):
            # Samples of other objects reach into a pixel only where a neighbour is theirs.
            near = np.lib.stride_tricks.sliding_window_view(np.pad(masks, 2), (5, 5))
            inner = (near == label).all((2, 3))
            if one.texture == "plain" and inner.any():
                assert (pixels[inner] == COLOURS[one.colour]).all()
                checked += inner.sum()
    assert checked > 1000


@pytest.mark.parametrize("objects", [(2, 8), (11, 11)])
def test_enough_of_every_object_is_visible(objects):
    world = ShapesWorld(seed=9, objects=objects)
    hidden = 0
    for index in range(30):
        scene, masks = world.scene(index), world[index].masks
        for label, one in enumerate(scene.objects, 1):
            visible, own = (masks == label).sum(), own_pixels(one, 64).sum()
            assert visible >= 0.45 * own and visible >= 12
            hidden += visible < own
    assert hidden > 20


@pytest.mark.parametrize(("visible", "objects"), [(0.5, (2, 8)), (0.9, (1, 4)), (1.0, (4, 4))])
def test_no_object_is_less_visible_than_required(visible, objects):
    world = ShapesWorld(4, objects=objects, visible=visible)
    shares = np.concatenate([visible_fractions(world.scene(index)) for index in range(60)])
    assert visible <= shares.min() <= visible + (0.05 if visible < 1 else 0)
    shown = np.concatenate(
        [
            [
                (world[index].masks == label).sum() / own_pixels(one, 64).sum()
                for label, one in enumerate(world.scene(index).objects, 1)
            ]
            for index in range(20)
        ]
    )
    assert shown.min() >= visible - 0.05


def test_visible_fractions_count_uncovered_samples():
    # The right half of a square is covered by one a size of its width farther on.
    width = 2 * 0.82 * SIZES["large"]
    under = thing("square", depth=0)
    over = thing("square", colour="blue", x=0.5 + width / 2, depth=1)
    apart = thing("ring", "small", "pink", y=0.1, x=0.1, depth=2)
    shares = visible_fractions(Scene((over, apart, under), "grey"))
    np.testing.assert_allclose(shares, [1, 1, 0.5], atol=0.02)
    assert shares[:2].tolist() == [1, 1]


def test_scenes_of_known_seeds_stay_as_they_are():
    plain = [ShapesWorld(seed=3).scene(index).to_dict() for index in range(40)]
    digest = hashlib.sha256(json.dumps(plain).encode()).hexdigest()
    assert digest == "42481dec41d311d689e9cf1d69931497f1b06f2948edb6bb3a615eba000b59d1"


def test_positions_are_the_cells_of_a_grid():
    middles = [0.1, 0.5, 0.9]
    assert tuple(tuple(place_name(y, x) for x in middles) for y in middles) == PLACES
    assert place_name(0.9, 0.1) == "bottom left"
    assert [place_name(0, 0), place_name(1, 1)] == ["top left", "bottom right"]
    assert [place_name(0.33, 0.34), place_name(0.67, 0.66)] == ["top", "bottom"]
    with pytest.raises(ValueError, match=r"x: expected at most 1, got 1\.1"):
        place_name(0, 1.1)
    with pytest.raises(ValueError, match=r"y: expected at least 0, got -0\.1"):
        place_name(-0.1, 0)


def test_scenes_have_all_words_and_the_requested_numbers_of_objects():
    world = ShapesWorld(seed=1, objects=(2, 5))
    scenes = [world.scene(index) for index in range(150)]
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4, 5}
    things = [one for scene in scenes for one in scene.objects]
    for name, known in {
        "shape": SHAPES,
        "size": SIZES,
        "colour": COLOURS,
        "texture": TEXTURES,
    }.items():
        assert {getattr(one, name) for one in things} == set(known)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    for scene in scenes:
        assert len({one.colour for one in scene.objects}) == len(scene.objects)
        across = [one.x for one in scene.objects]
        assert across == sorted(across)


def test_colours_repeat_when_they_may():
    def repeats(probability):
        world = ShapesWorld(2, objects=(6, 6), repeat_colours=probability)
        colours = [[one.colour for one in world.scene(i).objects] for i in range(60)]
        return sum(len(set(names)) < len(names) for names in colours)

    # Six of eleven colours at random are all different with probability 0.188.
    assert repeats(0.0) == 0 < repeats(0.2) < repeats(1.0)
    assert 40 <= repeats(1.0) <= 57


def test_a_sample_depends_on_seed_and_number_only():
    world = ShapesWorld(seed=3)
    late = world[2**31 - 1]
    first = world[7]
    again = ShapesWorld(seed=3, length=8)[7]
    assert again.image.tobytes() == first.image.tobytes()
    assert (again.masks == first.masks).all() and again.caption == first.caption
    assert first.source == "shapes-world #7"
    others = [late, world[8], ShapesWorld(seed=4)[7]]
    assert len({sample.image.tobytes() for sample in (first, *others)}) == 4
    # One scene at any size.
    assert ShapesWorld(seed=3, size=96).scene(7) == world.scene(7)
    assert ShapesWorld(seed=3, size=96)[7].image.size == (96, 96)


def test_captions_name_the_objects_in_their_order():
    ring = thing("ring", "large", "red", "striped", depth=0)
    square = thing("square", "small", "blue", depth=1)
    star = thing("star", "medium", "pink", "dotted", depth=2)
    assert Scene((ring,), "grey").caption == "a large red striped ring"
    assert Scene((ring, square), "grey").caption == (
        "a large red striped ring and a small blue square"
    )
    three = Scene((square, star, ring), "grey")
    assert three.concepts == ("small blue square", "medium pink dotted star", ring.phrase)
    assert three.caption == (
        "a small blue square, a medium pink dotted star and a large red striped ring"
    )
    sample = ShapesWorld(0)[0]
    scene = ShapesWorld(0).scene(0)
    assert (sample.caption, sample.concepts) == (scene.caption, scene.concepts)


def test_scenes_survive_json():
    scene = ShapesWorld(seed=6).scene(1)
    restored = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
    assert restored == scene and hash(restored) == hash(scene)
    assert render(restored)[0].tobytes() == render(scene)[0].tobytes()


def test_footprints_match_the_renderer():
    one = thing("star", "medium", y=0.1, x=0.95, rotation=0.2)
    (rows, columns), inside, marked = footprint(one, 256)
    assert marked is None
    canvas = np.zeros((256, 256), bool)
    canvas[rows, columns] = inside
    majority = canvas.reshape(64, 4, 64, 4).sum((1, 3)) > 8
    assert (majority == own_pixels(one, 64)).all() and majority.any()


def test_named_colours_are_far_apart():
    def lab(rgb):
        return srgb_to_oklab(torch.tensor(rgb).view(1, 3, 1, 1) / 255).flatten()

    colours = [lab(rgb) for rgb in COLOURS.values()]
    assert min((a - b).norm() for a, b in itertools.combinations(colours, 2)) > 0.15
    for rgb in BACKGROUNDS.values():
        for light in (-16, 16):
            shown = lab([level + light for level in rgb])
            assert min((shown - colour).norm() for colour in colours) > 0.12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": "blob"}, "shape: expected one of circle, .*got 'blob'"),
        ({"size": "huge"}, "size: expected one of small, medium, large, got 'huge'"),
        ({"colour": "teal"}, "colour: .*got 'teal'"),
        ({"texture": "furry"}, "texture: .*got 'furry'"),
        ({"y": -0.1}, "y: expected at least 0"),
        ({"x": 1.1}, "x: expected at most 1"),
        ({"rotation": math.inf}, "rotation: expected a finite number"),
        ({"depth": -1}, "depth: expected at least 0, got -1"),
    ],
)
def test_bad_objects(changes, message):
    with pytest.raises(ValueError, match=message):
        thing(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scene((), "grey"), "objects: expected 1 to 127, got 0"),
        (lambda: Scene((thing(), thing()), "grey"), r"different depths, got \[0, 0\]"),
        (lambda: Scene((thing(),), "red"), "background: expected one of grey, .*got 'red'"),
        (lambda: Scene((thing(),), "grey", (1.0,)), "gradient: expected two finite numbers"),
        (lambda: Scene.from_dict({"objects": []}), "plain: expected the key 'gradient'"),
        (lambda: render(Scene((thing(),), "grey"), 0), "size: expected at least 1, got 0"),
        (lambda: ShapesWorld(-1), "seed: expected at least 0, got -1"),
        (lambda: ShapesWorld(0, length=0), "length: expected at least 1"),
        (lambda: ShapesWorld(0, size=0), "size: expected at least 1"),
        (lambda: ShapesWorld(0, objects=(3, 2)), r"objects: .*from 1 to 11, got \(3, 2\)"),
        (lambda: ShapesWorld(0, objects=(2, 12)), r"objects: .*got \(2, 12\)"),
        (lambda: ShapesWorld(0, objects=(0, 2)), "objects: expected at least 1, got 0"),
        (lambda: ShapesWorld(0, repeat_colours=1.5), "repeat_colours: expected at most 1"),
        (lambda: ShapesWorld(0, visible=1.01), "visible: expected at most 1"),
        (lambda: ShapesWorld(0, visible=-0.1), "visible: expected at least 0"),
    ],
)
def test_bad_scenes_and_worlds(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_out_of_range():
    with pytest.raises(IndexError, match="index: expected less than 5, got 5"):
        ShapesWorld(0, length=5)[5]
    with pytest.raises(IndexError, match="index: expected at least 0, got -1"):
        ShapesWorld(0, length=5)[-1]
    assert len(list(ShapesWorld(0, length=3))) == 3
