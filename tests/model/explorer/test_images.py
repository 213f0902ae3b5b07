import io
import os
import struct
import threading
import warnings
import zlib

import pytest
from PIL import Image, ImageFile

from setokim.data.image_processing import UnreadableImageError
from setokim.data.photographs import PHOTOGRAPHS
from setokim.explorer import images
from setokim.explorer.images import MAX_PIXELS, Images, missing


def png(colour=(10, 200, 30), size=(8, 6), **options):
    """Content of a PNG file of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG", **options)
    return stream.getvalue()


def png_of_size(width, height):
    """Content of a 1-bit PNG that states a size; it has no pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def written(folder, name, content=None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if content is None else content)
    return path


def uploaded(held, folder, content, name="photo.png"):
    """Key of an upload; its file is gone as soon as it was taken in."""
    path = written(folder, "received.bin", content)
    try:
        return held.add(path, name)
    finally:
        path.unlink()


@pytest.fixture
def held():
    return Images(photographs=False)


def test_the_images_of_the_command_line_come_first(tmp_path):
    files = [written(tmp_path, name) for name in ("b.png", "a.png")]
    assert Images(files).at_hand == ["b.png", "a.png", *PHOTOGRAPHS]
    assert Images(files, photographs=False).at_hand == ["b.png", "a.png"]
    assert Images().at_hand == [*PHOTOGRAPHS]


def test_files_of_one_name_have_keys_of_their_own(tmp_path):
    names = ["1/a.png", "2/a.png", "a.png (2)", "3/a.png", "a.png (2) (2)"]
    colours = [(shade, 0, 0) for shade in range(0, 250, 50)]
    files = [written(tmp_path, *pair) for pair in zip(names, map(png, colours), strict=True)]
    held = Images(files, photographs=False)
    assert held.at_hand == ["a.png", "a.png (2)", "a.png (2) (2)", "a.png (3)", "a.png (2) (2) (2)"]
    for key, file, colour in zip(held.at_hand, files, colours, strict=True):
        assert held.path(key) == file and held.name(key) == key
        assert held.load(key).getpixel((0, 0)) == colour


def test_a_file_hides_the_photograph_of_its_name(tmp_path):
    file = written(tmp_path, "camera")
    held = Images([file])
    assert held.at_hand == ["camera", *(name for name in PHOTOGRAPHS if name != "camera")]
    assert held.path("camera") == file and not held.is_photograph("camera")
    assert held.load("camera").size == (8, 6)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (b"a\nb\t.png", r"a\nb\t.png"),
        (b"\xff\xc3.png", r"\xff\xc3.png"),
        ("é <b> & \u202e.png".encode(), r"é <b> & \u202e.png"),
        (b"-rf.png", "-rf.png"),
    ],
)
def test_keys_are_printable(tmp_path, name, key):
    file = written(tmp_path, os.fsdecode(name))
    held = Images([file], photographs=False)
    assert held.at_hand == [key] and key.isprintable() and key.encode()
    assert held.path(key) == file and held.load(key).size == (8, 6)


def test_an_escaped_name_may_be_the_name_of_another_file(tmp_path):
    files = [written(tmp_path, os.fsdecode(name)) for name in (b"\xff.png", rb"\xff.png")]
    held = Images(files, photographs=False)
    assert held.at_hand == [r"\xff.png", r"\xff.png (2)"]
    assert [held.path(key) for key in held.at_hand] == files


def test_kinds_of_images(tmp_path):
    file = written(tmp_path, "a.png")
    held = Images([file])
    upload = uploaded(held, tmp_path, png(), "mine.png")
    assert [held.path(key) for key in ("a.png", "camera", upload)] == [file, None, None]
    assert [held.name(key) for key in ("a.png", "camera", upload)] == [
        "a.png",
        "camera",
        "mine.png",
    ]
    assert [key for key in ("a.png", "camera", upload) if held.is_photograph(key)] == ["camera"]
    assert all(key in held for key in ("a.png", "camera", upload))
    assert upload not in held.at_hand


def test_photographs_are_rgb():
    pytest.importorskip("skimage")
    photo = Images().load("camera")  # grey in its file
    assert photo.mode == "RGB" and photo.size == (512, 512)


