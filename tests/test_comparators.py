"""The comparators catch what they are there to catch, and pass what is right."""

import dataclasses
import re

import pytest
import torch

import setok_kernels as sk
from setok_kernels import testing

CONFIG = sk.ClusterConfig(k=3, max_clusters=6)


@pytest.fixture(scope="module")
def case():
    x = testing.planted_clusters(2, 24, 8, 3, seed=1, noise=0.3)[0]
    return x, sk.cluster_tokens(x, CONFIG, backend="reference")


def changed(out, name, index, value):
    """`out` with one element of a value or of a decision replaced."""
    if name in ("knn", "parent", "seeds"):
        tensor = getattr(out.decisions, name).clone()
        tensor[index] = value
        return dataclasses.replace(
            out, decisions=dataclasses.replace(out.decisions, **{name: tensor})
        )
    tensor = getattr(out, name).clone()
    tensor[index] = value
    return dataclasses.replace(out, **{name: tensor})


def with_counts(out, counts, seeds):
    decisions = dataclasses.replace(out.decisions, counts=torch.tensor(counts), seeds=seeds)
    return dataclasses.replace(out, decisions=decisions, counts=decisions.counts)


def fails(match):
    return pytest.raises(AssertionError, match=match)


def test_the_right_result_passes(case):
    x, out = case
    testing.assert_valid_decisions(x, out, CONFIG)
    testing.assert_same_decisions(x, out, out)
    testing.assert_replayed_values(x, out, CONFIG)
    testing.assert_invariants(x, out, CONFIG)


def farthest(x, i):
    return int((x - x[i]).square().sum(1).argmax())


def test_wrong_neighbour(case):
    x, out = case
    wrong = changed(out, "knn", (1, 4, 2), farthest(x[1], 4))
    with fails(r"image 1: a neighbour of token 4 is not among the nearest"):
        testing.assert_valid_decisions(x, wrong, CONFIG)
    with fails(r"knn\[1, 4, 2\]: got \d+, expected \d+"):
        testing.assert_same_decisions(x, wrong, out)


def test_next_nearest_neighbour_is_wrong_too(case):
    x, out = case
    order = (x[0] - x[0, 7]).square().sum(1).argsort()
    wrong = changed(out, "knn", (0, 7, 2), order[4])
    with fails(r"image 0: a neighbour of token 7 is not among the nearest"):
        testing.assert_valid_decisions(x, wrong, CONFIG)


def test_unsorted_repeated_missing_and_own_neighbour(case):
    x, out = case
    knn = out.decisions.knn[0, 3]
    for value, match in [
        (knn[[1, 0, 2]], r"neighbours of 3 do not ascend"),
        (knn[[0, 0, 1]], r"the same neighbour twice"),
        (torch.tensor([knn[0], knn[1], -1]), r"expected 3 neighbours first"),
        (torch.tensor([3, knn[0], knn[1]]), r"a token is its own neighbour"),
    ]:
        with fails(match):
            testing.assert_valid_decisions(x, changed(out, "knn", (0, 3), value), CONFIG)


def test_wrong_parent(case):
    x, out = case
    parent, density = out.decisions.parent[0], out.density[0]
    top = int((parent < 0).nonzero())
    i = int(density.argmin())
    for value, match in [
        (farthest(x[0], i), rf"parent of token {i} is not the nearest|not of higher order"),
        (-1, r"expected one top token \(parent -1\), got 2"),
        (i, rf"parent of token {i} is not of higher order"),
    ]:
        with fails(match):
            testing.assert_valid_decisions(x, changed(out, "parent", (0, i), value), CONFIG)
    swapped = changed(changed(out, "parent", (0, top), i), "parent", (0, i), -1)
    with fails(rf"top token {i} is not the densest"):
        testing.assert_valid_decisions(x, swapped, CONFIG)


def test_cycle_of_parents():
    x = torch.tensor([[[0.0], [1.0], [9.0]]])
    config = sk.ClusterConfig(k=1)
    out = sk.cluster_tokens(x, config)
    cycle = changed(out, "parent", (0,), torch.tensor([1, 0, -1]))
    with fails("top token 2 is not the densest"):
        testing.assert_valid_decisions(x, cycle, config)
    equal = torch.zeros(1, 3, 1)
    out = sk.cluster_tokens(equal, config)
    cycle = changed(out, "parent", (0,), torch.tensor([-1, 2, 1]))
    with fails("the parents form a cycle"):
        testing.assert_valid_decisions(equal, cycle, config)


