"""Signals that stop a run after the step in which they arrive."""

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
    """Whether a signal has asked the run to stop."""

    def __init__(self):
        self._number = 0

    def note(self, number: int) -> None:
        """Asks the run to stop because of that signal; the first one counts."""
        self._number = self._number or number

    def agreed(self, device: torch.device) -> int:
        """The signal that has reached any process, or 0; all call it together.

        Args:
            device: one that the communication backend can use.
        """
        if world_size() == 1:
            # Without a tensor: reading it would wait for the device in every step.
            return self._number
        return max(number for (number,) in sizes_over_ranks([self._number], device))


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGINT, SIGTERM and SIGHUP within the block in place of stopping at once.

    A second SIGINT or SIGTERM does what it would have done before. A second SIGHUP does not: a
    terminal that is closed sends two. Signals that are ignored (nohup) stay ignored. Outside the
    main thread, where Python allows no handlers, nothing changes.
    """
    request, before = StopRequest(), {}
    owner = os.getpid()

    def note(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A worker of the loader that is still starting.
            return
        request.note(number)
        for one, handler in before.items():
            if one != getattr(signal, "SIGHUP", None):
                signal.signal(one, handler)

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # None is a handler of C code, which Python could not restore.
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_after(step: int, number: int, quiet: bool) -> NoReturn:
    """End the run after a step that is saved.

    Args:
        step: number of the step.
        number: of the signal that asked for it.
        quiet: whether this process says nothing on stderr.

    Raises:
        KeyboardInterrupt: always; its argument is `number`.
    """
    if not quiet:
        # After SIGHUP the terminal may be gone.
        with contextlib.suppress(OSError):
            name = signal.Signals(number).name
            print(f"{name}: step {step} is saved; --resume goes on from it", file=sys.stderr)
    raise KeyboardInterrupt(number)


def leave_signals_to_parent(_worker: int = 0) -> None:
    """Let a worker of the loader live until its parent needs no more of it.

    Ctrl-C and a batch system send their signals to all processes of a run, and the parent cannot
    finish its step without its workers. A SIGTERM of the parent itself still ends them: so Python
    ends those that are left when it exits.
    """
    for number in _SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    # Elsewhere nobody tells who has sent a signal.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
