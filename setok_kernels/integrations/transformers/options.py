"""Options of `reduce_visual_tokens`, checked once."""

from dataclasses import dataclass
from typing import Literal

from setok_kernels import checks
from setok_kernels.arguments import MAX_COUNT
from setok_kernels.config import ClusterConfig, check_count, check_number

CHOICES = {
    "features": ("encoder", "projected"),
    "merge": ("hard", "soft"),
    "positions": ("compact", "original"),
}


@dataclass(frozen=True)
class Options:
    """Checked arguments of `reduce_visual_tokens`, which documents them."""

    config: ClusterConfig
    rate: float | None
    num_clusters: int | None
    exact: bool
    features: Literal["encoder", "projected"]
    merge: Literal["hard", "soft"]
    positions: Literal["compact", "original"]

    def __post_init__(self) -> None:
        checks.check_config(self.config)
        checks.check_exact(self.exact, self.config)
        if self.rate is not None and self.num_clusters is not None:
            raise ValueError("rate: expected None with num_clusters, got both")
        if self.rate is not None:
            check_number("rate", self.rate, above=0, most=1)
        if self.num_clusters is not None:
            check_count("num_clusters", self.num_clusters, MAX_COUNT)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
