"""Engine of one machine: worker processes with a GPU each where there are any.

A process has one part at a time. Where it is killed, that part alone is under suspicion: it is
repeated in a new process after all other parts, and the neighbours go on. The processes are no
`ProcessPoolExecutor`: there, the death of one takes the parts of all others with it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from setokim.corpus.engines.answers import unpack
from setokim.corpus.engines.child import READY
from setokim.corpus.engines.interface import (
    EngineOptions,
    Factory,
    Outcome,
    PartFailure,
    UnbuiltWorkerError,
    thread_variables,
)

# Seconds between two looks at processes that may have ended with an open connection, as one has
# whose own child processes inherited it.
_INTERVAL = 1.0
# Seconds until a process is gone after it has closed its connection.
_PATIENCE = 10.0


def run_parts(factory: Factory, parts: Iterable[Any], options: EngineOptions) -> Iterator[Outcome]:
    """Process parts in worker processes of this machine.

    Parts are taken from the iterable when a process is free; its end may be temporary while parts
    are unfinished. Closing the generator, or an error,
    kills the processes; so does the death of this process.

    Args:
        factory: picklable function that builds the worker of a device, called once in a process.
        parts: picklable parts with a `name`.
        options: number of processes, their devices and threads, and attempts.

    Yields:
        Each part once, in order of completion, with the report of its worker, or with a
        `PartFailure` where its process was killed in each attempt.

    Raises:
        Exception: a worker, or the factory, raised it.
        UnbuiltWorkerError: processes were killed while they built the worker, `attempts` in
            succession.
    """
    source = _Source(parts, options.attempts)
    slots = [
        _Slot(factory, options.devices[index % len(options.devices)], options.threads)
        for index in range(options.local_workers)
    ]
    # Processes in succession that ended before their worker was built.
    unbuilt = 0
    outcomes: list[Outcome] = []
    error: Exception | None = None
    try:
        while True:
            for slot in slots:
                if slot.part is None and (part := source.take()) is not None:
                    slot.start(part)
            # After the next parts, as the caller may take its time over the outcomes.
            finished, outcomes = outcomes, []
            yield from finished
            busy = [slot for slot in slots if slot.part is not None]
            if not busy:
                if finished:
                    # The caller may give out further parts only now.
                    continue
                return
            for slot in _answering(busy):
                part, was_ready = slot.part, slot.ready
                try:
                    message = slot.receive()
                except _EndedError:
                    reason = slot.end(patience=_PATIENCE)
                    unbuilt = 0 if was_ready else unbuilt + 1
                    if unbuilt >= options.attempts:
                        raise UnbuiltWorkerError(
                            f"worker: expected a process that builds it, got one that {reason}, "
                            f"{unbuilt} times in succession"
                        ) from None
                    failure = source.repeat(part, reason, suspect=was_ready)
                    if failure is not None:
                        outcomes.append((part, failure))
                    continue
                unbuilt = 0
                if message == READY:
                    continue
                try:
                    outcomes.append((part, unpack(message)))
                except Exception as raised:
                    error = error or raised
            if error is not None:
                # The files of these parts are whole: a rerun need not repeat them.
                yield from outcomes
                raise error
    finally:
        for slot in slots:
            slot.end()


class _Source:
    """Parts not yet given out: new ones first, then those whose process was killed."""

    def __init__(self, parts: Iterable[Any], attempts: int):
        self._parts = iter(parts)
        self._attempts = attempts
        self._repeated: deque[Any] = deque()
        # Name of a part to the number of processes that it was in when they were killed.
        self._killed: dict[str, int] = {}

    def take(self) -> Any | None:
        """Return the next part; None if there is none at present."""
        for part in self._parts:
            return part
        # Last, as memory is often what was short, and then fewer processes share it.
        return self._repeated.popleft() if self._repeated else None

    def repeat(self, part: Any, reason: str, suspect: bool) -> PartFailure | None:
        """Give a part out again after its process ended; return a failure after the last attempt.

        Args:
            part: part of the process.
            reason: what ended the process.
            suspect: flag: the process had begun with the part.
        """
        killed = self._killed[part.name] = self._killed.get(part.name, 0) + suspect
        if killed >= self._attempts:
            return PartFailure(f"the worker process {reason} in each of {killed} attempts")
        self._repeated.append(part)
        return None


class _EndedError(Exception):
    """Error for a process that has ended without an answer."""


class _Slot:
    """Place of one worker process, which is started with the first part and replaced when killed.

    Attributes:
        part: part that the process has; None without one.
        ready: flag: the process has built its worker.
    """

    def __init__(self, factory: Factory, device: str, threads: int):
        self.part: Any | None = None
        self.ready = False
        self._first = pickle.dumps((factory, device))
        self._threads = threads
        self._process: subprocess.Popen | None = None
        self.connection: Connection | None = None

    def start(self, part: Any) -> None:
        """Give a part to the process."""
        message = pickle.dumps(part)
        if self._process is None:
            self._launch()
        self.part = part
        self._send(message)

    def receive(self) -> bytes:
        """Return the next message: that the worker is built, or the answer to the part.

        Raises:
            _EndedError: the process has ended.
        """
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise _EndedError from error
        if message == READY:
            self.ready = True
        else:
            self.part = None
        return message

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def end(self, patience: float = 0.0) -> str:
        """Kill the process if it has not ended; return how it ended.

        Args:
            patience: seconds to wait before it is killed.
        """
        self.part, self.ready = None, False
        if self._process is None:
            return ""
        process, self._process = self._process, None
        self.connection.close()
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        with theirs:
            theirs.set_inheritable(True)
            # The modules that this process finds, and not its main module: that may be a script
            # without a guard, or standard input.
            command = (
                f"import sys; sys.path[:] = {sys.path!r}; "
                f"from setokim.corpus.engines.child import main; main({theirs.fileno()})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", command],
                stdin=subprocess.DEVNULL,
                # Standard output is for the results of the command.
                stdout=2,
                env=os.environ | thread_variables(self._threads),
                pass_fds=[theirs.fileno()],
                # Ctrl-C reaches this process alone, even while a child still loads its modules.
                start_new_session=True,
            )
        self._send(self._first)

    def _send(self, message: bytes) -> None:
        # A process that has ended says so when it is read from.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message)


def _answering(slots: list[_Slot]) -> list[_Slot]:
    """Wait for messages of processes, or their end."""
    while True:
        found = set(wait([slot.connection for slot in slots], timeout=_INTERVAL))
        answering = [slot for slot in slots if slot.connection in found]
        if answering:
            return answering
        for slot in slots:
            if slot.ended():
                # Its own children hold the connection open.
                slot.connection.close()
                answering.append(slot)
        if answering:
            return answering
