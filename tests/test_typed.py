"""A program that uses the public names type-checks under `mypy --strict`, and a wrong one fails."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import setok_kernels as sk
import setokim

COMPAT = [getattr(sk.compat, name) for name in sk.compat.__all__]
ROOT = Path(__file__).parents[1]
SKIPPED = """
[mypy]
[mypy-setok_triton.*,triton.*,transformers.*,diffusers.*]
follow_imports = skip
"""

RIGHT = """
from PIL import Image
import torch
from torch import Tensor

import setok_kernels as sk
import setokim
from setok_kernels import testing
from setok_kernels.compat import chatunivi, divt, setok, tcformer

x = torch.randn(2, 16, 8)
config = sk.ClusterConfig(k=4, max_clusters=4, kernel="laplacian", score_norm=None)
paper: sk.ClusterConfig = sk.ClusterConfig.paper(max_clusters=4)
out: sk.Clusters = sk.cluster_tokens(x, config)
decisions: sk.Decisions = out.decisions
again: sk.Clusters = sk.cluster_tokens(x, config, decisions=decisions, backend="reference")
merged: Tensor = sk.merge_tokens(x, out, mode="soft")
packed: sk.Packed = out.pack(merged, order="raster", grids=[(4, 4), (4, 4)])
tokens, cu_seqlens = packed
longest: int = packed.max_seqlen
first: Tensor = packed[0]
padded, mask = packed.padded(side="left")
last: sk.Packed = packed.image(-1).to("cpu", torch.float64)
video: sk.Packed = out.pack(merged, grids=[(2, 2, 4), (1, 4, 4)])
first_image: sk.Clusters = out[0].to(torch.float64)
each: list[sk.Clusters] = [*out[1:]][: len(out)]
back: Tensor = sk.unmerge_tokens(packed.unpack(padded[mask]), out)
peaks: sk.DensityPeaks = sk.dpc_knn(x, num_clusters=4, order="index", cap="eccentricity")
hard: sk.HardClusters = sk.threshold_greedy(x, 0.5)
results: list[sk.Clusters | sk.HardClusters] = [out, hard, peaks]
alone: sk.DensityPeaks = peaks[0]
moved: sk.Decisions = decisions.to(x.device)
for result in results:
    rows: int = result.num_rows
    one: Tensor = result.centres + result.counts + result.labels + result.last_row
    many: Tensor = result.sizes() * result.occupied()
reasons: dict[str, str | None] = sk.backends()
module = sk.TokenClustering(config, learnable=("beta",))
current: sk.ClusterConfig = module.current_config()
found: sk.Clusters = module(x)
version: str = sk.__version__

testing.check_backend("cpp", x, config)
sk.testing.assert_invariants(x, out, config)
testing.assert_valid_density_peaks(x, peaks, k=5, num_clusters=4)
points, labels = testing.planted_clusters(2, 3, 4, 5)
agreement: Tensor = testing.pair_agreement(out.labels, hard.labels)

token_dict = {"x": x, "token_num": 16}
ids, number = chatunivi.cluster_dpc_knn(token_dict, 4)
merged_dict = tcformer.merge_tokens(token_dict, ids, number)
index, ids, score = setok.cluster_dpc_knn(x, 4)
queries, count, attends = divt.threshold_greedy(x, x, 0.5)

