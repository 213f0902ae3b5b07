"""Bad input names the argument, what was expected and what came."""

import dataclasses

import pytest
import torch

import setok_kernels as sk
from setok_kernels import compat

X = torch.zeros(2, 5, 3)
CU = torch.tensor([0, 2, 5], dtype=torch.int32)


def raises(error, match):
    return pytest.raises(error, match=match)


@pytest.mark.parametrize(
    "field, value, error, match",
    [
        ("k", 0, ValueError, r"k: expected at least 1, got 0"),
        ("k", 2.0, TypeError, r"k: expected an int, got 2.0"),
        ("k", True, TypeError, r"k: expected an int, got True"),
        ("max_clusters", 0, ValueError, r"max_clusters: expected at least 1, got 0"),
        ("kernel", "box", ValueError, r"kernel: expected one of gaussian, laplacian, epanechnikov"),
        ("alpha", "relu", ValueError, r"alpha: expected one of sigmoid, kernel, got 'relu'"),
        ("score_norm", "sum", ValueError, r"score_norm: expected one of max, None, got 'sum'"),
        (
            "distance_scale",
            "std",
            ValueError,
            r"distance_scale: expected one of variance, dim, a nu",
        ),
        ("distance_scale", 0, ValueError, r"distance_scale: expected more than 0, got 0"),
        ("distance_scale", None, TypeError, r"distance_scale: expected a real number, got None"),
        ("distinct_seeds", 1, TypeError, r"distinct_seeds: expected a bool, got 1"),
        ("include_self", "no", TypeError, r"include_self: expected a bool, got 'no'"),
        ("stop_residual", -0.1, ValueError, r"stop_residual: expected at least 0, got -0.1"),
        ("stop_residual", 1.5, ValueError, r"stop_residual: expected at most 1, got 1.5"),
        ("min_mass", -1, ValueError, r"min_mass: expected at least 0, got -1"),
        ("min_mass", float("inf"), ValueError, r"min_mass: expected a finite number, got inf"),
        ("bandwidth", 0.0, ValueError, r"bandwidth: expected more than 0, got 0.0"),
        ("bandwidth", -1, ValueError, r"bandwidth: expected more than 0, got -1"),
        ("temperature", 0, ValueError, r"temperature: expected more than 0, got 0"),
        (
            "temperature",
            torch.tensor(-2.0),
            ValueError,
            r"temperature: expected more than 0, got -2",
        ),
        ("bandwidth", torch.ones(2), ValueError, r"bandwidth: .*0-dim .*got shape \(2,\)"),
        ("beta", torch.tensor(1), ValueError, r"beta: .*floating-point tensor, got .*int64"),
        ("beta", float("nan"), ValueError, r"beta: expected a finite number, got nan"),
        ("offset", "half", TypeError, r"offset: expected a real number, got 'half'"),
    ],
)
def test_config(field, value, error, match):
    with raises(error, match):
        sk.ClusterConfig(**{field: value})
    with raises(error, match):
        sk.ClusterConfig.paper(**{field: value})


def test_config_boundaries_are_allowed():
    sk.ClusterConfig(k=1, max_clusters=1, stop_residual=0, min_mass=0)
    sk.ClusterConfig(stop_residual=1, beta=-3, offset=-1, distance_scale=1e-9, score_norm=None)


