"""Whether `backend="auto"` takes the Triton kernels on a CUDA device."""

import os
import sys
import threading
from pathlib import Path

import torch
from torch._guards import detect_fake_mode

from setok_kernels.verification.identity import identify
from setok_kernels.verification.verdict import (
    Verdict,
    one_at_a_time,
    recall,
    remember,
    warn,
)

MODES = ("0", "1", "force")

# Decisions of this process by index of the device.
_TRUSTED: dict[int, bool] = {}
_ONE_THREAD = threading.Lock()


def _forget_other_threads() -> None:
    # A thread that held it does not exist in the forked process.
    global _ONE_THREAD
    _ONE_THREAD = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


def mode() -> str:
    """`$SETOK_VERIFY`: "0" trusts the kernels, "1" verifies once, "force" once in this process.

    Raises:
        ValueError: it is something else.
    """
    value = os.environ.get("SETOK_VERIFY", "1")
    if value not in MODES:
        raise ValueError(f"SETOK_VERIFY: expected one of {', '.join(MODES)}, got {value!r}")
    return value


def is_trusted(index: int) -> bool:
    """Whether the kernels may run on `cuda:index`; the first call there verifies them.

    While a graph is traced or captured nothing is verified. What is remembered counts; where
    nothing is, this call does without the kernels, and a later one verifies them.

    Args:
        index: of the device.

    Raises:
        ValueError: `SETOK_VERIFY` is none of `MODES`.
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
                "Run `setok doctor --verify`, or call once before anything is traced; "
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
    """The verdict of a device, remembered or made now, and the file that has it.

    Args:
        device: a CUDA device, with its index.
        again: whether to verify in spite of what is remembered.
    """
    # Nobody else needs the judges.
    from setok_kernels.verification.child import LIMIT_SECONDS, run_children

    identity = identify(device)
    # Several may wait before this one, but the first to finish leaves its verdict to all.
    try:
        with one_at_a_time(identity, seconds=2 * LIMIT_SECONDS):
            known = None if again else recall(identity)
            if known is not None:
                return known
            verdict = run_children(device, identity)
            return verdict, remember(verdict)
    except TimeoutError as error:
        return Verdict(identity, (), 0.0, problem=str(error)), None


def explain(device: torch.device, verdict: Verdict, report: Path | None) -> str:
    """What a verdict other than "passed" means, in one line."""
    where = f"{device} ({verdict.identity.device})"
    sent = f"the report {report}" if report is not None else "what `setok doctor --verify` prints"
    if verdict.state == "failed":
        return (
            f"setok_kernels: the Triton kernels are not right on {where}: {verdict.reason}. "
            f"backend='auto' uses the reference there. Please send {sent} to the developers; "
            "`setok doctor --verify` repeats the verification"
        )
    return (
        f"setok_kernels: the Triton kernels could not be verified on {where}: {verdict.reason}. "
        "backend='auto' uses the reference in this process. `setok doctor --verify` tries again, "
        f"SETOK_VERIFY=0 trusts the kernels; see {report}"
    )


def _is_recorded(index: int) -> bool:
    """Whether what runs now goes into a graph, or has no values."""
    # Also while torch.compile traces, which has a mode of its own.
    if detect_fake_mode() is not None:
        return True
    # Slow to import; who traces has done so.
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    if tracer is not None and tracer.get_proxy_mode() is not None:
        return True
    if not torch.cuda.is_initialized():
        return False
    with torch.cuda.device(index):
        return torch.cuda.is_current_stream_capturing()