def test_an_upload_is_known_by_its_content(held, tmp_path):
    key = uploaded(held, tmp_path, png(), "one.png")
    assert held.load(key).getpixel((3, 3)) == (10, 200, 30)
    assert uploaded(held, tmp_path, png(), "two.png") == key and held.name(key) == "two.png"
    other = uploaded(held, tmp_path, png((1, 2, 3)), "two.png")
    assert other != key and held.load(other).getpixel((0, 0)) == (1, 2, 3)
    # Another explorer has the same key, so that a link works again after the upload.
    assert uploaded(Images(), tmp_path, png(), "one.png") == key
    assert key.startswith("upload-") and len(key) == len("upload-") + 32 and "one" not in key


def test_the_last_uploads_are_kept(held, tmp_path, monkeypatch):
    contents = [png((shade, 0, 0)) for shade in range(4)]
    sizes = [len(content) for content in contents]
    monkeypatch.setattr(images, "_MAX_ALL_UPLOADS", sum(sizes[:3]))
    first, second, third = (uploaded(held, tmp_path, content) for content in contents[:3])
    assert all(key in held for key in (first, second, third))
    # The first one counts as new after it was uploaded again.
    uploaded(held, tmp_path, contents[0])
    fourth = uploaded(held, tmp_path, contents[3])
    assert [key in held for key in (first, second, third, fourth)] == [True, False, True, True]
    with pytest.raises(UnreadableImageError, match="got an upload that is not there any more"):
        held.load(second)
    assert uploaded(held, tmp_path, contents[1]) == second and second in held


def test_uploads_of_many_threads(held, tmp_path, monkeypatch):
    contents = [png((shade, 0, 0)) for shade in range(24)]
    monkeypatch.setattr(images, "_MAX_ALL_UPLOADS", 5 * max(map(len, contents)))
    found, faults = {}, []

    def upload(first):
        try:
            for i in range(first, 24, 4):
                path = written(tmp_path, f"{i}.png", contents[i])
                found[i] = held.add(path, path.name)
                # Others may have pushed it out, but no one changes it.
                if found[i] in held:
                    held.name(found[i])
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=upload, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [i for i in range(24) if found[i] in held]
    assert not [fault for fault in faults if not isinstance(fault, KeyError)], faults
    assert sum(len(contents[i]) for i in kept) <= images._MAX_ALL_UPLOADS and len(kept) >= 5
    assert all(held.load(found[i]).getpixel((0, 0)) == (i, 0, 0) for i in kept)


def test_a_file_too_large_is_not_read(held, tmp_path, monkeypatch):
    content = png() + bytes(3 * 2**20)
    monkeypatch.setattr(images, "MAX_UPLOAD", len(content))
    assert uploaded(held, tmp_path, content) in held
    monkeypatch.setattr(images, "MAX_UPLOAD", 2 * 2**20)
    monkeypatch.setattr(images, "_load", pytest.fail)
    expected = r"image: expected a file of at most 2 MB, got a b\.png of 3 MB$"
    with pytest.raises(UnreadableImageError, match=expected):
        uploaded(held, tmp_path, png((1, 1, 1)) + bytes(3 * 2**20), "a b.png")


@pytest.mark.parametrize(
    ("width", "height", "megapixels"),
    [(10_000, 10_000, 100), (12_000, 14_000, 168), (64_001_000, 1, 64)],
)
def test_an_image_of_too_many_pixels_is_not_decoded(
    tmp_path, monkeypatch, width, height, megapixels
):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    content = png_of_size(width, height)
    held = Images([written(tmp_path, "huge.png", content)], photographs=False)
    size = rf"{megapixels} \({width} x {height}\)$"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for attempt in (held.load, lambda name: uploaded(held, tmp_path, content, name)):
            expected = rf"^cannot read .*huge\.png: expected at most 64 megapixels, got {size}"
            with pytest.raises(UnreadableImageError, match=expected):
                attempt("huge.png")
    assert held.at_hand == ["huge.png"] and not held._uploads


