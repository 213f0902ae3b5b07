"""Shapes, and the minimum bytes, flops and time of each computation.

Bytes are the necessary memory traffic: inputs are read once, outputs written once. A multiply-add
is two flops. Pairs of tokens are counted once, including each token with itself.
"""

import dataclasses
import re
from dataclasses import dataclass

import torch

# Bytes of masks and other values (float32 for features of up to 32 bits), and of indices.
_FLOAT = 4
_INDEX = 8


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without the module."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Shape:
    """Sizes of an input: B images of N tokens of D features; K neighbours, at most C clusters."""

    images: int
    tokens: int
    features: int
    k: int = 8
    clusters: int = 64
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def parse(cls, text: str, dtype: torch.dtype = torch.bfloat16) -> "Shape":
        """Parse "BxNxD".

        Raises:
            ValueError: the text has another format.
        """
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
            raise ValueError(f"shape: expected BxNxD such as 8x729x1152, got {text!r}")
        return cls(*map(int, text.split("x")), dtype=dtype)

    def __str__(self) -> str:
        return f"{self.images}x{self.tokens}x{self.features}"

    def to_dict(self) -> dict:
        """Return the fields for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"dtype": dtype_name(self.dtype)}

    @property
    def total(self) -> int:
        """Number of tokens of all images."""
        return self.images * self.tokens

    @property
    def input_bytes(self) -> int:
        """Bytes of the features."""
        return self.total * self.features * self.dtype.itemsize


@dataclass(frozen=True)
class Rates:
    """Peak rates of a device: bytes/s copied, flop/s of matrix products, seconds of a step.

    A step is one turn of a loop whose turns depend on each other.
    """

    copy: float
    matmul: float
    step: float = 0.0
    measured: bool = True


@dataclass(frozen=True)
class Work:
    """Minimum work of a computation: bytes, flops and sequential steps."""

    bytes: int
    flops: int = 0
    steps: int = 0

    def __add__(self, other: "Work") -> "Work":
        """Return the work of two computations in sequence."""
        return Work(self.bytes + other.bytes, self.flops + other.flops, self.steps + other.steps)

    def floor(self, rates: Rates) -> float:
        """Return the minimum seconds: the maximum of copy, products, and chain of steps."""
        return max(self.bytes / rates.copy, self.flops / rates.matmul, self.steps * rates.step)


def pair_flops(shape: Shape) -> int:
    """Return the flops of the inner products of all pairs of tokens of each image."""
    return shape.images * shape.tokens * (shape.tokens + 1) * shape.features


def product(shape: Shape) -> Work:
    """Return the work of `torch.bmm(x, x.mT)`, the yardstick, which computes each pair twice."""
    out = shape.images * shape.tokens**2 * shape.dtype.itemsize
    return Work(shape.input_bytes + out, 2 * shape.images * shape.tokens**2 * shape.features)


def neighbours(shape: Shape) -> Work:
    """Return the work of the indices of each token's K nearest tokens."""
    return Work(shape.input_bytes + _INDEX * shape.k * shape.total, pair_flops(shape))


def cluster_tokens(shape: Shape) -> Work:
    """Return the work of the forward pass with all its outputs."""
    per_token = (
        _FLOAT * (shape.clusters + 1)  # masks
        + 3 * _FLOAT  # density, delta, score
        + _INDEX * (shape.k + 2)  # neighbours, parent, label
    )
    seeds = _INDEX * shape.images * (shape.clusters + 1)
    return Work(
        shape.input_bytes + per_token * shape.total + seeds, pair_flops(shape), shape.clusters
    )


def cluster_backward(shape: Shape) -> Work:
    """Return the work of forward and backward, from a gradient of the masks."""
    forward = cluster_tokens(shape)
    masks = 2 * _FLOAT * (shape.clusters + 1) * shape.total  # the gradient and the masks, read
    # A product with the seeds, its transpose and a mixture of rows; an edge has two ends.
    flops = (6 * shape.clusters + 4 * (shape.k + 1)) * shape.total * shape.features
    return Work(
        forward.bytes + masks + 2 * shape.input_bytes, forward.flops + flops, 2 * shape.clusters
    )


def dpc_knn(shape: Shape) -> Work:
    """Return the work of `dpc_knn`: density, delta, score, neighbours, parents and labels."""
    per_token = 3 * _FLOAT + _INDEX * (shape.k + 2)
    return Work(shape.input_bytes + per_token * shape.total, pair_flops(shape))


def threshold_greedy(shape: Shape) -> Work:
    """Return the work of `threshold_greedy`: labels and centres."""
    return Work(shape.input_bytes + 2 * _INDEX * shape.total, pair_flops(shape))


def merge(shape: Shape, soft: bool) -> Work:
    """Return the work of merge or unmerge, which have equal bytes and flops."""
    rows = shape.clusters + 1
    out = shape.images * rows * shape.features * shape.dtype.itemsize
    if soft:
        masks = _FLOAT * rows * shape.total
        return Work(shape.input_bytes + masks + out, 2 * rows * shape.total * shape.features)
    return Work(shape.input_bytes + _INDEX * shape.total + out, shape.total * shape.features)


def transformer(
    tokens: int, batch: int, layers: int, width: int, hidden: int, gated: bool, causal: bool
) -> int:
    """Return the flops of a transformer's layers for `batch` sequences of `tokens`.

    Args:
        tokens: number of tokens of a sequence.
        batch: number of sequences.
        layers: number of layers.
        width: width of the residual stream.
        hidden: width of the MLP.
        gated: flag: the MLP has three matrices instead of two.
        causal: flag: half of the attention is masked.
    """
    linear = 8 * width * width + (6 if gated else 4) * width * hidden
    attention = 4 * tokens * width // (2 if causal else 1)
    return batch * tokens * layers * (linear + attention)
