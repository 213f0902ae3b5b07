"""`setok doctor`: what can run on this machine, what cannot, why, and what to do about it."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

import torch

from setok_kernels import ClusterConfig, __version__, _native, backends, cluster_tokens

_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "pillow",
    "rich",
    "transformers",
    "accelerate",
    "safetensors",
)
_REMEDIES = {
    "pillow": 'pip install "setok-kernels[cli]"',
    "rich": 'pip install "setok-kernels[cli]"',
    "transformers": 'pip install "setok-kernels[model]"',
    "accelerate": 'pip install "setok-kernels[model]"',
    "safetensors": 'pip install "setok-kernels[model]"',
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `setok`."""
    parser = commands.add_parser(
        "doctor", help="show which backends can run here, and why the others cannot"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; returns 0 if the reference backend works, else 1."""
    print(f"setok-kernels {__version__}")
    reports = {name: reason or _try_backend(name) for name, reason in backends().items()}
    print("\nbackends")
    for name, problem in reports.items():
        # The reason begins as the error of an explicit choice does, with the name just printed.
        said = "ok" if problem is None else problem.removeprefix(f"backend='{name}' ")
        print(f"  {name:<14} {said}")
    print("\ncompiled module")
    print(f"  {_describe_native()}")
    print("\nversions")
    print(f"  {'python':<14} {platform.python_version()}")
    for name in _PACKAGES:
        print(f"  {name:<14} {_version(name)}")
    print("\nCPU")
    print(f"  {'processor':<14} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"  {'threads':<14} {torch.get_num_threads()}")
    print("\naccelerators")
    for line in _describe_devices():
        print(f"  {line}")
    return 0 if reports["reference"] is None else 1


def _try_backend(name: str) -> str | None:
    """Clusters a few tokens; None when that works, else what went wrong."""
    device = "cuda" if name == "triton" else "cpu"
    tokens = torch.tensor([[[0.0], [0.1], [5.0], [5.1]]], device=device)  # (1, 4, 1)
    try:
        labels = cluster_tokens(tokens, ClusterConfig(k=1), backend=name).labels
    except (RuntimeError, ValueError, TypeError) as error:
        return f"should run but fails: {error}"
    first, second = labels[0, :2].tolist(), labels[0, 2:].tolist()
    apart = len(set(first)) == len(set(second)) == 1 and first[0] != second[0]
    return None if apart else f"should run but puts two pairs of tokens into {first + second}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        remedy = _REMEDIES.get(package)
        return f"not installed; {remedy}" if remedy else "not installed"


def _describe_native() -> str:
    reason = _native.why_missing()
    if reason is not None:
        return reason
    return ", ".join(f"{key} {value}" for key, value in _native.load().build_info().items())


def _describe_devices() -> list[str]:
    if not torch.cuda.is_available():
        return ["none that this torch can use"]
    lines = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        gigabytes = properties.total_memory / 2**30
        capability = f"{properties.major}.{properties.minor}"
        lines.append(f"cuda:{i}  {properties.name}, sm {capability}, {gigabytes:.0f} GiB")
    return lines
