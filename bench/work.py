"""Shapes, bytes and flops: what a computation cannot do without, and the least time it takes.

Bytes are those that must pass between memory and the chip: inputs read once, outputs written once.
A multiply-add is two flops. Pairs of tokens are counted once, each with itself included.
"""

import dataclasses
import re
from dataclasses import dataclass

import torch

# Of the masks, densities and other results, which are float32 for all features up to 32 bits.
_FLOAT = 4
_INDEX = 8


def dtype_name(dtype: torch.dtype) -> str:
    """Without the module."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Shape:
    """B images of N tokens of D features; K neighbours, C clusters at most."""

    images: int
    tokens: int
    features: int
    k: int = 8
    clusters: int = 64
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def parse(cls, text: str, dtype: torch.dtype = torch.bfloat16) -> "Shape":
        """Reads "BxNxD".

        Raises:
            ValueError: it is something else.
        """
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
            raise ValueError(f"shape: expected BxNxD such as 8x729x1152, got {text!r}")
        return cls(*map(int, text.split("x")), dtype=dtype)

    def __str__(self) -> str:
        return f"{self.images}x{self.tokens}x{self.features}"

    def to_dict(self) -> dict:
        """For JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"dtype": dtype_name(self.dtype)}

    @property
    def total(self) -> int:
        """Tokens of all images."""
        return self.images * self.tokens

    @property
    def input_bytes(self) -> int:
        """Of the features."""
        return self.total * self.features * self.dtype.itemsize


@dataclass(frozen=True)
class Rates:
    """What a device does at best: bytes/s copied, flop/s of matrix products, seconds of a step.

    A step is one turn of a loop in which everything waits for the turn before.
    """

    copy: float
    matmul: float
    step: float = 0.0
    measured: bool = True


@dataclass(frozen=True)
class Work:
    """What one computation cannot do without."""

    bytes: int
    flops: int = 0
    steps: int = 0

    def __add__(self, other: "Work") -> "Work":
        """Of one after the other."""
        return Work(self.bytes + other.bytes, self.flops + other.flops, self.steps + other.steps)

    def floor(self, rates: Rates) -> float:
        """Seconds: the longest of the copy, the products, and the chain of steps."""
        return max(self.bytes / rates.copy, self.flops / rates.matmul, self.steps * rates.step)


def pair_flops(shape: Shape) -> int:
    """Inner products of all pairs of tokens of an image."""
    return shape.images * shape.tokens * (shape.tokens + 1) * shape.features


def product(shape: Shape) -> Work:
    """`torch.bmm(x, x.mT)`, all pairs twice over, which the whole forward is compared with."""
    out = shape.images * shape.tokens**2 * shape.dtype.itemsize
    return Work(shape.input_bytes + out, 2 * shape.images * shape.tokens**2 * shape.features)


def neighbours(shape: Shape) -> Work:
    """Indices of the K nearest tokens of each."""
    return Work(shape.input_bytes + _INDEX * shape.k * shape.total, pair_flops(shape))


def cluster_tokens(shape: Shape) -> Work:
    """The forward pass with everything it returns."""
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
    """Forward, and from a gradient of the masks back to the tokens."""
    forward = cluster_tokens(shape)
    masks = 2 * _FLOAT * (shape.clusters + 1) * shape.total  # the gradient and the masks, read
    # A product with the seeds, its transpose and a mixture of rows; an edge moves both its ends.
    flops = (6 * shape.clusters + 4 * (shape.k + 1)) * shape.total * shape.features
    return Work(
        forward.bytes + masks + 2 * shape.input_bytes, forward.flops + flops, 2 * shape.clusters
    )


def dpc_knn(shape: Shape) -> Work:
    """Hard one-shot clustering: density, delta, score, neighbours, parents and labels."""
    per_token = 3 * _FLOAT + _INDEX * (shape.k + 2)
    return Work(shape.input_bytes + per_token * shape.total, pair_flops(shape))


def threshold_greedy(shape: Shape) -> Work:
    """Hard clustering by cosine similarity: labels and centres."""
    return Work(shape.input_bytes + 2 * _INDEX * shape.total, pair_flops(shape))


def merge(shape: Shape, soft: bool) -> Work:
    """Tokens to clusters, or back: the same bytes and flops."""
    rows = shape.clusters + 1
    out = shape.images * rows * shape.features * shape.dtype.itemsize
    if soft:
        masks = _FLOAT * rows * shape.total
        return Work(shape.input_bytes + masks + out, 2 * rows * shape.total * shape.features)
    return Work(shape.input_bytes + _INDEX * shape.total + out, shape.total * shape.features)


def transformer(
    tokens: int, batch: int, layers: int, width: int, hidden: int, gated: bool, causal: bool
) -> int:
    """Flops of the layers of a transformer for `batch` sequences of `tokens`.

    Args:
        tokens: of one sequence.
        batch: number of sequences.
        layers: number of layers.
        width: of the residual stream.
        hidden: of the MLP.
        gated: the MLP has three matrices in place of two.
        causal: half of the attention is masked.
    """
    linear = 8 * width * width + (6 if gated else 4) * width * hidden
    attention = 4 * tokens * width // (2 if causal else 1)
    return batch * tokens * layers * (linear + attention)
