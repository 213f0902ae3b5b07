"""docs/errors.md is true: every row of its tables is a call that is made here."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import setok_kernels as sk

PAGE = Path(__file__).parents[1] / "docs/errors.md"
CPP = sk.backends()["cpp"] is None

X = torch.arange(30.0).reshape(2, 5, 3)
CU = torch.tensor([0, 2, 5], dtype=torch.int32)
CONFIG = sk.ClusterConfig(k=2, max_clusters=4)
OUT = sk.cluster_tokens(X, CONFIG)
HARD = sk.HardClusters(
    labels=torch.tensor([[0, 0, 1, 1, -1], [0, 0, 0, 0, 0]]),
    centres=torch.tensor([[0, 2], [0, -1]]),
    counts=torch.tensor([2, 1]),
)
TOKENS = torch.zeros(2, 2, 3)
SEEDS = OUT.decisions.seeds


def hard(**fields):
    return dataclasses.replace(HARD, **fields)


def soft(**fields):
    return dataclasses.replace(OUT, **fields)


def replay(**fields):
    decisions = dataclasses.replace(OUT.decisions, **fields)
    return sk.cluster_tokens(X, CONFIG, decisions=decisions)


def weigh(value):
    weights = torch.ones(2, 5)
    weights[1, 3] = value
    return sk.merge_tokens(X, HARD, weights=weights)


# What is wrong, and a call where it is.
PUBLIC = {
    "x: no tensor": lambda: sk.cluster_tokens([[1.0]]),
    "x: integers": lambda: sk.cluster_tokens(X.long()),
    "x: two axes, without cu_seqlens": lambda: sk.cluster_tokens(X[0]),
    "x: no feature": lambda: sk.cluster_tokens(X[..., :0]),
    "x: not the tokens of the result": lambda: sk.merge_tokens(X[:, :4], HARD),
    "x: NaN, with check_finite=True": lambda: sk.cluster_tokens(X / X, check_finite=True),
    "token_mask: numbers": lambda: sk.cluster_tokens(X, token_mask=torch.ones(2, 5)),
    "token_mask: cropped": lambda: sk.cluster_tokens(X, token_mask=X[:, :4, 0] > 0),
    "token_mask: on another device": lambda: sk.cluster_tokens(
        X, token_mask=(X[..., 0] > 0).to("meta")
    ),
    "token_mask: with cu_seqlens": lambda: sk.cluster_tokens(
        X[0], token_mask=X[0] > 0, cu_seqlens=CU
    ),
    "cu_seqlens: numbers": lambda: sk.cluster_tokens(X[0], cu_seqlens=CU.float()),
    "cu_seqlens: falling": lambda: sk.cluster_tokens(X[0], cu_seqlens=torch.tensor([0, 4, 2, 5])),
    "max_seqlen: too small": lambda: sk.cluster_tokens(X[0], cu_seqlens=CU, max_seqlen=2),
    "max_seqlen: missing in a result": lambda: sk.merge_tokens(
        X[0],
        sk.HardClusters(
            labels=HARD.labels[0], centres=HARD.centres, counts=HARD.counts, cu_seqlens=CU
        ),
    ),
    "k: 0": lambda: sk.ClusterConfig(k=0),
    "max_clusters: beyond 32 bits": lambda: sk.ClusterConfig(max_clusters=2**40),
    "temperature: 0": lambda: sk.ClusterConfig(temperature=0),
    "config: a dict": lambda: sk.cluster_tokens(X, {"k": 2}),
    "decisions: a tuple": lambda: sk.cluster_tokens(X, decisions=(1, 2)),
    "decisions.knn: of another k": lambda: replay(knn=OUT.decisions.knn[..., :1]),
    "decisions.seeds: beyond the image": lambda: replay(seeds=SEEDS + 5),
    "decisions.counts: more than max_clusters": lambda: replay(counts=torch.tensor([0, 5])),
    "threshold: NaN": lambda: sk.threshold_greedy(X, float("nan")),
    "importance: cropped": lambda: sk.cluster_tokens(X, importance=torch.ones(2, 4)),
    "importance: negative": lambda: sk.cluster_tokens(X, importance=-torch.ones(2, 5)),
    "num_clusters: more than max_clusters": lambda: sk.cluster_tokens(
        X, sk.ClusterConfig(max_clusters=4), num_clusters=torch.tensor([1, 5])
    ),
    "rate: 0": lambda: sk.cluster_tokens(X, rate=0),
    "rate: with num_clusters": lambda: sk.dpc_knn(X, 2, rate=0.5),
    "exact: with repeated seeds": lambda: sk.cluster_tokens(
        X, sk.ClusterConfig.paper(), exact=True
    ),
    "noise: cropped": lambda: sk.dpc_knn(X, 2, noise=torch.zeros(2, 4)),
    "labels: of a row that is not there, merged": lambda: sk.merge_tokens(
        X, hard(labels=HARD.labels + 1)
    ),
    "labels: of a row that is not there, unmerged": lambda: sk.unmerge_tokens(
        TOKENS, hard(labels=HARD.labels + 1)
    ),
    "labels: of a row that is not there, counted": lambda: hard(labels=HARD.labels + 1).sizes(),
    "labels: below -1": lambda: sk.merge_tokens(X, hard(labels=HARD.labels - 1)),
    "labels: floats": lambda: sk.merge_tokens(X, hard(labels=HARD.labels.float())),
    "labels: one axis, without cu_seqlens": lambda: hard(labels=HARD.labels[0]).occupied(),
    "counts: of fewer images": lambda: sk.merge_tokens(X, hard(counts=HARD.counts[:1])),
    "counts: more than there are rows": lambda: hard(counts=HARD.counts + 1).pack(TOKENS),
    "centres: one axis": lambda: hard(centres=HARD.centres[0]).sizes(),
    "centres: beyond the image": lambda: hard(centres=HARD.centres + 3).pack(TOKENS),
    "masks: of fewer tokens": lambda: sk.merge_tokens(X, soft(masks=OUT.masks[..., :4]), "soft"),
    "masks: of fewer rows than labels name": lambda: sk.merge_tokens(
        X, soft(masks=OUT.masks[:, :1], counts=OUT.counts * 0), "soft"
    ),
    "masks: integers": lambda: sk.merge_tokens(X, soft(masks=OUT.masks.long()), "soft"),
    "grid: of other tokens": lambda: sk.merge_tokens(X, hard(grid=(2, 2))),
    "weights: negative": lambda: weigh(-1.0),
    "weights: infinite": lambda: weigh(float("inf")),
    "weights: NaN": lambda: weigh(float("nan")),
    "weights: cropped": lambda: sk.merge_tokens(X, HARD, weights=torch.ones(2, 4)),
    "eps: negative": lambda: sk.merge_tokens(X, OUT, "soft", eps=-1.0),
    "mode: unknown": lambda: sk.merge_tokens(X, OUT, "mean"),
    "mode: soft without masks": lambda: sk.merge_tokens(X, HARD, "soft"),
    "out: no result": lambda: sk.merge_tokens(X, HARD.labels),
    "tokens: of another number of rows": lambda: sk.unmerge_tokens(X, HARD),
    "backend: unknown": lambda: sk.cluster_tokens(X, backend="numpy"),
}


def operation(name, **changes):
    """Calls `torch.ops.setok.NAME` with arguments that fit, but for the changes."""
    d = OUT.decisions
    images = dict(valid=None, importance=None, budget=None, cu_seqlens=None, max_seqlen=5)
    known = dict(knn=d.knn, parent=d.parent, seeds=d.seeds, counts=d.counts)
    options = dict(learnable=None, kernel=0, alpha=0, bandwidth=0.5, beta=0.1, temperature=0.1)
    options |= dict(offset=0.5, scale=0, factor=0.0, score_norm_max=True)
    values = dict(masks=OUT.masks, density=OUT.density, delta=OUT.delta, score=OUT.score)
    grads = dict(grad_masks=None, grad_density=OUT.density, grad_delta=None, grad_score=None)
    members = dict(masks=None, labels=HARD.labels, counts=HARD.counts, weights=None)
    spread = dict(tokens=TOKENS, cu_seqlens=None, max_seqlen=5)
    loop = dict(k=2, max_clusters=4, distinct_seeds=True, include_self=False, exact=False)
    loop |= dict(stop_residual=0.02, min_mass=0.0, dense_limit=9)
    peaks = dict(noise=None, k=2, num_clusters=2, threshold=0.0, min_clusters=1)
    peaks |= dict(by_index=False, capped=False, dense_limit=9)
    arguments = {
        "cluster": dict(x=X, **images, **dict.fromkeys(known), **options, **loop),
        "cluster_backward": dict(x=X, **images, **known, **values, **grads, saved=None, **options),
        "dpc_knn": dict(x=X, **images, **peaks),
        "threshold_greedy": dict(x=X, **images, threshold=0.5),
        "merge": dict(x=X, **members, cu_seqlens=None, max_seqlen=5, rows=2, eps=0.0),
        "merge_backward": dict(
            grad=TOKENS, x=X, **members, cu_seqlens=None, max_seqlen=5, eps=0.0, need_masks=True
        ),
        "unmerge": dict(**members, **spread),
        "unmerge_backward": dict(grad=X, **members, **spread, need_masks=True),
    }[name]
    function = getattr(torch.ops.setok, name)
    names = [argument.name for argument in function.default._schema.arguments]
    assert set(changes) <= set(names)
    return function(*((arguments | changes)[n] for n in names))


def freed():
    x = X.clone()
    x.untyped_storage().resize_(0)
    return x


LARGE = torch.full((2, 5, 2), 5)
OPERATIONS = {
    "cluster(valid): cropped": lambda: operation("cluster", valid=X[:, :4, 0] > 0),
    "cluster(x): not contiguous": lambda: operation("cluster", x=X.mT.contiguous().mT),
    "cluster(x): its storage freed": lambda: operation("cluster", x=freed()),
    "cluster(x): a matrix": lambda: operation("cluster", x=X[0]),
    "cluster(valid): on another device": lambda: operation(
        "cluster", valid=(X[..., 0] > 0).to("meta")
    ),
    "cluster(max_seqlen): too small": lambda: operation("cluster", max_seqlen=4),
    "cluster(knn): alone": lambda: operation("cluster", knn=OUT.decisions.knn),
    "cluster(max_clusters): 0, in a replay": lambda: operation(
        "cluster", max_clusters=0, **vars(OUT.decisions)
    ),
    "cluster(kernel): not one of three": lambda: operation("cluster", kernel=3),
    "cluster(bandwidth): 0": lambda: operation("cluster", bandwidth=0.0),
    "cluster(learnable): three numbers": lambda: operation("cluster", learnable=torch.ones(3)),
    "cluster(learnable): float64 for float32 tokens": lambda: operation(
        "cluster", learnable=torch.ones(4).double()
    ),
    "cluster(learnable): a temperature of 0": lambda: operation(
        "cluster", learnable=torch.tensor([1.0, 1.0, 0.0, 1.0])
    ),
    "cluster(importance): negative": lambda: operation("cluster", importance=-torch.ones(2, 5)),
    "cluster(importance): float64 for float32 tokens": lambda: operation(
        "cluster", importance=torch.ones(2, 5).double()
    ),
    "cluster(budget): int32": lambda: operation("cluster", budget=torch.ones(2).int()),
    "cluster(budget): more than max_clusters": lambda: operation(
        "cluster", budget=torch.tensor([0, 5])
    ),
    "cluster(budget): on another device": lambda: operation(
        "cluster", budget=torch.tensor([0, 5]).to("meta")
    ),
    "cluster(exact): with repeated seeds": lambda: operation(
        "cluster", exact=True, distinct_seeds=False
    ),
    "cluster_backward(importance): cropped": lambda: operation(
        "cluster_backward", importance=torch.ones(2, 4)
    ),
    "cluster_backward(knn): beyond the image": lambda: operation("cluster_backward", knn=LARGE),
    "cluster_backward(masks): bfloat16": lambda: operation(
        "cluster_backward", masks=OUT.masks.bfloat16()
    ),
    "cluster_backward(grad_density): cropped": lambda: operation(
        "cluster_backward", grad_density=OUT.density[:1]
    ),
    "dpc_knn(noise): float64 for float32 tokens": lambda: operation(
        "dpc_knn", noise=torch.zeros(2, 5).double()
    ),
    "dpc_knn(importance): NaN": lambda: operation(
        "dpc_knn", importance=torch.full((2, 5), float("nan"))
    ),
    "dpc_knn(budget): negative": lambda: operation("dpc_knn", budget=torch.tensor([-1, 5])),
    "dpc_knn(k): beyond 32 bits": lambda: operation("dpc_knn", k=2**40),
    "threshold_greedy(threshold): NaN": lambda: operation(
        "threshold_greedy", threshold=float("nan")
    ),
    "merge(x): bfloat16": lambda: operation("merge", x=X.bfloat16()),
    "merge(labels): int32": lambda: operation("merge", labels=HARD.labels.int()),
    "merge(labels): of a row that is not there": lambda: operation("merge", rows=1),
    "merge(weights): float64 for float32 tokens": lambda: operation(
        "merge", weights=torch.ones(2, 5).double()
    ),
    "merge(weights): negative": lambda: operation("merge", weights=-torch.ones(2, 5)),
    "merge(masks): of fewer rows": lambda: operation("merge", masks=torch.zeros(2, 1, 5)),
    "merge(counts): more than there are rows": lambda: operation("merge", counts=HARD.counts + 1),
    "merge(eps): infinite": lambda: operation("merge", eps=float("inf")),
    "merge_backward(grad): of fewer rows than labels name": lambda: operation(
        "merge_backward", grad=TOKENS[:, :1], counts=HARD.counts * 0
    ),
    "merge_backward(grad): of other features": lambda: operation(
        "merge_backward", grad=TOKENS[..., :2].contiguous()
    ),
    "unmerge(labels): of a row that is not there": lambda: operation(
        "unmerge", labels=HARD.labels + 1
    ),
    "unmerge(tokens): a matrix": lambda: operation("unmerge", tokens=TOKENS[0]),
    "unmerge_backward(grad): of fewer tokens": lambda: operation(
        "unmerge_backward", grad=X[:, :4].contiguous()
    ),
    "unmerge_backward(labels): on another device": lambda: operation(
        "unmerge_backward", labels=HARD.labels.to("meta")
    ),
}

ROW = re.compile(r"\| (?P<what>[^|]+) \| `(?P<error>\w+): (?P<message>[^`]+)` \|")


def rows() -> dict[str, str]:
    """The page's tables: what is wrong, and the error with its message."""
    found = ROW.finditer(PAGE.read_text())
    return {row["what"]: f"{row['error']}: {row['message']}" for row in found}


def message(call) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    return f"{caught.type.__name__}: {caught.value}"


def test_the_tables_have_a_row_for_each_call():
    assert list(rows()) == [*PUBLIC, *OPERATIONS]


@pytest.mark.parametrize("what", PUBLIC)
def test_public_functions(what):
    assert message(PUBLIC[what]) == rows()[what]


@pytest.mark.skipif(not CPP, reason="the compiled module is not there")
@pytest.mark.parametrize("what", OPERATIONS)
def test_operations(what):
    assert message(OPERATIONS[what]) == rows()[what]


@pytest.mark.skipif(not CPP, reason="the compiled module is not there")
def test_the_calls_fit_but_for_what_is_wrong():
    for name in ("cluster", "cluster_backward", "dpc_knn", "threshold_greedy"):
        operation(name)
        operation(name.replace("cluster", "merge") if name.startswith("cluster") else "unmerge")
    operation("unmerge_backward")
