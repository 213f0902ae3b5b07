import math

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from setokim.data import Object, Scene, ShapesWorld, render
from setokim.shapes_world.parser import parse
from setokim.shapes_world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES

GREY = BACKGROUNDS["grey"]


def thing(shape="circle", size="large", colour="red", texture="plain", y=0.5, x=0.5, **rest):
    return Object(shape, size, colour, texture, y, x, **rest)


def drawn(*things, size=64, background="grey", gradient=(0.0, 0.0)):
    return render(Scene(things, background, gradient, contrast=0.5), size)


def words(seen):
    return [(one.colour, one.shape, one.size) for one in seen]


def blurred_and_noisy(image, generator):
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float64)
    noisy = soft + generator.normal(0, 10, soft.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def test_a_square_and_a_circle_of_another_renderer():
    image = Image.new("RGB", (64, 64), GREY)
    pen = ImageDraw.Draw(image)
    # A large square has a side of 2 · 0.82 · 0.19 · 64 = 19.9 pixels, a small circle a radius of
    # 0.95 · 0.095 · 64 = 5.8.
    pen.rectangle((4, 30, 23, 49), fill=COLOURS["blue"])
    y, x = np.mgrid[:64, :64] + 0.5
    disc = np.hypot(y - 12, x - 50) <= 5.8
    pixels = np.array(image)
    pixels[disc] = COLOURS["yellow"]
    square, circle = parse(Image.fromarray(pixels))
    assert words((square, circle)) == [("blue", "square", "large"), ("yellow", "circle", "small")]
    # From the left edge of pixel 4 to the right edge of pixel 23, and so on.
    assert (square.y, square.x) == (40 / 64, 14 / 64)
    assert (circle.y, circle.x) == (12 / 64, 50 / 64)
    expected = np.zeros((64, 64), bool)
    expected[30:50, 4:24] = True
    assert (square.mask == expected).all() and (circle.mask == disc).all()
    assert square.overlap > 0.97 and circle.overlap > 0.9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_in_every_size(shape, size):
    image, _ = drawn(thing(shape, size, "green", y=0.43, x=0.61, rotation=0.3))
    (one,) = parse(image)
    assert words([one]) == [("green", shape, size)]
    assert abs(one.y - 0.43) < 0.008 and abs(one.x - 0.61) < 0.008


@pytest.mark.parametrize("texture", ["striped", "dotted", "checked"])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_colour_with_every_texture_on_every_background(texture, background):
    for colour in COLOURS:
        image, masks = drawn(
            thing("square", "medium", colour, texture), background=background, gradient=(16, -16)
        )
        (one,) = parse(image)
        assert words([one]) == [(colour, "square", "medium")]
        # A white mark may have the background's colour, and the silhouette does not decide.
        assert (one.mask != (masks == 1)).mean() < 0.02


@pytest.mark.parametrize("damage", ["none", "blur and noise"])
def test_rendered_scenes_are_parsed_back(damage):
    world = ShapesWorld(77, objects=(1, 4), contrast=0.5, visible=0.9)
    generator = np.random.default_rng(0)
    number = shapes = sizes = 0
    for index in range(60):
        scene, image = world.scene(index), world[index].image
        if damage != "none":
            image = blurred_and_noisy(image, generator)
        seen = {one.colour: one for one in parse(image)}
        assert set(seen) == {one.colour for one in scene.objects}
        for one in scene.objects:
            found = seen[one.colour]
            assert math.hypot(found.y - one.y, found.x - one.x) < 0.04
            number += 1
            shapes += found.shape == one.shape
            sizes += found.size == one.size
    assert number > 120
    least = (0.98, 0.98) if damage == "none" else (0.93, 0.97)
    assert shapes / number >= least[0] and sizes / number >= least[1]


def test_masks_agree_with_those_of_the_image():
    image, masks = drawn(
        thing("star", "large", "purple", "striped", 0.3, 0.3, depth=0),
        thing("hexagon", "medium", "orange", "checked", 0.7, 0.65, depth=1),
        size=64,
    )
    for label, one in enumerate(parse(image), 1):
        truth = masks == label
        assert (one.mask & truth).sum() / (one.mask | truth).sum() > 0.93


@pytest.mark.parametrize("size", [32, 48, 96, 128])
def test_images_of_other_sizes(size):
    image, masks = drawn(thing("triangle", "large", "cyan", y=0.4, x=0.3), size=size)
    (one,) = parse(image)
    assert words([one]) == [("cyan", "triangle", "large")]
    assert abs(one.y - 0.4) < 0.015 and abs(one.x - 0.3) < 0.015
    assert one.mask.shape == (size, size) and one.mask.dtype == bool
    assert (one.mask != (masks == 1)).mean() < 0.02


def test_masks_of_oblong_images_have_their_size():
    image = Image.new("RGB", (96, 64), GREY)
    ImageDraw.Draw(image).rectangle((12, 40, 41, 59), fill=COLOURS["red"])
    (one,) = parse(image)
    assert one.mask.shape == (64, 96)
    assert one.mask[40:60, 12:42].all() and one.mask.sum() == 20 * 30
    assert (one.y, one.x) == pytest.approx((50 / 64, 27 / 96), abs=0.008)


def test_objects_come_from_left_to_right_and_deterministically():
    image, _ = drawn(
        thing("ring", "medium", "red", x=0.8, depth=0),
        thing("cross", "small", "black", x=0.2, depth=1),
        thing("diamond", "medium", "pink", x=0.5, depth=2),
    )
    first, again = parse(image), parse(image)
    assert [one.colour for one in first] == ["black", "pink", "red"]
    for one, other in zip(first, again, strict=True):
        assert words([one]) == words([other]) and (one.y, one.x) == (other.y, other.x)
        assert one.overlap == other.overlap and (one.mask == other.mask).all()


def test_an_object_inside_a_ring_and_one_that_hides_a_part():
    inside = drawn(thing("ring", "large", "green"), thing("circle", "small", "white", depth=1))[0]
    assert sorted(words(parse(inside))) == [
        ("green", "ring", "large"),
        ("white", "circle", "small"),
    ]
    hiding = drawn(
        thing("square", "large", "blue", x=0.4),
        thing("diamond", "small", "yellow", y=0.35, x=0.57, depth=1),
    )[0]
    assert words(parse(hiding)) == [("blue", "square", "large"), ("yellow", "diamond", "small")]


def test_two_objects_of_one_colour_are_two():
    image, _ = drawn(thing(x=0.25), thing("square", "small", x=0.75, depth=1))
    assert words(parse(image)) == [("red", "circle", "large"), ("red", "square", "small")]


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_may_be_off_by_25_levels(colour):
    for shift in (25, -25):
        pixels = np.full((64, 64, 3), GREY) - shift
        pixels[20:36, 20:36] = np.clip(np.array(COLOURS[colour]) + shift, 0, 255)
        (one,) = parse(Image.fromarray(pixels.astype(np.uint8)))
        assert one.colour == colour


def test_specks_lines_and_empty_images_have_no_objects():
    assert parse(Image.new("RGB", (64, 64), GREY)) == ()
    image = Image.new("RGB", (64, 64), GREY)
    pen = ImageDraw.Draw(image)
    pen.rectangle((10, 10, 14, 14), fill=COLOURS["red"])
    pen.line((5, 50, 60, 50), fill=COLOURS["blue"], width=2)
    assert parse(image) == ()
    # A speck of 6 by 6 pixels is an object.
    pen.rectangle((10, 10, 15, 15), fill=COLOURS["red"])
    assert [one.colour for one in parse(image)] == ["red"]


def test_images_without_background_do_not_fail():
    (one,) = parse(Image.new("RGB", (64, 64), COLOURS["white"]))
    assert one.colour == "white" and one.mask.all() and one.overlap < 0.5
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    parse(Image.fromarray(noise))


def test_bad_images():
    with pytest.raises(TypeError, match="image: expected a PIL image, got ndarray"):
        parse(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="image: expected mode RGB, got L"):
        parse(Image.new("L", (64, 64)))
    with pytest.raises(ValueError, match=r"sides of at least 32, got \(64, 31\)"):
        parse(Image.new("RGB", (64, 31)))
