"""The operations `setok::…` as torch's own: opcheck, compile, export, autocast, saved memory."""

import contextlib
import dataclasses

import pytest
import torch

import setok_kernels as sk
from helpers.pairwise import pairwise
from setok_kernels import testing
from setok_kernels.compiled import Compiled
from setok_kernels.ops import SCHEMAS

pytestmark = [
    pytest.mark.skipif(sk.backends()["cpp"] is not None, reason="the compiled module is not there"),
    pytest.mark.backends("reference", "cpp"),
    # Most of the time goes into torch's own Python.
    pytest.mark.no_cover,
]

CONFIG = sk.ClusterConfig(k=3, max_clusters=5, temperature=0.4, stop_residual=0.0)
LAYOUTS = ["padded", "masked", "packed"]


def inputs(layout, dtype=torch.float32, tokens=(9, 0, 6), dim=4):
    """Tokens that want a gradient, and the arguments that go with them."""
    packed, cu_seqlens, padded, mask = testing.ragged_batch(list(tokens), dim)
    x, arguments = {
        "padded": (padded.nan_to_num(), {}),
        "masked": (padded, dict(token_mask=mask)),
        "packed": (packed, dict(cu_seqlens=cu_seqlens, max_seqlen=max(tokens))),
    }[layout]
    return x.to(dtype).requires_grad_(), arguments


@contextlib.contextmanager
def recorded(monkeypatch):
    """The arguments of every call of an operation, by name."""
    calls = {}

    class Recorder:
        def __getattr__(self, name):
            def call(*arguments):
                calls[name] = arguments
                return getattr(torch.ops.setok, name)(*arguments)

            return call

    with monkeypatch.context() as patch:
        patch.setattr(Compiled, "_ops", Recorder())
        yield calls


@pytest.mark.parametrize(
    "layout, learn, mode",
    pairwise(layout=LAYOUTS, learn=[False, True], mode=["soft", "hard"]),
)
def test_opcheck(layout, learn, mode, monkeypatch):
    x, arguments = inputs(layout)
    module = sk.TokenClustering(CONFIG, backend="cpp")
    with recorded(monkeypatch) as calls:
        if learn:
            out = module(x, **arguments)
        else:
            out = sk.cluster_tokens(x, CONFIG, backend="cpp", **arguments)
        weights = torch.rand(x.shape[:-1]).requires_grad_()
        merged = sk.merge_tokens(x, out, mode, weights, backend="cpp")
        sk.unmerge_tokens(merged, out, mode, backend="cpp")
    assert set(calls) == {"cluster", "merge", "unmerge"}
    check_calls(calls)


