"""Equivalence tests for backends: input generators and the three-tier comparison.

Closeness is no test of a discontinuous operation, because argmax and top-k flip under rounding.
Therefore a result carries its decisions. A backend is correct if

1. its decisions are bit-equal to the reference on exactly representable input
   (`assert_same_decisions`);
2. each decision is optimal within the rounding error bound on all input
   (`assert_valid_decisions`);
3. its values and gradients err at most twice as much as plain PyTorch in the same dtype, compared
   with its own decisions replayed in float64 (`assert_replayed_values`,
   `assert_replayed_gradients`);
4. the invariants hold (`assert_invariants`).

`check_backend` runs all comparisons of a forward pass.

Hard clusterings: `assert_valid_density_peaks` checks decisions and values,
`assert_valid_threshold_greedy` checks decisions, `assert_same_hard_clusters` compares with the
reference, `pair_agreement` compares two labelings.
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
