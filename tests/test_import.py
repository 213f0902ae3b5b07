"""What `import setok_kernels` brings with it, in a process of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import setok_kernels as sk
from setok_kernels._tracing import constant_in_graphs
from setok_kernels.ops import SCHEMAS


def said_by(code):
    """What a fresh Python prints, as JSON."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_triton_kernels_import_no_layer_above():
    """`setok_kernels.ops` imports the kernels, so they must not import it back."""
    package = Path(__file__).parents[1] / "triton/setok_triton"
    text = "\n".join(path.read_text() for path in package.glob("*.py"))
    imported = set(re.findall(r"^ *(?:from|import) (setok_kernels\S*)(?: import)?", text, re.M))
    names = ("config", "saved", "selection")
    assert imported == {"setok_kernels", *(f"setok_kernels.{name}" for name in names)}
    assert set(re.findall(r"^ *from setok_kernels import (.*)", text, re.M)) == {
        "_cuda_kernels",
        "layout",
    }


def test_nothing_heavy_is_imported():
    """Nor much of anything: most of the time of an import goes with the number of modules."""
    code = (
        "import json, sys, torch; torchs = set(sys.modules); import setok_kernels\n"
        "print(json.dumps(sorted(set(sys.modules) - torchs)))"
    )
    loaded = said_by(code)
    heavy = ("torch._dynamo", "torch._inductor", "sympy", "triton", "transformers", "PIL")
    assert not [name for name in loaded if name.startswith(heavy)]
    ours = [name for name in loaded if name.startswith("setok_")]
    # 38 and 0 when this was written; torch alone has 1124.
    assert len(ours) <= 50 and len(loaded) - len(ours) <= 20, loaded


def test_torch_alone_loads_none_of_them_either():
    """Whatever torch loads by itself would be missing from what the test above counts."""
    loaded = said_by("import json, sys, torch; print(json.dumps(sorted(sys.modules)))")
    assert not {"torch._dynamo", "sympy", "triton"} & set(loaded)


def test_the_operations_are_there_at_once():
    """For exported programs, which name them."""
    code = (
        "import json, setok_kernels, torch\n"
        f"print(json.dumps([hasattr(torch.ops.setok, name) for name in {[*SCHEMAS]}]))"
    )
    assert said_by(code) == [True] * len(SCHEMAS)


def test_all_public_names_are_there():
    names = said_by(
        "import json; from setok_kernels import *; print(json.dumps(sorted(globals())))"
    )
    assert set(sk.__all__) - {"__version__"} <= set(names)
    code = "import json, setok_kernels as sk; print(json.dumps(sk.testing.check_backend.__name__))"
    assert said_by(code) == "check_backend"
    with pytest.raises(AttributeError, match="'setok_kernels' has no attribute 'nothing'"):
        sk.nothing  # noqa: B018


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_constants_of_a_graph(backend, tmp_path):
    """Called while torch.compile traces, which could not look inside, and never again."""
    called = []
    number = tmp_path / "number"
    number.write_text("3")

    @constant_in_graphs
    def untraceable():
        called.append(1)
        return int(number.read_bytes())

    def add(x):
        return x + untraceable()

    compiled = torch.compile(add, fullgraph=True, backend=backend)
    assert compiled(torch.zeros(2)).tolist() == [3, 3]
    traced = len(called)
    number.write_text("4")
    assert compiled(torch.ones(2)).tolist() == [4, 4] and len(called) == traced
    assert add(torch.zeros(2)).tolist() == [4, 4]
