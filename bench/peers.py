"""Functions of other projects, loaded from their sources, paired with our drop-ins."""

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from setok_kernels import compat


@dataclass(frozen=True)
class Peer:
    """Another project with a clustering function.

    Attributes:
        repository: owner and name on GitHub.
        file: path of the file with the functions.
        commit: commit at which they were compared.
        functions: names of the executed functions; the file's imports are skipped.
    """

    repository: str
    file: str
    commit: str
    functions: tuple[str, ...]


PEERS = {
    "tcformer": Peer(
        "zengwang430521/TCFormer",
        "tcformer_module/tcformer_utils.py",
        "1ea72a871b0932b51cf22334113a53c6a10d1f1a",
        ("cluster_dpc_knn", "merge_tokens", "index_points"),
    ),
    "chatunivi": Peer(
        "PKU-YuanGroup/Chat-UniVi",
        "ChatUniVi/model/cluster.py",
        "ec0b3db2d98dafb5c6bd72f626f4089f15727273",
        ("cluster_dpc_knn", "merge_tokens", "index_points"),
    ),
    "setok": Peer(
        "ChocoWu/SeTok",
        "src/model/setok/tokenizer.py",
        "55cfc9fa5bdf28955f05bb627df3e300a5693afb",
        ("cluster_dpc_knn",),
    ),
    "divt": Peer(
        "snuviplab/DiVT",
        "llava/model/multimodal_projector/builder.py",
        "5ebbb162d5808d8ad3efc2514cc990487ac9296a",
        ("clustering",),
    ),
}


def find_peer(root: Path, name: str) -> Path:
    """Return the file of a project in a folder of clones.

    Raises:
        FileNotFoundError: the file is missing.
    """
    peer = PEERS[name]
    path = root / peer.repository.partition("/")[2] / peer.file
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of {peer.repository}, got none")
    return path


def load_functions(name: str, path: Path, double: bool = False) -> dict:
    """Load the functions of a project by name; methods become plain functions of `self`.

    `double` replaces their casts to float32 by casts to float64.
    """
    wanted = PEERS[name].functions
    tree = ast.parse(path.read_text())
    tree.body = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    missing = set(wanted) - {node.name for node in tree.body}
    if missing:
        raise ValueError(f"{path}: expected the functions {wanted}, got none named {missing}")
    for node in ast.walk(tree):
        if double and isinstance(node, ast.Attribute) and node.attr == "float":
            node.attr = "double"
    names = {"torch": torch, "math": math, "F": functional, "pad_sequence": pad_sequence}
    exec(compile(tree, str(path), "exec"), names)
    return {name: names[name] for name in wanted}


@dataclass(frozen=True)
class PeerCase:
    """Arguments of one comparison; noise and mask may be None."""

    x: torch.Tensor  # (B, N, C)
    k: int
    clusters: int
    threshold: float
    mask: torch.Tensor | None
    seed: int


def uniform_noise(case: PeerCase, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return the originals' noise on the density for `case.seed`, sampled in float32."""
    generator = torch.Generator().manual_seed(case.seed)
    return torch.rand(shape, generator=generator).to(dtype) * 1e-6


def token_dict_pair(functions: dict, ours: Callable) -> tuple[Callable, Callable]:
    """Return both sides of TCFormer or Chat-UniVi, as functions of a case and a dtype."""

    def peer(case, dtype):
        noise = uniform_noise(case, case.x.shape[:2], dtype)
        mask = None if case.mask is None else case.mask.to(dtype)
        with patched_rand(noise):
            found = functions["cluster_dpc_knn"](
                {"x": case.x.to(dtype)}, case.clusters, case.k, mask
            )
        return found[:1]

    def mine(case, dtype):
        noise = uniform_noise(case, case.x.shape[:2], dtype)
        tokens = {"x": case.x.to(dtype)}
        return ours(tokens, case.clusters, case.k, case.mask, noise=noise)[:1]

    return peer, mine


def setok_pair(functions: dict, _) -> tuple[Callable, Callable]:
    """Return both sides of SeTok's public code, which takes one image."""

    def peer(case, dtype):
        x, owner = case.x[0].to(dtype), SimpleNamespace(min_cluster_num=min(64, case.x.shape[1]))
        with patched_rand(uniform_noise(case, x.shape[:1], dtype)):
            return functions["cluster_dpc_knn"](owner, x, case.k, None, case.threshold)[:2]

    def mine(case, dtype):
        x = case.x[0].to(dtype)
        noise = uniform_noise(case, x.shape[:1], dtype)
        return compat.setok.cluster_dpc_knn(x, case.k, None, case.threshold, noise=noise)[:2]

    return peer, mine


def divt_pair(functions: dict, _) -> tuple[Callable, Callable]:
    """Return both sides of DiVT."""

    def peer(case, dtype):
        x = case.x.to(dtype)
        return functions["clustering"](None, x, x, case.threshold)

    def mine(case, dtype):
        x = case.x.to(dtype)
        return compat.divt.threshold_greedy(x, x, case.threshold)

    return peer, mine


class patched_rand:
    """Context in which `torch.rand(...) * 1e-6` is `noise`, so that both sides round alike."""

    def __init__(self, noise: torch.Tensor):
        self.noise = noise

    def __enter__(self):
        self.rand = torch.rand
        torch.rand = lambda *args, **kwargs: self

    def __mul__(self, factor):
        assert factor == 1e-6
        return self.noise

    def __exit__(self, *error):
        torch.rand = self.rand


# Functions of both sides, maximum batch, and range of thresholds (from N clusters to one).
PAIRS = {
    "tcformer": (token_dict_pair, compat.tcformer.cluster_dpc_knn, 4, (0.0, 0.0)),
    "chatunivi": (token_dict_pair, compat.chatunivi.cluster_dpc_knn, 4, (0.0, 0.0)),
    "setok": (setok_pair, None, 1, (0.05, 0.8)),
    "divt": (divt_pair, None, 4, (0.02, 0.9)),
}
