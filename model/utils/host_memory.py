"""Free memory of the machine, to refuse large allocations before the system kills the process."""

from __future__ import annotations

import ctypes
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
# Parameters of glibc's mallopt: bytes from which freed memory goes back to the system, and from
# which a block is mapped alone.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1


def require_memory(needed: int, name: str) -> None:
    """Refuse an allocation larger than the free memory; allow all where that is unknown.

    Args:
        needed: lower bound of the allocation, in bytes.
        name: argument that causes the allocation.

    Raises:
        ValueError: the allocation does not fit.
    """
    free = free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"{name}: expected a size within {free / 2**30:,.1f} GiB of free memory, got one of at "
            f"least {needed / 2**30:,.1f} GiB"
        )


def free_memory() -> int | None:
    """Return the bytes that this process may still allocate in its container; None off Linux."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None
    left = _left_in_container()
    return free if left is None else min(free, left)


def _left_in_container() -> int | None:
    """Return the limit of the control group (version 2) minus its use; None without a limit."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        parts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Cached pages of files count as used, but the system frees them when memory runs short.
        return max(0, limit - used + int(parts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def reuse_freed_memory() -> None:
    """Keep freed memory in this process for the next allocation, where the C library is glibc's.

    Otherwise each large tensor is new memory, whose pages the system clears on first use: for
    batches of images that takes longer than the arithmetic. The process keeps its peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _NEVER)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
