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
from multiprocessing.connection import Connection

from setokim.corpus.engines.answers import pack_error, pack_report

# Message before the first answer: the worker is built.
READY = b""


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
        connection.send_bytes(READY)
        while True:
            connection.send_bytes(pack_report(worker(pickle.loads(messages.get()))))
    except Exception as error:
        connection.send_bytes(pack_error(error))
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
