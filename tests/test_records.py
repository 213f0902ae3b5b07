"""Results that somebody built, cropped or cast are read as they are, or refused by name."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import setok_kernels as sk
from setok_kernels import testing

LABELS = torch.tensor([[0, 0, 1, -1, 1], [2, 2, 2, 2, 0]])
COUNTS = torch.tensor([2, 3])
CENTRES = torch.tensor([[0, 2, -1], [4, 1, 0]])
X = torch.arange(20.0).reshape(2, 5, 2)
HARD = sk.HardClusters(labels=LABELS, centres=CENTRES, counts=COUNTS)
PACKED = sk.HardClusters(
    labels=LABELS.flatten(),
    centres=CENTRES,
    counts=COUNTS,
    cu_seqlens=torch.tensor([0, 5, 10], dtype=torch.int32),
    max_seqlen=5,
)


@pytest.mark.parametrize("out", [HARD, PACKED], ids=["padded", "packed"])
def test_int32_labels_are_those_of_int64(out, backend):
    """scikit-learn's labels are int32."""
    x = X.reshape(*out.labels.shape, 2)
    narrow = dataclasses.replace(
        out, labels=out.labels.int(), centres=out.centres.int(), counts=out.counts.int()
    )
    merged = sk.merge_tokens(x, narrow, backend=backend)
    assert merged[0, 1].tolist() == [6.0, 7.0] and merged[1, 0].tolist() == [18.0, 19.0]
    assert torch.equal(merged, sk.merge_tokens(x, out, backend=backend))
    spread = sk.unmerge_tokens(merged, narrow, backend=backend)
    assert torch.equal(spread, sk.unmerge_tokens(merged, out, backend=backend))
    assert narrow.sizes().tolist() == [[2, 2, 0], [1, 0, 4]] and narrow.sizes().dtype == torch.int64
    a, b = narrow.pack(merged), out.pack(merged)
    for field in dataclasses.fields(a):
        value, expected = getattr(a, field.name), getattr(b, field.name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, expected) and value.dtype == expected.dtype, field.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packed", [False, True])
def test_masks_of_16_bits_are_widened(backend, dtype, packed):
    """A bf16 policy of sharded training casts the tensors in dataclass arguments."""
    x, layout = testing.planted_clusters(2, 12, 6, 3)[0], {}
    if packed:
        layout = dict(cu_seqlens=torch.tensor([0, 12, 24]))
        x = x.flatten(0, 1)
    config = sk.ClusterConfig(max_clusters=4)
    out = sk.cluster_tokens(x, config, **layout, backend="reference")
    masks = out.masks.to(dtype)
    narrow = dataclasses.replace(out, masks=masks.clone().requires_grad_())
    wide = dataclasses.replace(out, masks=masks.float().requires_grad_())
    tokens, grads = [], []
    for record in (narrow, wide):
        merged = sk.merge_tokens(x, record, "soft", backend=backend)
        spread = sk.unmerge_tokens(merged.detach(), record, "soft", backend=backend)
        tokens.append((merged, spread))
        grads.append([torch.autograd.grad(t.square().sum(), record.masks)[0] for t in tokens[-1]])
    for got, expected in zip(*tokens, strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, expected)
    for got, expected in zip(*grads, strict=True):
        assert got.dtype == dtype and torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize("out", [HARD, PACKED], ids=["padded", "packed"])
