"""Options of the clustering functions: frozen dataclasses, validated on construction."""

import dataclasses
import math
import numbers
import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from setok_kernels.arguments import MAX_COUNT, readable

KERNELS = ("gaussian", "laplacian", "epanechnikov")
ALPHAS = ("sigmoid", "kernel")
DISTANCE_SCALES = ("variance", "dim")
# Values of the schemas' `scale`, by index; `factor` is read with "number" only.
SCALES = (*DISTANCE_SCALES, "number")
SCORE_NORMS = ("max", None)
ORDERS = ("score", "index")
CAPS = ("diameter", "eccentricity")

# Namespace of the operators, `torch.ops.setok.…`. The copy on the Kernel Hub has another one.
NAMESPACE = "setok"
# Namespace of the operators in Triton's interpreter: in `setok`, CPU tensors go to C++.
INTERPRETED = f"{NAMESPACE}_interpreted"

# Feature dtypes of the Triton kernels; the other backends take every floating-point dtype.
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Hyper-parameters that may be tensors and then receive a gradient.
LEARNABLE = ("bandwidth", "beta", "temperature", "offset")


@dataclass(frozen=True, eq=False)
class ClusterConfig:
    """Options of `cluster_tokens` (SeTok, Eq. 1, Eq. 2 and Algorithm 1).

    The defaults make clusters that follow objects on natural images. `ClusterConfig.paper()` is
    the algorithm as published. `bandwidth`, `beta`, `temperature` and `offset` may each be a float
    or a 0-dim floating-point tensor, which then receives a gradient. NumPy scalars become Python
    numbers. Two configs are equal if all options are equal; tensors are compared by identity.

    Attributes:
        k: number of neighbours in the local density, at least 1. An image with fewer tokens uses
            all of them.
        max_clusters: maximum number of seeds per image, at least 1; fixes the shape of the masks.
        kernel: similarity to a seed as a function of the distance d: "gaussian" exp(-d/h),
            "laplacian" exp(-sqrt(d)/h) or "epanechnikov" max(0, 1 - d/h).
        bandwidth: h of the kernel, > 0, in units of the scaled distance.
        beta: weight of the seed score in the alpha mask, finite.
        temperature: divisor inside the sigmoid, > 0; unused with alpha="kernel".
        offset: similarity at which alpha is one half (for score 0), finite; unused with
            alpha="kernel".
        alpha: form of the alpha mask: "sigmoid" is sigmoid((phi - offset - beta * s) /
            temperature); "kernel" is clamp(phi - beta * s, 0.01, 0.99) with a straight-through
            gradient.
        distance_scale: factor of the squared distance: "variance" makes the mean pairwise
            distance of each image 1, "dim" is 1/D, a number > 0 is used as it is.
        score_norm: normalisation of the scores: "max" divides by the image's maximum; None keeps
            them raw.
        distinct_seeds: flag: a token is chosen as a seed at most once.
        stop_residual: mean scope in [0, 1] at or below which the loop stops.
        min_mass: minimum sum of a mask, >= 0; the loop stops before a smaller cluster.
        include_self: flag: a token counts as one of its own k neighbours.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a field is out of range; the message names it, what was expected and what came.
    """

    k: int = 8
    max_clusters: int = 64
    kernel: Literal["gaussian", "laplacian", "epanechnikov"] = "gaussian"
    bandwidth: float | Tensor = 0.5
    beta: float | Tensor = 0.1
    temperature: float | Tensor = 0.1
    offset: float | Tensor = 0.5
    alpha: Literal["sigmoid", "kernel"] = "sigmoid"
    distance_scale: Literal["variance", "dim"] | float = "variance"
    score_norm: Literal["max"] | None = "max"
    distinct_seeds: bool = True
    stop_residual: float = 0.02
    min_mass: float = 0.0
    include_self: bool = False

    def __post_init__(self) -> None:
        _make_plain(self)
        for name in ("k", "max_clusters"):
            check_count(name, getattr(self, name), MAX_COUNT)
        _check_choice("kernel", self.kernel, KERNELS)
        _check_choice("alpha", self.alpha, ALPHAS)
        _check_choice("score_norm", self.score_norm, SCORE_NORMS)
        if isinstance(self.distance_scale, str):
            _check_choice("distance_scale", self.distance_scale, (*DISTANCE_SCALES, "a number"))
        else:
            check_number("distance_scale", self.distance_scale, above=0)
        for name in ("distinct_seeds", "include_self"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(_message(name, "a bool", getattr(self, name)))
        check_number("stop_residual", self.stop_residual, least=0, most=1)
        check_number("min_mass", self.min_mass, least=0)
        for name in LEARNABLE:
            above = 0 if name in ("bandwidth", "temperature") else None
            _check_learnable(name, getattr(self, name), above)

    @classmethod
    def paper(cls, **overrides: Any) -> "ClusterConfig":
        """Return the published options: distance / D, raw scores, plain sigmoid, repeated seeds.

        The bandwidth is 1 / (max_clusters * ln 2), as GENESIS-V2 initialises it. The preset exists
        for fidelity: on real features it collapses to one or two clusters (docs/algorithm.md).

        Args:
            **overrides: fields of `ClusterConfig` to set on top of the preset.
        """
        max_clusters = overrides.get("max_clusters", cls.max_clusters)
        check_count("max_clusters", max_clusters, MAX_COUNT)
        preset = dict(
            distance_scale="dim",
            score_norm=None,
            temperature=1.0,
            offset=0.0,
            distinct_seeds=False,
            bandwidth=1 / (max_clusters * math.log(2)),
        )
        return cls(**(preset | overrides))

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, ClusterConfig) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        # Tensor values can change, and reading them may wait for a device.
        fields = (getattr(self, f.name) for f in dataclasses.fields(self))
        return tuple((Tensor, id(v)) if isinstance(v, Tensor) else v for v in fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python values for JSON; tensors become floats."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {n: v.item() if isinstance(v, Tensor) else v for n, v in fields.items()}


@dataclass(frozen=True)
class DPCOptions:
    """Options of `dpc_knn`, which documents them in full.

    Attributes:
        k: number of neighbours in the density, the token itself included, at least 1.
        num_clusters: maximum number of centres per image, at least 1; None for one per token.
        threshold: score that a centre must exceed; None for no threshold.
        min_clusters: number of centres if no score exceeds the threshold, at least 1.
        order: order of the rows, "score" (descending) or "index" (ascending token).
        cap: upper bound of the seed distance, "diameter" or "eccentricity".
        budgeted: flag: a tensor bounds the number of centres of each image.

    Raises:
        TypeError, ValueError: see `ClusterConfig`.
    """

    k: int = 5
    num_clusters: int | None = None
    threshold: float | None = None
    min_clusters: int = 1
    order: Literal["score", "index"] = "score"
    cap: Literal["diameter", "eccentricity"] = "diameter"
    budgeted: bool = False

    def __post_init__(self) -> None:
        _make_plain(self)
        if self.num_clusters is None and self.threshold is None and not self.budgeted:
            raise ValueError(
                "num_clusters: expected a number, or else a rate or a threshold, got neither"
            )
        for name in ("k", "num_clusters", "min_clusters"):
            if name != "num_clusters" or self.num_clusters is not None:
                check_count(name, getattr(self, name), MAX_COUNT)
        if self.threshold is not None:
            check_number("threshold", self.threshold)
        _check_choice("order", self.order, ORDERS)
        _check_choice("cap", self.cap, CAPS)


def _make_plain(options) -> None:
    """Convert NumPy scalars among the fields to Python numbers, which JSON and operators take."""
    if torch.compiler.is_compiling():
        return
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if not isinstance(value, Tensor) and getattr(value, "shape", None) == ():
            object.__setattr__(options, field.name, value.item())


def _message(name, expected, got) -> str:
    return f"{name}: expected {expected}, got {got!r}"


def check_count(name, value, most: int | None = None) -> None:
    """Check that `value` is an integer from 1 to `most` (no upper bound if None)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(_message(name, "an int", value))
    if value < 1:
        raise ValueError(_message(name, "at least 1", value))
    if most is not None and value > most:  # type: ignore[operator]  # typeshed gives Integral no order
        raise ValueError(_message(name, f"at most {most}", value))


def _check_choice(name, value, known):
    if value not in known:
        choices = ", ".join("None" if c is None else str(c) for c in known)
        raise ValueError(_message(name, f"one of {choices}", value))


def check_number(name, value, *, above=None, least=None, most=None) -> None:
    """Check that `value` is a finite real number within the bounds."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(_message(name, "a real number", value))
    # Not math.isfinite: it rejects traced numbers and overflows on integers beyond float64.
    if not abs(value) <= sys.float_info.max:  # type: ignore[operator]  # nor Real
        raise ValueError(_message(name, "a finite number", value))
    if above is not None and not value > above:
        raise ValueError(_message(name, f"more than {above}", value))
    if least is not None and value < least:
        raise ValueError(_message(name, f"at least {least}", value))
    if most is not None and value > most:
        raise ValueError(_message(name, f"at most {most}", value))


def _check_learnable(name, value, above):
    if not isinstance(value, Tensor):
        return check_number(name, value, above=above)
    # Layout first: a nested tensor has no shape to print.
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name}: expected a dense 0-dim tensor, got a sparse or nested one")
    if value.dim() != 0 or not value.dtype.is_floating_point:
        got = f"shape {tuple(value.shape)}, {value.dtype}"
        raise ValueError(f"{name}: expected a 0-dim floating-point tensor, got {got}")
    if readable(value):
        check_number(name, value.item(), above=above)
