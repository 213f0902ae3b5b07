"""Engine of a Ray cluster: an actor pool of Ray Data, which may span many machines.

Ray restarts actors and repeats their parts where a process or a node dies, without end. A count of
the processes that have begun a part stops those that kill every one. Ray's own limit of retries
would not do: it also counts each vain call of a node that is lost and not yet known to be.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from setok_kernels.extras import from_extra
from setokim.corpus.engines.answers import pack_error, pack_report, unpack
from setokim.corpus.engines.interface import (
    EngineOptions,
    Factory,
    Outcome,
    PartFailure,
    Worker,
    thread_variables,
)

# Read when Ray is imported or started.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # What Ray will do by default: leave CUDA_VISIBLE_DEVICES to processes without a GPU.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Skip all lines: Ray writes about each lost actor to standard output.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

with from_extra("ray"):
    import ray
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Results are small and parts smaller: little more than the minimum that Ray accepts.
_OBJECT_STORE_BYTES = 128 * 2**20
_CONNECTION_SECONDS = 10.0
# Seconds between two looks of an actor at its parent.
_LOOK_SECONDS = 1.0


def run_parts(factory: Factory, parts: Iterable[Any], options: EngineOptions) -> Iterator[Outcome]:
    """Process parts in an actor pool of Ray Data.

    All parts are read from the iterable first; they wait in the cluster until an actor is free.
    An instance of Ray that this process has started already is used and left running.

    Args:
        factory: picklable function that builds the worker of a device, called once in an actor.
        parts: picklable parts with a `name` each of its own.
        options: number of actors, kind of device, threads, attempts and address.

    Yields:
        Each part once, in order of completion, with the report of its worker, or with a
        `PartFailure` where its actor was lost in each attempt.

    Raises:
        ConnectionError: there is no cluster at the address.
        ValueError: the address is malformed, or two parts have one name.
        Exception: a worker, or the factory, raised it.
        ray.exceptions.RayActorError: the actors cannot be started.
    """
    waiting: dict[str, Any] = {}
    for part in parts:
        if part.name in waiting:
            raise ValueError(f"parts: expected different names, got {part.name!r} twice")
        waiting[part.name] = part
    if not waiting:
        return
    with _connected(options), _quiet():
        rows = [{"name": name, "part": pickle.dumps(part)} for name, part in waiting.items()]
        answers = _map(ray.data.from_items(rows, override_num_blocks=len(rows)), factory, options)
        # Without a prefetched one, which would hold each answer back until the next.
        for block in answers.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for row in block.to_pylist():
                outcome = unpack(row["answer"])
                # The parts of a node that is lost with its answers are repeated.
                if row["name"] in waiting:
                    yield waiting.pop(row["name"]), outcome
        if waiting:
            raise RuntimeError(f"Ray Data has ended without an answer for {len(waiting)} parts")


def _map(rows: ray.data.Dataset, factory: Factory, options: EngineOptions) -> ray.data.Dataset:
    """Return the answers to rows of one block each."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    attempts = _Attempts.options(scheduling_strategy=here).remote()
    # Ray shows each actor its own GPU alone.
    device = "cuda" if options.gpus else "cpu"
    workers = _cluster_workers(options) if options.workers is None else options.workers
    return rows.map(
        _PartWorker,
        fn_constructor_args=(factory, device, attempts, options.attempts),
        # One part at a time: the next one must not wait behind a long one while others are idle.
        compute=ray.data.ActorPoolStrategy(
            size=min(workers, rows.num_blocks()), max_tasks_in_flight_per_actor=1
        ),
        num_cpus=options.needed_cores,
        num_gpus=int(options.gpus > 0),
        runtime_env={"env_vars": thread_variables(options.threads)},
    )


def _cluster_workers(options: EngineOptions) -> int:
    """Return the number of actors that fit into the cluster, at least 1."""
    found = ray.cluster_resources()
    fit = found.get("CPU", 0) // options.needed_cores
    return max(1, int(min(fit, found.get("GPU", 0)) if options.gpus else fit))


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class _Attempts:
    """Actor beside the driver that counts the processes that have begun each part.

    Killed itself, it counts anew.
    """

    def __init__(self):
        self._begun: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        """Return the number of processes that have begun a part, with this one."""
        self._begun[name] += 1
        return self._begun[name]


class _PartWorker:
    """Actor: it builds the worker with its first part.

    Errors are answers, as Ray Data would wrap them, and would repeat an actor's constructor that
    is killed without end.
    """

    def __init__(
        self, factory: Factory, device: str, attempts: ray.actor.ActorHandle, allowed: int
    ):
        self._factory, self._device = factory, device
        self._attempts, self._allowed = attempts, allowed
        self._worker: Worker | None = None
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if ray.get(self._attempts.begin.remote(row["name"])) > self._allowed:
            reason = f"the actor was lost in each of {self._allowed} attempts"
            return {"name": row["name"], "answer": pack_report(PartFailure(reason))}
        try:
            if self._worker is None:
                self._worker = self._factory(self._device)
            answer = pack_report(self._worker(pickle.loads(row["part"])))
        except Exception as error:
            answer = pack_error(error)
        return {"name": row["name"], "answer": answer}


def _end_with(parent: int) -> None:
    """End this process when its parent has gone: some actors outlive the raylet of their node."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


@contextlib.contextmanager
def _connected(options: EngineOptions) -> Iterator[None]:
    """Join the cluster of the options, or start one on this machine for the block."""
    if ray.is_initialized():
        yield
        return
    arguments: dict[str, Any] = {"address": options.ray_address}
    if options.ray_address is None:
        arguments = {
            "address": "local",
            "num_cpus": options.local_workers * options.needed_cores,
            "num_gpus": options.gpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    else:
        _check_address(options.ray_address)
    with _sigterm_kept():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise an error for an address without a cluster; Ray itself tries it for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"ray_address: expected auto or HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECTION_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"ray_address: expected the address of a Ray cluster, got {address}: {error}"
        ) from error


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces when it starts, in the main thread."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Set what Ray Data prints and when it gives up, for data sets made in the block."""
    context = ray.data.DataContext.get_current()
    settings = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "enable_auto_log_stats": False,
        # A part may take hours; by default half an hour without an answer ends the run.
        "execution_no_progress_timeout_s": -1,
    }
    before = {name: getattr(context, name) for name in settings}
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        for name, value in settings.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)
