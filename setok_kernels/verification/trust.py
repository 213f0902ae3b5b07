"""Decision whether `backend="auto"` uses the Triton kernels on a CUDA device."""

import os
import sys
import threading
from pathlib import Path

import torch
from torch._guards import detect_fake_mode

from setok_kernels.verification import processes
from setok_kernels.verification.identity import identify
from setok_kernels.verification.verdict import (
    Verdict,
    one_at_a_time,
    recall,
    remember,
    warn,
)

MODES = ("0", "1", "force")

# Decisions of this process by device index.
_TRUSTED: dict[int, bool] = {}
_ONE_THREAD = threading.Lock()


def _forget_other_threads() -> None:
    # The thread that holds the lock does not exist in a forked process.
    global _ONE_THREAD
    _ONE_THREAD = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


def mode() -> str:
    """Return `$SETOK_VERIFY`: "0" trusts the kernels, "1" verifies once, "force" once a process.

    Raises:
        ValueError: the variable has another value.
    """
    value = os.environ.get("SETOK_VERIFY", "1")
    if value not in MODES:
        raise ValueError(f"SETOK_VERIFY: expected one of {', '.join(MODES)}, got {value!r}")
    return value


def is_trusted(index: int) -> bool:
    """Return True if the kernels may run on `cuda:index`; the first call there verifies them.

    A call inside tracing or graph capture never verifies. It uses a cached verdict, or else the
    reference, and a later call verifies.

    Args:
        index: index of the device.

    Raises:
        ValueError: `SETOK_VERIFY` is not in `MODES`.
    """
    chosen = mode()
    if chosen == "0":
        return True
    if index in _TRUSTED:
        return _TRUSTED[index]
    recorded = _is_recorded(index)
    with _ONE_THREAD:
        if index in _TRUSTED:
            return _TRUSTED[index]
        device = torch.device("cuda", index)
        identity = identify(device)
        known = recall(identity) if chosen == "1" or recorded else None
        if known is None and recorded:
            warn(
                "setok_kernels: backend='auto' uses the reference in this traced or captured call: "
                f"the Triton kernels have not been verified on {device} ({identity.device}) yet. "
                "Run `setok doctor --verify`, or make one eager call before tracing; "
                "SETOK_VERIFY=0 trusts the kernels"
            )
            return False
        verdict, report = known or verify(device, again=chosen == "force")
        trusted = verdict.state == "passed"
        if not trusted:
            warn(explain(device, verdict, report))
        if chosen == "1" or not recorded:
            _TRUSTED[index] = trusted
        return trusted


def verify(device: torch.device, again: bool = False) -> tuple[Verdict, Path | None]:
    """Return the cached or a new verdict of a device, and its file.

    Args:
        device: CUDA device with its index.
        again: flag: verify even if a verdict is cached.
    """
    identity = identify(device)
    # Twice the limit: a waiting process reuses the verdict of the one that holds the lock.
    try:
        with one_at_a_time(identity, seconds=2 * processes.LIMIT_SECONDS):
            known = None if again else recall(identity)
            if known is not None:
                return known
            verdict = processes.run_children(device, identity)
            return verdict, remember(verdict)
    except TimeoutError as error:
        return Verdict(identity, (), 0.0, problem=str(error)), None


def explain(device: torch.device, verdict: Verdict, report: Path | None) -> str:
    """Return a one-line explanation of a verdict other than "passed"."""
    where = f"{device} ({verdict.identity.device})"
    sent = f"the report {report}" if report is not None else "the output of `setok doctor --verify`"
    if verdict.state == "failed":
        return (
            f"setok_kernels: the Triton kernels give wrong results on {where}: {verdict.reason}. "
            f"backend='auto' uses the reference there. Please send {sent} to the developers; "
            "`setok doctor --verify` repeats the verification"
        )
    return (
        f"setok_kernels: the Triton kernels could not be verified on {where}: {verdict.reason}. "
        "backend='auto' uses the reference in this process. `setok doctor --verify` retries, "
        f"SETOK_VERIFY=0 trusts the kernels; see {sent}"
    )


def _is_recorded(index: int) -> bool:
    """Return True inside tracing or graph capture, or if tensors are fake."""
    # Includes tracing by torch.compile, which has a fake mode of its own.
    if detect_fake_mode() is not None:
        return True
    # Slow to import; a tracing process has already imported it.
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    if tracer is not None and tracer.get_proxy_mode() is not None:
        return True
    if not torch.cuda.is_initialized():
        return False
    with torch.cuda.device(index):
        return torch.cuda.is_current_stream_capturing()