def test_wrong_seed(case):
    x, out = case
    d = out.decisions
    wrong = changed(out, "seeds", (0, 1), d.knn[0, d.seeds[0, 1], 0])
    with fails(r"image 0: seed 1 \(token \d+\) has priority at most"):
        testing.assert_valid_decisions(x, wrong, CONFIG)
    with fails(r"image 0: seed 1 is \d+, expected \d+"):
        testing.assert_same_decisions(x, wrong, out)
    with fails(r"seed 1 .* was a seed before"):
        testing.assert_valid_decisions(x, changed(out, "seeds", (0, 1), d.seeds[0, 0]), CONFIG)


def test_wrong_stop(case):
    x, out = case
    counts, seeds = out.counts.tolist(), out.decisions.seeds
    early = seeds.clone()
    early[0, counts[0] - 1] = -1
    with fails(rf"image 0: stopped after {counts[0] - 1} seeds without a reason"):
        testing.assert_valid_decisions(
            x, with_counts(out, [counts[0] - 1, counts[1]], early), CONFIG
        )
    unused = next(i for i in range(24) if i not in seeds[1].tolist())
    x2 = x.clone()
    out2 = sk.cluster_tokens(x2, dataclasses.replace(CONFIG, stop_residual=0.5))
    n = int(out2.counts[1])
    assert n < 6
    late = out2.decisions.seeds.clone()
    full = sk.cluster_tokens(x2, dataclasses.replace(CONFIG, stop_residual=0.0)).decisions.seeds
    late[1, n] = full[1, n]
    with fails(r"image 1: continued after seed \d+"):
        testing.assert_valid_decisions(
            x2, with_counts(out2, [int(out2.counts[0]), n + 1], late),
            dataclasses.replace(CONFIG, stop_residual=0.5),
        )  # fmt: skip
    with fails(r"seeds after the first \d+ are not all -1"):
        testing.assert_valid_decisions(
            x, changed(with_counts(out, [1, counts[1]], seeds), "seeds", (0, 3), unused), CONFIG
        )


def test_min_mass(case):
    x, _ = case
    config = dataclasses.replace(CONFIG, min_mass=5.0, stop_residual=0.0)
    out = sk.cluster_tokens(x, config)
    free = sk.cluster_tokens(x, dataclasses.replace(config, min_mass=0.0))
    assert 0 < out.counts[0] < free.counts[0]
    testing.assert_valid_decisions(x, out, config)
    with fails(r"has less than min_mass"):
        testing.assert_valid_decisions(x, free, config)


def test_off_by_one_tie():
    x = testing.duplicate_tokens(1, 12, 3, distinct=3)
    out = sk.cluster_tokens(x, CONFIG)
    seed = int(out.decisions.seeds[0, 0])
    twin = next(i for i in range(12) if i != seed and torch.equal(x[0, i], x[0, seed]))
    wrong = changed(out, "seeds", (0, 0), twin)
    with fails(rf"seed 0 is {twin}, expected {seed}"):
        testing.assert_same_decisions(x, wrong, out)
    i = int((out.decisions.knn[0, :, 0] >= 0).nonzero()[0])
    same = [j for j in range(12) if j != i and torch.equal(x[0, i], x[0, j])]
    wrong = changed(out, "knn", (0, i, slice(0, 2)), torch.tensor([same[1], same[0]]))
    with fails(rf"knn\[0, {i}, 0\]: got {same[1]}, expected {same[0]}"):
        testing.assert_same_decisions(x, wrong, out)


