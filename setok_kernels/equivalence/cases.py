"""Fixed set of equivalence cases: the Triton kernels against the reference on one device.

The comparisons are those of `setok_kernels.testing`, as in our own tests: valid decisions, replayed
values and gradients, invariants. Every call has an explicit backend.
"""

import dataclasses
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from setok_kernels import functional, testing
from setok_kernels.config import ClusterConfig
from setok_kernels.result import Clusters
from setok_kernels.testing.values import assert_error
from setok_kernels.verification.verdict import Outcome

_BACKEND = "triton"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the test inputs: a model's on a GPU, a few tiles in the interpreter.

    Attributes:
        tokens: number of tokens of an image whose distance rows are kept.
        many: number of tokens of an image without an N x N buffer.
        dim: number of features, more than one step of a tile.
        clusters: maximum number of clusters.
    """

    tokens: int
    many: int
    dim: int
    clusters: int


REAL = Sizes(tokens=729, many=2100, dim=1152, clusters=64)


@dataclass(frozen=True)
class Case:
    """A comparison.

    Attributes:
        name: name of the comparison.
        run: function of the device and the sizes; raises an AssertionError for wrong kernels.
        precision: precision of float32 matrix products during the run.
    """

    name: str
    run: Callable[[torch.device, Sizes], None]
    precision: str = "highest"


def run_cases(
    cases: Sequence[Case], device: torch.device, sizes: Sizes = REAL
) -> Iterator[Outcome]:
    """Run cases one after the other and continue after failures."""
    before = torch.get_float32_matmul_precision()
    for case in cases:
        torch.set_float32_matmul_precision(case.precision)
        try:
            yield _outcome(case, device, sizes)
        finally:
            torch.set_float32_matmul_precision(before)


def _outcome(case: Case, device: torch.device, sizes: Sizes) -> Outcome:
    begin = time.monotonic()
    state, message = "passed", ""
    try:
        case.run(device, sizes)
    except torch.OutOfMemoryError as error:
        state, message = "unknown", f"{type(error).__name__}: {error}"
    except Exception as error:
        # Compilers may raise any exception. A summary shows the first line, the message.
        state, message = "failed", f"{error}\n{traceback.format_exc()}"
    return Outcome(case.name, state, time.monotonic() - begin, message)


def _mask(x: Tensor) -> Tensor:
    """Return (B, N) bool, False for about a fifth of the tokens."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(x.shape[:2], generator=generator) > 0.2).to(x.device)


def _exact(device, sizes):
    """Compare ties and duplicates, masked, with some non-finite tokens."""
    config = ClusterConfig(k=8, max_clusters=sizes.clusters)
    x = testing.integer_tokens(2, sizes.tokens, min(sizes.dim, 65)).to(device)
    x[0, 3, 1], x[1, 0, 0] = torch.nan, torch.inf
    testing.check_backend(_BACKEND, x, config, token_mask=_mask(x), exact=True)
    x = testing.duplicate_tokens(2, sizes.tokens, sizes.dim, distinct=12).to(device)
    testing.check_backend(_BACKEND, x, config, exact=True)


