"""The clustering functions of `setok_kernels`, each with its options as one value."""

from __future__ import annotations

import dataclasses
import numbers
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from setok_kernels import (
    ClusterConfig,
    Clusters,
    HardClusters,
    cluster_tokens,
    dpc_knn,
    threshold_greedy,
)
from setok_kernels.config import DPCOptions, check_number


@dataclass(frozen=True)
class DPCConfig:
    """Options of `dpc_knn`, which documents them.

    Attributes:
        num_clusters: max number of centres, at least 1; None for no bound.
        threshold: score that a centre must exceed; None for no threshold.
        k: number of neighbours in the density, at least 1.
        min_clusters: number of centres if no score exceeds the threshold, at least 1.
        order: order of the clusters, "score" or "index".
        cap: upper bound of the seed distance, "diameter" or "eccentricity".

    Raises:
        TypeError, ValueError: a field does not fit; the message names it.
    """

    num_clusters: int | None = 64
    threshold: float | None = None
    k: int = 5
    min_clusters: int = 1
    order: Literal["score", "index"] = "score"
    cap: Literal["diameter", "eccentricity"] = "diameter"

    def __post_init__(self) -> None:
        DPCOptions(**self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class GreedyConfig:
    """Options of `threshold_greedy`, which documents them.

    Attributes:
        threshold: cosine similarity above which two tokens are neighbours.

    Raises:
        TypeError, ValueError: the threshold is no finite number.
    """

    threshold: float = 0.8

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python values for JSON."""
        return dataclasses.asdict(self)


Config = ClusterConfig | DPCConfig | GreedyConfig

CONFIGS: dict[str, type[Config]] = {
    "cluster_tokens": ClusterConfig,
    "dpc_knn": DPCConfig,
    "threshold_greedy": GreedyConfig,
}


def function_of(config: Config) -> str:
    """Return the name of the function that takes these options."""
    return next(name for name, kind in CONFIGS.items() if isinstance(config, kind))


def plain_fields(config: Config) -> dict[str, Any]:
    """Return the fields as text, bool, None, int or float, whose repr Python and YAML read back."""
    return {name: _plain(value) for name, value in config.to_dict().items()}


def changed_fields(config: Config, base: Config | None = None) -> dict[str, Any]:
    """Return the plain fields that differ from those of `base`.

    Args:
        config: options.
        base: options of the same function; None for the defaults.
    """
    known = (type(config)() if base is None else base).to_dict()
    return {name: value for name, value in plain_fields(config).items() if value != known[name]}


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def cluster(x: Tensor, config: Config, backend: str = "auto") -> Clusters | HardClusters:
    """Cluster tokens by the function that the options belong to.

    Args:
        x: tokens, in any layout that `cluster_tokens` takes without further arguments.
        config: options of the function.
        backend: backend of the function.
    """
    if isinstance(config, ClusterConfig):
        return cluster_tokens(x, config, backend=backend)
    function = dpc_knn if isinstance(config, DPCConfig) else threshold_greedy
    return function(x, **config.to_dict(), backend=backend)
