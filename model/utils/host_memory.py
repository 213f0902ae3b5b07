"""Free memory of the machine, to refuse what cannot fit before the system kills the process."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def require_memory(needed: int, name: str) -> None:
    """Refuse what needs more memory than is free; where that is unknown, nothing is refused.

    Args:
        needed: lower bound, in bytes.
        name: argument that asks for it.

    Raises:
        ValueError: it does not fit.
    """
    free = free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"{name}: expected what fits into {free / 2**30:,.1f} GiB of free memory, got what "
            f"takes at least {needed / 2**30:,.1f} GiB"
        )


def free_memory() -> int | None:
    """Bytes that this process may still take, within its container; None where not on Linux."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None
    left = _left_in_container()
    return free if left is None else min(free, left)


def _left_in_container() -> int | None:
    """Limit of the control group (version 2) less what it uses; None without a limit."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        parts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files count as used and are given up when memory gets short.
        return max(0, limit - used + int(parts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