def test_ties_that_only_rounding_decides_are_exempt():
    """Three one-hot classes, each seeded once: their scopes are one product in three orders."""
    x = torch.eye(3, dtype=torch.float32).repeat(3, 1)[None]
    config = sk.ClusterConfig(k=2, max_clusters=6, stop_residual=0.0, include_self=True)
    out = sk.cluster_tokens(x, config)
    first = out.decisions.seeds[0, :3].tolist()
    assert sorted(first) == [0, 1, 2]
    used = int(out.decisions.seeds[0, 3])
    other = next(i for i in range(3, 9) if i % 3 != used % 3)
    parted = changed(out, "seeds", (0, 3), other)
    testing.assert_same_decisions(x, parted, out)
    twin = next(i for i in range(3, 9) if i != used and i % 3 == used % 3)
    with fails(rf"seed 3 is {twin}"):
        testing.assert_same_decisions(x, changed(out, "seeds", (0, 3), twin), out)


@pytest.mark.parametrize("name", ["density", "delta", "score", "masks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_per_cent_error(case, name, dtype):
    x = case[0].to(dtype)
    out = sk.cluster_tokens(x, CONFIG)
    value = getattr(out, name)
    where = tuple(torch.unravel_index(value.argmax(), value.shape))
    testing.assert_replayed_values(x, out, CONFIG)
    with fails(rf"{name}: error .*, allowed"):
        testing.assert_replayed_values(x, changed(out, name, where, value[where] * 0.99), CONFIG)


def test_small_float64_error(case):
    x = case[0].double()
    out = sk.cluster_tokens(x, CONFIG)
    with fails("density: error"):
        testing.assert_replayed_values(
            x, dataclasses.replace(out, density=out.density * (1 + 1e-12)), CONFIG
        )


def test_invariants(case):
    x, out = case
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[0, 5] = False
    rows = int(out.counts[0])
    broken = [
        (changed(out, "masks", (0, 0, 0), 1.5), r"masks: above 1"),
        (changed(out, "masks", (0, 0, 0), -0.1), r"masks: negative"),
        (changed(out, "masks", (0, 0, 0), 0.0), r"masks: rows do not sum to 1|labels"),
        (changed(out, "masks", (0, 0, 0), torch.nan), r"masks: not finite"),
        (changed(out, "density", (0, 0), 1.1), r"density: above 1"),
        (changed(out, "labels", (0, 0), 5), r"labels: not the largest mask"),
        (dataclasses.replace(out, delta=out.delta.double()), r"delta: dtype"),
        (dataclasses.replace(out, score=out.score[:, :5]), r"score: shape"),
        (dataclasses.replace(out, masks=out.masks[:, :5]), r"masks: shape"),
    ]
    for wrong, match in broken:
        with fails(match):
            testing.assert_invariants(x, wrong, CONFIG)
    masks = out.masks.clone()
    masks[0, rows], masks[0, rows + 1] = 0, out.masks[0, rows]
    if rows + 1 <= CONFIG.max_clusters:
        with fails(r"masks: not 0 beyond the residual"):
            testing.assert_invariants(x, dataclasses.replace(out, masks=masks), CONFIG)
    with fails(r"density: not 0 on an excluded token"):
        testing.assert_invariants(x, out, CONFIG, mask)
    masked = sk.cluster_tokens(x, CONFIG, token_mask=mask)
    with fails(r"labels: not -1 on a masked token"):
        testing.assert_invariants(x, changed(masked, "labels", (0, 5), 0), CONFIG, mask)
    with fails(r"masks: not 0 on a masked token"):
        testing.assert_invariants(x, changed(masked, "masks", (0, 0, 5), 0.5), CONFIG, mask)
    nan = x.clone()
    nan[0, 3] = torch.nan
    out = sk.cluster_tokens(nan, CONFIG)
    moved = out.masks.clone()
    moved[0, 0, 3], moved[0, out.counts[0], 3] = 1, 0
    with fails(r"masks: a non-finite token is not all residual"):
        testing.assert_invariants(nan, dataclasses.replace(out, masks=moved), CONFIG)


def test_decisions_on_masked_tokens(case):
    x, _ = case
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[0, 5] = False
    out = sk.cluster_tokens(x, CONFIG, token_mask=mask)
    testing.assert_valid_decisions(x, out, CONFIG, mask)
    for name, index, value, match in [
        ("knn", (0, 5, 0), 1, "an excluded token has neighbours"),
        ("parent", (0, 5), 1, "an excluded token has a parent"),
        ("knn", (0, 4, 2), 5, "knn has an excluded token"),
        ("seeds", (0, 0), 5, "seeds has an excluded token"),
        ("seeds", (0, 0), -1, "a seed below counts is -1"),
    ]:
        with fails(match):
            testing.assert_valid_decisions(x, changed(out, name, index, value), CONFIG, mask)
    with fails(re.escape("knn is torch.int32, expected int64")):
        narrow = dataclasses.replace(out.decisions, knn=out.decisions.knn.int())
        testing.assert_valid_decisions(x, dataclasses.replace(out, decisions=narrow), CONFIG, mask)
    nothing = torch.zeros(2, 24, dtype=torch.bool)
    empty = sk.cluster_tokens(x, CONFIG, token_mask=nothing)
    with fails(r"counts is 1 without tokens"):
        seeds = empty.decisions.seeds.clone()
        seeds[0, 0] = 0
        testing.assert_valid_decisions(x, with_counts(empty, [1, 0], seeds), CONFIG, nothing)
    with fails(r"counts is 9"):
        testing.assert_valid_decisions(
            x, with_counts(out, [9, 0], out.decisions.seeds), CONFIG, mask
        )


def test_shape_and_count_differences(case):
    x, out = case
    fewer = dataclasses.replace(out.decisions, knn=out.decisions.knn[..., :2])
    with fails(r"knn: got \(2, 24, 2\) torch.int64, expected \(2, 24, 3\)"):
        testing.assert_same_decisions(x, dataclasses.replace(out, decisions=fewer), out)
    recounted = with_counts(out, [1, 1], out.decisions.seeds)
    with fails(r"counts\[\]: got 1, expected"):
        testing.assert_same_decisions(x, recounted, out)
    shorter = out.decisions.seeds.clone()
    shorter[0, out.counts[0] - 1] = -1
    stopped = with_counts(out, [int(out.counts[0]) - 1, int(out.counts[1])], shorter)
    with fails(r"image 0: seed \d+ is -1, expected \d+"):
        testing.assert_same_decisions(x, stopped, out)


def test_wrong_gradient_is_caught(case, monkeypatch):
    """A backend whose backward pass is off by 1 % must not pass."""
    x, _ = case
    from setok_kernels import dispatch, reference

    class Off:
        """The reference with the gradient of the masks scaled."""

        @staticmethod
        def cluster(*arguments):
            out = reference.cluster(*arguments)
            masks = out.masks + 0.01 * (out.masks - out.masks.detach())
            return dataclasses.replace(out, masks=masks)

    monkeypatch.setitem(
        dispatch._BACKENDS, "off", dispatch._Backend(dispatch.can_run_reference, lambda device: Off)
    )
    testing.assert_replayed_gradients(x, CONFIG, "reference")
    testing.assert_replayed_values(x, sk.cluster_tokens(x, CONFIG, backend="off"), CONFIG)
    with fails("gradient of x: error"):
        testing.assert_replayed_gradients(x, CONFIG, "off")


def test_check_backend_catches_a_backend_that_breaks_ties(monkeypatch):
    from setok_kernels import dispatch, reference

    class LastWins:
        """The reference on reversed tokens: right but for its ties."""

        @staticmethod
        def cluster(x, valid, cu_seqlens, max_seqlen, config, decisions, *guide):
            if decisions is not None:
                return reference.cluster(x, valid, cu_seqlens, max_seqlen, config, decisions)
            flip = reference.cluster(x.flip(1), None, None, None, config, None).decisions
            last = x.shape[1] - 1
            turned = {
                n: torch.where(getattr(flip, n) >= 0, last - getattr(flip, n), -1)
                for n in ("knn", "parent", "seeds")
            }
            turned["knn"], turned["parent"] = turned["knn"].flip(1), turned["parent"].flip(1)
            d = sk.Decisions(**turned, counts=flip.counts)
            return reference.cluster(x, valid, cu_seqlens, max_seqlen, config, d)

    monkeypatch.setitem(
        dispatch._BACKENDS,
        "last",
        dispatch._Backend(dispatch.can_run_reference, lambda device: LastWins),
    )
    exact = testing.duplicate_tokens(2, 20, 3)
    real = testing.planted_clusters(2, 20, 8, 3, noise=0.3)[0]
    testing.check_backend("last", real, CONFIG)
    testing.check_backend("last", exact, CONFIG)
    with fails("knn"):
        testing.check_backend("last", exact, CONFIG, exact=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_generators(dtype):
    for x in (
        testing.integer_tokens(2, 9, 4, seed=3, dtype=dtype),
        testing.duplicate_tokens(2, 9, 4, seed=3, distinct=2, dtype=dtype),
        testing.one_hot_tokens(2, 9, 4, seed=3, dtype=dtype),
        testing.planted_clusters(2, 9, 4, 3, seed=3, dtype=dtype)[0],
        testing.vit_like_tokens(2, 9, 4, seed=3, dtype=dtype),
    ):
        assert x.shape == (2, 9, 4) and x.dtype == dtype and x.isfinite().all()
    assert testing.duplicate_tokens(1, 30, 4, distinct=2)[0].unique(dim=0).shape[0] == 2
    assert testing.integer_tokens(1, 200, 4, high=2).unique().tolist() == [-2, -1, 0, 1, 2]
    a, b = (testing.planted_clusters(1, 9, 4, 3, seed=s)[0] for s in (0, 1))
    assert not torch.equal(a, b)
    size = testing.vit_like_tokens(1, 50, 16).abs().mean((0, 1)).sort().values
    assert size[-2] > 20 * size[-3], "two channels dominate"
    packed, cu_seqlens, padded, mask = testing.ragged_batch([3, 0, 2], 4, dtype=dtype)
    assert packed.shape == (5, 4) and cu_seqlens.tolist() == [0, 3, 3, 5]
    assert torch.equal(padded[mask], packed) and mask.sum(1).tolist() == [3, 0, 2]


def guided(**guide):
    """A clustering with importance and budgets, and what the comparators take for it."""
    x = testing.planted_clusters(2, 30, 8, 4, noise=0.4)[0]
    weight = torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    guide = dict(importance=weight, budget=torch.tensor([3, 5]), exact_budget=True) | guide
    out = testing.check_backend("reference", x, GUIDED, **guide)
    return x, out, guide


GUIDED = sk.ClusterConfig(max_clusters=6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(importance=None), "priority at most|score|seed"),
        (dict(budget=torch.tensor([2, 5])), "counts is 3, expected at most 2"),
        (dict(budget=torch.tensor([3, 6])), "stopped after 5 seeds, expected 6"),
        (dict(budget=None), "stopped after 3 seeds, expected 6"),
    ],
)
def test_decisions_of_another_guide_are_caught(change, message):
    x, out, guide = guided()
    with fails(message):
        testing.assert_valid_decisions(x, out, GUIDED, **(guide | change))


def test_wrong_weights_and_labels_are_caught():
    x, out, guide = guided()
    other = guide["importance"] * torch.where(torch.arange(30) == 4, 1.05, 1)
    with fails("score: error|masks: error"):
        testing.assert_replayed_values(x, out, GUIDED, importance=other)
    with fails("labels: not the largest mask"):
        testing.assert_invariants(x, out, GUIDED)
    wrong = out.labels.clone()
    wrong[0, out.decisions.seeds[0, 1]] = 0
    with fails("labels: not the largest mask"):
        testing.assert_invariants(
            x, dataclasses.replace(out, labels=wrong), GUIDED, exact_budget=True
        )


def test_a_wrong_gradient_of_importance_is_caught(monkeypatch):
    from setok_kernels import dispatch, reference

    class Off:
        """The reference with the gradient of the importance off by 1 %."""

        @staticmethod
        def cluster(*arguments):
            *before, importance, budget, exact = arguments
            importance = importance + 0.01 * (importance - importance.detach())
            return reference.cluster(*before, importance, budget, exact)

    monkeypatch.setitem(
        dispatch._BACKENDS, "off", dispatch._Backend(dispatch.can_run_reference, lambda device: Off)
    )
    x, _, guide = guided()
    testing.assert_replayed_gradients(x, GUIDED, "reference", importance=guide["importance"])
    with fails("gradient of importance: error"):
        testing.assert_replayed_gradients(x, GUIDED, "off", importance=guide["importance"])