@pytest.mark.parametrize(
    "x, arguments, error, match",
    [
        ([[1.0]], {}, TypeError, r"x: expected a torch.Tensor, got list"),
        (X.long(), {}, TypeError, r"x: expected dtype float64, .* got torch.int64"),
        (X[0], {}, ValueError, r"x: expected shape \(B, N, D\), .* got \(5, 3\)"),
        (X[None, None, None], {}, ValueError, r"x: .* or \(B, T, H, W, D\), got \(1, 1, 1, 2, 5, 3\)"),
        (X[..., :0], {}, ValueError, r"x: expected at least 1 feature, got shape \(2, 5, 0\)"),
        (X, dict(config=3), TypeError, r"config: expected a ClusterConfig, got int"),
        (X, dict(token_mask=[True]), TypeError, r"token_mask: expected a torch.Tensor, got list"),
        (X, dict(token_mask=torch.ones(2, 5)), TypeError, r"token_mask: expected dtype torch.bool"),
        (X, dict(token_mask=torch.ones(2, 4, dtype=torch.bool)), ValueError,
         r"token_mask: expected shape \(2, 5\), got \(2, 4\)"),
        (X, dict(token_mask=torch.ones(2, 5, dtype=torch.bool, device="meta")), ValueError,
         r"token_mask: expected device cpu like x, got meta"),
        (X, dict(max_seqlen=5), ValueError, r"max_seqlen: expected None without cu_seqlens, got 5"),
        (X, dict(cu_seqlens=CU), ValueError, r"x: expected shape \(T, D\) with cu_seqlens, got"),
        (X[0], dict(cu_seqlens=CU, token_mask=torch.ones(5, dtype=torch.bool)), ValueError,
         r"token_mask: expected None with cu_seqlens"),
        (X[0], dict(cu_seqlens=[0, 5]), TypeError, r"cu_seqlens: expected a torch.Tensor, got list"),
        (X[0], dict(cu_seqlens=CU.float()), TypeError, r"cu_seqlens: expected dtype torch.int32"),
        (X[0], dict(cu_seqlens=CU[None]), ValueError, r"cu_seqlens: expected shape \(B \+ 1,\)"),
        (X[0], dict(cu_seqlens=CU[:0]), ValueError, r"cu_seqlens: expected shape \(B \+ 1,\), got \(0,"),
        (X[0], dict(cu_seqlens=CU + 1), ValueError, r"cu_seqlens: .*from 0 to 5, got \[1, 3, 6\]"),
        (X[0], dict(cu_seqlens=CU[:2]), ValueError, r"cu_seqlens: .*from 0 to 5, got \[0, 2\]"),
        (X[0], dict(cu_seqlens=torch.tensor([0, 4, 2, 5])), ValueError, r"cu_seqlens: .*non-decreasing"),
        (X[0], dict(cu_seqlens=CU.to("meta")), ValueError, r"cu_seqlens: expected device cpu like x"),
        (X[0].to("meta"), dict(cu_seqlens=CU.to("meta")), ValueError,
         r"max_seqlen: expected the longest .* wait for the device"),
        (X[0], dict(cu_seqlens=CU, max_seqlen=2), ValueError, r"max_seqlen: expected at least 3, got 2"),
        (X[0], dict(cu_seqlens=CU, max_seqlen=-1), ValueError, r"max_seqlen: expected an int .* got -1"),
        (X[0], dict(cu_seqlens=CU, max_seqlen=3.0), ValueError, r"max_seqlen: expected an int .*got 3.0"),
        (X, dict(backend="numpy"), ValueError, r"backend: expected one of auto, .*reference.*, got 'numpy'"),
        (X, dict(decisions=(1, 2)), TypeError, r"decisions: expected a Decisions, got tuple"),
    ],
)  # fmt: skip
def test_cluster_tokens(x, arguments, error, match):
    with raises(error, match):
        sk.cluster_tokens(x, **arguments)


def decisions(**changes):
    good = sk.cluster_tokens(X, sk.ClusterConfig(k=2, max_clusters=4)).decisions
    return dataclasses.replace(good, **changes)


@pytest.mark.parametrize(
    "changes, error, match",
    [
        (dict(knn=torch.zeros(2, 5, 3).long()), ValueError,
         r"decisions.knn: expected shape \(2, 5, 2\), got \(2, 5, 3\)"),
        (dict(parent=torch.zeros(2, 5)), TypeError, r"decisions.parent: expected dtype torch.int64"),
        (dict(parent=None), TypeError, r"decisions.parent: expected a torch.Tensor, got NoneType"),
        (dict(seeds=torch.full((2, 4), 5)), ValueError, r"decisions.seeds: expected values from -1 to 4"),
        (dict(knn=torch.full((2, 5, 2), -2)), ValueError, r"decisions.knn: expected values from -1 to 4"),
        (dict(counts=torch.tensor([0, 5])), ValueError, r"decisions.counts: expected values from 0 to 4"),
        (dict(counts=torch.tensor([0, -1])), ValueError, r"decisions.counts: expected values from 0 to"),
        (dict(counts=torch.zeros(2, dtype=torch.int64, device="meta")), ValueError,
         r"decisions.counts: expected device cpu"),
    ],
)  # fmt: skip
def test_decisions(changes, error, match):
    with raises(error, match):
        sk.cluster_tokens(X, sk.ClusterConfig(k=2, max_clusters=4), decisions=decisions(**changes))


