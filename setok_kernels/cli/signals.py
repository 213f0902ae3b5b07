"""Signals that stop a command, as an exception that lets it clean up."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# Ctrl-C (SIGINT) is Python's own. Windows has no SIGHUP.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextlib.contextmanager
def stops_as_interrupts() -> Iterator[None]:
    """Raise `KeyboardInterrupt(signum)` when SIGTERM or SIGHUP arrives within the block.

    Ignored signals (nohup) stay ignored, and the earlier handlers are restored at the end.
    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    before = {}
    owner = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A forked worker of a loader ends as without this handler: at once, in silence.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt(number)

    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            # None is a handler of C code, which Python could not restore.
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_of(stop: KeyboardInterrupt) -> signal.Signals:
    """Return the signal behind an interrupt; Python's own, without arguments, is SIGINT."""
    return signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
