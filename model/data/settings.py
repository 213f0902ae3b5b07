"""Settings of a data set, as a YAML file has them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from setokim.data.build import build_dataset
from setokim.data.samples import Dataset


@dataclass(frozen=True)
class DataSettings:
    """Arguments of `build_dataset`.

    Attributes:
        kind: kind of the data set.
        path: path of the folder, or name of the shards as in `archives.expand`.
        size: side of generated images in pixels.
        seed: random seed of generated samples and of a mixture.
        samples: max number of samples, the first ones; None for all.
        options: further arguments of the data set's class.
    """

    kind: str = "shapes-world"
    path: str | None = None
    size: int = 64
    seed: int = 0
    samples: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Dataset:
        """Build the data set.

        Raises:
            TypeError, ValueError, OSError: the settings do not fit, or a file cannot be read.
        """
        fields = dataclasses.asdict(self)
        return build_dataset(**fields.pop("options"), **fields)
