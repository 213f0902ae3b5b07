"""The drop-ins: the answers of the originals, and no answer where the originals break."""

import json
from pathlib import Path

import numpy
import pytest
import torch

import setok_kernels as sk
from helpers.fake_gpu import fake_gpu
from setok_kernels import testing
from setok_kernels.compat import chatunivi, divt, setok, tcformer

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")

DATA = numpy.load(Path(__file__).parent / "data/peers.npz")
ABOUT = json.loads(str(DATA["about"]))
TOKEN_DICT = {"tcformer": tcformer, "chatunivi": chatunivi}


def cases(name):
    """The recorded cases of a peer."""
    return [case for case in ABOUT["cases"] if case.startswith(name + "/")]


def recorded(case):
    """Tensors and numbers of a case, tokens in eighths."""
    tensors = {
        key.removeprefix(case + "/"): torch.from_numpy(DATA[key])
        for key in DATA.files
        if key.startswith(case + "/")
    }
    tensors["x"] = tensors["x"].float() / 8
    return tensors, ABOUT["cases"][case]


def merge_input(seed=0, tokens=30, initial=60):
    """A token_dict as both projects carry it, cluster numbers and weights."""
    g = torch.Generator().manual_seed(seed)
    token_dict = {
        "x": torch.randn(2, tokens, 8, generator=g),
        "idx_token": torch.randint(tokens, (2, initial), generator=g),
        "agg_weight": torch.rand(2, initial, 1, generator=g),
        "map_size": (5, 6),
        "init_grid_size": (6, 10),
    }
    idx_cluster = torch.randint(6, (2, tokens), generator=g)
    return token_dict, idx_cluster, torch.rand(2, tokens, 1, generator=g) + 0.1


def test_the_recorded_cases_are_worth_something():
    for name in ("tcformer", "chatunivi", "setok", "divt"):
        assert len(cases(name)) == 12
        assert set(ABOUT["from"][name]) == {"file", "commit"}
    masked = [case for case in cases("tcformer") if case + "/mask" in DATA.files]
    assert 0 < len(masked) < 12


@pytest.mark.parametrize("case", [*cases("tcformer"), *cases("chatunivi")])
def test_ids_of_tcformer_and_chatunivi(case, backend):
    tensors, said = recorded(case)
    cluster = TOKEN_DICT[case.partition("/")[0]].cluster_dpc_knn
    ids, number = cluster(
        {"x": tensors["x"]},
        said["clusters"],
        said["k"],
        tensors.get("mask"),
        noise=tensors["noise"],
        backend=backend,
    )
    assert number == said["clusters"]
    assert ids.dtype == torch.int64
    assert torch.equal(ids, tensors["answer0"])


@pytest.mark.parametrize("case", cases("setok"))
def test_centres_and_ids_of_setok(case, backend):
    tensors, said = recorded(case)
    x = tensors["x"][0]
    index_down, idx_cluster, score = setok.cluster_dpc_knn(
        x, said["k"], None, said["threshold"], noise=tensors["noise"][0], backend=backend
    )
    assert torch.equal(index_down, tensors["answer0"])
    assert torch.equal(idx_cluster, tensors["answer1"])
    assert score.shape == (1, x.shape[0]) and score.dtype == x.dtype