@pytest.mark.parametrize("label", [3, -2, 2**40, -(2**63)])
def test_a_label_of_no_row_is_refused(out, label, backend):
    x = X.reshape(*out.labels.shape, 2)
    labels = out.labels.clone()
    labels.view(-1)[7] = label
    out = dataclasses.replace(out, labels=labels)
    match = rf"^labels: expected values from -1 to 2, got {label}$"
    for call in (
        lambda: sk.merge_tokens(x, out, backend=backend),
        lambda: sk.unmerge_tokens(torch.zeros(2, 3, 2), out, backend=backend),
        out.sizes,
        out.occupied,
        lambda: out.pack(torch.zeros(2, 3, 2)),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_a_label_of_no_row_counts_in_none_where_it_cannot_be_read():
    """Neither a device nor a traced graph waits for it."""
    labels = LABELS.clone()
    labels[0, 0] = 3
    out = dataclasses.replace(HARD, labels=labels)
    compiled = torch.compile(lambda out: out.sizes(), backend="eager", fullgraph=True)
    assert compiled(out).tolist() == [[1, 2, 0], [1, 0, 4]]


@pytest.mark.parametrize("weight", [-1.0, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_weight_that_is_none_is_refused(mode, weight, backend):
    out = sk.cluster_tokens(X, sk.ClusterConfig(k=2, max_clusters=4), backend="reference")
    out = dataclasses.replace(out, labels=torch.where(LABELS < 0, -1, out.labels))
    weights = torch.ones(2, 5)
    weights[LABELS < 0] = weight
    expected = sk.merge_tokens(X, out, mode, torch.ones(2, 5), backend=backend)
    if mode == "hard":
        # Nobody reads the weight of a token without a label.
        assert torch.equal(sk.merge_tokens(X, out, mode, weights, backend=backend), expected)
    weights[1, 2] = weight
    match = f"^weights: expected finite values of at least 0, got {weight:g}$"
    with pytest.raises(ValueError, match=match):
        sk.merge_tokens(X, out, mode, weights, backend=backend)


@pytest.mark.parametrize("fewer", [0, 1, 3])
@pytest.mark.parametrize("score_norm", ["max", None])
def test_lowered_counts_cut_the_seeds_short(backend, fewer, score_norm):
    """The masks are those of a clustering that had to stop there, so they sum to 1."""
    x = testing.vit_like_tokens(2, 20, 8, seed=3)
    config = sk.ClusterConfig(max_clusters=6, stop_residual=0.0, score_norm=score_norm)
    decisions = sk.cluster_tokens(x, config, backend=backend).decisions
    assert decisions.counts.tolist() == [6, 6]
    cut = dataclasses.replace(decisions, counts=torch.full((2,), fewer))
    out = sk.cluster_tokens(x, config, decisions=cut, backend=backend)
    testing.assert_invariants(x, out, config)
    torch.testing.assert_close(out.masks.sum(1), torch.ones(2, 20))
    assert (out.centres[:, fewer:] == -1).all()
    assert torch.equal(out.centres[:, :fewer], decisions.seeds[:, :fewer])
    if fewer:
        short = dataclasses.replace(config, max_clusters=fewer)
        expected = sk.cluster_tokens(x, short, backend=backend)
        torch.testing.assert_close(out.masks[:, : fewer + 1], expected.masks)
        assert torch.equal(out.labels, expected.labels)
    testing.assert_replayed_values(x, out, config)


@pytest.mark.parametrize("alpha", ["sigmoid", "kernel"])
def test_gradients_of_lowered_counts(backend, alpha):
    x = testing.planted_clusters(2, 20, 5, 3, noise=0.3)[0]
    config = sk.ClusterConfig(max_clusters=6, stop_residual=0.0, alpha=alpha)
    decisions = sk.cluster_tokens(x, config, backend="reference").decisions
    cut = dataclasses.replace(decisions, counts=torch.tensor([2, 4]))
    weight = torch.randn(2, 7, 20, generator=torch.Generator().manual_seed(0))

    def gradient(x, backend):
        x = x.detach().requires_grad_()
        out = sk.cluster_tokens(x, config, decisions=cut, backend=backend)
        return torch.autograd.grad((out.masks * weight).sum(), x)[0]

    expected = gradient(x.double(), "reference").float()
    torch.testing.assert_close(gradient(x, backend), expected, rtol=1e-4, atol=1e-5)


def test_what_is_not_wanted_may_not_fit():
    """A result without decisions still merges; only `pack` reads them."""
    out = sk.cluster_tokens(X, sk.ClusterConfig(k=2, max_clusters=4))
    alone = dataclasses.replace(out, decisions=None)
    merged = sk.merge_tokens(X, alone, "soft")
    assert torch.equal(merged, sk.merge_tokens(X, out, "soft"))
    with pytest.raises(
        TypeError, match=r"^decisions.seeds: expected a torch.Tensor, got NoneType$"
    ):
        alone.pack(merged)


def test_fake_tensors_have_no_value():
    config = sk.ClusterConfig(beta=torch.tensor(1.0))
    shapes = sk.merge_tokens(X, sk.cluster_tokens(X, config=config, backend="reference")).shape
    with FakeTensorMode() as fake:
        x = fake.from_tensor(X)
        config = sk.ClusterConfig(beta=torch.tensor(1.0))
        merged = sk.merge_tokens(x, sk.cluster_tokens(x, config=config, backend="reference"))
    assert merged.shape[0] == shapes[0] and merged.shape[2] == shapes[2]


def test_vmap_reads_no_value():
    weights = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))

    def merge(weights):
        return sk.merge_tokens(X, HARD, weights=weights, backend="reference")

    expected = torch.stack([merge(w) for w in weights])
    torch.testing.assert_close(torch.func.vmap(merge)(weights), expected)
    slopes = torch.func.vmap(torch.func.jacrev(merge))(weights)
    assert slopes.shape == (3, 2, 3, 2, 2, 5)


def test_what_grad_follows_is_read():
    def merge(weights):
        return sk.merge_tokens(X, HARD, weights=weights, backend="reference").sum()

    with pytest.raises(ValueError, match=r"^weights: expected finite values of at least 0, got -1"):
        torch.func.grad(merge)(-torch.ones(2, 5))
