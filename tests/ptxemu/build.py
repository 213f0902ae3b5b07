"""Compiles core.cpp on first use, into a cache folder of the user's."""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("core.cpp")
FLAGS = ["-O2", "-ftree-vectorize", "-march=native", "-std=c++17", "-fPIC", "-shared"]
# Every operation rounds as PTX says: nothing contracted, nothing reordered.
FLAGS += ["-ffp-contract=off", "-fno-strict-aliasing", "-w"]


def cache_folder() -> Path:
    """Of the compiled emulator and, below it, of Triton's own files."""
    base = os.environ.get("PTXEMU_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "ptxemu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def library() -> ctypes.CDLL:
    """The emulator."""
    sources = b"".join(p.read_bytes() for p in sorted(SOURCE.parent.glob("*.h"))) + SOURCE.read_bytes()
    key = hashlib.sha256(sources + " ".join(FLAGS).encode()).hexdigest()[:16]
    path = cache_folder() / f"core-{key}.so"
    if not path.exists():
        with tempfile.NamedTemporaryFile(suffix=".so", dir=path.parent, delete=False) as file:
            made = Path(file.name)
        command = [os.environ.get("CXX", "g++"), *FLAGS, str(SOURCE), "-o", str(made)]
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the emulator does not compile:\n{done.stderr}")
        made.replace(path)
    found = ctypes.CDLL(str(path))
    found.opcode_names.restype = ctypes.c_char_p
    found.launch_bytes.restype = ctypes.c_int64
    return found


@functools.cache
def opcodes() -> dict[str, int]:
    """The number of each operation of the emulator."""
    return {name: i for i, name in enumerate(library().opcode_names().decode().split())}