def test_what_pillow_refuses_to_open_has_too_many_pixels(tmp_path):
    file = written(tmp_path, "huge.png", png_of_size(20_000, 20_000))
    expected = r"^cannot read .*huge\.png: Image size \(400000000 pixels\) exceeds limit"
    with pytest.raises(UnreadableImageError, match=expected):
        Images([file], photographs=False).load("huge.png")


def test_an_image_of_as_many_pixels_as_allowed(held, tmp_path):
    stream = io.BytesIO()
    Image.new("1", (100_000, MAX_PIXELS // 100_000)).save(stream, "PNG")
    key = uploaded(held, tmp_path, stream.getvalue())
    assert key in held and held.load(key).size == (100_000, MAX_PIXELS // 100_000)


def damaged():
    whole = png((1, 2, 3), (64, 64), compress_level=0)
    jpeg = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(jpeg, "JPEG")
    return {
        "empty": b"",
        "text": b"not an image",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
        "truncated-png": whole[: len(whole) // 2],
        "truncated-jpeg": jpeg.getvalue()[:600],
        "header": whole[:20],
        "flipped": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
        "no-pixels": png_of_size(8, 8),
    }


@pytest.mark.parametrize("kind", damaged())
def test_what_is_no_image_is_refused(held, tmp_path, kind):
    content = damaged()[kind]
    with pytest.raises(UnreadableImageError, match=r"^cannot read up\.svg: \S"):
        uploaded(held, tmp_path, content, "up.svg")
    assert not held._uploads
    file = written(tmp_path, "own.png", content)
    with pytest.raises(UnreadableImageError, match=rf"^cannot read {file}: \S"):
        Images([file]).load("own.png")


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    held = Images([tmp_path / name for name in ("absent.png", "pipe")] + [tmp_path])
    for key, reason in zip(
        held.at_hand, ("No such file", "a regular file, got a FIFO", "got a folder"), strict=False
    ):
        with pytest.raises(UnreadableImageError, match=f"cannot read .*{reason}"):
            held.load(key)


def test_photographs_taken_sideways_are_upright(held, tmp_path):
    stored = Image.new("RGB", (20, 10), "white")
    stored.paste("red", (0, 0, 10, 10))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    stream = io.BytesIO()
    stored.save(stream, "PNG", exif=exif)
    key = uploaded(held, tmp_path, stream.getvalue())
    file = written(tmp_path, "turned.png", stream.getvalue())
    for photo in (held.load(key), Images([file]).load("turned.png")):
        assert photo.size == (10, 20)
        assert photo.getpixel((5, 2)) == (255, 0, 0) and photo.getpixel((5, 17)) == (255,) * 3


def test_transparent_pixels_are_white(held, tmp_path):
    stored = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    stored.putpixel((1, 1), (0, 0, 255, 255))
    stream = io.BytesIO()
    stored.save(stream, "PNG")
    photo = held.load(uploaded(held, tmp_path, stream.getvalue()))
    assert photo.mode == "RGB"
    assert photo.getpixel((0, 0)) == (255,) * 3 and photo.getpixel((1, 1)) == (0, 0, 255)


def test_other_modes_are_rgb(held, tmp_path):
    for mode, kind in {"L": "PNG", "P": "GIF", "CMYK": "JPEG", "I;16": "TIFF", "1": "BMP"}.items():
        stream = io.BytesIO()
        Image.new(mode, (5, 4)).save(stream, kind)
        photo = held.load(uploaded(held, tmp_path, stream.getvalue()))
        assert photo.mode == "RGB" and photo.size == (5, 4), mode


@pytest.mark.parametrize("key", ["", "other.png", "a'b", "../../etc/passwd", "x" * 1000])
def test_keys_of_no_image(tmp_path, key):
    held = Images([written(tmp_path, "a.png")])
    assert key not in held and held.path(key) is None and not held.is_photograph(key)
    expected = f"image: expected one that this explorer has, got {key[:80]!r}"
    assert missing(key) == expected
    with pytest.raises(UnreadableImageError) as raised:
        held.load(key)
    assert str(raised.value) == expected


def test_an_upload_that_is_gone(held):
    for key in ("upload-", "upload-" + "0" * 32):
        with pytest.raises(
            UnreadableImageError, match=r"got an upload that is not there any more$"
        ):
            held.load(key)
    assert "upload-0" not in held and 3 not in held
