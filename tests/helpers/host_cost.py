"""What a call costs the host: allocations, operations of torch, and launches, without a GPU.

The kernels' Python runs on fake tensors on "cuda", of which nothing has a value: a call that reads
one, or whose shapes depend on one, raises.
"""

import contextlib
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from helpers.fake_gpu import WithoutDriver
from setok_kernels import ops

aten = torch.ops.aten

# These allocate, and launch nothing.
_EMPTY = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
_ASSERTIONS = {aten._assert_async.default, aten._assert_async.msg}
# These bring something to the host, or make a shape of values: both wait for the device.
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.item.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
}


@dataclass
class Cost:
    """Of one or more calls.

    Attributes:
        allocations: new storages.
        allocated: bytes of them.
        aten: operations of torch that dispatch, views too, by name.
        aten_launches: those that run something on the device.
        kernels: launches of ours, by name.
        waits: operations for which the host waits.
    """

    allocations: int = 0
    allocated: int = 0
    aten: Counter = field(default_factory=Counter)
    aten_launches: Counter = field(default_factory=Counter)
    kernels: Counter = field(default_factory=Counter)
    waits: list = field(default_factory=list)

    @property
    def launches(self) -> int:
        """All that the device runs."""
        return self.aten_launches.total() + self.kernels.total()

    @property
    def row(self) -> tuple[int, int, int]:
        """Allocations, operations of torch, launches."""
        return self.allocations, self.aten.total(), self.launches


class _Counting(TorchDispatchMode):
    """Counts operations of torch; runs those of `setok::` down to their launches."""

    def __init__(self, cost: Cost):
        super().__init__()
        self.cost = cost

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function.namespace == "setok":
            # The fake implementation would stop here: the device's own goes on. The mode of the
            # fake GPU has let the operation pass, and does not see what is below it.
            with self, WithoutDriver():
                return ops._triton_kernel(function._opname)(*arguments)
        if function.namespace == "aten":
            self.cost.aten[str(function).removeprefix("aten.")] += 1
        if function in WAITS:
            self.cost.waits.append(str(function))
        given = [t for t in tree_leaves((arguments, keywords)) if isinstance(t, torch.Tensor)]
        out = function(*arguments, **keywords)
        found = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if any(t.device.type == "cuda" for t in given) and any(
            t.device.type == "cpu" for t in found
        ):
            self.cost.waits.append(f"{function} to the CPU")
        known = {t.untyped_storage()._cdata for t in given}
        new = {t.untyped_storage()._cdata: t for t in found}
        new = [t for storage, t in new.items() if storage not in known]
        self.cost.allocations += len(new)
        self.cost.allocated += sum(t.untyped_storage().nbytes() for t in new)
        changes = function._schema.is_mutable or function in _ASSERTIONS
        if function not in _EMPTY and (new or changes):
            self.cost.aten_launches[str(function).removeprefix("aten.")] += 1
        return out


@contextlib.contextmanager
def counted(monkeypatch):
    """Counts what runs in the block, which works on fake tensors; yields the `Cost`."""
    cost = Cost()

    def launch(self, *_, grid, warmup, **__):
        assert all(isinstance(size, int) for size in grid), "a grid that depends on data"
        cost.kernels[self.fn.__name__.removesuffix("_kernel")] += 1

    @contextlib.contextmanager
    def no_device(_):
        yield

    with monkeypatch.context() as patch:
        patch.setattr(InterpretedFunction, "run", launch)
        patch.setattr(JITFunction, "run", launch)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_of", no_device)
        with _Counting(cost):
            yield cost
