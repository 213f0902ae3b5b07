"""Interval arithmetic on float64 tensors: bounds of results in lower precision.

Every operation of the clustering is monotone in each operand, so the ends give the bounds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """Elementwise bounds lo <= value <= hi."""

    lo: Tensor
    hi: Tensor

    def __getitem__(self, index) -> "Interval":
        return Interval(self.lo[index], self.hi[index])

    def __mul__(self, other: "Interval") -> "Interval":
        """Multiply two non-negative intervals."""
        return Interval(self.lo * other.lo, self.hi * other.hi)

    def widen(self, relative: float, absolute: float = 0.0) -> "Interval":
        """Widen both ends by `relative` of their magnitude and by `absolute`, for rounding."""
        lo = self.lo - self.lo.abs() * relative - absolute
        return Interval(lo, self.hi + self.hi.abs() * relative + absolute)

    def clamp(self, low: float | None = None, high: float | None = None) -> "Interval":
        """Clamp both ends."""
        return Interval(self.lo.clamp(low, high), self.hi.clamp(low, high))

    def falling(self, function) -> "Interval":
        """Apply a non-increasing function."""
        return Interval(function(self.hi), function(self.lo))

    def rising(self, function) -> "Interval":
        """Apply a non-decreasing function."""
        return Interval(function(self.lo), function(self.hi))


def squared_distance_bounds(
    x: Tensor, roundoff: float, input_roundoff: float, tiny: float = 0.0
) -> Interval:
    """Return (N, N) bounds of ||x_i - x_j||^2 computed through a Gram matrix.

    A dot product of D terms with unit roundoff u errs by at most g * |x_i| |x_j| with
    g = D u / (1 - D u) (Higham, Accuracy and Stability, 3.1), in any order of summation. Norms,
    their sum and the subtraction add three roundings: g_(D+3) (|x_i| + |x_j|)^2 in all.

    Args:
        x: (N, D) float64 tokens.
        roundoff: unit roundoff u of the accumulation.
        input_roundoff: relative rounding of the inputs of the product (tf32: 2**-11), else 0.
        tiny: smallest normal number of the accumulation if products may underflow, for a maximum
            feature of about 1; else 0.
    """
    # The float64 computation below has an error of the same form; the bound covers both.
    steps = (x.shape[1] + 3) * (roundoff + 2.0**-53)
    bound = steps / (1 - steps) + 2 * input_roundoff + input_roundoff**2
    gram = x @ x.T
    square = gram.diagonal()
    norm = square.sqrt()
    distance = (square[:, None] + square[None, :] - 2 * gram).clamp(min=0)
    # Four products of D terms; after scaling by a power of two each may be 4 times smaller.
    lost = 16 * x.shape[1] * tiny
    error = bound * (norm[:, None] + norm[None, :]).square() + lost
    bounds = Interval((distance - error).clamp(min=0), distance + error)
    for end in (bounds.lo, bounds.hi):
        end.fill_diagonal_(0)
    return bounds


def cosine_bounds(x: Tensor, roundoff: float, input_roundoff: float) -> Interval:
    """Return (N, N) bounds of the cosine similarity of (N, D) float64 tokens.

    A norm of D terms errs by D/2 + 1 roundings, a quotient by one, a product of D terms by D. This
    covers normalisation before and after the product. A zero vector has similarity 0 to others, and
    every token has similarity 1 to itself.
    """
    largest = x.abs().amax(1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    norm = x.norm(dim=1, keepdim=True)
    zero = norm == 0
    x = x / torch.where(zero, 1, norm)
    steps = (2 * x.shape[1] + 8) * (roundoff + 2.0**-53)
    bound = steps / (1 - steps) + 2 * input_roundoff + input_roundoff**2
    error = torch.where(zero | zero.T, 0, bound)
    similarity = x @ x.T
    bounds = Interval(similarity - error, similarity + error).clamp(-1, 1)
    for end in (bounds.lo, bounds.hi):
        end.fill_diagonal_(1)
    return bounds


def variance_scale_bounds(x: Tensor, roundoff: float) -> Interval:
    """Return 0-dim bounds of 1 / (2 v), v = mean ||x||^2 - ||mean x||^2, for (N, D) tokens."""
    tokens, dim = x.shape
    centred = x - x[:1]
    centred = centred - centred.mean(0)
    variance = centred.square().sum(1).mean()
    if variance == 0:
        return Interval(variance, variance)
    error = (tokens + dim + 4) * (roundoff + 2.0**-53) * x.square().sum(1).mean()
    bounds = Interval((variance - error).clamp(min=0), variance + error)
    return bounds.falling(lambda v: 0.5 / v)


def alpha_bounds(distance: Interval, score: Interval, config, roundoff: float) -> Interval:
    """Return bounds of the alpha mask from bounds of the scaled distance and of the score."""
    bandwidth, beta, temperature, offset = (
        float(v) for v in (config.bandwidth, config.beta, config.temperature, config.offset)
    )
    kernels = {
        "gaussian": lambda d: torch.exp(-d / bandwidth),
        "laplacian": lambda d: torch.exp(-d.sqrt() / bandwidth),
        "epanechnikov": lambda d: (1 - d / bandwidth).clamp(min=0),
    }
    # Four roundings: scaling, root, division and the exponential; the exponential turns the
    # relative error of its argument into |argument| times as much, at most 1/e of the range.
    phi = distance.falling(kernels[config.kernel]).widen(0, 8 * roundoff)
    penalty = score.rising(lambda s: beta * s) if beta >= 0 else score.falling(lambda s: beta * s)
    level = Interval(phi.lo - penalty.hi, phi.hi - penalty.lo)
    if config.alpha == "kernel":
        return level.widen(4 * roundoff, 4 * roundoff).clamp(0.01, 0.99)
    level = level.rising(lambda v: (v - offset) / temperature)
    slack = 4 * roundoff * (1 + abs(offset)) / temperature
    level = level.widen(4 * roundoff, slack)
    return level.rising(torch.sigmoid).widen(8 * roundoff).clamp(0, 1)