encoder: setokim.VisionEncoder = setokim.build_encoder("patch-statistics", (6, 6))
pixels: Tensor = encoder.preprocess([setokim.load_image(path) for path in setokim.find_images([])])
model = setokim.SetokModel(setokim.SetokConfig(grid=(6, 6), patch_size=4))
visual: setokim.VisualTokens = model.tokenize([Image.new("RGB", (24, 24))])
clusters: sk.Clusters | None = visual.clusters
images: Tensor = model.detokenize(visual.pack(order="size").tokens, cu_seqlens)
processor: setokim.SetokProcessor = model.processor()
values: Tensor = processor(Image.new("RGB", (24, 24)))["pixel_values"]
text: str = setokim.SetokimProcessor.from_pretrained("folder").decode([1])
text = setokim.SetokimProcessor.from_pretrained().decode([1])
values = setokim.SetokProcessor.from_pretrained()(Image.new("RGB", (24, 24)))["pixel_values"]
model = setokim.SetokModel.from_pretrained()
setokim.SetokimModel.from_pretrained().generate(values, values, values)
"""

# What is wrong with each, and the code of the error.
WRONG = [
    ('sk.merge_tokens(x, out, mode="sort")', "arg-type"),
    ('sk.dpc_knn(x, 4, order="score", cap="radius")', "arg-type"),
    ("sk.cluster_tokens(x, sk.ClusterConfig(kernel='box'))", "arg-type"),
    ("sk.cluster_tokens(x, token_mask=4)", "arg-type"),
    ("sk.cluster_tokens(x).clusters", "attr-defined"),
    ("sk.dpc_knn(x, 4).masks", "attr-defined"),
    ("sk.cluster_tokens(x).counts = x", "misc"),
    ('out.pack(x, order="random")', "arg-type"),
    ('out.pack(x).padded(side="both")', "arg-type"),
    ('out["masks"]', "index"),
    ("sk.cluster", "attr-defined"),
    ("setokim.SetokModel(4)", "arg-type"),
    ("setokim.Setok", "attr-defined"),
    ("setokim.load_image(3)", "arg-type"),
]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Runs the type checker on a program; the lines that it prints."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "mypy.ini").write_text(SKIPPED)
    packages = folder / "packages"
    packages.mkdir()
    # What the checker reads of an installed package; it does not ask Python's import system.
    for name, source in (("setok_kernels", "setok_kernels"), ("setokim", "model")):
        (packages / name).symlink_to(ROOT / source)

    def run(name: str, program: str) -> list[str]:
        file = folder / name
        file.write_text(program)
        command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
        command += ["--config-file=mypy.ini", "--no-error-summary", name]
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"MYPYPATH": str(packages)},
            capture_output=True,
            text=True,
        )
        assert not done.stderr, done.stderr
        return [line for line in done.stdout.splitlines() if ": note: " not in line]

    return run


@pytest.mark.slow
def test_a_strict_program_may_use_every_public_name(check):
    assert check("right.py", RIGHT) == []


@pytest.mark.slow
def test_wrong_uses_are_errors(check):
    start = "import torch\nimport setok_kernels as sk\nimport setokim\n"
    start += "x = torch.randn(2, 16, 8)\nout = sk.cluster_tokens(x)\n"
    first = start.count("\n") + 1
    found = check("wrong.py", start + "\n".join(line for line, _ in WRONG) + "\n")
    for number, (line, code) in enumerate(WRONG, first):
        errors = [error for error in found if error.startswith(f"wrong.py:{number}: ")]
        assert any(error.endswith(f"[{code}]") for error in errors), (line, errors)
    assert len(found) == len(WRONG), found


def test_the_packages_say_that_they_are_typed():
    for folder in ("setok_kernels", "model"):
        assert (ROOT / folder / "py.typed").is_file(), folder


def _unannotated(owner, name: str) -> list[str]:
    """Parameters and results without a type, of a function or of a class and its own methods."""
    if inspect.isclass(owner):
        made = "__init__" in vars(owner) and not getattr(owner, "_is_protocol", False)
        members = {"__init__": owner.__init__} if made else {}
        members |= {n: m for n, m in vars(owner).items() if not n.startswith("_")}
        return [
            line
            for member, value in members.items()
            for line in _unannotated(_function_of(value), f"{name}.{member}")
        ]
    if not inspect.isfunction(owner):
        return []
    signature = inspect.signature(owner)
    missing = [
        f"{name}({parameter.name})"
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
    ]
    if signature.return_annotation is signature.empty and not name.endswith("__init__"):
        missing.append(f"{name} -> ?")
    return missing


def _function_of(member):
    """The function below a property, a class method or a decorator."""
    if isinstance(member, property):
        return member.fget
    return inspect.unwrap(getattr(member, "__func__", member))


@pytest.mark.parametrize("package", [sk, sk.testing, *COMPAT, setokim], ids=lambda p: p.__name__)
def test_every_public_signature_is_annotated(package):
    own = {n: v for n, v in vars(package).items() if inspect.isfunction(v) and n[0] != "_"}
    here = [name for name, value in own.items() if value.__module__ == package.__name__]
    missing = []
    for name in getattr(package, "__all__", here):
        missing += _unannotated(_function_of(getattr(package, name)), name)
    assert missing == []
