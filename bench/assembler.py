"""Calls of Triton's assembler and disassembler, kernel resources and occupancy."""

import re
import subprocess
import tempfile
from pathlib import Path

# 32-bit registers, bytes of shared memory and maximum threads of a multiprocessor.
MULTIPROCESSOR = {80: (65536, 167936, 2048), 90: (65536, 233472, 2048), 100: (65536, 233472, 2048)}


def run_tool(name: str, *arguments) -> str:
    """Run a tool from Triton's folder and return its output.

    Raises:
        RuntimeError: the tool is missing or fails.
    """
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    if not tool.exists():
        raise RuntimeError(f"{name}: expected it among triton's files, got no {tool}")
    done = subprocess.run([tool, *arguments], text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()}")
    # ptxas prints to stderr; nvdisasm prints to stdout and warns on stderr.
    return done.stdout or done.stderr


def run_ptxas(ptx: str, capability: int, out: Path | str = "/dev/null", *options: str) -> str:
    """Assemble a kernel into `out` and return the output of `ptxas -v`."""
    suffix = "a" if capability >= 90 else ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        name = "ptxas-blackwell" if capability >= 100 else "ptxas"
        target = f"--gpu-name=sm_{capability}{suffix}"
        return run_tool(name, "-v", *options, target, file.name, "-o", out)


def resources(said: str) -> dict[str, int]:
    """Parse the registers, stack bytes and spilled bytes of a thread from the output of ptxas."""

    def number(pattern):
        found = re.search(pattern, said)
        return int(found[1]) if found else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "stack": number(r"(\d+) bytes stack frame"),
        "spills": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
    }


def occupancy(capability: int, threads: int, registers: int, shared: int) -> int:
    """Return the number of programs that a multiprocessor holds at once."""
    all_registers, all_shared, all_threads = MULTIPROCESSOR[capability]
    # Registers are allocated in groups of 8 per thread; the system reserves 1 KB of shared memory.
    by_registers = all_registers // (max(8, -(-registers // 8) * 8) * threads)
    return min(by_registers, all_shared // (shared + 1024), all_threads // threads)
