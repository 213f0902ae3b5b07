"""The assembler that comes with Triton: how it is called, what it says, what fits beside what."""

import re
import subprocess
import tempfile
from pathlib import Path

# Registers of 32 bits and bytes of shared memory of a multiprocessor, and threads it holds.
MULTIPROCESSOR = {80: (65536, 167936, 2048), 90: (65536, 233472, 2048), 100: (65536, 233472, 2048)}


def run_tool(name: str, *arguments) -> str:
    """What a tool in Triton's folder prints.

    Raises:
        RuntimeError: it is not there, or refuses.
    """
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    if not tool.exists():
        raise RuntimeError(f"{name}: expected it among triton's files, got no {tool}")
    done = subprocess.run([tool, *arguments], text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()}")
    # ptxas speaks on one of them; nvdisasm only warns there.
    return done.stdout or done.stderr


def run_ptxas(ptx: str, capability: int, out: Path | str = "/dev/null", *options: str) -> str:
    """What `ptxas -v` says of a kernel, whose machine code goes to `out`."""
    suffix = "a" if capability >= 90 else ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        name = "ptxas-blackwell" if capability >= 100 else "ptxas"
        target = f"--gpu-name=sm_{capability}{suffix}"
        return run_tool(name, "-v", *options, target, file.name, "-o", out)


def resources(said: str) -> dict[str, int]:
    """Registers of a thread, bytes of its stack and bytes that it spills, of what ptxas said."""

    def number(pattern):
        found = re.search(pattern, said)
        return int(found[1]) if found else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "stack": number(r"(\d+) bytes stack frame"),
        "spills": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
    }


def occupancy(capability: int, threads: int, registers: int, shared: int) -> int:
    """Programs that fit on a multiprocessor at once."""
    all_registers, all_shared, all_threads = MULTIPROCESSOR[capability]
    # Registers are handed out in groups of 8 to each thread; 1 KB of shared memory is the system's.
    by_registers = all_registers // (max(8, -(-registers // 8) * 8) * threads)
    return min(by_registers, all_shared // (shared + 1024), all_threads // threads)