def test_decisions_of_another_config():
    with raises(ValueError, r"decisions.knn: expected shape \(2, 5, 3\), got \(2, 5, 2\)"):
        sk.cluster_tokens(X, sk.ClusterConfig(k=3, max_clusters=4), decisions=decisions())


def test_check_finite():
    x = X.clone()
    x[1, 3, 0] = torch.inf
    x[1, 4, 0] = torch.nan
    with raises(ValueError, r"x: .*non-finite one in image 1, token 3 \(2 such tokens in all\)"):
        sk.cluster_tokens(x, check_finite=True)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    sk.cluster_tokens(x, token_mask=mask, check_finite=True)
    cu = torch.tensor([0, 1, 5], dtype=torch.int32)
    with raises(ValueError, r"x: .*image 1, token 2 \(2 such"):
        sk.cluster_tokens(x[1], cu_seqlens=cu, check_finite=True)
    sk.cluster_tokens(X, check_finite=True)


@pytest.mark.parametrize("name", [n for n, reason in sk.backends().items() if reason is not None])
def test_a_backend_that_cannot_run_says_why(name, monkeypatch):
    # Interpreted, Triton would take these tensors.
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with raises(RuntimeError, rf"backend='{name}' cannot run: .*; .*(use|run) "):
        sk.cluster_tokens(X, backend=name)
    assert sk.backends()[name].startswith(f"backend='{name}' cannot run: ")


GRID = sk.cluster_tokens(X.reshape(2, 5, 1, 3), sk.ClusterConfig(max_clusters=4))


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        (
            dict(out=3),
            TypeError,
            r"out: expected the Clusters of cluster_tokens or HardClusters, got int",
        ),
        (dict(mode="mean"), ValueError, r"mode: expected 'hard' or 'soft', got 'mean'"),
        (dict(x=X.int()), TypeError, r"x: expected dtype float64, .*got torch.int32"),
        (dict(x=X[:, :4]), ValueError, r"x: expected shape \(2, 5, 3\), got \(2, 4, 3\)"),
        (dict(x=torch.tensor(1.0)), ValueError, r"x: expected shape \(2, 5, 1\), got \(\)"),
        (dict(x=X.reshape(2, 1, 5, 3)), ValueError, r"x: expected shape \(2, 5, 1, 3\), got"),
        (dict(x=X.to("meta")), ValueError, r"x: expected device cpu like x, got meta"),
        (dict(weights=[1]), TypeError, r"weights: expected a torch.Tensor, got list"),
        (
            dict(weights=torch.ones(2, 4)),
            ValueError,
            r"weights: expected shape \(2, 5\), got \(2, 4\)",
        ),
        (
            dict(weights=torch.ones(2, 5, device="meta")),
            ValueError,
            r"weights: expected device cpu",
        ),
        (dict(backend="none"), ValueError, r"backend: expected one of"),
    ],
)
def test_merge_tokens(arguments, error, match):
    with raises(error, match):
        sk.merge_tokens(**(dict(x=X, out=GRID) | arguments))


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        (
            dict(out=None),
            TypeError,
            r"out: expected the Clusters of .* or HardClusters, got NoneType",
        ),
        (dict(mode=0), ValueError, r"mode: expected 'hard' or 'soft', got 0"),
        (
            dict(tokens=torch.zeros(2, 4, 3)),
            ValueError,
            r"tokens: expected shape \(2, 5, 3\), got \(2, 4",
        ),
        (
            dict(tokens=torch.tensor(0.0)),
            ValueError,
            r"tokens: expected shape \(2, 5, 1\), got \(\)",
        ),
        (dict(tokens=torch.zeros(2, 5, 3).long()), TypeError, r"tokens: expected dtype"),
        (
            dict(tokens=torch.zeros(2, 5, 3, device="meta")),
            ValueError,
            r"tokens: expected device cpu",
        ),
    ],
)
def test_unmerge_tokens(arguments, error, match):
    with raises(error, match):
        sk.unmerge_tokens(**(dict(tokens=torch.zeros(2, 5, 3), out=GRID) | arguments))


