"""Engines that run the parts of a corpus: processes on one machine, or actors in Ray Data.

Both run the same worker and yield the same outcomes; only the order of completion differs.
"""

from __future__ import annotations

from setokim.corpus.engines.interface import (
    EngineOptions,
    Factory,
    Outcome,
    Part,
    PartFailure,
    RunParts,
    UnbuiltWorkerError,
    Worker,
)

__all__ = [
    "ENGINES",
    "EngineOptions",
    "Factory",
    "Outcome",
    "Part",
    "PartFailure",
    "RunParts",
    "UnbuiltWorkerError",
    "Worker",
    "find_engine",
]

ENGINES = ("local", "ray")


def find_engine(name: str) -> RunParts:
    """Return the function `run_parts` of an engine.

    Args:
        name: "local" or "ray".

    Raises:
        ValueError: there is no engine of that name.
        MissingExtraError: Ray is not installed.
    """
    if name == "local":
        from setokim.corpus.engines import local

        return local.run_parts
    if name == "ray":
        from setokim.corpus.engines import ray_data

        return ray_data.run_parts
    raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")