def _packed(device, sizes):
    """Compare packed images of several lengths, one of them empty."""
    lengths = [sizes.tokens // 3, 0, 1, sizes.tokens]
    packed, cu_seqlens, _, _ = testing.ragged_batch(lengths, 20, exact=True)
    config = ClusterConfig.paper(max_clusters=sizes.clusters)
    testing.check_backend(
        _BACKEND, packed.to(device), config, cu_seqlens=cu_seqlens.to(device), exact=True
    )


def _importance(tokens: tuple[int, ...], seed: int = 3) -> Tensor:
    """Return weights that are powers of two or 0."""
    generator = torch.Generator().manual_seed(seed)
    powers = torch.randint(-3, 3, tokens, generator=generator)
    return torch.where(powers == -3, 0.0, 2.0**powers)


def _guided(device, sizes):
    """Compare importance, budgets and exact budgets, padded and packed, and their gradients."""
    config = ClusterConfig(k=8, max_clusters=sizes.clusters)
    x = testing.integer_tokens(2, sizes.tokens, min(sizes.dim, 65)).to(device)
    mask, importance = _mask(x), _importance(x.shape[:2]).to(device)
    budget = torch.tensor([2, sizes.clusters], device=device)
    for exact_budget in (False, True):
        guide = dict(importance=importance, budget=budget, exact_budget=exact_budget)
        testing.check_backend(_BACKEND, x, config, token_mask=mask, exact=True, **guide)
    lengths = [sizes.tokens // 3, 0, 1, sizes.tokens]
    x, cu_seqlens, _, _ = testing.ragged_batch(lengths, 20, exact=True)
    testing.check_backend(
        _BACKEND,
        x.to(device),
        config,
        cu_seqlens=cu_seqlens.to(device),
        exact=True,
        importance=_importance(x.shape[:1]).to(device),
        budget=torch.tensor([sizes.clusters, 1, 1, 3], device=device),
        exact_budget=True,
    )
    x = testing.vit_like_tokens(2, sizes.tokens, sizes.dim, dtype=torch.bfloat16).to(device)
    testing.assert_replayed_gradients(x, config, _BACKEND, importance=importance)


def _many(device, sizes):
    """Compare the kernels for images too long to keep distance rows."""
    config = ClusterConfig(k=8, max_clusters=sizes.clusters)
    x = testing.integer_tokens(1, sizes.many, 20).to(device)
    testing.check_backend(_BACKEND, x, config, exact=True)
    guide = dict(importance=_importance(x.shape[:2]).to(device), exact_budget=True)
    testing.check_backend(_BACKEND, x, config, exact=True, **guide)
    x = testing.vit_like_tokens(1, sizes.many, 40, dtype=torch.bfloat16).to(device)
    testing.check_backend(_BACKEND, x, config)


def _forward(dtype: torch.dtype, input_roundoff: float = 0.0) -> Callable:
    def run(device, sizes):
        config = ClusterConfig(k=8, max_clusters=sizes.clusters)
        x = testing.vit_like_tokens(2, sizes.tokens, sizes.dim, dtype=dtype).to(device)
        out = testing.check_backend(_BACKEND, x, config, input_roundoff=input_roundoff)
        again = functional.cluster_tokens(x, config, decisions=out.decisions, backend=_BACKEND)
        for name in ("masks", "labels", "density", "delta", "score"):
            same = torch.equal(getattr(out, name), getattr(again, name))
            assert same, f"{name}: the replay of the decisions is not bit-equal"

    return run


def _gradients(dtype: torch.dtype) -> Callable:
    def run(device, sizes):
        config = ClusterConfig(k=8, max_clusters=sizes.clusters)
        x = testing.vit_like_tokens(2, sizes.tokens, sizes.dim, dtype=dtype).to(device)
        testing.assert_replayed_gradients(x, config, _BACKEND)
        first, second = (_gradient(x, config) for _ in range(2))
        assert torch.equal(first, second), "gradient of x: two runs differ"

    return run


def _gradient(x: Tensor, config: ClusterConfig) -> Tensor:
    x = x.detach().requires_grad_()
    out = functional.cluster_tokens(x, config, backend=_BACKEND)
    return torch.autograd.grad(out.masks.square().sum() + out.score.sum(), x)[0]


def _merging(dtype: torch.dtype) -> Callable:
    """Return a comparison of merge and unmerge: hard and soft, with weights, with gradients."""

    def run(device, sizes):
        x = testing.vit_like_tokens(2, sizes.tokens, sizes.dim, dtype=dtype).to(device)
        config = ClusterConfig(k=8, max_clusters=sizes.clusters)
        out = functional.cluster_tokens(x, config, token_mask=_mask(x), backend="reference")
        generator = torch.Generator().manual_seed(1)
        weights = torch.rand(x.shape[:2], generator=generator).to(device)
        exact = dataclasses.replace(out, masks=out.masks.double())
        for mode in ("hard", "soft"):
            for given in (None, weights):
                got = _merged(x, out, mode, given, _BACKEND)
                plain = _merged(x, out, mode, given, "reference")
                given = None if given is None else given.double()
                truth = _merged(x.double(), exact, mode, given, "reference")
                for name, value in got.items():
                    label = f"{mode} {'weighted ' if given is not None else ''}{name}"
                    assert_error(label, value, truth[name], plain[name], truth[name], 1.0)

    return run


def _merged(
    x, out: Clusters, mode: Literal["hard", "soft"], weights: Tensor | None, backend: str
) -> dict[str, Tensor]:
    """Return both results and all gradients by name."""
    leaves = {"x": x.detach().requires_grad_()}
    if weights is not None:
        leaves["weights"] = weights.detach().requires_grad_()
    if mode == "soft":
        leaves["masks"] = out.masks.detach().requires_grad_()
        out = dataclasses.replace(out, masks=leaves["masks"])
    merged = functional.merge_tokens(leaves["x"], out, mode, leaves.get("weights"), backend=backend)
    spread = functional.unmerge_tokens(merged, out, mode, backend=backend)
    generator = torch.Generator().manual_seed(2)
    loss = (spread * torch.randn(spread.shape, generator=generator).to(spread)).sum()
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    if mode == "soft":
        gradients["masks"] = _comparable(gradients["masks"], out, weights)
    found = {"merge": merged.detach(), "unmerge": spread.detach()}
    return found | {f"gradient of {name}": value for name, value in gradients.items()}


def _comparable(gradient: Tensor, out: Clusters, weights: Tensor | None) -> Tensor:
    """Return the gradient of the masks times the mass of the row, 0 for constant masks.

    The gradient is inversely proportional to the mass, so small rows would dominate the maximum.
    """
    row = torch.arange(out.num_rows, device=gradient.device)[:, None]
    variable = (row <= out.counts[:, None, None]) & (out.labels >= 0)[:, None]
    weighted = out.masks.detach() if weights is None else out.masks.detach() * weights[:, None]
    return torch.where(variable, gradient, 0) * weighted.sum(2, keepdim=True)


def _density_peaks(device, sizes):
    """Compare `dpc_knn` on exact and real tokens, with and without distance rows."""
    for options in (
        dict(num_clusters=min(sizes.clusters, 7), k=5),
        dict(threshold=0.5, k=8, order="index", cap="eccentricity"),
    ):
        for tokens in (sizes.tokens, sizes.many):
            x = testing.integer_tokens(1, tokens, 20).to(device)
            out, expected = (
                functional.dpc_knn(x, token_mask=_mask(x), backend=name, **options)
                for name in (_BACKEND, "reference")
            )
            testing.assert_same_hard_clusters(out, expected)
        guide = dict(num_clusters=torch.tensor([3, 5], device=device), threshold=0.1)
        x = testing.integer_tokens(2, sizes.tokens, 20).to(device)
        guide["importance"] = _importance(x.shape[:2]).to(device)
        out, expected = (
            functional.dpc_knn(x, backend=name, **(options | guide))
            for name in (_BACKEND, "reference")
        )
        testing.assert_same_hard_clusters(out, expected)
        x = testing.vit_like_tokens(1, sizes.tokens, sizes.dim, dtype=torch.bfloat16).to(device)
        out = functional.dpc_knn(x, backend=_BACKEND, **options)
        testing.assert_valid_density_peaks(x, out, **options)


def _greedy(device, sizes):
    """Compare `threshold_greedy` on exact and real tokens."""
    # The cosine of two unit vectors of the standard basis is exact.
    x = testing.one_hot_tokens(2, sizes.tokens, 40).to(device)
    out, expected = (
        functional.threshold_greedy(x, 0.5, _mask(x), backend=name)
        for name in (_BACKEND, "reference")
    )
    testing.assert_same_hard_clusters(out, expected)
    x = testing.vit_like_tokens(1, sizes.tokens, sizes.dim).to(device)
    out = functional.threshold_greedy(x, 0.65, backend=_BACKEND)
    testing.assert_valid_threshold_greedy(x, out, 0.65)


# TF32 rounds the factors of a product to 11 bits.
_TF32 = 2.0**-11

CASES = (
    Case("exact tokens, masked", _exact),
    Case("packed images", _packed),
    Case("importance and budgets", _guided),
    Case("clustering of float32", _forward(torch.float32)),
    Case("gradients of float32", _gradients(torch.float32)),
    Case("clustering of bfloat16", _forward(torch.bfloat16)),
    Case("gradients of bfloat16", _gradients(torch.bfloat16)),
    Case("merging bfloat16", _merging(torch.bfloat16)),
    Case("clustering of float16", _forward(torch.float16)),
    Case("clustering of float32, precision high", _forward(torch.float32), "high"),
    Case("clustering of float32, precision medium", _forward(torch.float32, _TF32), "medium"),
    Case("merging float32", _merging(torch.float32)),
    Case("many tokens", _many),
    Case("dpc_knn", _density_peaks),
    Case("threshold_greedy", _greedy),
)