@pytest.mark.parametrize("case", cases("divt"))
def test_queries_of_divt(case, backend):
    tensors, said = recorded(case)
    x = tensors["x"]
    found = divt.threshold_greedy(x, x, said["threshold"], backend=backend)
    for got, expected in zip(found, [tensors[f"answer{i}"] for i in range(3)], strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", TOKEN_DICT)
@pytest.mark.parametrize("weighted", [False, True])
def test_merge_is_the_formula_of_the_originals(name, weighted, backend):
    token_dict, idx_cluster, weight = merge_input()
    merged = TOKEN_DICT[name].merge_tokens(
        token_dict, idx_cluster, 7, weight if weighted else None, backend=backend
    )
    weight = weight.double() if weighted else torch.ones(2, 30, 1, dtype=torch.float64)
    member = (idx_cluster[:, :, None] == torch.arange(7)).double()  # (B, N, C)
    norm = weight / (member @ (member.mT @ weight) + 1e-6)
    expected = {
        "x": member.mT @ (norm * token_dict["x"].double()),
        "idx_token": idx_cluster.gather(1, token_dict["idx_token"]),
        "agg_weight": token_dict["agg_weight"] * norm.gather(1, token_dict["idx_token"][..., None]),
    }
    torch.testing.assert_close(merged["x"], expected["x"].float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged["agg_weight"], expected["agg_weight"].float())
    assert torch.equal(merged["idx_token"], expected["idx_token"])
    assert merged["token_num"] == 7
    assert (merged["x"][:, 6] == 0).all()
    rest = {"tcformer": {"map_size", "init_grid_size"}, "chatunivi": {"mask"}}[name]
    assert set(merged) == {"x", "token_num", "idx_token", "agg_weight"} | rest
    assert all(merged[key] == token_dict.get(key) for key in rest)


def test_merge_carries_gradient_to_tokens_and_weights(backend):
    token_dict, idx_cluster, weight = merge_input(tokens=9, initial=12)
    token_dict = {n: v.double() if n in ("x", "agg_weight") else v for n, v in token_dict.items()}

    def merge(x, weight):
        merged = tcformer.merge_tokens(
            token_dict | {"x": x}, idx_cluster, 6, weight, backend=backend
        )
        return merged["x"], merged["agg_weight"]

    inputs = [t.double().requires_grad_() for t in (token_dict["x"], weight)]
    assert torch.autograd.gradcheck(merge, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_merge_keeps_dtypes(dtype, backend):
    token_dict, idx_cluster, weight = merge_input()
    token_dict |= {n: token_dict[n].to(dtype) for n in ("x", "agg_weight")}
    merged = chatunivi.merge_tokens(token_dict, idx_cluster, 6, weight.to(dtype), backend=backend)
    assert merged["x"].dtype == merged["agg_weight"].dtype == dtype


@pytest.mark.parametrize("padding", [0.0, 7.0, torch.nan])
def test_padding_of_chatunivi_makes_no_nan(padding, backend):
    """Its CTM gives padding the weight -inf, and its merge then divides -inf by -inf."""
    token_dict, _, weight = merge_input()
    mask = torch.arange(30) < torch.tensor([[20], [30]])
    token_dict["x"] = torch.where(mask[..., None], token_dict["x"], padding)
    ids, _ = chatunivi.cluster_dpc_knn(token_dict, 6, 3, mask.long(), backend=backend)
    weight = weight.masked_fill(~mask[..., None], -torch.inf)
    merged = chatunivi.merge_tokens(token_dict, ids, 6, weight, backend=backend)
    assert merged["x"].isfinite().all()
    assert merged["agg_weight"].isfinite().all()
    assert (merged["agg_weight"][0, token_dict["idx_token"][0] >= 20] == 0).all()
    alone = {"x": token_dict["x"][:1, :20]}
    ids_alone, _ = chatunivi.cluster_dpc_knn(alone, 6, 3, backend=backend)
    assert torch.equal(ids[:1, :20], ids_alone)
    assert (ids[0, 20:] == 0).all()
    alone |= {"idx_token": torch.arange(20)[None], "agg_weight": torch.ones(1, 20, 1)}
    alone = chatunivi.merge_tokens(alone, ids_alone, 6, weight[:1, :20], backend=backend)
    torch.testing.assert_close(merged["x"][:1], alone["x"])


def test_padding_is_never_a_centre(backend):
    """With fewer tokens than clusters the originals fill up with padding."""
    x = testing.integer_tokens(2, 20, 6)
    mask = torch.arange(20) < torch.tensor([[4], [20]])
    ids, number = tcformer.cluster_dpc_knn({"x": x}, 8, 3, mask.float(), backend=backend)
    assert number == 8
    assert sorted(ids[0, :4].tolist()) == [0, 1, 2, 3]
    assert sorted(set(ids[1].tolist())) == list(range(8))
    token_dict = {"x": x, "idx_token": torch.arange(20).expand(2, -1)}
    token_dict |= {"agg_weight": torch.ones(2, 20, 1), "map_size": None, "init_grid_size": None}
    weight = mask[..., None].float()
    merged = tcformer.merge_tokens(token_dict, ids, 8, weight, backend=backend)
    assert (merged["x"][0, 4:] == 0).all()
    far_padding = torch.where(mask[..., None], x, 1e4)
    again, _ = tcformer.cluster_dpc_knn({"x": far_padding}, 8, 3, mask, backend=backend)
    assert torch.equal(ids, again)


def test_duplicates_give_setok_one_answer(backend):
    """Noise breaks the ties of the original anew in every call: 79, 79, 64, 74, 86 clusters."""
    x = testing.duplicate_tokens(1, 200, 16, distinct=40)[0]
    first = setok.cluster_dpc_knn(x, 8, None, 0.5, backend=backend)
    for _ in range(4):
        again = setok.cluster_dpc_knn(x, 8, None, 0.5, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    centres, members = x[first[0]], x[first[0][first[1]]]
    # Every token stands with a centre that equals it, where there is one.
    equal = (x[:, None] == centres).all(2)
    assert (equal.any(1) <= (members == x).all(1)).all()


def test_setok_falls_back_to_the_best_tokens(backend):
    x = testing.planted_clusters(1, 60, 8, 5)[0][0]
    down, ids, score = setok.cluster_dpc_knn(x, 5, None, 1e6, min_cluster_num=7, backend=backend)
    assert torch.equal(down, score[0].topk(7).indices.sort().values)
    assert torch.equal(ids[down], torch.arange(7))
    down, _, _ = setok.cluster_dpc_knn(x[:3], 5, None, 1e6, backend=backend)
    assert torch.equal(down, torch.arange(3))


def test_setok_leaves_padding_out(backend):
    x = testing.planted_clusters(1, 40, 8, 5)[0][0]
    mask = torch.arange(40) % 4 != 0
    down, ids, score = setok.cluster_dpc_knn(x, 5, mask.float(), 0.3, backend=backend)
    alone = setok.cluster_dpc_knn(x[mask], 5, None, 0.3, backend=backend)
    assert torch.equal(down, mask.nonzero()[:, 0][alone[0]])
    assert torch.equal(ids[mask], alone[1])
    assert (ids[~mask] == 0).all() and (score[0, ~mask] == 0).all()


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.65, 1.0, 2.0])
def test_divt_ends(threshold, backend):
    """Zero vectors, and thresholds that no similarity exceeds, on which the original never ends."""
    x = testing.one_hot_tokens(2, 30, 6)
    x[0, 3] = x[0, 17] = x[1] = 0
    tokens, counts, mask = divt.threshold_greedy(x, x, threshold, backend=backend)
    assert tokens.shape == (2, counts.max(), 6)
    for b, count in enumerate(counts.tolist()):
        # Every token is attended to by one query, that of its cluster.
        assert ((~mask[b, :count]).sum(0) == 1).all()
        assert not mask[b, count:].any()
    if threshold >= 1:
        assert counts.tolist() == [30, 30]
    if threshold == 0.65:
        assert counts.tolist() == [6 + 2, 30]


def test_divt_takes_queries_of_other_features(backend):
    x = testing.planted_clusters(2, 40, 16, 5)[0]
    query = torch.randn(2, 40, 3, requires_grad=True)
    tokens, counts, _ = divt.threshold_greedy(query, x, 0.8, backend=backend)
    centres = sk.threshold_greedy(x, 0.8, backend=backend).centres
    for b, count in enumerate(counts.tolist()):
        assert torch.equal(tokens[b, :count], query[b, centres[b, :count]])
        assert torch.equal(tokens[b, count:], query[b, :1].expand(tokens.shape[1] - count, -1))
    tokens.sum().backward()
    assert query.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4)])
