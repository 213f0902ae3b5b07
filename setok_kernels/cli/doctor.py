"""`setok doctor`: which backends can run on this machine, and why the others cannot."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError
from setok_cli.output import add_json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "doctor", help="show which backends can run here, and why the others cannot"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the Triton kernels with the reference on every CUDA device, even where an "
        "earlier result is remembered; exit status 1 where they are wrong",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; return 0 if the reference works and no verification fails, else 1.

    Raises:
        UsageError: there is no device to verify, or SETOK_VERIFY or SETOK_CUDA is wrong.
    """
    from setok_kernels import _cuda_kernels
    from setok_kernels.verification import trust

    devices = _devices()
    try:
        trust.mode()
        _cuda_kernels.requested()
    except ValueError as error:
        raise UsageError(str(error)) from error
    if arguments.verify and not devices:
        raise UsageError("--verify: expected a CUDA device that this torch can use, found none")
    # A section of the text is printed as soon as it is known: a verification takes its time.
    write = _drop if arguments.json else print
    report = _machine(write)
    report["accelerators"] = _accelerators(devices, arguments.verify, write)
    if arguments.json:
        print_json(report)
    failed = any(one["failed"] for one in report["accelerators"])
    return 0 if report["backends"]["reference"] is None and not failed else 1


def _drop(_: str) -> None:
    """Take a line of the text in place of `print`."""


def _machine(write: Callable[[str], None]) -> dict[str, Any]:
    """Return the report without accelerators.

    Args:
        write: function that takes each line of the same as text.
    """
    import platform

    import torch

    from setok_kernels import __version__, backends

    write(f"setok-kernels {__version__}")
    reasons = {name: reason or _try_backend(name) for name, reason in backends().items()}
    write("\nbackends")
    for name, reason in reasons.items():
        # The reason begins as the error of an explicit choice does, with the name just printed.
        text = "ok" if reason is None else reason.removeprefix(f"backend='{name}' ")
        write(f"  {name:<14} {text}")
    native = _describe_native()
    write(f"\ncompiled CPU kernels\n  {native}")
    cuda = _describe_cuda_kernels()
    write(f"\nCUDA kernels (SETOK_CUDA=1)\n  {cuda}")
    versions = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in _PACKAGES}
    write("\nversions")
    for name, version in versions.items():
        write(f"  {name:<14} {_remedy(name) if version is None else version}")
    processor = platform.machine()
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    write("\nCPU")
    write(f"  {'processor':<14} {processor}, {capability}")
    write(f"  {'threads':<14} {threads}")
    return {
        "version": __version__,
        "backends": reasons,
        "compiled": native,
        "cuda_kernels": cuda,
        "versions": versions,
        "cpu": {"processor": processor, "capability": capability, "threads": threads},
    }


def _accelerators(
    devices: list[torch.device], verify: bool, write: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return the report about accelerators.

    Args:
        devices: CUDA devices.
        verify: request to compare the kernels again.
        write: function that takes each line of the same as text.
    """
    write("\naccelerators")
    found = [_describe_device(device) for device in devices]
    for one in found:
        size = f"{one['memory_bytes'] / 2**30:.0f} GiB"
        write(f"  {one['device']}  {one['name']}, sm {one['capability']}, {size}")
    if not devices:
        write("  none that this torch can use")
        return found
    write("\nTriton kernels, compared with the reference")
    for device, one in zip(devices, found, strict=True):
        one |= _verdict(device, verify, write)
        write(f"  {one['device']:<14} {one['verification']}")
    return found


def _try_backend(name: str) -> str | None:
    """Cluster a few tokens; return None if that works, else the reason."""
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


def _version(package: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _remedy(package: str) -> str:
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


def _describe_cuda_kernels() -> str:
    from setok_kernels import _cuda_kernels

    reason = _cuda_kernels.why_missing()
    if reason is not None:
        return reason
    return "built, requested" if _cuda_kernels.requested() else "built, not requested"


def _devices() -> list[torch.device]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", i) for i in range(count)]


def _describe_device(device: torch.device) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "device": str(device),
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
    }


def _verdict(device: torch.device, verify: bool, write: Callable[[str], None]) -> dict[str, Any]:
    """Return the result of a verification.

    Args:
        device: CUDA device.
        verify: request to compare the kernels again; without it, an earlier result is looked up.
        write: function that takes a line of text for each case.
    """
    from setok_kernels.verification import trust
    from setok_kernels.verification.identity import identify
    from setok_kernels.verification.verdict import recall

    if verify:
        verdict, report = trust.verify(device, again=True)
        for line in _describe_outcomes(verdict):
            write(f"    {line}")
    else:
        verdict, report = recall(identify(device)) or (None, None)
    if verdict is None:
        text = "not verified yet; the first call with backend='auto' does it, or --verify"
    elif verdict.state == "passed":
        text = f"verified, {len(verdict.outcomes)} cases in {verdict.seconds:.0f} s"
    else:
        text = trust.explain(device, verdict, report)
    if trust.mode() == "0":
        text += "; SETOK_VERIFY=0 takes the kernels whatever comes of it"
    return {
        "verification": text,
        "state": None if verdict is None else verdict.state,
        # An earlier result is no failure of this command.
        "failed": verify and verdict.state != "passed",
    }


def _describe_outcomes(verdict: Verdict) -> list[str]:
    lines = []
    for outcome in verdict.outcomes:
        lines.append(f"{outcome.state:<8} {outcome.seconds:5.1f} s  {outcome.case}")
        if outcome.message:
            lines.append(f"{'':18}{outcome.message.splitlines()[0]}")
    return lines
