"""Corpora of small images in tar archives, some of them broken, deterministic for a random seed."""

import functools
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage import data

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
# Options of Pillow that encode fast.
KINDS = {
    "jpg": {"format": "JPEG", "quality": 85},
    "png": {"format": "PNG", "compress_level": 1},
    "webp": {"format": "WEBP", "quality": 80, "method": 0},
}
BROKEN = ("truncated", "text", "empty", "missing")


@dataclass(frozen=True)
class Corpus:
    """What `write_corpus` wrote.

    Attributes:
        shards: archives in their order.
        keys: keys of all entries in their order.
        broken: keys of the broken ones and what is wrong with each, one of `BROKEN`.
    """

    shards: tuple[Path, ...]
    keys: tuple[str, ...]
    broken: dict[str, str]

    @property
    def readable(self):
        """Number of readable images."""
        return len(self.keys) - len(self.broken)


def write_corpus(folder, images, shards, broken=0, seed=0, sides=(96, 256)):
    """Write webdataset archives `shard-NNNNN.tar` of JPEG, PNG and WebP images with captions.

    The content of an entry depends on the seed and its number alone. Broken entries are truncated
    JPEG files, text named .jpg, empty files, and captions without an image.

    Args:
        folder: folder of the archives.
        images: number of entries, broken ones among them.
        shards: number of archives, which have the same number of entries but for one.
        broken: number of broken entries, at random places.
        seed: random seed.
        sides: min and max of heights and widths in pixels.
    """
    if not 0 <= broken <= images or not 1 <= shards <= images:
        raise ValueError(f"expected broken and shards within {images}, got {broken} and {shards}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    places = np.random.default_rng(seed).choice(images, broken, replace=False)
    wrong = {int(place): BROKEN[n % len(BROKEN)] for n, place in enumerate(np.sort(places))}
    paths, keys = [], []
    for shard, numbers in enumerate(np.array_split(np.arange(images), shards)):
        paths.append(folder / f"shard-{shard:05d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in map(int, numbers):
                keys.append(f"{number:08d}")
                for suffix, content in _members(number, seed, sides, wrong.get(number)):
                    member = tarfile.TarInfo(f"{keys[-1]}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return Corpus(tuple(paths), tuple(keys), {keys[n]: wrong[n] for n in sorted(wrong)})


def _members(number, seed, sides, wrong):
    """Suffixes and contents of an entry's members."""
    generator = np.random.default_rng((seed, number))
    image, caption = _image(generator, *generator.integers(sides[0], sides[1] + 1, 2))
    suffix = "jpg" if wrong in ("truncated", "text") else list(KINDS)[number % len(KINDS)]
    stream = io.BytesIO()
    image.save(stream, **KINDS[suffix])
    content = {
        None: stream.getvalue(),
        "truncated": stream.getvalue()[: len(stream.getvalue()) // 2],
        "text": b"404 not found\n",
        "empty": b"",
        "missing": None,
    }[wrong]
    if content is not None:
        yield suffix, content
    if number % 5 == 4:
        yield "json", json.dumps({"caption": caption, "number": number}).encode()
    elif number % 5 != 3 or content is None:
        yield "txt", caption.encode()


def _image(generator, height, width):
    """A crop of a photograph, or a scene of shapes on a gradient, with its caption."""
    if generator.random() < 0.5:
        name = PHOTOGRAPHS[generator.integers(len(PHOTOGRAPHS))]
        photograph = _photograph(name)
        left = int(generator.integers(photograph.width - width + 1))
        top = int(generator.integers(photograph.height - height + 1))
        crop = photograph.crop((left, top, left + int(width), top + int(height)))
        return crop, f"a detail of {name} at {left}, {top}"
    corners = generator.uniform(0, 255, (2, 2, 1, 1, 3))
    y = np.linspace(0, 1, height)[:, None, None]
    x = np.linspace(0, 1, width)[None, :, None]
    rows = corners[0] * (1 - y) + corners[1] * y  # (2, height, 1, 3), at both ends of a row
    image = Image.fromarray((rows[0] * (1 - x) + rows[1] * x).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    shapes = int(generator.integers(1, 6))
    for _ in range(shapes):
        box = np.sort(generator.uniform(0, [[width, height]] * 2, (2, 2)), 0).ravel().tolist()
        colour = tuple(map(int, generator.integers(0, 256, 3)))
        (draw.ellipse if generator.random() < 0.5 else draw.rectangle)(box, fill=colour)
    return image, f"{shapes} shapes on a gradient"


@functools.cache
def _photograph(name):
    return Image.fromarray(getattr(data, name)()).convert("RGB")
