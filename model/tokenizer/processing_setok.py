"""Image processor of a SeTok model, saved beside its weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from setokim.data.image_processing import ImageProcessor, to_rgb
from setokim.utils.pretrained import locate

FILE = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class SetokProcessor:
    """Processor that resizes images of any size and mode to one size and normalises them.

    The processors of transformers need torchvision in some releases; this one has their file format
    and their results.

    Attributes:
        size: height and width in pixels.
        image_processor: resampling and normalisation.
    """

    size: tuple[int, int]
    image_processor: ImageProcessor = dataclasses.field(default_factory=ImageProcessor)

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> dict[str, Tensor]:
        """Turn one image or B images into {"pixel_values": (B, 3, height, width) float32}."""
        images = [images] if isinstance(images, Image.Image) else images
        pixels = self.image_processor([to_rgb(image) for image in images], self.size)
        return {"pixel_values": pixels}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json`."""
        p = self.image_processor
        fields = {
            "processor_class": type(self).__name__,
            "size": {"height": self.size[0], "width": self.size[1]},
            "image_mean": list(p.mean),
            "image_std": list(p.std),
            "rescale_factor": p.rescale_factor,
            "resample": int(p.resample),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> SetokProcessor:
        """Read a folder written by `save_pretrained`.

        Args:
            folder: folder of the processor, or name of an embedded model; None for the default one.

        Raises:
            OSError: the file does not exist.
            ValueError: the file has no size, or this installation lacks the embedded model.
        """
        path = Path(locate(folder), FILE)
        size = json.loads(path.read_text(encoding="utf-8")).get("size")
        if not isinstance(size, dict) or not {"height", "width"} <= set(size):
            raise ValueError(f"size: expected height and width in {path}, got {size!r}")
        return cls((size["height"], size["width"]), ImageProcessor.from_file(path))
