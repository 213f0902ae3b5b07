"""Tell torch.compile what it may take for constant."""

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable)


def constant_in_graphs(function: _Function) -> _Function:
    """Let torch.compile call the function while it traces, and keep the result in the graph.

    The same as `torch.compiler.assume_constant_result`, which imports torch._dynamo, and sympy and
    triton with it, in order to set this attribute: 900 modules for everybody who imports us.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