def check_calls(calls):
    """`opcheck` of every operation that was called."""
    for name, call in calls.items():
        # Each alone: its inputs are leaves.
        leaves = [t.detach().clone() if isinstance(t, torch.Tensor) else t for t in call]
        for leaf, tensor in zip(leaves, call, strict=True):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                leaf.requires_grad_()
        torch.library.opcheck(getattr(torch.ops.setok, name).default, leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_with_importance_and_budgets(layout, monkeypatch):
    x, arguments = inputs(layout)
    images = 3
    importance = torch.rand(x.shape[:-1]).requires_grad_()
    budget = dict(num_clusters=torch.arange(images) + 1, importance=importance)
    with recorded(monkeypatch) as calls:
        sk.cluster_tokens(x, CONFIG, **budget, exact=True, backend="cpp", **arguments)
        sk.dpc_knn(x, **budget, backend="cpp", **arguments)
    assert set(calls) == {"cluster", "dpc_knn"}
    check_calls(calls)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("by_threshold", [False, True])
def test_opcheck_of_the_hard_clusterings(layout, by_threshold, monkeypatch):
    x, arguments = inputs(layout)
    noise = torch.rand(x.shape[:-1]) if by_threshold else None
    options = (
        dict(threshold=0.3, min_clusters=2, order="index", cap="eccentricity")
        if by_threshold
        else dict(num_clusters=4)
    )
    with recorded(monkeypatch) as calls:
        sk.dpc_knn(x, **options, noise=noise, backend="cpp", **arguments)
        out = sk.threshold_greedy(x, 0.3, backend="cpp", **arguments)
        sk.unmerge_tokens(sk.merge_tokens(x, out, backend="cpp"), out, backend="cpp")
    assert set(calls) == {"dpc_knn", "threshold_greedy", "merge", "unmerge"}
    check_calls(calls)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_opcheck_of_the_backward_operations(layout, mode):
    x, arguments = inputs(layout)
    x = x.detach()
    out = sk.cluster_tokens(x, CONFIG, backend="cpp", **arguments)
    d = out.decisions
    offsets, longest = arguments.get("cu_seqlens"), out.max_seqlen or x.shape[1]
    values = (out.masks, out.density, out.delta, out.score)
    importance = torch.rand(x.shape[:-1]) if mode == "soft" else None
    torch.library.opcheck(
        torch.ops.setok.cluster_backward.default,
        (
            *(x, arguments.get("token_mask"), importance, offsets, longest),
            *(d.knn, d.parent, d.seeds, d.counts, *values),
            *(torch.ones_like(out.masks), None, torch.ones_like(out.delta), None, None),
            *(torch.tensor([0.5, 0.1, 0.4, 0.5]), 0, 0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, True),
        ),
    )
    masks = out.masks if mode == "soft" else None
    merged = sk.merge_tokens(x, out, mode)
    weights = torch.rand(x.shape[:-1])
    images = (offsets, longest)
    torch.library.opcheck(
        torch.ops.setok.merge_backward.default,
        (
            *(merged, x.nan_to_num(), masks, out.labels, out.counts, weights),
            *(*images, 1e-6, masks is not None),
        ),
    )
    torch.library.opcheck(
        torch.ops.setok.unmerge_backward.default,
        (x.nan_to_num(), merged, masks, out.labels, out.counts, *images, masks is not None),
    )


def test_every_operation_is_there():
    for name in SCHEMAS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"setok::{name}", "CPU")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"setok::{name}", "CUDA")


def pipeline(module):
    """Clustering, both merges, and back: what a model does with it."""

    def run(x, token_mask=None, cu_seqlens=None, max_seqlen=None):
        out = module(x, token_mask, cu_seqlens, max_seqlen)
        soft = sk.merge_tokens(x, out, "soft")
        hard = sk.merge_tokens(x, out, "hard")
        return out.masks, soft, hard, sk.unmerge_tokens(soft, out, "soft"), out.labels

    return run


def gradients(outputs, inputs):
    loss = sum(t.float().square().sum() for t in outputs if t.requires_grad)
    return torch.autograd.grad(loss, inputs, allow_unused=True)