PADDED = sk.HardClusters(
    labels=torch.tensor([[0, 0, 1, -1], [0, -1, -1, -1], [-1, -1, -1, -1]]),
    centres=torch.tensor([[0, 2], [0, -1], [-1, -1]]),
    counts=torch.tensor([2, 1, 0]),
)
PACKED = sk.HardClusters(
    labels=torch.tensor([0, 0, 1, 0]),
    centres=PADDED.centres,
    counts=PADDED.counts,
    cu_seqlens=torch.tensor([0, 3, 4, 4], dtype=torch.int32),
    max_seqlen=3,
)
GOOD = [(1, 3), (1, 1), (0, 0)]


@pytest.mark.parametrize("out", [PADDED, PACKED], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "arguments, error, match",
    [
        (dict(tokens=[1.0]), TypeError, r"tokens: expected a torch.Tensor, got list"),
        (
            dict(tokens=torch.zeros(3, 3, 1)),
            ValueError,
            r"tokens: expected shape \(3, 2, D\), got \(3, 3, 1\)",
        ),
        (
            dict(tokens=torch.zeros(3, 2)),
            ValueError,
            r"tokens: expected shape \(3, 2, D\), got \(3, 2\)",
        ),
        (
            dict(tokens=torch.zeros(3, 2, 1, device="meta")),
            ValueError,
            r"tokens: expected device cpu like the labels, got meta",
        ),
        (dict(order="rows"), ValueError, r"order: expected one of seed, raster, size, got 'rows'"),
        (dict(order=None), ValueError, r"order: expected one of seed, raster, size, got None"),
        (
            dict(grids=7),
            TypeError,
            r"grids: expected a \(B, 2\) or \(B, 3\) tensor or a list of .*\(T, H, W\), got 7",
        ),
        (
            dict(grids=[(1, 3), (1,), (0, 0)]),
            TypeError,
            r"grids: expected a .* list of .*\(T, H, W\), got \[",
        ),
        (
            dict(grids=[(1, 3), (1, None), (0, 0)]),
            TypeError,
            r"grids: expected a .* list of .*\(T, H, W\), got \[",
        ),
        (dict(grids=[]), ValueError, r"grids: expected shape \(3, 2\) or \(3, 3\), got \(0, 2\)"),
        (
            dict(grids=GOOD[:2]),
            ValueError,
            r"grids: expected shape \(3, 2\) or \(3, 3\), got \(2, 2\)",
        ),
        (
            dict(grids=torch.ones(6).long()),
            ValueError,
            r"grids: expected shape \(3, 2\) or \(3, 3\), got \(6,\)",
        ),
        (
            dict(grids=torch.ones(3, 2)),
            TypeError,
            r"grids: expected dtype torch.int64, got torch.float32",
        ),
        (
            dict(grids=[(-1, -3), *GOOD[1:]]),
            ValueError,
            r"grids: expected sides of at least 1 for image 0, got \(-1, -3\)",
        ),
        (
            dict(grids=[GOOD[0], (0, 1), GOOD[2]]),
            ValueError,
            r"grids: expected sides of at least 1 for image 1, got \(0, 1\)",
        ),
        (
            dict(grids=[(1, 0, 3), (1, 1, 1), (0, 0, 0)]),
            ValueError,
            r"grids: expected sides of at least 1 for image 0, got \(1, 0, 3\)",
        ),
        (
            dict(grids=torch.ones(3, 4).long()),
            ValueError,
            r"grids: expected shape \(3, 2\) or \(3, 3\), got \(3, 4\)",
        ),
        (
            dict(grids=[*GOOD[:2], (0, -1)]),
            ValueError,
            r"grids: expected sides of at least 0 for image 2, got \(0, -1\)",
        ),
    ],
)
def test_pack_errors(out, arguments, error, match):
    out.pack(torch.zeros(3, 2, 1), order="raster", grids=GOOD)
    with pytest.raises(error, match=match):
        out.pack(**(dict(tokens=torch.zeros(3, 2, 1)) | arguments))


