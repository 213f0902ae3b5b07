"""The reference against a brute-force oracle in loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import setok_kernels as sk
from helpers import oracle
from helpers.strategies import configs, exact_tokens, guides
from setok_kernels import testing

TOLERANCE = dict(rtol=1e-12, atol=1e-12)


def guide_of(guide, b, position):
    """Arguments of the oracle for one image of a batch."""
    importance, budget = guide["importance"], guide["budget"]
    return dict(
        importance=None if importance is None else importance[b, position].tolist(),
        budget=None if budget is None else int(budget[b]),
        exact=guide["exact_budget"],
    )


NO_GUIDE = dict(importance=None, budget=None, exact_budget=False)


def expected_clusters(x, config, mask, guide=NO_GUIDE):
    """The oracle's result for a padded batch, as `Clusters` in float64."""
    images, (batch, tokens) = [], mask.shape
    rows = config.max_clusters + 1
    knn = torch.full((batch, tokens, config.k), -1)
    parent, labels = torch.full((batch, tokens), -1), torch.full((batch, tokens), -1)
    seeds, counts = (
        torch.full((batch, config.max_clusters), -1),
        torch.zeros(batch, dtype=torch.int64),
    )
    masks = torch.zeros(batch, rows, tokens, dtype=torch.float64)
    density, delta, score = torch.zeros(3, batch, tokens, dtype=torch.float64)
    for b in range(batch):
        position = mask[b].nonzero()[:, 0]
        result = oracle.cluster(x[b, position].tolist(), config, **guide_of(guide, b, position))
        images.append(result)
        for i, p in enumerate(position.tolist()):
            for slot, j in enumerate(result["knn"][i]):
                knn[b, p, slot] = position[j]
            if result["parent"][i] >= 0:
                parent[b, p] = position[result["parent"][i]]
            labels[b, p] = result["labels"][i]
        fill(density[b], delta[b], score[b], masks[b], result, position)
        counts[b] = len(result["seeds"])
        for c, s in enumerate(result["seeds"]):
            seeds[b, c] = position[s]
    decisions = sk.Decisions(knn, parent, seeds, counts)
    return sk.Clusters(masks, counts, labels, density, delta, score, decisions)


def fill(density, delta, score, masks, result, position):
    for target, name in ((density, "density"), (delta, "delta"), (score, "score")):
        target[position] = torch.tensor(result[name], dtype=torch.float64)
    for c, row in enumerate(result["masks"]):
        masks[c, position] = torch.tensor(row, dtype=torch.float64)


@settings(max_examples=400)
@given(exact_tokens(), configs, st.data())
def test_reference_equals_oracle(x, config, data):
    batch, tokens, _ = x.shape
    mask = torch.tensor(
        [[data.draw(st.booleans()) if b else True for _ in range(tokens)] for b in range(batch)]
    )
    guide = data.draw(guides(mask.shape, config)) if data.draw(st.booleans()) else NO_GUIDE
    importance = guide["importance"]
    out = sk.cluster_tokens(
        x,
        config,
        num_clusters=guide["budget"],
        exact=guide["exact_budget"],
        importance=importance,
        token_mask=mask,
        backend="reference",
    )
    expected = expected_clusters(x, config, mask, guide)
    testing.assert_same_decisions(x, out, expected, mask, importance)
    for b in range(batch):
        if torch.equal(out.decisions.seeds[b], expected.decisions.seeds[b]):
            assert torch.equal(out.labels[b], expected.labels[b])
        else:
            # Parted at a tie that only rounding decides: compare what follows from its choice.
            position = mask[b].nonzero()[:, 0]
            seeds = out.decisions.seeds[b, : out.counts[b]]
            local = torch.searchsorted(position, seeds).tolist()
            given = guide_of(guide, b, position) | dict(forced_seeds=local)
            result = oracle.cluster(x[b, position].tolist(), config, **given)
            expected.masks[b] = 0
            fill(expected.density[b], expected.delta[b], expected.score[b], expected.masks[b],
                 result, position)  # fmt: skip
    for name in ("density", "delta", "score", "masks"):
        torch.testing.assert_close(getattr(out, name), getattr(expected, name), **TOLERANCE)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "epanechnikov"])
@pytest.mark.parametrize("alpha", ["sigmoid", "kernel"])
@pytest.mark.parametrize("norm", ["max", None])
@pytest.mark.parametrize("distance_scale", ["variance", "dim", 0.2])
def test_reference_equals_oracle_on_real_numbers(kernel, alpha, norm, distance_scale):
    config = sk.ClusterConfig(
        k=3,
        max_clusters=6,
        kernel=kernel,
        alpha=alpha,
        score_norm=norm,
        distance_scale=distance_scale,
    )
    x, _ = testing.planted_clusters(2, 14, 5, 3, seed=1, noise=0.4, dtype=torch.float64)
    out = sk.cluster_tokens(x, config, backend="reference")
    expected = expected_clusters(x, config, torch.ones(2, 14, dtype=torch.bool))
    testing.assert_same_decisions(x, out, expected)
    assert torch.equal(out.labels, expected.labels)
    for name in ("density", "delta", "score", "masks"):
        torch.testing.assert_close(getattr(out, name), getattr(expected, name), **TOLERANCE)


def test_oracle_by_hand():
    """Two pairs on a line, worked out on paper: keeps the oracle itself honest."""
    config = sk.ClusterConfig(
        k=1, max_clusters=2, distance_scale=1.0, score_norm=None, beta=0.0, temperature=1.0,
        offset=0.0, kernel="epanechnikov", bandwidth=4.0, stop_residual=0.0,
    )  # fmt: skip
    result = oracle.cluster([[0.0], [1.0], [10.0], [12.0]], config)
    assert result["knn"] == [[1], [0], [3], [2]]
    assert result["parent"] == [-1, 0, 1, 2]
    assert result["delta"] == [144, 1, 81, 4]
    assert result["seeds"] == [0, 2]
    assert result["density"][0] == pytest.approx(0.36787944117144233)
    assert result["density"][2] == pytest.approx(0.01831563888873418)
    first = [1 / (1 + 2.718281828459045**-p) for p in (1, 0.75, 0, 0)]
    assert result["masks"][0] == pytest.approx(first)
    # Token 2 keeps alpha 0.5 of a full scope from the first seed; the second gets 0.5 * 0.731.
    assert result["labels"] == [0, 0, 0, 0]
