"""Checks of each implementation's result before timing; they raise `AssertionError`.

`setok_kernels.testing` judges the first and the last image of a result.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor

import setok_kernels as sk
from setok_bench.registry import Case
from setok_kernels import testing
from setok_kernels.testing.images import Image
from setok_kernels.testing.intervals import squared_distance_bounds
from setok_kernels.testing.peaks import judge_neighbours
from setok_kernels.testing.values import assert_error, feature_orders

# Checks need float64 matrices of all pairs. Longer images are checked on an input of this length,
# which is also above the limit of kept distance rows.
CHECK_TOKENS = 3584

Result = TypeVar("Result")


def small_enough(case: Case) -> Case:
    """Return the case itself, or one image of `CHECK_TOKENS` tokens if it is longer."""
    if case.shape.tokens <= CHECK_TOKENS:
        return case
    shape = dataclasses.replace(case.shape, images=1, tokens=CHECK_TOKENS)
    return dataclasses.replace(case, shape=shape)


def one_image(out: Result, index: int) -> Result:
    """Return a padded result with only one of its images."""
    parts = {}
    for f in dataclasses.fields(out):
        value = getattr(out, f.name)
        if isinstance(value, Tensor):
            parts[f.name] = value[index : index + 1]
        elif dataclasses.is_dataclass(value):
            parts[f.name] = one_image(value, index)
    return dataclasses.replace(out, **parts)


def judged(case: Case) -> list[int]:
    """Return the indices of the images to check."""
    return sorted({0, case.shape.images - 1})


def check_clusters(case: Case, out: sk.Clusters) -> None:
    """Check `cluster_tokens`: invariants, decisions, and values with the decisions replayed."""
    x = case.tokens()
    for b in judged(case):
        image, part = x[b : b + 1], one_image(out, b)
        testing.assert_invariants(image, part, case.config)
        testing.assert_valid_decisions(image, part, case.config)
        testing.assert_replayed_values(image, part, case.config)


def check_gradients(case: Case, result: tuple[sk.Clusters, tuple[Tensor, ...]]) -> None:
    """Check the masks' gradient: valid decisions, and at most twice plain PyTorch's error."""
    out, grads = result
    x, weight = case.tokens(), mask_gradient(case)
    for b in judged(case):
        image, part = x[b : b + 1], one_image(out, b)
        testing.assert_valid_decisions(image, part, case.config)

        def replay(x, b=b, part=part):
            x = x.detach().requires_grad_()
            module = sk.TokenClustering(case.config, backend="reference").to(x.device, x.dtype)
            masks = module(x, decisions=part.decisions).masks
            grad = weight[b : b + 1].to(masks)
            return torch.autograd.grad(masks, [x, *module.parameters()], grad)

        truth, plain = replay(image.double()), []
        for order in feature_orders(x):
            grad_x, *others = replay(image[..., order].float())
            plain.append([grad_x[..., order.argsort()], *others])
        # Gradients of the hyper-parameters are sums over the images.
        checked = len(truth) if case.shape.images == 1 else 1
        for i in range(checked):
            got = grads[i][b : b + 1] if i == 0 else grads[i]
            measured = torch.stack([p[i] for p in plain])
            assert_error(f"gradient {i}", got, truth[i], measured, truth[i], 1)


def mask_gradient(case: Case) -> Tensor:
    """Return the fixed gradient of the masks, (B, C + 1, N) float32."""
    s, generator = case.shape, torch.Generator().manual_seed(1)
    grad = torch.randn(s.images, s.clusters + 1, s.tokens, generator=generator)
    return grad.to(case.device)


def check_peaks(case: Case, out: sk.DensityPeaks) -> None:
    """Check `dpc_knn`."""
    x, s = case.groups(), case.shape
    for b in judged(case):
        part = one_image(out, b)
        testing.assert_valid_density_peaks(x[b : b + 1], part, s.k, s.clusters)


def check_greedy(threshold: float):
    """Return a check of `threshold_greedy`."""

    def check(case: Case, out: sk.HardClusters) -> None:
        x = case.groups()
        for b in judged(case):
            part = one_image(out, b)
            testing.assert_valid_threshold_greedy(x[b : b + 1], part, threshold)

    return check


def check_neighbours(case: Case, knn: Tensor) -> None:
    """Check (B, N, K) nearest other tokens by ascending distance, within the error bound."""
    x, s = case.tokens(), case.shape
    expected = (s.images, s.tokens, s.k)
    assert tuple(knn.shape) == expected, f"neighbours: {tuple(knn.shape)}, expected {expected}"
    wide = torch.finfo(torch.promote_types(s.dtype, torch.float32))
    for b in judged(case):
        features = x[b].double()
        ok = torch.ones(s.tokens, dtype=torch.bool, device=x.device)
        position = torch.arange(s.tokens, device=x.device)
        image = Image(b, b, features, ok, position, wide.eps / 2, wide.tiny)
        distance = squared_distance_bounds(features, image.roundoff, 0.0)
        found = image.compact("neighbours", knn[b].long())
        judge_neighbours(image, distance, found, include_self=False)


def check_product(case: Case, product: Tensor) -> None:
    """Check `torch.bmm(x, x.mT)`: some rows against float64, within a dot product's error."""
    x = case.tokens()
    rows = slice(None, None, max(1, case.shape.tokens // 16))
    for b in judged(case):
        some, image = x[b, rows].double(), x[b].double()
        norms = some.norm(dim=-1)[:, None] * image.norm(dim=-1)
        steps = (case.shape.features + 1) * torch.finfo(torch.float32).eps
        rounding = torch.finfo(product.dtype).eps
        error = (product[b, rows].double() - some @ image.T).abs()
        assert (error <= (steps + rounding) * norms).all(), "product: error above its bound"


def check_merged(case: Case, merged: Tensor, expected) -> None:
    """Check merged or unmerged tokens against `expected(dtype)`, the reference in a dtype."""
    truth, plain = expected(torch.float64), expected(case.shape.dtype)
    assert_error("tokens", merged, truth, plain, truth, 1)