def test_grids_hold_all_tokens():
    tokens = torch.zeros(3, 2, 1)
    with pytest.raises(ValueError, match=r"grids: expected H \* W = 3 for image 0, got \(2, 2\)"):
        PACKED.pack(tokens, grids=[(2, 2), (1, 1), (0, 0)])
    with pytest.raises(ValueError, match=r"grids: expected H \* W = 0 for image 2, got \(1, 1\)"):
        PACKED.pack(tokens, grids=[(1, 3), (1, 1), (1, 1)])
    match = r"grids: expected T \* H \* W = 3 for image 0, got \(3, 1, 2\)"
    with pytest.raises(ValueError, match=match):
        PACKED.pack(tokens, grids=[(3, 1, 2), (1, 1, 1), (0, 0, 0)])
    # Padding may follow a grid, so that it may be larger, but no token lies outside.
    PADDED.pack(tokens, grids=[(2, 2), (1, 1), (9, 9)])
    with pytest.raises(
        ValueError, match=r"grids: expected H \* W of at least 3 for image 0, got \(2, 1\)"
    ):
        PADDED.pack(tokens, grids=[(2, 1), (1, 1), (0, 0)])


@pytest.mark.parametrize("name", ["unpack", "padded"])
def test_unpack_errors(name):
    packed = PADDED.pack(torch.zeros(3, 2, 1))
    function = getattr(packed, name)
    with pytest.raises(TypeError, match=r"tokens: expected a torch.Tensor, got list"):
        function([1.0])
    with pytest.raises(ValueError, match=r"tokens: expected shape \(3, \.\.\.\), got \(4, 2\)"):
        function(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"tokens: expected shape \(3, \.\.\.\), got \(\)"):
        function(torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"tokens: expected device cpu like the labels, got meta"):
        function(torch.zeros(3, 2, device="meta"))


@pytest.mark.parametrize("side", ["both", None, True])
def test_padding_has_one_of_two_sides(side):
    packed = PADDED.pack(torch.zeros(3, 2, 1))
    with pytest.raises(ValueError, match=rf"^side: expected 'right' or 'left', got {side!r}$"):
        packed.padded(side=side)


LAYOUTS = {
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested)")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_that_are_not_dense(layout):
    """Of each argument that is a tensor, what the layout can hold of it."""
    odd = LAYOUTS[layout]
    out, peaks = sk.cluster_tokens(X), sk.dpc_knn(X, 3)
    merged = sk.merge_tokens(X, out)
    token_dict = {"x": X, "idx_token": torch.zeros(2, 5).long(), "agg_weight": torch.ones(2, 5, 1)}
    calls = {
        "x": [
            lambda: sk.cluster_tokens(odd(X)),
            lambda: sk.dpc_knn(odd(X), 3),
            lambda: sk.threshold_greedy(odd(X), 0.5),
            lambda: sk.merge_tokens(odd(X), out),
            lambda: sk.TokenClustering()(odd(X)),
            lambda: compat.setok.cluster_dpc_knn(odd(X[0]), 3),
        ],
        "weights": [lambda: sk.merge_tokens(X, peaks, weights=odd(X[..., 0]))],
        "tokens": [lambda: sk.unmerge_tokens(odd(merged), out)],
        "noise": [lambda: sk.dpc_knn(X, 3, noise=odd(X[..., 0]))],
        r"token_dict\['x'\]": [lambda: compat.tcformer.cluster_dpc_knn({"x": odd(X)}, 3)],
        "token_weight": [
            lambda: compat.chatunivi.merge_tokens(
                token_dict, peaks.labels, 3, odd(torch.ones(2, 5, 1))
            )
        ],
        "features": [lambda: compat.divt.threshold_greedy(X, odd(X), 0.5)],
        "query": [lambda: compat.divt.threshold_greedy(odd(X), X, 0.5)],
    }
    if layout in ("coo", "nested", "jagged"):
        mask = torch.ones(2, 5, dtype=torch.bool)
        calls["token_mask"] = [lambda: sk.cluster_tokens(X, token_mask=odd(mask))]
    if layout == "coo":
        calls["cu_seqlens"] = [lambda: sk.cluster_tokens(X[0], cu_seqlens=odd(CU))]
        calls["beta"] = [lambda: sk.ClusterConfig(beta=odd(torch.tensor(0.5)))]
        d = sk.cluster_tokens(X).decisions
        wrong = dataclasses.replace(d, seeds=odd(d.seeds))
        calls[r"decisions\.seeds"] = [lambda: sk.cluster_tokens(X, decisions=wrong)]
    for name, attempts in calls.items():
        for attempt in attempts:
            with raises(TypeError, rf"^{name}: expected a dense .*(sparse|nested|layout|mkldnn)"):
                attempt()
