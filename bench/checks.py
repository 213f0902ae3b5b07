"""Is a result right? Asked of every contender before it is timed; `AssertionError` says no.

The first and the last image of a result are judged by `setok_kernels.testing`.
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

# Judging takes float64 matrices of all pairs. Results for longer images are judged on an input of
# this length, which is also beyond where rows of distances are kept.
CHECK_TOKENS = 3584

Result = TypeVar("Result")


def small_enough(case: Case) -> Case:
    """The case itself, or one image of `CHECK_TOKENS` tokens."""
    if case.shape.tokens <= CHECK_TOKENS:
        return case
    shape = dataclasses.replace(case.shape, images=1, tokens=CHECK_TOKENS)
    return dataclasses.replace(case, shape=shape)


def one_image(out: Result, index: int) -> Result:
    """A padded result with one of its images."""
    parts = {}
    for f in dataclasses.fields(out):
        value = getattr(out, f.name)
        if isinstance(value, Tensor):
            parts[f.name] = value[index : index + 1]
        elif dataclasses.is_dataclass(value):
            parts[f.name] = one_image(value, index)
    return dataclasses.replace(out, **parts)


def judged(case: Case) -> list[int]:
    """Numbers of the images that are judged."""
    return sorted({0, case.shape.images - 1})


def check_clusters(case: Case, out: sk.Clusters) -> None:
    """Of `cluster_tokens`: invariants, decisions, and values with the decisions replayed."""
    x = case.tokens()
    for b in judged(case):
        image, part = x[b : b + 1], one_image(out, b)
        testing.assert_invariants(image, part, case.config)
        testing.assert_valid_decisions(image, part, case.config)
        testing.assert_replayed_values(image, part, case.config)


def check_gradients(case: Case, result: tuple[sk.Clusters, tuple[Tensor, ...]]) -> None:
    """Of the masks' gradient: valid decisions, and at most twice plain PyTorch's error."""
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
            of_x, *others = replay(image[..., order].float())
            plain.append([of_x[..., order.argsort()], *others])
        # What the hyper-parameters get is summed over the images.
        alone = len(truth) if case.shape.images == 1 else 1
        for i in range(alone):
            got = grads[i][b : b + 1] if i == 0 else grads[i]
            measured = torch.stack([p[i] for p in plain])
            assert_error(f"gradient {i}", got, truth[i], measured, truth[i], 1)


def mask_gradient(case: Case) -> Tensor:
    """(B, C + 1, N) float32, the gradient of the masks that backward passes start from."""
    s, generator = case.shape, torch.Generator().manual_seed(1)
    grad = torch.randn(s.images, s.clusters + 1, s.tokens, generator=generator)
    return grad.to(case.device)


def check_peaks(case: Case, out: sk.DensityPeaks) -> None:
    """Of `dpc_knn`."""
    x, s = case.groups(), case.shape
    for b in judged(case):
        part = one_image(out, b)
        testing.assert_valid_density_peaks(x[b : b + 1], part, s.k, s.clusters)


def check_greedy(threshold: float):
    """A check of `threshold_greedy`."""

    def check(case: Case, out: sk.HardClusters) -> None:
        x = case.groups()
        for b in judged(case):
            part = one_image(out, b)
            testing.assert_valid_threshold_greedy(x[b : b + 1], part, threshold)

    return check


def check_neighbours(case: Case, knn: Tensor) -> None:
    """(B, N, K) nearest other tokens by ascending distance, within the rounding error bound."""
    x, s = case.tokens(), case.shape
    expected = (s.images, s.tokens, s.k)
    assert tuple(knn.shape) == expected, f"neighbours: {tuple(knn.shape)}, expected {expected}"
    wide = torch.finfo(torch.promote_types(s.dtype, torch.float32))
    for b in judged(case):
        features = x[b].double()
        everyone = torch.ones(s.tokens, dtype=torch.bool, device=x.device)
        position = torch.arange(s.tokens, device=x.device)
        image = Image(b, b, features, everyone, position, wide.eps / 2, wide.tiny)
        distance = squared_distance_bounds(features, image.roundoff, 0.0)
        found = image.compact("neighbours", knn[b].long())
        judge_neighbours(image, distance, found, include_self=False)


def check_product(case: Case, product: Tensor) -> None:
    """Of `torch.bmm(x, x.mT)`: some rows against float64, within the error of a dot product."""
    x = case.tokens()
    rows = slice(None, None, max(1, case.shape.tokens // 16))
    for b in judged(case):
        some, image = x[b, rows].double(), x[b].double()
        norms = some.norm(dim=-1)[:, None] * image.norm(dim=-1)
        steps = (case.shape.features + 1) * torch.finfo(torch.float32).eps
        rounding = torch.finfo(product.dtype).eps
        error = (product[b, rows].double() - some @ image.T).abs()
        assert (error <= (steps + rounding) * norms).all(), "product: beyond its rounding error"


def check_merged(case: Case, merged: Tensor, expected) -> None:
    """Merged or unmerged tokens against `expected(dtype)`, the reference's in a dtype."""
    truth, plain = expected(torch.float64), expected(case.shape.dtype)
    assert_error("tokens", merged, truth, plain, truth, 1)
