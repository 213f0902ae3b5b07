"""Mark functions whose result torch.compile may treat as a constant."""

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable)


def constant_in_graphs(function: _Function) -> _Function:
    """Make torch.compile call the function during tracing and store the result in the graph.

    Equivalent to `torch.compiler.assume_constant_result`. That one imports torch._dynamo, sympy and
    triton (900 modules) only to set this attribute.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
