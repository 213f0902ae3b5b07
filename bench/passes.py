"""Passes whose kernels `kernel_counts.py` counts: their inputs, calls, and launches of torch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch

K, CLUSTERS = 8, 64
# Operations of setok_triton.backend, by their names in setok_kernels/ops.py.
_OPERATIONS = ("cluster", "cluster_backward", "merge", "merge_backward", "unmerge")
_OPERATIONS += ("unmerge_backward",)

Call = Callable[[], object]


@dataclass(frozen=True)
class Pass:
    """A computation to count.

    Attributes:
        prepare: function of the tokens (B, N, D) that returns the call to count. Its own launches
            are not counted.
        shapes: pairs of dtype and sizes (tokens, features) to count.
        launched: sizes to launch without running, for the launches at sizes that take too long.
        streaming: flag: keep no distance rows, whatever the number of tokens.
    """

    prepare: Callable[[torch.Tensor], Call]
    shapes: tuple[tuple[str, tuple[int, int]], ...]
    launched: tuple[tuple[str, tuple[int, int]], ...] = ()
    streaming: bool = False


def _cluster(x: torch.Tensor):
    import setok_kernels as sk

    # All steps of the scope loop.
    config = sk.ClusterConfig(k=K, max_clusters=CLUSTERS, stop_residual=0.0)
    return sk.cluster_tokens(x, config, backend="triton")


def _gradient(like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator).to(like.dtype)


def _forward(x: torch.Tensor) -> Call:
    return lambda: _cluster(x)


def _backward(x: torch.Tensor) -> Call:
    x = x.requires_grad_()
    out = _cluster(x)
    values = (out.masks, out.density, out.delta, out.score)
    gradients = [_gradient(value) for value in values]
    return lambda: torch.autograd.grad(values, x, gradients)


def _merge(backward: bool) -> Callable[[torch.Tensor], Call]:
    def prepare(x):
        import setok_kernels as sk

        out = _cluster(x)
        if not backward:
            return lambda: sk.merge_tokens(x, out, "soft", backend="triton")
        x, out = x.requires_grad_(), dataclasses.replace(out, masks=out.masks.requires_grad_())
        merged = sk.merge_tokens(x, out, "soft", backend="triton")
        gradient = _gradient(merged)
        return lambda: torch.autograd.grad(merged, (x, out.masks), gradient)

    return prepare


def _unmerge(backward: bool) -> Callable[[torch.Tensor], Call]:
    def prepare(x):
        import setok_kernels as sk

        out = _cluster(x)
        tokens = sk.merge_tokens(x, out, "soft", backend="triton")
        if not backward:
            return lambda: sk.unmerge_tokens(tokens, out, "soft", backend="triton")
        tokens = tokens.requires_grad_()
        out = dataclasses.replace(out, masks=out.masks.requires_grad_())
        spread = sk.unmerge_tokens(tokens, out, "soft", backend="triton")
        gradient = _gradient(spread)
        return lambda: torch.autograd.grad(spread, (tokens, out.masks), gradient)

    return prepare


def _shapes(dtypes: tuple[str, ...], *tokens: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    return tuple((dtype, (n, 1152)) for dtype in dtypes for n in tokens)


_BOTH, _BF16 = ("bfloat16", "float32"), ("bfloat16",)
PASSES = {
    "forward": Pass(_forward, _shapes(_BOTH, 256, 576, 729, 2048)),
    "backward": Pass(_backward, _shapes(_BF16, 256, 576, 729, 2048)),
    # Powers of two, as blocks of kernels are; 4096 tokens take a minute, 8192 four. Fewer than 2048
    # have too few candidates of seeds.
    "streaming": Pass(
        _forward,
        _shapes(_BF16, 2048, 4096, 8192),
        launched=_shapes(_BF16, 16384, 65536),
        streaming=True,
    ),
    "merge_soft": Pass(_merge(backward=False), _shapes(_BF16, 729)),
    "merge_soft_backward": Pass(_merge(backward=True), _shapes(_BF16, 729)),
    "unmerge_soft": Pass(_unmerge(backward=False), _shapes(_BF16, 729)),
    "unmerge_soft_backward": Pass(_unmerge(backward=True), _shapes(_BF16, 729)),
}


@contextlib.contextmanager
def distance_rows(streaming: bool) -> Iterator[None]:
    """Keep no distance rows in the context if `streaming`."""
    from setok_kernels import compiled

    limit = compiled.DENSE_LIMITS["triton"]
    with mock.patch.dict(compiled.DENSE_LIMITS, triton=0 if streaming else limit):
        yield


class TorchKernels(torch.utils._python_dispatch.TorchDispatchMode):
    """Counter of torch operations that launch a kernel on a GPU."""

    _NONE = ("empty", "view", "reshape", "slice", "select", "detach", "alias", "as_strided")
    _NONE += ("unsqueeze", "squeeze", "expand", "transpose", "permute", "unbind", "split", "t.")

    def __init__(self):
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.").lstrip("_")
        # `counting_torch` counts the operations inside ours.
        ours = str(function).startswith("setok")
        self.launches += not ours and not name.startswith(("new_empty", *self._NONE))
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def counting_torch() -> Iterator[TorchKernels]:
    """Enter a `TorchKernels` that also counts inside our operations.

    A dispatch mode is off while it handles an operation, so a second one is entered inside.
    """
    from setok_triton import backend

    outer, inner = TorchKernels(), TorchKernels()

    def counted(plain):
        def operation(*args):
            with inner:
                return plain(*args)

        return operation

    names = [name for name in _OPERATIONS if hasattr(backend, name)]
    with contextlib.ExitStack() as stack:
        for name in names:
            counting = counted(getattr(backend, name))
            stack.enter_context(mock.patch.object(backend, name, counting))
        stack.enter_context(outer)
        yield outer
    outer.launches += inner.launches
