"""Interval arithmetic on float64 tensors: what a computation in lower precision may have returned.

Every operation of the clustering is monotone in each operand, so bounds follow from the ends.
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
        """Product of two non-negative intervals."""
        return Interval(self.lo * other.lo, self.hi * other.hi)

    def widen(self, relative: float, absolute: float = 0.0) -> "Interval":
        """Room for rounding: `relative` of the magnitude and `absolute`."""
        lo = self.lo - self.lo.abs() * relative - absolute
        return Interval(lo, self.hi + self.hi.abs() * relative + absolute)

    def clamp(self, low: float | None = None, high: float | None = None) -> "Interval":
        """Both ends clamped."""
        return Interval(self.lo.clamp(low, high), self.hi.clamp(low, high))

    def falling(self, function) -> "Interval":
        """`function` of the interval, for a non-increasing function."""
        return Interval(function(self.hi), function(self.lo))

    def rising(self, function) -> "Interval":
        """`function` of the interval, for a non-decreasing function."""
        return Interval(function(self.lo), function(self.hi))


def squared_distance_bounds(
    x: Tensor, roundoff: float, input_roundoff: float, tiny: float = 0.0
) -> Interval:
    """(N, D) float64 to (N, N) bounds of ||x_i - x_j||^2 computed through a Gram matrix.

    A dot product of D terms with unit roundoff u errs by at most g * |x_i| |x_j| with
    g = D u / (1 - D u) (Higham, Accuracy and Stability, 3.1), in any order of summation. Norms,
    their sum and the subtraction add three roundings: g_(D+3) (|x_i| + |x_j|)^2 in all.

    Args:
        x: tokens.
        roundoff: u of the accumulation.
        input_roundoff: relative rounding of the inputs of the product (tf32: 2**-11), else 0.
        tiny: smallest normal number of the accumulation, where products may underflow; the largest
            feature is then about 1.
    """
    # This computation in float64 makes the same kind of error; the bound covers both.
    steps = (x.shape[1] + 3) * (roundoff + 2.0**-53)
    bound = steps / (1 - steps) + 2 * input_roundoff + input_roundoff**2
    gram = x @ x.T
    square = gram.diagonal()
    norm = square.sqrt()
    distance = (square[:, None] + square[None, :] - 2 * gram).clamp(min=0)
    # Four products of D terms; those who scale by a power of two may have a fourth of each.
    lost = 16 * x.shape[1] * tiny
    error = bound * (norm[:, None] + norm[None, :]).square() + lost
    bounds = Interval((distance - error).clamp(min=0), distance + error)
    for end in (bounds.lo, bounds.hi):
        end.fill_diagonal_(0)
    return bounds


def cosine_bounds(x: Tensor, roundoff: float, input_roundoff: float) -> Interval:
    """(N, D) float64 to (N, N) bounds of the cosine similarity, whatever is normalised first.

    A norm of D terms errs by D/2 + 1 roundings, a quotient by one, a product of D terms by D. A
    zero vector is similar to nothing, and a token exactly to itself.
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
    """(N, D) float64 to 0-dim bounds of 1 / (2 v), for v from mean ||x||^2 - ||mean x||^2."""
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
    """Bounds of the alpha mask for bounds of the scaled distance and of the score."""
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
    pull = score.rising(lambda s: beta * s) if beta >= 0 else score.falling(lambda s: beta * s)
    level = Interval(phi.lo - pull.hi, phi.hi - pull.lo)
    if config.alpha == "kernel":
        return level.widen(4 * roundoff, 4 * roundoff).clamp(0.01, 0.99)
    level = level.rising(lambda v: (v - offset) / temperature)
    slack = 4 * roundoff * (1 + abs(offset)) / temperature
    level = level.widen(4 * roundoff, slack)
    return level.rising(torch.sigmoid).widen(8 * roundoff).clamp(0, 1)
