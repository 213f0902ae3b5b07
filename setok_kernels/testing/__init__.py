"""Equivalence tests for backends: input generators and the three-tier comparison.

A discontinuous operation cannot be tested by closeness: argmax and top-k flip under rounding. A
result carries its decisions instead, and a backend is right when (1) on exactly representable
inputs its decisions are bit-equal to the reference (`assert_same_decisions`); (2) on all inputs
each decision is optimal within the rounding error bound (`assert_valid_decisions`); (3) its values
and gradients, its own decisions replayed in float64, err at most twice as much as plain PyTorch in
the same dtype (`assert_replayed_values`, `assert_replayed_gradients`); and (4) the invariants hold
(`assert_invariants`). `check_backend` runs them all.

Of the hard clusterings, `assert_valid_density_peaks` and `assert_valid_threshold_greedy` judge the
decisions, and the first the values too; `assert_same_hard_clusters` compares with the reference,
and `pair_agreement` any two labelings.
"""

from setok_kernels.testing.decisions import assert_same_decisions, assert_valid_decisions
from setok_kernels.testing.dpc_knn import assert_valid_density_peaks
from setok_kernels.testing.generators import (
    duplicate_tokens,
    integer_tokens,
    one_hot_tokens,
    planted_clusters,
    ragged_batch,
    vit_like_tokens,
)
from setok_kernels.testing.hard import (
    assert_hard_invariants,
    assert_same_hard_clusters,
    pair_agreement,
)
from setok_kernels.testing.threshold_greedy import assert_valid_threshold_greedy
from setok_kernels.testing.values import (
    assert_invariants,
    assert_replayed_gradients,
    assert_replayed_values,
    check_backend,
)

__all__ = [
    "assert_hard_invariants",
    "assert_invariants",
    "assert_replayed_gradients",
    "assert_replayed_values",
    "assert_same_decisions",
    "assert_same_hard_clusters",
    "assert_valid_decisions",
    "assert_valid_density_peaks",
    "assert_valid_threshold_greedy",
    "check_backend",
    "duplicate_tokens",
    "integer_tokens",
    "one_hot_tokens",
    "pair_agreement",
    "planted_clusters",
    "ragged_batch",
    "vit_like_tokens",
]
