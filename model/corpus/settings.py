"""Settings of `setok tokenize`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from setok_kernels import ClusterConfig
from setok_kernels.config import check_count
from setokim.data.tokens.layout import Layout
from setokim.data.tokens.manifest import FORMATS
from setokim.utils.parsing import to_plain

MERGES = ("hard", "soft")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class TokenizerSettings:
    """A visual tokenizer: a trained model, or an encoder whose features are clustered and averaged.

    Attributes:
        model: folder of a SeTok or SeTokim model, or name of an embedded one; None with `encoder`.
        encoder: name as of `setokim.build_encoder`; None with `model`.
        grid: rows and columns of the encoder's patches; None for its own.
        cluster: clustering of the encoder's features.
        merge: merging of the features of a cluster, "hard" (mean of its patches) or "soft".
        trust_remote_code: permission to run Python code in the encoder's folder.

    Raises:
        ValueError: there is not exactly one of `model` and `encoder`, or `merge` is unknown.
    """

    model: str | None = None
    encoder: str | None = None
    grid: tuple[int, int] | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    merge: str = "hard"
    trust_remote_code: bool = False

    def __post_init__(self):
        if (self.model is None) == (self.encoder is None):
            got = f"model={self.model!r}, encoder={self.encoder!r}"
            raise ValueError(f"model: expected either a model or an encoder, got {got}")
        if self.merge not in MERGES:
            raise ValueError(f"merge: expected hard or soft, got {self.merge!r}")


@dataclass(frozen=True)
class SourceSettings:
    """Source of the images.

    Attributes:
        names: folders, archives, parquet files, Hugging Face data sets or a YAML file of settings.
        shard_size: number of samples of a shard, where the source does not decide it.
        samples: number of samples, from the first on; needed for endless data sets.
        image: column of the images in parquet files and data sets; None to find it.
        caption: column of the captions; None to find it.
        split: split of a Hugging Face data set.
        section: group of a YAML file of a run, "data" or "held_out".
    """

    names: tuple[str, ...]
    shard_size: int = 1000
    samples: int | None = None
    image: str | None = None
    caption: str | None = None
    split: str = "train"
    section: str = "data"

    def __post_init__(self):
        check_count("shard_size", self.shard_size)
        if self.samples is not None:
            check_count("samples", self.samples)


@dataclass(frozen=True)
class CorpusSettings:
    """All on which the bytes of the shards depend, beside the weights of the model.

    Attributes:
        source: source of the images.
        tokenizer: visual tokenizer.
        layout: what is stored of each image.
        format: "parquet" or "webdataset".
        batch_size: number of images tokenized together. It decides how sums are rounded.
        precision: number format of the computation, "fp32" or "bf16" (autocast).

    Raises:
        ValueError: a value is unknown or out of range.
    """

    source: SourceSettings
    tokenizer: TokenizerSettings
    layout: Layout
    format: str = "parquet"
    batch_size: int = 32
    precision: str = "fp32"

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.precision not in PRECISIONS:
            expected = " or ".join(PRECISIONS)
            raise ValueError(f"precision: expected {expected}, got {self.precision!r}")
        check_count("batch_size", self.batch_size)

    def kept(self, device: str) -> dict[str, Any]:
        """Return the settings that bytes of shards depend on, beside layout, format and plan.

        Args:
            device: type of the device; another one rounds sums in another way.
        """
        kept: dict[str, Any] = {
            "batch_size": self.batch_size,
            "precision": self.precision,
            "device": device,
        }
        if self.tokenizer.encoder is not None:
            kept["cluster"] = to_plain(self.tokenizer.cluster)
            kept["merge"] = self.tokenizer.merge
        return kept

    def origin(self) -> dict[str, Any]:
        """Return where the images and the tokenizer came from, for the record."""
        plain = to_plain(self)
        return {"source": plain["source"], "tokenizer": plain["tokenizer"]}


@dataclass(frozen=True)
class FailureLimit:
    """Max number of broken samples of a run.

    Attributes:
        count: max number; None for a fraction.
        fraction: max fraction of all samples tried.
        least: min number of samples tried before the fraction applies within a run.
    """

    count: int | None = None
    fraction: float = 0.01
    least: int = 1000

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """Parse a number such as "100" or a percentage such as "2.5%".

        Raises:
            ValueError: the text is neither.
        """
        found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text)
        if found is None or (found[2] and float(found[2]) > 100):
            raise ValueError(f"expected a number or a percentage such as 100 or 2.5%, got {text!r}")
        return cls(int(found[1])) if found[1] else cls(fraction=float(found[2]) / 100)

    def exceeded(self, broken: int, tried: int, finished: bool) -> bool:
        """Return whether there are too many broken samples.

        Args:
            broken: number of broken samples.
            tried: number of all samples tried, those included.
            finished: flag of the end of the run.
        """
        if self.count is not None:
            return broken > self.count
        return (finished or tried >= self.least) and broken > self.fraction * tried

    def __str__(self) -> str:
        return f"{self.fraction:.4g} of all" if self.count is None else str(self.count)


@dataclass(frozen=True)
class RunSettings:
    """How a run is executed, without effect on the bytes of its shards.

    Attributes:
        out: folder of the shards.
        engine: "local" or "ray".
        workers: number of processes; None for one for each GPU, or core without any.
        decoders: threads that decode images in each process; None for a choice by the cores.
        device: "auto", "cpu" or "cuda".
        limit: max number of broken samples.
        ray_address: address of a Ray cluster; None to start one on this machine.
        verify: flag to compare the checksums of finished shards, and make damaged ones again.
    """

    out: Path
    engine: str = "local"
    workers: int | None = None
    decoders: int | None = None
    device: str = "auto"
    limit: FailureLimit = field(default_factory=FailureLimit)
    ray_address: str | None = None
    verify: bool = False