def test_nothing_to_cluster(shape, backend):
    x = torch.zeros(shape)
    ids, number = tcformer.cluster_dpc_knn({"x": x}, 3, backend=backend)
    assert ids.shape == shape[:2] and number == 3
    tokens, counts, mask = divt.threshold_greedy(x, x, 0.5, backend=backend)
    assert tokens.shape == (shape[0], 0, 4) and mask.shape == (shape[0], 0, shape[1])
    assert counts.tolist() == [0] * shape[0]


def test_labels_survive_bfloat16(backend):
    """The original accumulates in 16 bits: on these groups it keeps 0.87 of the pairs."""
    for seed in range(3):
        x, member = testing.planted_clusters(1, 720, 256, 20, seed=seed, noise=0.1)
        low, high = (
            tcformer.cluster_dpc_knn({"x": x.to(dtype)}, 20, 8, backend=backend)[0]
            for dtype in (torch.bfloat16, torch.float32)
        )
        assert testing.pair_agreement(low, high) >= 0.99
        assert testing.pair_agreement(low, member) >= 0.99


def test_errors_name_the_argument():
    token_dict, idx_cluster, weight = merge_input()
    x = token_dict["x"]
    for match, call in {
        r"token_dict: expected a dict with a tensor 'x', got Tensor": lambda: (
            tcformer.cluster_dpc_knn(x, 5)
        ),
        r"token_dict\['x'\]: expected shape \(B, N, C\), got \(30, 8\)": lambda: (
            tcformer.cluster_dpc_knn({"x": x[0]}, 5)
        ),
        r"cluster_num: expected at least 1, got 0": lambda: tcformer.cluster_dpc_knn({"x": x}, 0),
        r"token_mask: expected a torch.Tensor, got list": lambda: chatunivi.cluster_dpc_knn(
            {"x": x}, 5, 5, [1]
        ),
        r"noise: expected shape \(2, 30\), got \(30,\)": lambda: chatunivi.cluster_dpc_knn(
            {"x": x}, 5, noise=torch.rand(30)
        ),
        r"idx_cluster: expected values from 0 to 4, got 5": lambda: tcformer.merge_tokens(
            token_dict, idx_cluster, 5
        ),
        r"idx_cluster: expected dtype torch.int64, got torch.int32": lambda: tcformer.merge_tokens(
            token_dict, idx_cluster.int(), 6
        ),
        r"idx_cluster: expected shape \(2, 30\), got \(30,\)": lambda: tcformer.merge_tokens(
            token_dict, idx_cluster[0], 6
        ),
        r"token_weight: expected shape \(2, 30, 1\), got \(2, 30\)": lambda: chatunivi.merge_tokens(
            token_dict, idx_cluster, 6, weight[..., 0]
        ),
        r"x: expected shape \(N, C\), got \(2, 30, 8\)": lambda: setok.cluster_dpc_knn(x, 5),
        r"token_mask: expected shape \(30,\), got \(2, 30\)": lambda: setok.cluster_dpc_knn(
            x[0], 5, torch.ones(2, 30)
        ),
        r"min_cluster_num: expected at least 1, got 0": lambda: setok.cluster_dpc_knn(
            x[0], 5, min_cluster_num=0
        ),
        r"features: expected shape \(B, N, F\), got \(30, 8\)": lambda: divt.threshold_greedy(
            x, x[0], 0.5
        ),
        r"query: expected shape \(2, 30, D\), got \(2, 29, 8\)": lambda: divt.threshold_greedy(
            x[:, 1:], x, 0.5
        ),
        r"threshold: expected a finite number, got nan": lambda: divt.threshold_greedy(
            x, x, float("nan")
        ),
    }.items():
        with pytest.raises((TypeError, ValueError), match=match):
            call()


