"""Compile the emulator on first use, into a cache folder of the user's."""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).with_name("core")
FLAGS = ["-O2", "-ftree-vectorize", "-march=native", "-std=c++17", "-fPIC", "-shared"]
# Every operation rounds as PTX specifies: no contraction, no reordering.
FLAGS += ["-ffp-contract=off", "-fno-strict-aliasing"]


def cache_folder() -> Path:
    """Return the folder of the compiled emulator, with Triton's own files below it."""
    given = os.environ.get("PTXEMU_CACHE") or os.environ.get("XDG_CACHE_HOME")
    folder = Path(given or Path.home() / ".cache") / "ptxemu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def library() -> ctypes.CDLL:
    """Return the compiled emulator."""
    parts = [path.read_bytes() for path in sorted(FOLDER.iterdir())]
    key = hashlib.sha256(b"".join(parts) + " ".join(FLAGS).encode()).hexdigest()[:16]
    path = cache_folder() / f"core-{key}.so"
    if not path.exists():
        with tempfile.NamedTemporaryFile(suffix=".so", dir=path.parent, delete=False) as file:
            made = Path(file.name)
        command = [os.environ.get("CXX", "g++"), *FLAGS, str(FOLDER / "all.cpp"), "-o", str(made)]
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
    """Return the code of each operation of the emulator."""
    return {name: i for i, name in enumerate(library().opcode_names().decode().split())}
