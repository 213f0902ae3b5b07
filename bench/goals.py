"""Performance goals, as ratios within one run."""

from __future__ import annotations

from dataclasses import dataclass

from setok_bench.results import timed
from setok_bench.timing import paired_ratio


@dataclass(frozen=True)
class Ratio:
    """Goal for the median ratio of implementations of one row; of several, the minimum counts."""

    text: str
    device: str
    op: str
    shape: tuple[int, int, int]
    above: tuple[str, ...]
    below: str
    bound: float
    at_most: bool
    group: str = "main"

    def value(self, result: dict) -> float | None:
        """Return the value in a result, or None if it was not measured."""
        for row in result["rows"]:
            sizes = tuple(row["shape"][name] for name in ("images", "tokens", "features"))
            times = timed(row)
            if (row["op"], row["group"], sizes) != (self.op, self.group, self.shape):
                continue
            above = [times[name]["samples_s"] for name in self.above if name in times]
            if above and self.below in times:
                below = times[self.below]["samples_s"]
                return min(paired_ratio(samples, below) for samples in above)
        return None

    def met(self, value: float) -> bool:
        """Return True if the value reaches the bound."""
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass(frozen=True)
class Memory:
    """Goal for the peak beyond input and result, over one float32 N x N buffer."""

    text: str
    device: str
    op: str
    implementation: str
    tokens: int
    bound: float
    at_most: bool = True

    def value(self, result: dict) -> float | None:
        """Return the value in a result, or None if it was not measured."""
        for m in result["memory"]:
            named = (m["op"], m["contender"], m["shape"]["tokens"])
            if named == (self.op, self.implementation, self.tokens):
                pairs = 4 * m["shape"]["images"] * self.tokens**2
                return max(0, m["peak_bytes"] - m["result_bytes"]) / pairs
        return None

    def met(self, value: float) -> bool:
        """Return True if the value reaches the bound."""
        return value <= self.bound


_HARD = "hard clustering: TCFormer's or Chat-UniVi's / ours"
_BOTH = "forward and backward / forward"
# A twentieth of N x N allows several times K + C numbers per token, but no N x N buffer.
_NO_PAIRS = "memory beyond input and result / N x N buffer, 16384 tokens"


def _goals(device: str, ours: str) -> tuple[Ratio | Memory, ...]:
    return (
        Memory(f"{_NO_PAIRS}, forward", device, "cluster_tokens", ours, 16384, 0.05),
        Memory(f"{_NO_PAIRS}, forward and backward", device, "cluster_backward", ours, 16384, 0.05),
    )


_ONE, _EIGHT, _MANY = (1, 729, 1152), (8, 729, 1152), (64, 729, 1152)
_PEERS = ("tcformer", "chatunivi")
GOALS: tuple[Ratio | Memory, ...] = (
    Ratio("forward / bmm, B = 1", "cpu", "cluster_tokens", _ONE, ("cpp",), "bmm", 1.0, True),
    Ratio("forward / bmm, B = 8", "cpu", "cluster_tokens", _EIGHT, ("cpp",), "bmm", 1.0, True),
    Ratio(f"{_HARD}, B = 1", "cpu", "dpc_knn", _ONE, _PEERS, "cpp", 3.5, False),
    Ratio(f"{_HARD}, B = 8", "cpu", "dpc_knn", _EIGHT, _PEERS, "cpp", 7.0, False),
    Ratio(f"{_BOTH}, B = 1", "cpu", "cluster_backward", _ONE, ("cpp",), "forward", 3.0, True),
    Ratio(f"{_BOTH}, B = 8", "cpu", "cluster_backward", _EIGHT, ("cpp",), "forward", 3.0, True),
    *_goals("cpu", "cpp"),
    Ratio("forward / bmm, B = 64", "cuda", "cluster_tokens", _MANY, ("triton",), "bmm", 2.0, True),
    Ratio(
        "eager reference / ours, B = 64",
        "cuda",
        "cluster_tokens",
        _MANY,
        ("reference",),
        "triton",
        15.0,
        False,
    ),
    Ratio(
        "compiled reference / ours, B = 64",
        "cuda",
        "cluster_tokens",
        _MANY,
        ("compiled_reference",),
        "triton",
        5.0,
        False,
        group="compiled",
    ),
    Ratio(f"{_BOTH}, B = 64", "cuda", "cluster_backward", _MANY, ("triton",), "forward", 3.0, True),
    Ratio(
        "forward / SigLIP-so400m forward, B = 64",
        "cuda",
        "encode",
        _MANY,
        ("clusters",),
        "encoder",
        0.01,
        True,
    ),
    *_goals("cuda", "triton"),
)
