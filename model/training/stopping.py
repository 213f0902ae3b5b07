"""Stops a run on a signal, after the current step."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import torch

from setokim.utils.distributed import sizes_over_ranks, world_size

# Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))


class StopRequest:
    """Request of a signal to stop the run, if one has arrived."""

    def __init__(self):
        self._number = 0

    def note(self, number: int) -> None:
        """Record a signal; only the first one counts."""
        self._number = self._number or number

    def agreed(self, device: torch.device) -> int:
        """Return the number of a signal that has reached any process; 0 for none.

        All processes call it together.

        Args:
            device: device that the communication backend can use.
        """
        if world_size() == 1:
            # Reading a tensor would wait for the device in every step.
            return self._number
        return max(number for (number,) in sizes_over_ranks([self._number], device))


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record SIGINT, SIGTERM and SIGHUP inside the block instead of stopping at once.

    A second SIGINT or SIGTERM has its former effect. A second SIGHUP does not, because a closing
    terminal sends two. Ignored signals (nohup) stay ignored. Outside the main thread, where Python
    allows no handlers, nothing changes.
    """
    request, before = StopRequest(), {}
    owner = os.getpid()

    def note(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A data loading process that is still starting.
            return
        request.note(number)
        for one, handler in before.items():
            if one != getattr(signal, "SIGHUP", None):
                signal.signal(one, handler)

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # None stands for a handler of C code, which Python cannot restore.
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_after(step: int, number: int, quiet: bool) -> NoReturn:
    """End the run after a saved step.

    Args:
        step: number of the step.
        number: number of the signal.
        quiet: flag to print nothing on stderr.

    Raises:
        KeyboardInterrupt: always; its argument is `number`.
    """
    if not quiet:
        # After SIGHUP the terminal may be gone.
        with contextlib.suppress(OSError):
            name = signal.Signals(number).name
            print(f"{name}: step {step} is saved; --resume continues from it", file=sys.stderr)
    raise KeyboardInterrupt(number)


def leave_signals_to_parent(_worker: int = 0) -> None:
    """Make a data loading process ignore all signals but SIGTERM from its parent.

    Ctrl-C and batch systems signal all processes of a run, and the parent cannot finish its step
    without its workers. On exit Python ends the remaining workers by SIGTERM.
    """
    for number in _SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    # Other systems do not report the sender of a signal.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
