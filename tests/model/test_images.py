import json

import numpy as np
import pytest
import torch
from PIL import Image

from setokim import ImageProcessor, UnreadableImageError, find_images, load_image
from setokim.images import to_rgb


def red_and_blue(width=6, height=4):
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def test_find_images_keeps_the_order_given_sorts_folders_and_drops_repeats(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.JPG", "notes.txt", "c.clusters.png", "sub/d.webp"):
        (tmp_path / name).touch()

    flat = find_images([tmp_path / "b.png", tmp_path], skip_suffix=".clusters.png")
    assert [path.name for path in flat] == ["b.png", "a.JPG"]
    deep = find_images([tmp_path], recursive=True)
    assert [path.name for path in deep] == ["a.JPG", "b.png", "c.clusters.png", "d.webp"]


def test_find_images_keeps_named_files_whatever_they_are(tmp_path):
    assert find_images([tmp_path / "missing.xyz"]) == [tmp_path / "missing.xyz"]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    red_and_blue().save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = load_image(tmp_path / "turned.jpg")
    assert upright.size == (4, 6)
    top, bottom = upright.getpixel((2, 0)), upright.getpixel((2, 5))
    assert top[0] > 200 > top[2] and bottom[2] > 200 > bottom[0]


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_a_transparent_colour(tmp_path):
    indexed = red_and_blue().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    indexed.save(tmp_path / "indexed.png", transparency=indexed.getpixel((0, 0)))
    loaded = load_image(tmp_path / "indexed.png")
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((5, 0)) == (0, 0, 255)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "moving.gif").getpixel((1, 1)) == (255, 0, 0)


def test_sixteen_bits_keep_their_scale(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png"))[0, :, 1].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([-2.0, 0.0, 2.0], [0, 128, 255]),
        ([0.0, np.nan, 100.5], [0, 0, 255]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
    ],
    ids=["unit", "stretched", "nan", "constant"],
)
def test_float_pictures(values, expected):
    image = Image.fromarray(np.array([values], np.float32))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "HSV", "YCbCr"])
def test_other_modes_become_rgb(mode):
    assert to_rgb(Image.new(mode, (2, 3))).mode == "RGB"


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    red_and_blue(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:80])
    reasons = {
        "text.png": "not a picture of a known format",
        "cut.png": ".*truncated",
        "missing.png": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImageError, match=f"cannot read .*{name}: {reason}"):
            load_image(tmp_path / name)


def test_processor_squeezes_the_whole_picture_and_normalises():
    pixels = ImageProcessor(mean=(0.5, 0, 0), std=(0.5, 1, 1), resample=Image.Resampling.NEAREST)(
        [red_and_blue(12, 4)], (2, 6)
    )
    assert pixels.shape == (1, 3, 2, 6) and pixels.dtype == torch.float32
    assert pixels[0, 0, 0].tolist() == [1, 1, 1, -1, -1, -1]
    assert pixels[0, 2, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_processor_reads_its_settings(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}))
    assert ImageProcessor.from_file(path) == ImageProcessor((0.1, 0.2, 0.3), (1, 2, 3))
    path.write_text(json.dumps({"do_normalize": False, "do_rescale": False, "resample": 2}))
    expected = ImageProcessor((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), rescale_factor=1.0, resample=2)
    assert ImageProcessor.from_file(path) == expected
    path.write_text(json.dumps({"rescale_factor": 0.5}))
    assert ImageProcessor.from_file(path) == ImageProcessor(rescale_factor=0.5)


def test_processor_equals_the_one_of_transformers_to_the_bit():
    module = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    theirs = module.SiglipImageProcessorPil(size={"height": 48, "width": 48})
    noise = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    expected = theirs(Image.fromarray(noise), return_tensors="pt")["pixel_values"]
    assert torch.equal(ImageProcessor()([Image.fromarray(noise)], (48, 48)), expected)
