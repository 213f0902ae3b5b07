"""Properties that every backend keeps on every input (DESIGN: invariants)."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import setok_kernels as sk
from helpers.clusterings import assert_bit_equal
from helpers.strategies import configs, exact_tokens, real_tokens
from setok_kernels import testing

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")


@given(exact_tokens(torch.float32), configs)
def test_equivalence_on_exact_input(backend, x, config):
    testing.check_backend(backend, x, config, exact=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=60)
@given(data=st.data(), config=configs)
def test_equivalence_on_real_input(backend, dtype, data, config):
    testing.check_backend(backend, data.draw(real_tokens(dtype)), config)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=4),
    dim=st.sampled_from([1, 3, 17]),
    seed=st.integers(0, 999),
    exact=st.booleans(),
    config=configs,
)
def test_equivalence_on_ragged_batches(backend, lengths, dim, seed, exact, config):
    packed, cu_seqlens, padded, mask = testing.ragged_batch(lengths, dim, seed, exact)
    testing.check_backend(backend, packed, config, cu_seqlens=cu_seqlens, exact=exact)
    testing.check_backend(backend, padded, config, token_mask=mask, exact=exact)


@given(real_tokens(), configs)
def test_scope_never_grows(backend, x, config):
    out = sk.cluster_tokens(x, config, backend=backend)
    scope = 1 - out.masks[:, :-1].double().cumsum(1)
    assert (scope.diff(dim=1) <= 0).all()


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4), seed=st.integers(0, 999),
    config=configs,
)  # fmt: skip
def test_packed_equals_padded_equals_loop(backend, lengths, seed, config):
    packed, cu_seqlens, padded, mask = testing.ragged_batch(lengths, 3, seed, exact=True)
    one = sk.cluster_tokens(packed, config, cu_seqlens=cu_seqlens, backend=backend)
    two = sk.cluster_tokens(padded, config, token_mask=mask, backend=backend)
    for name in ("labels", "density", "delta", "score"):
        assert torch.equal(getattr(one, name), getattr(two, name)[mask]), name
    assert torch.equal(one.masks.mT, two.masks.mT[mask])
    assert torch.equal(one.decisions.knn, two.decisions.knn[mask])
    assert torch.equal(one.decisions.parent, two.decisions.parent[mask])
    for b, (start, end) in enumerate(itertools.pairwise(cu_seqlens)):
        alone = sk.cluster_tokens(packed[None, start:end], config, backend=backend)
        assert torch.equal(alone.masks[0], one.masks[:, start:end])
        assert torch.equal(alone.decisions.knn[0], one.decisions.knn[start:end])
        for result in (one, two):
            assert torch.equal(alone.decisions.seeds[0], result.decisions.seeds[b])
            assert torch.equal(alone.counts[0], result.counts[b])


@given(exact_tokens(torch.float32), configs, st.randoms(use_true_random=False))
def test_permuting_tokens_permutes_the_result(backend, x, config, random):
    out = sk.cluster_tokens(x, config, backend=backend)
    # Equal tokens, densities or priorities are told apart by their index alone.
    distance = torch.cdist(x.double(), x.double()).square().round()
    distinct = all(
        row.unique().numel() == row.numel() for image in distance for row in image
    ) and all(s.unique().numel() == s.numel() for s in (*out.score, *out.density))
    if not distinct:
        return
    order = list(range(x.shape[1]))
    random.shuffle(order)
    order = torch.tensor(order)
    back = order.argsort()
    permuted = sk.cluster_tokens(x[:, order], config, backend=backend)
    for name in ("labels", "density", "delta", "score"):
        torch.testing.assert_close(
            getattr(permuted, name)[:, back], getattr(out, name), rtol=1e-5, atol=1e-6
        )
    torch.testing.assert_close(permuted.masks[:, :, back], out.masks, rtol=1e-4, atol=1e-5)
    seeds = permuted.decisions.seeds
    assert torch.equal(torch.where(seeds >= 0, order[seeds], -1), out.decisions.seeds)


@given(
    seed=st.integers(0, 9999), config=configs, scale=st.sampled_from([1e-30, 1e-3, 7.0, 1e15]),
    shift=st.sampled_from([0.0, 1.0, -30.0]), rotate=st.booleans(),
)  # fmt: skip
def test_similarity_transforms_change_nothing_under_variance(
    backend, seed, config, scale, shift, rotate
):
    config = dataclasses.replace(config, distance_scale="variance")
    x = testing.planted_clusters(2, 15, 4, 3, seed, 0.5, torch.float64)[0]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.eye(4, dtype=torch.float64)
    if rotate:
        rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    out = sk.cluster_tokens(x, config, backend=backend)
    moved = sk.cluster_tokens((x @ rotation + shift) * scale, config, backend=backend)
    for name in ("density", "delta", "score"):
        torch.testing.assert_close(getattr(moved, name), getattr(out, name), rtol=1e-8, atol=1e-9)
    assert torch.equal(moved.decisions.knn, out.decisions.knn)
    assert torch.equal(moved.decisions.parent, out.decisions.parent)
    assert torch.equal(moved.decisions.seeds, out.decisions.seeds)
    torch.testing.assert_close(moved.masks, out.masks, rtol=1e-6, atol=1e-8)


@given(real_tokens(), configs)
def test_scaling_by_a_power_of_two_changes_no_bit_under_variance(backend, x, config):
    config = dataclasses.replace(config, distance_scale="variance")
    out = sk.cluster_tokens(x, config, backend=backend)
    for factor in (2.0**-70, 2.0**90):
        assert_bit_equal(sk.cluster_tokens(x * factor, config, backend=backend), out)


@given(exact_tokens(torch.float32), configs, st.integers(1, 9))
def test_padding_changes_nothing(backend, x, config, extra):
    batch, tokens, dim = x.shape
    out = sk.cluster_tokens(x, config, backend=backend)
    padded = torch.cat([torch.full((batch, extra, dim), torch.nan), x], 1)
    mask = torch.arange(tokens + extra).expand(batch, -1) >= extra
    more = sk.cluster_tokens(padded, config, token_mask=mask, backend=backend)
    assert torch.equal(more.masks[:, :, extra:], out.masks)
    assert torch.equal(more.labels[:, extra:], out.labels)
    seeds = more.decisions.seeds
    assert torch.equal(torch.where(seeds >= 0, seeds - extra, -1), out.decisions.seeds)


@given(exact_tokens(torch.float32), configs)
def test_a_far_away_image_changes_nothing(backend, x, config):
    out = sk.cluster_tokens(x, config, backend=backend)
    more = sk.cluster_tokens(torch.cat([1e6 + 1e4 * x[:1], x]), config, backend=backend)
    assert torch.equal(more.masks[1:], out.masks)
    assert torch.equal(more.decisions.seeds[1:], out.decisions.seeds)


@given(real_tokens(), configs, st.integers(1, 5))
def test_more_clusters_extend_the_same_seeds(backend, x, config, more):
    out = sk.cluster_tokens(x, config, backend=backend)
    wider = dataclasses.replace(config, max_clusters=config.max_clusters + more)
    wide = sk.cluster_tokens(x, wider, backend=backend)
    kept = wide.decisions.seeds[:, : config.max_clusters]
    assert torch.equal(kept, out.decisions.seeds)
    live = out.decisions.seeds >= 0
    same = wide.masks[:, : config.max_clusters] == out.masks[:, :-1]
    assert same[live].all()


@given(real_tokens(), configs)
def test_identical_calls_are_bit_equal(backend, x, config):
    out = sk.cluster_tokens(x, config, backend=backend)
    for _ in range(4):
        assert_bit_equal(sk.cluster_tokens(x, config, backend=backend), out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@settings(max_examples=50)
@given(data=st.data(), config=configs)
def test_replay_is_bit_equal(backend, dtype, data, config):
    x = data.draw(real_tokens(dtype))
    out = sk.cluster_tokens(x, config, backend=backend)
    again = sk.cluster_tokens(x, config, decisions=out.decisions, backend=backend)
    assert_bit_equal(again, out)
    cu_seqlens = torch.tensor([0, x.shape[1] // 2, x.shape[1]], dtype=torch.int32)
    packed = sk.cluster_tokens(x[0], config, cu_seqlens=cu_seqlens, backend=backend)
    again = sk.cluster_tokens(
        x[0], config, cu_seqlens=cu_seqlens, decisions=packed.decisions, backend=backend
    )
    assert_bit_equal(again, packed)


def test_replay_follows_the_decisions_it_is_given(backend):
    x = testing.planted_clusters(1, 20, 6, 3, seed=3)[0]
    config = sk.ClusterConfig(max_clusters=4)
    out = sk.cluster_tokens(x, config, backend=backend)
    d = out.decisions
    other = int((out.labels[0] != 0).nonzero()[0])
    seeds = torch.tensor([[int(d.seeds[0, 0]), other, -1, -1]])
    forced = dataclasses.replace(d, seeds=seeds, counts=torch.tensor([2]))
    replay = sk.cluster_tokens(x, config, decisions=forced, backend=backend)
    assert replay.counts.tolist() == [2]
    assert replay.masks[0, 1, other] > 0.9
    assert (replay.masks[0, 3:] == 0).all() and (replay.masks[0, 2] > 0).any()
    # Fewer neighbours are honoured too: density of the nearest one alone.
    first = d.knn.clone()
    first[..., 1:] = -1
    replay = sk.cluster_tokens(
        x, config, decisions=dataclasses.replace(d, knn=first), backend=backend
    )
    assert (replay.density >= out.density).all() and (replay.density > out.density).any()


@pytest.mark.parametrize("packed", [False, True])
def test_replay_normalises_by_its_first_seed(backend, packed):
    x = testing.planted_clusters(1, 20, 6, 3, seed=3)[0]
    arguments = {}
    if packed:
        x = x[0]
        arguments["cu_seqlens"] = torch.tensor([0, 20], dtype=torch.int32)
    config = sk.ClusterConfig(max_clusters=4)
    out = sk.cluster_tokens(x, config, backend=backend, **arguments)
    assert out.decisions.seeds[0, 0] != 0
    forced = dataclasses.replace(
        out.decisions, seeds=torch.tensor([[0, -1, -1, -1]]), counts=torch.tensor([1])
    )
    replay = sk.cluster_tokens(x, config, decisions=forced, backend=backend, **arguments)
    assert replay.score.flatten()[0] == 1 and replay.score.max() > 1
    assert torch.equal(replay.decisions.seeds, forced.seeds) and replay.counts.item() == 1


def test_planted_clusters_are_found(backend):
    x, member = testing.planted_clusters(3, 60, 16, 4, seed=5)
    out = sk.cluster_tokens(x, backend=backend)
    assert out.counts.tolist() == [4, 4, 4]
    for b in range(3):
        pairs = {(int(p), int(q)) for p, q in zip(member[b], out.labels[b], strict=True)}
        assert len(pairs) == 4