@pytest.fixture
def compiler():
    """`torch.compile` in one graph; another graph of the same code is a failure."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield lambda f, **kwargs: torch.compile(f, fullgraph=True, backend="aot_eager", **kwargs)
    torch._dynamo.reset()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_compile_in_one_graph_for_all_sizes(compiler, layout, dtype):
    module = sk.TokenClustering(CONFIG, backend="cpp")
    run = pipeline(module)
    compiled = compiler(run, dynamic=True)
    for tokens in ([30, 12], [17, 40, 5], [8, 9, 10, 11]):
        x, arguments = inputs(layout, dtype, tokens)
        leaves = [x, *module.parameters()]
        got, expected = compiled(x, **arguments), run(x, **arguments)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(gradients(got, leaves), gradients(expected, leaves), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compile_importance_and_budgets_in_one_graph_for_all_sizes(compiler, layout):
    """A rate sets the rows by the size of the input, and does not compile again."""

    def run(x, importance, rates, arguments):
        guide = dict(importance=importance, backend="cpp", **arguments)
        exact = sk.cluster_tokens(x, CONFIG, rate=0.25, exact=True, **guide)
        loose = sk.cluster_tokens(x, CONFIG, rate=rates, **guide)
        peaks = sk.dpc_knn(x, rate=0.3, **guide)
        merged = sk.merge_tokens(x, exact, backend="cpp")
        return exact.masks, exact.labels, loose.masks, loose.counts, peaks.centres, merged

    compiled = compiler(run, dynamic=True)
    for tokens in ([30, 12], [17, 40, 5], [8, 9, 10, 11]):
        x, arguments = inputs(layout, tokens=tokens)
        importance = torch.rand(x.shape[:-1]).requires_grad_()
        rates = torch.full((len(tokens),), 0.1)
        got, expected = (f(x, importance, rates, arguments) for f in (compiled, run))
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(
            gradients(got, [x, importance]), gradients(expected, [x, importance]), strict=True
        ):
            assert torch.equal(a, b)


def test_compiled_calls_refuse_budgets_that_do_not_fit(compiler):
    def run(x, budget, importance):
        return sk.cluster_tokens(
            x, CONFIG, num_clusters=budget, importance=importance, backend="cpp"
        ).labels

    compiled, (x, _) = compiler(run), inputs("padded")
    weight, budget = torch.ones(x.shape[:2]), torch.tensor([1, 5, 2])
    assert torch.equal(compiled(x, budget, weight), run(x, budget, weight))
    with pytest.raises(ValueError, match=r"^budget: expected values from 0 to 5, got 6$"):
        compiled(x, budget + 1, weight)
    with pytest.raises(ValueError, match=r"^importance: expected finite values of at least 0"):
        compiled(x, budget, -weight)


@pytest.mark.parametrize(
    "operation, layout, dtype",
    [
        ("peaks", "padded", torch.float32),
        ("peaks", "packed", torch.bfloat16),
        ("capped peaks", "masked", torch.bfloat16),
        ("greedy", "masked", torch.float32),
        ("greedy", "packed", torch.bfloat16),
    ],
    ids=str,
)
def test_compile_hard_clusterings_in_one_graph_for_all_sizes(compiler, layout, dtype, operation):
    def run(x, **arguments):
        if operation == "greedy":
            out = sk.threshold_greedy(x, 0.3, backend="cpp", **arguments)
        elif operation == "peaks":
            out = sk.dpc_knn(x, 4, backend="cpp", **arguments)
        else:
            out = sk.dpc_knn(
                x, threshold=0.3, order="index", cap="eccentricity", backend="cpp", **arguments
            )
        merged = sk.merge_tokens(x, out, backend="cpp")
        spread = sk.unmerge_tokens(merged, out, backend="cpp")
        return merged, spread, out.labels, out.centres, out.counts

    compiled = compiler(run, dynamic=True)
    for tokens in ([30, 12], [17, 40, 5], [8, 9, 10, 11]):
        x, arguments = inputs(layout, dtype, tokens)
        got, expected = compiled(x, **arguments), run(x, **arguments)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(*(gradients(outputs, [x])[0] for outputs in (got, expected)))


def test_compile_with_inductor(monkeypatch):
    """The default compiler too, forward and backward."""
    torch._dynamo.reset()
    # A cached backward pass may call the operations with the arguments of another version.
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    module = sk.TokenClustering(CONFIG, backend="cpp")
    x, _ = inputs("padded", tokens=(12, 12))
    run = pipeline(module)
    got, expected = torch.compile(run, fullgraph=True)(x), run(x)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(gradients(got, [x]), gradients(expected, [x]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_export_and_reload(backend, tmp_path):
    class Labels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cluster = sk.TokenClustering(CONFIG, backend=backend)

        def forward(self, x):
            out = self.cluster(x)
            return out.labels, sk.merge_tokens(x, out, "soft", backend=backend)

    model = Labels().eval()
    x = testing.vit_like_tokens(3, 20, 6)
    dynamic = {"x": {0: torch.export.Dim("images", min=2), 1: torch.export.Dim("tokens", min=10)}}
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "labels.pt2")
    reloaded = torch.export.load(tmp_path / "labels.pt2").module()
    for other in (x, testing.vit_like_tokens(2, 33, 6, seed=3)):
        for got, expected in zip(reloaded(other), model(other), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_autocast_changes_nothing(backend, mode):
    x = testing.vit_like_tokens(2, 40, 16).requires_grad_()

    def run():
        out = sk.cluster_tokens(x, CONFIG, backend=backend)
        merged = sk.merge_tokens(x, out, mode, backend=backend)
        return out.masks, merged, sk.unmerge_tokens(merged, out, mode, backend=backend)

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run()
    for a, b in zip(inside, plain, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert torch.equal(*(gradients(t, [x])[0] for t in (inside, plain)))


def test_saved_memory_is_that_of_a_formula():
    """x, decisions, masks and three statistics: no alphas beside the masks, nothing N x N."""
    images, tokens, dim, k, clusters = 3, 70, 12, 8, 20
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = testing.vit_like_tokens(images, tokens, dim).requires_grad_()
    config = sk.ClusterConfig(k=k, max_clusters=clusters)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = sk.cluster_tokens(x, config, backend="cpp")
    total = images * tokens
    decisions = 8 * (total * (k + 1) + images * (clusters + 1))
    values = 4 * total * (clusters + 1 + 3)
    assert sum(saved.values()) == 4 * total * dim + decisions + values
    assert out.masks.untyped_storage().data_ptr() in saved, "the masks are the result itself"


def test_second_derivatives_say_what_to_do():
    x, _ = inputs("padded", tokens=(9, 9))
    out = sk.cluster_tokens(x, CONFIG, backend="cpp")
    merged = sk.merge_tokens(x, out, "soft", backend="cpp")
    spread = sk.unmerge_tokens(merged, out, "soft", backend="cpp")
    for value in (out.masks, merged, spread):
        (grad,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"second derivatives.*backend='reference'"):
            grad.square().sum().backward(retain_graph=True)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_gradients_are_the_same_bits_every_time(layout):
    x, arguments = inputs(layout, tokens=(300, 41, 300), dim=24)
    module = sk.TokenClustering(CONFIG, backend="cpp")
    leaves = [x, *module.parameters()]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        run = pipeline(module)
        expected = gradients(run(x, **arguments), leaves)
        for threads in (1, 2, 2, 2, 4, 4, 4, 2, 1, 4):
            torch.set_num_threads(threads)
            got = gradients(run(x, **arguments), leaves)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_offsets_are_looked_at_in_compiled_calls_too():
    x = torch.zeros(5, 3)
    wrong = torch.tensor([0, 7, 5], dtype=torch.int32)
    compiled = torch.compile(
        lambda x, o: sk.cluster_tokens(x, CONFIG, cu_seqlens=o, max_seqlen=5, backend="cpp").labels,
        fullgraph=True,
        backend="aot_eager",
    )
    match = "^cu_seqlens: expected non-decreasing offsets, got 7 before 5$"
    with pytest.raises(ValueError, match=match):
        compiled(x, wrong)


def test_decisions_of_a_longer_image_are_refused():
    """Local to a packed image, an index may exceed it and still be a token of the longest."""
    x, arguments = inputs("packed", tokens=(9, 3))
    d = sk.cluster_tokens(x, CONFIG, backend="cpp", **arguments).decisions
    for name in ("knn", "parent", "seeds"):
        wrong = dataclasses.replace(d, **{name: getattr(d, name).clone()})
        getattr(wrong, name)[-1] = 8
        with pytest.raises(ValueError, match=f"^{name}: expected values from -1 to 2, got 8$"):
            sk.cluster_tokens(x, CONFIG, decisions=wrong, backend="cpp", **arguments)


def test_a_compiled_call_names_what_does_not_fit():
    """No value is read while it is traced; the kernels look."""
    if sk.backends()["cpp"] is not None:
        pytest.skip("the compiled module is not there")
    labels = torch.tensor([[0, 1, 1], [0, 0, 0]])
    centres, counts = torch.tensor([[0, 1], [0, -1]]), torch.tensor([2, 1])

    def merge(x, labels, weights):
        out = sk.HardClusters(labels=labels, centres=centres, counts=counts)
        return sk.merge_tokens(x, out, weights=weights)

    compiled = torch.compile(merge, fullgraph=True, backend="eager")
    x, weights = torch.ones(2, 3, 4), torch.ones(2, 3)
    assert torch.equal(compiled(x, labels, weights), merge(x, labels, weights))
    with pytest.raises(ValueError, match=r"^labels: expected values from -1 to 1, got 2$"):
        compiled(x, labels + 1, weights)
    with pytest.raises(ValueError, match=r"^weights: expected finite values of at least 0, got -1"):
        compiled(x, labels, -weights)


def test_invalid_weights_that_no_check_reads_count_as_0():
    """As on CUDA: in a traced call of the reference no value is read."""
    x = testing.planted_clusters(1, 12, 4, 3, noise=0.3)[0]
    bad = torch.ones(1, 12)
    bad[0, :3] = torch.tensor([torch.nan, -1.0, torch.inf])
    zero = torch.where((bad > 0) & bad.isfinite(), bad, 0)

    def run(weight):
        return sk.cluster_tokens(x, CONFIG, importance=weight, backend="reference").score

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert torch.equal(compiled(bad), run(zero))
    # Infinite in float32, the dtype of the score.
    bad, zero = bad.double().nan_to_num(1e39, 1e39), zero.double()
    assert torch.equal(compiled(bad), run(zero))


@pytest.mark.parametrize("namespace", ["setok", "setok_interpreted"])
def test_operands_that_do_not_fit(namespace):
    """Of the kernels that are launched from Python too, before one of them runs."""
    if not hasattr(getattr(torch.ops, namespace), "merge"):
        pytest.skip("its kernels are not there")
    ops, index = getattr(torch.ops, namespace), torch.zeros(2, 3, dtype=torch.int64)
    x, rows, counts = torch.ones(2, 3, 4), torch.ones(2, 2, 4), torch.ones(2, dtype=torch.int64)
    options = (None, 0, 0, 0.5, 0.1, 0.1, 0.5, 0, 0.0, True, 1, 1, True, False, False, 0.0, 0.0, 9)
    known = (index[..., None], index, index[:, :1], counts)
    for match, call in {
        r"valid: expected shape \(2, 3\), got \(2, 2\)": lambda: ops.cluster(
            x, x[:, 1:, 0] > 0, None, None, None, 3, *[None] * 4, *options
        ),
        "decisions: expected all of knn, parent, seeds and counts, or none, got 3": lambda: (
            ops.cluster(x, *[None] * 4, 3, None, *known[1:], *options)
        ),
        r"knn: expected shape \(2, 3, 1\), got \(2, 3\)": lambda: ops.cluster(
            x, *[None] * 4, 3, index, *known[1:], *options
        ),
        r"importance: expected shape \(2, 3\), got \(2, 2\)": lambda: ops.cluster(
            x, None, x[:, 1:, 0].contiguous(), None, None, 3, *[None] * 4, *options
        ),
        r"budget: expected shape \(2,\), got \(1,\)": lambda: ops.cluster(
            x, None, None, counts[:1], None, 3, *[None] * 4, *options
        ),
        "exact: expected distinct_seeds with it, got repeated seeds": lambda: ops.cluster(
            x, *[None] * 4, 3, *[None] * 4, *options[:-6], False, False, True, 0.0, 0.0, 9
        ),
        "max_seqlen: expected at least 3, got 2": lambda: ops.threshold_greedy(
            x, None, None, 2, 0.5
        ),
        "noise: expected shape": lambda: ops.dpc_knn(
            x, None, None, 3, x, None, None, 2, 2, 0.0, 1, False, False, 9
        ),
        r"labels: expected shape|labels: expected 2 axes": lambda: ops.merge(
            x, None, index[0], counts, None, None, 3, 2, 0.0
        ),
        r"masks: expected shape \(2, 2, 3\), got \(2, 2, 4\)": lambda: ops.merge(
            x, rows, index, counts, None, None, 3, 2, 0.0
        ),
        r"grad: expected shape \(2, 2, 4\), got \(2, 2, 3\)": lambda: ops.merge_backward(
            rows[..., 1:].contiguous(), x, None, index, counts, None, None, 3, 0.0, False
        ),
        r"counts: expected shape \(2,\), got \(1,\)": lambda: ops.unmerge(
            rows, None, index, counts[:1], None, 3
        ),
        r"labels: expected device cpu like grad, got meta": lambda: ops.unmerge_backward(
            x, rows, None, index.to("meta"), counts, None, 3, False
        ),
    }.items():
        with pytest.raises(ValueError, match=f"^({match})"):
            call()