# What the callers of the originals pass on a GPU: dtypes of x, and of the weights, which autocast
# makes float32.
GPU_DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
]


@pytest.fixture
def gpu(monkeypatch):
    """A device without values, where every number of clusters that is data is 3."""
    with fake_gpu(monkeypatch, 3) as device:
        yield device


@pytest.mark.parametrize("dtypes", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("mask", [None, torch.bool, torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize("name", TOKEN_DICT)
def test_token_dicts_of_the_callers_on_a_gpu(name, mask, dtypes, gpu):
    """Chat-UniVi makes `idx_token` on the CPU; of its answer the next stage is made."""
    dtype, weight_dtype = dtypes
    x = torch.randn(2, 30, 8, device=gpu, dtype=dtype)
    token_dict = {
        "x": x,
        "token_num": 30,
        "idx_token": torch.arange(30)[None, :].repeat(2, 1),
        "agg_weight": x.new_ones(2, 30, 1),
        "mask": None,
        "map_size": (5, 6),
        "init_grid_size": (5, 6),
    }
    if name == "tcformer":
        token_dict["idx_token"] = token_dict["idx_token"].to(gpu)
    # The sums of each stage carry what the weights are.
    expected = torch.promote_types(dtype, weight_dtype)
    for clusters in (12, 4):
        tokens = token_dict["x"].shape[1]
        token_mask = None if mask is None else torch.ones(2, tokens, device=gpu, dtype=mask)
        noise = torch.rand(2, tokens, device=gpu, dtype=dtype)
        module = TOKEN_DICT[name]
        ids, number = module.cluster_dpc_knn(token_dict, clusters, 3, token_mask, noise=noise)
        weight = torch.randn(2, tokens, 1, device=gpu, dtype=weight_dtype).exp()
        merged = module.merge_tokens(token_dict, ids, number, weight)
        token_dict = token_dict | merged
        for key, shape, kind in (
            ("x", (2, clusters, 8), dtype),
            ("idx_token", (2, 30), torch.int64),
            ("agg_weight", (2, 30, 1), expected),
        ):
            value = merged[key]
            assert (value.device, tuple(value.shape), value.dtype) == (gpu, shape, kind), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_setok_and_divt_on_a_gpu(dtype, gpu):
    x = torch.randn(30, 8, device=gpu, dtype=dtype)
    for mask in (None, *(torch.ones(30, device=gpu, dtype=t) for t in (torch.bool, torch.int64))):
        down, ids, score = setok.cluster_dpc_knn(x, 5, mask, 0.5, noise=torch.rand(30, device=gpu))
        assert down.device == ids.device == score.device == gpu
        assert score.dtype == dtype and x[down].shape == (3, 8) and ids.shape == (30,)
    features = torch.randn(2, 30, 5, device=gpu)
    query = torch.randn(2, 30, 8, device=gpu, dtype=dtype)
    tokens, counts, mask = divt.threshold_greedy(query, features, 0.5)
    assert tokens.device == counts.device == mask.device == gpu
    assert tokens.dtype == dtype and tokens.shape == (2, 3, 8) and mask.shape == (2, 3, 30)
