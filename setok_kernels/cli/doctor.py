"""`setok doctor`: what can run on this machine, what cannot, why, and what to do about it."""

from __future__ import annotations

import argparse
import platform
from typing import TYPE_CHECKING

from setok_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from setok_kernels.verification.verdict import Verdict

_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "pillow",
    "rich",
    "transformers",
    "safetensors",
    "diffusers",
    "peft",
    "accelerate",
    "tensorboard",
)
_EXTRAS = {
    "triton": "triton",
    "pillow": "cli",
    "rich": "cli",
    "transformers": "model",
    "safetensors": "model",
    "diffusers": "generate",
    "peft": "lora",
    "accelerate": "train",
    "tensorboard": "train",
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `setok`."""
    parser = commands.add_parser(
        "doctor", help="show which backends can run here, and why the others cannot"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the Triton kernels with the reference on every CUDA device, also where that "
        "is remembered; exit status 1 where they are not right",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; returns 0 if the reference works and no verification fails, else 1."""
    import torch

    from setok_kernels import __version__, backends
    from setok_kernels.verification import trust

    devices = _devices()
    try:
        trust.mode()
    except ValueError as error:
        raise UsageError(str(error)) from error
    if arguments.verify and not devices:
        raise UsageError("--verify: expected a CUDA device that this torch can use, found none")
    print(f"setok-kernels {__version__}")
    reports = {name: reason or _try_backend(name) for name, reason in backends().items()}
    print("\nbackends")
    for name, problem in reports.items():
        # The reason begins as the error of an explicit choice does, with the name just printed.
        said = "ok" if problem is None else problem.removeprefix(f"backend='{name}' ")
        print(f"  {name:<14} {said}")
    print("\ncompiled CPU kernels")
    print(f"  {_describe_native()}")
    print("\nversions")
    print(f"  {'python':<14} {platform.python_version()}")
    for name in _PACKAGES:
        print(f"  {name:<14} {_version(name)}")
    print("\nCPU")
    print(f"  {'processor':<14} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"  {'threads':<14} {torch.get_num_threads()}")
    print("\naccelerators")
    for line in map(_describe_device, devices):
        print(f"  {line}")
    if not devices:
        print("  none that this torch can use")
    passed = True
    if devices:
        print("\nTriton kernels, compared with the reference")
        for device in devices:
            passed &= _report_verdict(device, arguments.verify)
    return 0 if reports["reference"] is None and passed else 1


def _try_backend(name: str) -> str | None:
    """Clusters a few tokens; None when that works, else what went wrong."""
    import torch

    from setok_kernels import ClusterConfig, cluster_tokens

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
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        extra = _EXTRAS.get(package)
        return f'not installed; pip install "setok-kernels[{extra}]"' if extra else "not installed"


def _describe_native() -> str:
    from setok_kernels import _native

    reason = _native.why_missing()
    if reason is not None:
        return reason
    internals = _native.internals()
    if internals is None:
        return f"{_native.load().name}, of a wheel: its build information is left out"
    try:
        info = internals.build_info()
    except ValueError as error:  # the processor lacks the set of SETOK_CPU_CAPABILITY
        return str(error)
    return ", ".join(
        f"{key} {' '.join(value) if isinstance(value, list) else value}"
        for key, value in info.items()
    )


def _devices() -> list[torch.device]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", i) for i in range(count)]


def _describe_device(device: torch.device) -> str:
    import torch

    properties = torch.cuda.get_device_properties(device)
    gigabytes = properties.total_memory / 2**30
    capability = f"{properties.major}.{properties.minor}"
    return f"{device}  {properties.name}, sm {capability}, {gigabytes:.0f} GiB"


def _report_verdict(device: torch.device, verify: bool) -> bool:
    """Prints what a verification has found; False where one that is asked for does not pass."""
    from setok_kernels.verification import trust
    from setok_kernels.verification.identity import identify
    from setok_kernels.verification.verdict import recall

    if verify:
        verdict, report = trust.verify(device, again=True)
        for line in _describe_outcomes(verdict):
            print(f"    {line}")
    else:
        verdict, report = recall(identify(device)) or (None, None)
    if verdict is None:
        said = "not verified yet; the first call with backend='auto' does it, or --verify"
    elif verdict.state == "passed":
        said = f"verified, {len(verdict.outcomes)} cases in {verdict.seconds:.0f} s"
    else:
        said = trust.explain(device, verdict, report)
    if trust.mode() == "0":
        said += "; SETOK_VERIFY=0 takes the kernels whatever comes of it"
    print(f"  {device!s:<14} {said}")
    return not verify or verdict.state == "passed"


def _describe_outcomes(verdict: Verdict) -> list[str]:
    lines = []
    for outcome in verdict.outcomes:
        lines.append(f"{outcome.state:<8} {outcome.seconds:5.1f} s  {outcome.case}")
        if outcome.message:
            lines.append(f"{'':18}{outcome.message.splitlines()[0]}")
    return lines
