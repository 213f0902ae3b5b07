"""Results as containers of tensors: pytrees, exported programs, moves, files, copies."""

import copy
import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree

import setok_kernels as sk
from helpers.pairwise import pairwise
from setok_kernels import testing

CONFIG = sk.ClusterConfig(k=3, max_clusters=4)
STATIC = ("grid", "max_seqlen", "num_rows")
X = testing.vit_like_tokens(2, 12, 6)
LAYOUTS = {
    "padded": lambda x: (x, {}),
    "grid": lambda x: (x.unflatten(1, (3, 4)), {}),
    "video": lambda x: (x.unflatten(1, (3, 2, 2)), {}),
    "packed": lambda x: (x.flatten(0, 1), dict(cu_seqlens=torch.tensor([0, 12, 24]).int())),
    "empty": lambda x: (x[:, :0], {}),
}
KINDS = {
    "clusters": lambda x, layout: sk.cluster_tokens(x, CONFIG, **layout),
    "decisions": lambda x, layout: sk.cluster_tokens(x, CONFIG, **layout).decisions,
    "density_peaks": lambda x, layout: sk.dpc_knn(x, 4, k=3, **layout),
    "hard_clusters": lambda x, layout: sk.threshold_greedy(x, 0.5, **layout),
    "packed_rows": lambda x, layout: packed_rows(x, sk.cluster_tokens(x, CONFIG, **layout)),
}
# Every kind in every layout; a result is built once.
CASES = [(kind, layout) for kind in KINDS for layout in LAYOUTS]


def packed_rows(x, out):
    return out.pack(sk.merge_tokens(x, out))


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def result(request):
    kind, layout = request.param
    return KINDS[kind](*LAYOUTS[layout](X))


def leaves_of(record):
    """Tensors in the order of the fields, those of the decisions in their place."""
    leaves = []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            leaves += leaves_of(value)
        elif isinstance(value, torch.Tensor):
            leaves.append(value)
    return leaves


def static_of(record):
    return {name: getattr(record, name) for name in STATIC if hasattr(record, name)}


