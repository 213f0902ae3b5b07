"""Compiles one Triton kernel for Hopper without a GPU and prints what ptxas says of it, as JSON.

A script, because a process that runs kernels in the interpreter cannot compile them:
`python offline_compile.py < request.json`, where the request has `module`, `kernel`, `signature`,
`constexprs`, `num_warps`, and `divisible_by_16`, the names of arguments that are such multiples.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def compile_kernel(kernel, request):
    attributes = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name in request["divisible_by_16"]
    }
    source = ASTSource(
        fn=kernel,
        signature=request["signature"] | dict.fromkeys(request["constexprs"], "constexpr"),
        constexprs=request["constexprs"],
        attrs=attributes,
    )
    target = GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"num_warps": request["num_warps"]})


def resources(ptx):
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [ptxas, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, text=True, capture_output=True, check=True).stderr

    def number(pattern):
        return int(re.search(pattern, said)[1])

    return {
        "registers": number(r"Used (\d+) registers"),
        "stack": number(r"(\d+) bytes stack frame"),
        "spill_stores": number(r"(\d+) bytes spill stores"),
        "spill_loads": number(r"(\d+) bytes spill loads"),
    }


if __name__ == "__main__":
    request = json.load(sys.stdin)
    kernel = getattr(importlib.import_module(request["module"]), request["kernel"])
    compiled = compile_kernel(kernel, request)
    ptx = compiled.asm["ptx"]
    report = resources(ptx) | {
        "shared": compiled.metadata.shared,
        "specialized": [p.name for p in kernel.params if not p.do_not_specialize],
        "cubin_bytes": len(compiled.asm["cubin"]),
        "ptx": ptx,
    }
    print(json.dumps(report))
