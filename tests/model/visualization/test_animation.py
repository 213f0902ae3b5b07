"""Animations of Algorithm 1."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image, ImageSequence

from helpers.drawn_clusters import clusters_by_hand
from setokim.utils.palette import colour
from setokim.visualization import animation
from setokim.visualization.animation import (
    FIRST_TIME,
    LAST_TIME,
    MAX_STEP_FRAMES,
    STEP_TIME,
    draw_frames,
    save_animation,
    step_groups,
)
from setokim.visualization.patch_maps import outline_colour

BAR = (slice(animation._MARGIN + 54, animation._MARGIN + 64), slice(animation._MARGIN, -16))
HEAD = animation._MARGIN + animation._HEAD


def strip(tokens, size=(80, 60)):
    """One row of patches, each a cluster of its own."""
    return clusters_by_hand([range(tokens)], [(0, i) for i in range(tokens)], size)


def texts(monkeypatch, result):
    """Lines of text of each frame, and the scope of its bar."""
    said, before = [], animation._frame
    monkeypatch.setattr(
        animation, "_frame", lambda panel, *rest: said.append(rest) or before(panel, *rest)
    )
    list(draw_frames(result))
    return said


def played(path):
    """Frames and times of a file."""
    with Image.open(path) as file:
        return [
            (np.asarray(frame.convert("RGB")).astype(int), frame.info["duration"])
            for frame in ImageSequence.Iterator(file)
        ]


@pytest.mark.parametrize("tokens", [0, 1, 31, 32, 33, 64, 65, 100, 729])
def test_every_step_is_in_one_group(tokens):
    groups = step_groups(tokens)
    assert [*itertools.chain(*groups)] == [*range(1, tokens + 1)]
    assert len(groups) <= MAX_STEP_FRAMES
    if groups:
        assert {len(group) for group in groups[:-1]} <= {len(groups[0])}
    assert all(len(group) == 1 for group in groups) == (tokens <= MAX_STEP_FRAMES)


def test_the_longest_animation_is_below_half_a_minute():
    assert FIRST_TIME + MAX_STEP_FRAMES * STEP_TIME + LAST_TIME < 30_000
    assert STEP_TIME < LAST_TIME


def test_each_frame_says_what_it_shows(monkeypatch):
    result = clusters_by_hand([[0, 0], [1, 2]], [(0, 1), (1, 0)])
    assert texts(monkeypatch, result) == [
        ("Photograph", "2 x 2 patches, none of them claimed", 1.0),
        ("Step 1 of 2", "seed 0 in row 0, column 1; 50.0% of the scope left", 0.5),
        ("Step 2 of 2", "seed 1 in row 1, column 0; 25.0% of the scope left", 0.25),
        ("2 clusters", "2 x 2 patches, residual 25.0%", 0.25),
    ]


def test_many_steps_are_shown_in_groups(monkeypatch):
    said = texts(monkeypatch, strip(70))
    assert said[1][:2] == ("Steps 1 to 3 of 70", "seeds 0 to 2; 95.7% of the scope left")
    # The last group is the rest.
    assert said[-2][:2] == ("Step 70 of 70", "seed 69 in row 0, column 69; 0.0% of the scope left")


def test_a_group_shows_all_its_seeds(monkeypatch):
    monkeypatch.setattr(animation, "MAX_STEP_FRAMES", 1)
    [_, (all_at_once, _), _] = draw_frames(strip(3, (300, 100)))
    panel = np.asarray(all_at_once).astype(int)[HEAD:-16]
    for third in np.split(panel[:, 16:-16], 3, axis=1):
        assert (third.min(-1) > 230).any(), "the light ring of a seed"


def test_an_image_without_clusters(monkeypatch, tmp_path):
    said = texts(monkeypatch, clusters_by_hand([[0, 0]], []))
    assert [one[0] for one in said] == ["Photograph", "0 clusters"]
    assert said[1][1] == "1 x 2 patches, residual 100.0%"
    save_animation(clusters_by_hand([[0, 0]], []), tmp_path / "none.gif")
    assert len(played(tmp_path / "none.gif")) == 2


@pytest.mark.parametrize("size", [(3000, 40), (40, 3000), (1, 1), (5000, 1), (640, 480)])
def test_frames_of_any_shape_have_one_size_and_room_for_the_text(size):
    frames = [frame for frame, _ in draw_frames(strip(3, size))]
    [(width, height)] = {frame.size for frame in frames}
    assert 440 <= width <= 520 and height <= 600
    for frame in frames:
        head = np.asarray(frame)[:HEAD]
        assert (head[:, -8:] == 255).all() and (head[:, :8] == 255).all(), "text is not cut"


def test_the_longest_line_of_text_fits():
    line = "seed 728 in row 100, column 100; 100.0% of the scope left"
    assert animation.font(16).getlength(line) <= animation._MIN_WIDTH


def test_the_bar_is_as_long_as_the_scope():
    shares = []
    for frame, _ in draw_frames(strip(4)):
        bar = np.asarray(frame.convert("L"))[BAR]
        shares.append((bar < 60).mean())
    assert shares == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0], abs=0.01)


@pytest.mark.parametrize(("ending", "tolerance"), [("gif", 12), ("webp", 12)])
def test_files_play_the_frames_at_a_calm_pace_for_ever(tmp_path, ending, tolerance):
    result = dataclasses.replace(strip(5), photo=gradient())
    path = tmp_path / f"a.{ending}"
    save_animation(result, path)
    found = played(path)
    expected = list(draw_frames(result))
    assert [time for _, time in found] == [FIRST_TIME, *5 * [STEP_TIME], LAST_TIME]
    for (pixels, _), (frame, _) in zip(found, expected, strict=True):
        assert np.abs(pixels - np.asarray(frame)).mean() < tolerance
    with Image.open(path) as file:
        assert file.info["loop"] == 0


def test_text_of_a_gif_keeps_its_colours(tmp_path):
    save_animation(dataclasses.replace(strip(5), photo=gradient()), tmp_path / "a.gif")
    for pixels, _ in played(tmp_path / "a.gif"):
        assert (pixels[:8] == 255).all(), "white paper"
        assert (pixels[: animation._MARGIN + 24] == animation._INK).all(-1).any()


def test_seeds_and_outlines_of_a_gif_keep_their_colours(tmp_path):
    """Whatever the colours of the photograph."""
    save_animation(dataclasses.replace(strip(5), photo=gradient()), tmp_path / "a.gif")
    for label, (pixels, _) in enumerate(played(tmp_path / "a.gif")[1:-1]):
        for wanted in (colour(label), outline_colour(label)):
            assert (np.abs(pixels - wanted).max(-1) <= 8).sum() > 50, (label, wanted)


def test_unchanged_pixels_cost_nothing_in_a_gif(tmp_path):
    """Noise does not compress: a file of whole frames would have several times this size."""
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    for tokens in (2, 30):
        result = dataclasses.replace(strip(tokens), photo=Image.fromarray(noise))
        save_animation(result, tmp_path / f"{tokens}.gif")
    few, many = ((tmp_path / f"{tokens}.gif").stat().st_size for tokens in (2, 30))
    assert many < 2 * few


def test_another_ending(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.gif or \.webp, "):
        save_animation(strip(2), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def gradient():
    levels = np.linspace(0, 255, 160).astype(np.uint8)
    return Image.fromarray(np.stack([np.tile(levels, (120, 1))] * 3, -1))