def assert_equal(one, two):
    """Same class, static fields, and bits, dtypes and shapes of all tensors."""
    assert type(one) is type(two) and static_of(one) == static_of(two)
    for a, b in zip(leaves_of(one), leaves_of(two), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_leaves_are_the_tensors_and_the_rest_is_structure(result):
    leaves, spec = _pytree.tree_flatten(result)
    for leaf, tensor in zip(leaves, leaves_of(result), strict=True):
        assert leaf is tensor
    assert_equal(_pytree.tree_unflatten(leaves, spec), result)
    names = [field.name for field in dataclasses.fields(result)]
    with_paths, same = _pytree.tree_flatten_with_path(result)
    assert same == spec
    for path, leaf in with_paths:
        value = result
        for key in path:
            assert isinstance(key, _pytree.GetAttrKey)
            value = getattr(value, key.name)
        assert value is leaf and path[0].name in names


def test_structure_goes_through_json(result):
    spec = _pytree.tree_structure(result)
    dumped = _pytree.treespec_dumps(spec)
    json.loads(dumped)
    loaded = _pytree.treespec_loads(dumped)
    assert loaded == spec
    assert_equal(_pytree.tree_unflatten(leaves_of(result), loaded), result)


def test_structures_of_other_layouts_differ():
    specs = [_pytree.tree_structure(KINDS["clusters"](*make(X))) for make in LAYOUTS.values()]
    # Results of (B, N, D) have one structure, whatever N.
    assert specs[0] == specs[4]
    assert all(a != b for i, a in enumerate(specs[:4]) for b in specs[:i])
    out = sk.dpc_knn(X.unflatten(1, (3, 4)), 3)
    listed = dataclasses.replace(out, grid=[3, 4])
    assert _pytree.tree_structure(out) == _pytree.tree_structure(listed)


@pytest.mark.parametrize("save", ["save", "pickle", "copy", "deepcopy"])
def test_copies_and_files(result, save):
    if save == "save":
        file = io.BytesIO()
        torch.save(result, file)
        file.seek(0)
        again = torch.load(file, weights_only=True)
    elif save == "pickle":
        again = pickle.loads(pickle.dumps(result))
    elif save == "copy":
        again = copy.copy(result)
    else:
        again = copy.deepcopy(result)
    assert_equal(again, result)
    if isinstance(result, sk.Clusters):
        assert again.counts is again.decisions.counts


def test_a_file_of_other_classes_is_refused():
    """Only the results are trusted."""
    file = io.BytesIO()
    torch.save(sk.TokenClustering(), file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "arguments, dtype, device",
    [
        ((), None, "cpu"),
        (("meta",), None, "meta"),
        ((torch.device("meta"), torch.float64), torch.float64, "meta"),
        ((torch.bfloat16,), torch.bfloat16, "cpu"),
        ((None, torch.float16), torch.float16, "cpu"),
        ((torch.zeros(1, dtype=torch.float64, device="meta"),), torch.float64, "meta"),
        (("cpu", None, True), None, "cpu"),
    ],
)
def test_moves(result, arguments, dtype, device):
    moved = result.to(*arguments)
    assert type(moved) is type(result) and static_of(moved) == static_of(result)
    for before, after in zip(leaves_of(result), leaves_of(moved), strict=True):
        wanted = dtype if dtype is not None and before.is_floating_point() else before.dtype
        assert after.dtype == wanted and after.device.type == device
        if wanted == before.dtype and device == "cpu":
            assert after is before, "nothing is copied that fits"
        elif device == "cpu":
            assert torch.equal(after, before.to(wanted))
    if isinstance(moved, sk.Clusters):
        assert moved.counts is moved.decisions.counts


def test_a_moved_result_carries_gradient_and_works():
    x = X.clone().requires_grad_()
    out = sk.cluster_tokens(x, CONFIG).to(torch.float64)
    merged = sk.merge_tokens(x.double(), out, "soft")
    (grad,) = torch.autograd.grad(merged.square().sum(), x)
    assert grad.abs().max() > 0
    alone = dataclasses.replace(out, decisions=None).to("meta")
    assert alone.decisions is None and alone.counts.device.type == "meta"


@pytest.mark.parametrize(
    "arguments, match",
    [
        ((torch.int64,), r"dtype: expected a floating dtype, got torch.int64"),
        (("cpu", "float32"), r"dtype: expected a floating dtype, got 'float32'"),
        ((torch.float32, torch.float32), r"dtype: expected None after a dtype or a tensor, got"),
        ((torch.zeros(1), torch.float32), r"dtype: expected None after a dtype or a tensor, got"),
    ],
)
def test_moves_to_no_dtype(arguments, match):
    out = sk.dpc_knn(X, 3)
    for record in (out, packed_rows(X, out), sk.cluster_tokens(X).decisions):
        with pytest.raises(TypeError, match=f"^{match}"):
            record.to(*arguments)


class Cluster(torch.nn.Module):
    """Returns a result, or packed rows, in a container."""

    def __init__(self):
        super().__init__()
        self.cluster = sk.TokenClustering(CONFIG)

    def forward(self, x, cu_seqlens=None, max_seqlen=None):
        out = self.cluster(x, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        hard = sk.dpc_knn(x, 4, k=3, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        return {"soft": out, "hard": (hard, out.decisions)}


class Merge(torch.nn.Module):
    """Takes a result."""

    def forward(self, x, out):
        return sk.unmerge_tokens(sk.merge_tokens(x, out, "soft"), out), out.to(torch.float64)


def reloaded(program, folder):
    torch.export.save(program, folder / "program.pt2")
    return torch.export.load(folder / "program.pt2").module()


@pytest.mark.parametrize(
    "strict, layout", pairwise(strict=(False, True), layout=("padded", "grid", "video", "packed"))
)
def test_exported_programs_return_results(strict, layout, tmp_path):
    def arguments(x):
        x, options = LAYOUTS[layout](x)
        return (x, *([options["cu_seqlens"], 12] if options else []))

    model = Cluster()
    program = torch.export.export(model, arguments(X), strict=strict)
    loaded = reloaded(program, tmp_path)
    for x in (X, testing.vit_like_tokens(2, 12, 6, seed=3)):
        got, expected = loaded(*arguments(x)), model(*arguments(x))
        assert_equal(got["soft"], expected["soft"])
        for one, two in zip(got["hard"], expected["hard"], strict=True):
            assert_equal(one, two)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_of_the_module_take_any_size(strict, tmp_path):
    module = sk.TokenClustering(CONFIG)
    dynamic = {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(module, (X,), dynamic_shapes=dynamic, strict=strict)
    loaded = reloaded(program, tmp_path)
    for x in (X, testing.vit_like_tokens(3, 17, 6)):
        assert_equal(loaded(x), module(x))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_take_results(strict, tmp_path):
    model = Merge()
    program = torch.export.export(model, (X, sk.cluster_tokens(X, CONFIG)), strict=strict)
    loaded = reloaded(program, tmp_path)
    x = testing.vit_like_tokens(2, 12, 6, seed=3)
    out = sk.cluster_tokens(x, CONFIG)
    (got, moved), (expected, wanted) = loaded(x, out), model(x, out)
    assert torch.equal(got, expected)
    assert_equal(moved, wanted)
    image = sk.cluster_tokens(x.unflatten(1, (3, 4)), CONFIG)
    with pytest.raises(ValueError, match=r"tree spec[\s\S]*got[\s\S]*'grid', \(3, 4\)"):
        loaded(x, image)


def test_sides_of_a_saved_grid_are_numbers(tmp_path):
    x = X.unflatten(1, (3, 4))
    dynamic = {"x": {1: torch.export.Dim.DYNAMIC}}
    module = sk.TokenClustering(CONFIG)
    program = torch.export.export(module, (x,), dynamic_shapes=dynamic, strict=False)
    with pytest.raises(ValueError, match=r"^grid: expected static sizes in a saved program, got"):
        torch.export.save(program, tmp_path / "program.pt2")


def test_compiled_functions_move_select_and_return_results():
    def run(x):
        out = sk.cluster_tokens(x, CONFIG)
        return out, out[1], out[:1].to(torch.float64), len(out)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(X)[:3], run(X)[:3], strict=True):
        assert_equal(got, expected)


def test_function_transforms_map_results():
    """Each image clusters alone, and the batch of results is one result."""
    x = X.double()
    mapped = torch.func.vmap(lambda image: sk.cluster_tokens(image[None], CONFIG))(x)
    assert type(mapped) is sk.Clusters
    for i, image in enumerate(x):
        alone = sk.cluster_tokens(image[None], CONFIG, backend="reference")
        for one, two in zip(leaves_of(mapped), leaves_of(alone), strict=True):
            torch.testing.assert_close(one[i], two)


def test_distributed_modules_may_return_results(tmp_path):
    """DDP's and FSDP2's hooks find the tensors of a result, so that backward reduces gradients."""
    program, path = Path(__file__).parent / "helpers" / "returned_results.py", tmp_path / "found.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [*command, program, path], text=True, capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    out = torch.load(path)
    assert out["world"] == 2 and set(out["found"]) == {"unused", "static", "sharded"}
    assert len(out["expected"]) == 8
    for name, found in out["found"].items():
        for parameter, expected in out["expected"].items():
            assert expected.abs().max() > 0
            torch.testing.assert_close(found[parameter], expected, msg=f"{name}, {parameter}")
