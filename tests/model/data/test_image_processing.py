import errno
import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from setokim import ImageProcessor, UnreadableImageError, find_images, load_image
from setokim.data.image_processing import scan_images, to_rgb


def red_and_blue(width=6, height=4):
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def _tiff(data, bits, size, channels):
    """An uncompressed TIFF, which Pillow cannot write with 12 bits or 16 bits per channel."""
    count = 10  # of entries; the bits of the channels follow the table, the pixels follow them
    after = 8 + 2 + 12 * count + 4
    listed = bits if channels == 1 else after
    entries = [(256, 1, size[0]), (257, 1, size[1]), (258, channels, listed), (259, 1, 1)]
    entries += [(262, 1, 1 if channels == 1 else 2), (273, 1, after + 8), (277, 1, channels)]
    entries += [(278, 1, size[1]), (279, 1, len(data)), (284, 1, 1)]
    table = b"".join(struct.pack("<HHII", tag, 3, n, value) for tag, n, value in entries)
    head = b"II*\0" + struct.pack("<IH", 8, count) + table + bytes(4)
    return head + struct.pack("<4H", *[bits] * 4) + data


def _png(row, size):
    """A PNG of one row of 16-bit RGB."""

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">2I5B", *size, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_find_images_keeps_the_order_given_sorts_folders_and_drops_repeats(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.JPG", "notes.txt", "c.clusters.png", "sub/d.webp"):
        (tmp_path / name).touch()

    flat = find_images([tmp_path / "b.png", tmp_path], skip_suffix=".clusters.png")
    assert [path.name for path in flat] == ["b.png", "a.JPG"]
    either = find_images([tmp_path], skip_suffix=(".clusters.png", ".JPG"))
    assert [path.name for path in either] == ["b.png"]
    deep = find_images([tmp_path], recursive=True)
    assert [path.name for path in deep] == ["a.JPG", "b.png", "c.clusters.png", "d.webp"]


def test_find_images_keeps_named_files_whatever_they_are(tmp_path):
    assert find_images([tmp_path / "missing.xyz"]) == [tmp_path / "missing.xyz"]


def test_formats_that_only_some_pillows_read(tmp_path, monkeypatch):
    (tmp_path / "phone.heic").touch()
    files, [refused] = scan_images([tmp_path])
    assert files == [] and "phone.heic: the Pillow installed here does not read" in str(refused)
    # As a plugin registers them.
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    monkeypatch.setitem(Image.OPEN, "HEIF", (None, None))
    assert scan_images([tmp_path]) == ([tmp_path / "phone.heic"], [])


def test_a_folder_that_cannot_be_searched_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    before = os.scandir

    def scandir(path):
        if str(path) == str(tmp_path / "closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return before(path)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    files, [refused] = scan_images([tmp_path], recursive=True)
    assert files == [tmp_path / "a.png"]
    assert str(refused) == f"cannot read {tmp_path / 'closed'}: Permission denied"


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
def test_float_images(values, expected):
    image = Image.fromarray(np.array([values], np.float32))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == expected


WHOLE = [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        # 16 bits are stated by the mode: the values change nothing.
        ([0, 1], ">u2", [0, 0]),
        ([0, 2], "<u2", [0, 0]),
        ([0, 255, 257, 65535], "<u2", [0, 1, 1, 255]),
        ([0, 255, 257, 65535], ">u2", [0, 1, 1, 255]),
        # 32 bits do not state their range.
        (WHOLE, np.int32, WHOLE),
        (WHOLE, np.float32, WHOLE),
        ([0, 1], np.int32, [0, 255]),
        ([0, 1], np.float32, [0, 255]),
        ([0, 2], np.int32, [0, 2]),
        ([0, 2], np.float32, [0, 2]),
        ([0, 256], np.int32, [0, 1]),
        ([0, 256], np.float32, [0, 1]),
        ([0, 32768, 65535], np.int32, [0, 128, 255]),
        ([0, 65536], np.int32, [0, 255]),
        ([100, 65536], np.float32, [0, 255]),
        ([-1, 0, 3], np.int32, [0, 64, 255]),
        # Values that are no levels of 8 or 16 bits are stretched, not black.
        ([0.0, 0.51, 1.02], np.float32, [0, 128, 255]),
        ([2.5, 5.0, 7.5], np.float32, [0, 128, 255]),
        ([0.25, 0.5], np.float32, [64, 128]),
        ([-np.inf, np.nan, 0, 1, np.inf], np.float32, [0, 0, 0, 255, 255]),
        ([-np.inf, np.nan, 0, 255, np.inf], np.float32, [0, 0, 0, 255, 255]),
        ([-np.inf, np.nan, -2, 2, np.inf], np.float32, [0, 0, 0, 255, 255]),
        ([np.nan, np.nan], np.float32, [0, 0]),
    ],
    ids=lambda value: str(np.dtype(value)) if isinstance(value, (str, type)) else str(value),
)
def test_the_rule_for_depth(values, dtype, expected):
    image = Image.fromarray(np.array([values], dtype))
    assert np.asarray(to_rgb(image))[0].tolist() == [[level] * 3 for level in expected]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("top", [1, 2, 255, 65535])
def test_sixteen_bits_in_a_file_are_sixteen_bits(tmp_path, suffix, top):
    path = tmp_path / f"deep{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 2 1 65535\n" + np.array([0, top], ">u2").tobytes())
    else:
        Image.fromarray(np.array([[0, top]], np.uint16)).save(path)
    assert np.asarray(load_image(path))[0, :, 0].tolist() == [0, round(top / 257)]


