"""Main function of a local worker process.

It takes messages from the process that started it and answers each part with one message. The
connection is also its lifeline: where it closes, the process ends at once, whatever it computes.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

# Kinds of answers: the worker is built; the report of a part; an error that ends the run.
READY, REPORT, ERROR = "ready", "report", "error"


class WorkerTraceback(Exception):
    """Text of a traceback from another process, as the cause of the error that it belongs to."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def main(descriptor: int) -> None:
    """Build the worker from the first message, then process a part for each further message.

    Args:
        descriptor: file descriptor of the connection, inherited from the parent.
    """
    # The parent decides when to end; an interrupt from the terminal reaches it too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A child of this process must not keep the connection open.
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages), daemon=True).start()
    try:
        factory, device = pickle.loads(messages.get())
        worker = factory(device)
        _send(connection, READY, None)
        while True:
            _send(connection, REPORT, worker(pickle.loads(messages.get())))
    except Exception as error:
        _send_error(connection, error)
        # The parent reads the error, then closes the connection.
        threading.Event().wait()


def _receive(connection: Connection, messages: queue.SimpleQueue[bytes]) -> None:
    """Queue the parent's messages; end the process when the parent has gone."""
    try:
        while True:
            messages.put(connection.recv_bytes())
    except (EOFError, OSError):
        # Not sys.exit: the main thread may compute for minutes, and a rerun would meet its files.
        os._exit(0)


def _send(connection: Connection, kind: str, content: Any) -> None:
    connection.send_bytes(pickle.dumps((kind, content)))


def _send_error(connection: Connection, error: Exception) -> None:
    """Send an error and its traceback; one that cannot be pickled becomes a RuntimeError."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    _send(connection, ERROR, (error, text))