@pytest.mark.parametrize(("bits", "top"), [(12, 4095), (16, 65535)])
def test_a_tiff_states_its_bits(tmp_path, bits, top):
    packed = bytes([0x00, 0x0F, 0xFF]) if bits == 12 else b"\0\0\xff\xff"
    (tmp_path / "deep.tif").write_bytes(_tiff(packed, bits, size=(2, 1), channels=1))
    with Image.open(tmp_path / "deep.tif") as opened:
        assert np.asarray(opened)[0].tolist() == [0, top]
    assert np.asarray(load_image(tmp_path / "deep.tif"))[0, :, 0].tolist() == [0, 255]


def test_sixteen_bits_with_a_transparent_grey(tmp_path):
    image = Image.fromarray(np.array([[0, 7, 65535]], np.uint16))
    image.save(tmp_path / "deep.png", transparency=7)
    assert np.asarray(load_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 7, (7, 7, 7)),
        ("LA", (7, 255), (7, 7, 7)),
        ("LA", (7, 0), (255, 255, 255)),
        ("La", (7, 255), (7, 7, 7)),
        ("P", 0, (0, 0, 0)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (255, 255, 255)),
        ("RGBa", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("YCbCr", (9, 128, 128), (9, 9, 9)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16B", 65535, (255, 255, 255)),
        ("I", 255, (255, 255, 255)),
        ("F", 0.5, (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(mode, colour, expected):
    converted = to_rgb(Image.new(mode, (2, 3), colour))
    assert converted.mode == "RGB" and converted.size == (2, 3)
    assert converted.getpixel((1, 2)) == pytest.approx(expected, abs=1 if mode == "LAB" else 0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_per_channel(tmp_path, suffix):
    """Pillow keeps their upper 8 bits."""
    pixels = np.array([[[0, 257, 65535], [32768, 256, 255]]], np.uint16)
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(
        _png(pixels.astype(">u2").tobytes(), (2, 1))
        if suffix == ".png"
        else _tiff(pixels.astype("<u2").tobytes(), bits=16, size=(2, 1), channels=3)
    )
    assert np.asarray(load_image(path)).tolist() == [[[0, 1, 255], [128, 1, 0]]]


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    red_and_blue(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:80])
    reasons = {
        "text.png": "not an image of a known format",
        "cut.png": ".*truncated",
        "missing.png": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImageError, match=f"cannot read .*{name}: {reason}"):
            load_image(tmp_path / name)


def test_processor_resizes_the_whole_image_and_normalises():
    pixels = ImageProcessor(mean=(0.5, 0, 0), std=(0.5, 1, 1), resample=Image.Resampling.NEAREST)(
        [red_and_blue(12, 4)], (2, 6)
    )
    assert pixels.shape == (1, 3, 2, 6) and pixels.dtype == torch.float32
    assert pixels[0, 0, 0].tolist() == [1, 1, 1, -1, -1, -1]
    assert pixels[0, 2, 0].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)},
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "rescale_factor": 1 / 127.5},
        {"mean": (0, 0, 0), "std": (1, 1, 1), "rescale_factor": 1.0},
        {"mean": (-0.1, 0.3, 1.7), "std": (-0.7, 1e-3, 3.3), "rescale_factor": 0.0039215686274},
    ],
)
def test_every_value_is_normalised_as_by_the_formula(settings):
    processor = ImageProcessor(**settings)
    values = np.stack([np.arange(256), np.arange(256)[::-1], np.arange(256) ^ 85], -1)
    pixels = values.reshape(16, 16, 3).astype(np.uint8)
    scaled = (pixels.astype(np.float64) * processor.rescale_factor).astype(np.float32)
    mean, std = np.array(processor.mean, np.float32), np.array(processor.std, np.float32)
    expected = torch.from_numpy(((scaled - mean) / std).transpose(2, 0, 1).copy())
    found = processor([Image.fromarray(pixels), Image.fromarray(255 - pixels)], (16, 16))
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert torch.equal(found[0], expected) and not torch.equal(found[1], expected)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp", "ppm", "tiff"])
@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_an_image_depends_on_no_file_any_more(tmp_path, kind, orientation):
    path = tmp_path / f"a.{kind}"
    options = {}
    if orientation is not None and kind not in ("bmp", "ppm"):
        options["exif"] = Image.Exif()
        options["exif"][0x112] = orientation
    red_and_blue(64, 48).save(path, kind, **options)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    image = load_image(path)
    path.write_bytes(b"")
    assert type(image) is Image.Image and image.mode == "RGB"
    assert np.array_equal(np.asarray(image), expected)
    assert (image.size == (48, 64)) == (orientation == 6 and "exif" in options)
    image.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (1, 2, 3)


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
