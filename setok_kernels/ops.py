"""Operations `setok::…`: schemas, output shapes, autograd formulas and the kernels of each device.

CPU kernels are C++ (csrc/), CUDA kernels are Triton. Forward and backward are functional. Autocast
does not change a result: every kernel takes its tensors' dtype and accumulates in at least float32.
"""

import functools
import os
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from setok_kernels import _native
from setok_kernels.arguments import check_device, check_tensor
from setok_kernels.config import INTERPRETED, LEARNABLE, NAMESPACE
from setok_kernels.operands import check_operands
from setok_kernels.saved import saved_bytes

_IMAGES = "Tensor? cu_seqlens, SymInt max_seqlen"
_DECISIONS = "Tensor knn, Tensor parent, Tensor seeds, Tensor counts"
_MASK_OPTIONS = (
    "int kernel, int alpha, float bandwidth, float beta, float temperature, float offset, "
    "int scale, float factor, bool score_norm_max"
)
_VALUES = "Tensor masks, Tensor density, Tensor delta, Tensor score"

# `learnable` (4,) holds bandwidth, beta, temperature and offset in place of the numbers.
SCHEMAS = {
    # `importance` multiplies the seed scores; `budget` (B,) bounds the seeds of each image. `saved`
    # is opaque and for the gradients: (saved_bytes,) uint8, empty from the C++ kernels.
    "cluster": f"(Tensor x, Tensor? valid, Tensor? importance, Tensor? budget, {_IMAGES}, "
    f"{_DECISIONS.replace('Tensor', 'Tensor?')}, Tensor? learnable, {_MASK_OPTIONS}, int k, "
    "SymInt max_clusters, bool distinct_seeds, bool include_self, bool exact, "
    "float stop_residual, float min_mass, int dense_limit) -> "
    "(Tensor masks, Tensor labels, Tensor density, Tensor delta, Tensor score, "
    "Tensor knn, Tensor parent, Tensor seeds, Tensor counts, Tensor saved)",
    # `saved` is that of `cluster`; without it the kernels compute again what it holds.
    "cluster_backward": f"(Tensor x, Tensor? valid, Tensor? importance, {_IMAGES}, {_DECISIONS}, "
    f"{_VALUES}, {_VALUES.replace('Tensor ', 'Tensor? grad_')}, Tensor? saved, "
    f"Tensor? learnable, {_MASK_OPTIONS}) -> "
    "(Tensor grad_x, Tensor grad_importance, Tensor grad_learnable)",
    "merge": f"(Tensor x, Tensor? masks, Tensor labels, Tensor counts, Tensor? weights, {_IMAGES}, "
    "SymInt rows, float eps) -> Tensor",
    "merge_backward": "(Tensor grad, Tensor x, Tensor? masks, Tensor labels, Tensor counts, "
    f"Tensor? weights, {_IMAGES}, float eps, bool need_masks) -> "
    "(Tensor grad_x, Tensor grad_masks, Tensor grad_weights)",
    "unmerge": f"(Tensor tokens, Tensor? masks, Tensor labels, Tensor counts, {_IMAGES}) -> Tensor",
    "unmerge_backward": "(Tensor grad, Tensor tokens, Tensor? masks, Tensor labels, Tensor counts, "
    f"{_IMAGES}, bool need_masks) -> (Tensor grad_tokens, Tensor grad_masks)",
    # A `threshold` of -inf means no threshold. `by_index` sorts the rows by token. `capped` bounds
    # delta by the eccentricity, otherwise the diameter does.
    "dpc_knn": f"(Tensor x, Tensor? valid, {_IMAGES}, Tensor? noise, Tensor? importance, "
    "Tensor? budget, int k, SymInt num_clusters, float threshold, int min_clusters, "
    "bool by_index, bool capped, int dense_limit) -> "
    "(Tensor labels, Tensor centres, Tensor counts, Tensor density, Tensor delta, Tensor score, "
    "Tensor knn, Tensor parent)",
    "threshold_greedy": f"(Tensor x, Tensor? valid, {_IMAGES}, float threshold) -> "
    "(Tensor labels, Tensor centres, Tensor counts)",
}


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the accumulation and of masks, density, delta and score."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# Output shapes (fake kernels).


def _cluster_fake(triton_device, x, valid, importance, budget, cu_seqlens, max_seqlen, knn, *rest):
    # After parent, seeds, counts, learnable and the options of the masks.
    k, max_clusters = rest[4 + len(_MASK_OPTIONS.split(",")) :][:2]
    leading = x.shape[:-1]
    images = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    wide = x.new_empty(leading, dtype=wide_dtype(x))
    rows = max_clusters + 1
    masks = (rows, x.shape[0]) if cu_seqlens is not None else (images, rows, x.shape[1])
    shapes = [(*leading, k), leading, (images, max_clusters), (images,)]
    if knn is not None:
        shapes = [(0,)] * 4
    saved = saved_bytes(wide.numel(), images) if x.device.type == triton_device else 0
    return (
        wide.new_empty(masks),
        x.new_empty(leading, dtype=torch.int64),
        wide,
        torch.empty_like(wide),
        torch.empty_like(wide),
        *(x.new_empty(shape, dtype=torch.int64) for shape in shapes),
        x.new_empty(saved, dtype=torch.uint8),
    )


def _cluster_backward_fake(x, valid, importance, *rest):
    return (
        x.new_empty(x.shape),
        x.new_empty(0 if importance is None else importance.shape, dtype=wide_dtype(x)),
        x.new_empty(len(LEARNABLE), dtype=wide_dtype(x)),
    )


def _merge_fake(x, masks, labels, counts, weights, cu_seqlens, max_seqlen, rows, eps):
    return x.new_empty(counts.shape[0], rows, x.shape[-1])


def _merge_backward_fake(
    grad, x, masks, labels, counts, weights, cu_seqlens, max_seqlen, eps, need_masks
):
    return (
        x.new_empty(x.shape),
        x.new_empty(0) if masks is None or not need_masks else masks.new_empty(masks.shape),
        x.new_empty(0) if weights is None else weights.new_empty(weights.shape),
    )


def _unmerge_fake(tokens, masks, labels, counts, cu_seqlens, max_seqlen):
    return tokens.new_empty(*labels.shape, tokens.shape[-1])


def _unmerge_backward_fake(grad, tokens, masks, labels, counts, cu_seqlens, max_seqlen, need_masks):
    return (
        tokens.new_empty(tokens.shape),
        tokens.new_empty(0) if masks is None or not need_masks else masks.new_empty(masks.shape),
    )


def _hard_fake(x, cu_seqlens, num_clusters):
    images = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shapes = (x.shape[:-1], (images, num_clusters), (images,))
    return tuple(x.new_empty(shape, dtype=torch.int64) for shape in shapes)


def _dpc_knn_fake(
    x, valid, cu_seqlens, max_seqlen, noise, importance, budget, k, num_clusters, *rest
):
    labels, centres, counts = _hard_fake(x, cu_seqlens, num_clusters)
    values = (x.new_empty(labels.shape, dtype=wide_dtype(x)) for _ in range(3))
    return labels, centres, counts, *values, labels.new_empty(*labels.shape, k), labels.clone()


def _threshold_greedy_fake(x, valid, cu_seqlens, max_seqlen, threshold):
    return _hard_fake(x, cu_seqlens, max_seqlen)


def _fake(name: str, triton_key: str):
    """Return the fake kernel of operation `name`; it checks that all tensors share a device.

    The dispatcher calls it in place of a real kernel as soon as one tensor is on device "meta".
    """
    named = _namer(name)
    fake: Any = _FAKES[name]
    if name == "cluster":
        fake = functools.partial(fake, triton_key.lower())

    def checked(*arguments):
        operands = named(arguments)
        first = next(iter(operands))
        for label, value in operands.items():
            if isinstance(value, Tensor):
                check_device(label, value, operands[first].device, like=first)
        return fake(*arguments)

    return checked


def _namer(name: str):
    """Return a function that maps argument values to their schema names.

    It raises a `TypeError` for a required tensor that is None.
    """
    parameters = [part.split() for part in SCHEMAS[name].strip("(").split(") ->")[0].split(",")]

    def named(arguments) -> dict:
        operands = {}
        for (kind, label), value in zip(parameters, arguments, strict=True):
            # The dispatcher accepts None as an undefined tensor.
            if kind == "Tensor":
                check_tensor(label, value)
            operands[label] = value
        return operands

    return named


# Autograd. Decisions are constants; x, importance, the hyper-parameters, masks and weights get
# gradients.


def _cluster_setup(ctx, inputs, output):
    x, valid, importance, _, cu_seqlens, ctx.max_seqlen, *known, learnable = inputs[:11]
    masks, _, *statistics, knn, parent, seeds, counts, saved = output
    decisions = (knn, parent, seeds, counts) if known[0] is None else known
    ctx.save_for_backward(
        x, valid, importance, cu_seqlens, *decisions, masks, *statistics, learnable, saved
    )
    ctx.mask_options = inputs[11 : 11 + len(_MASK_OPTIONS.split(","))]
    ctx.set_materialize_grads(False)


def _cluster_backward(ops):
    def backward(ctx, *grads):
        x, valid, importance, cu_seqlens, *values, learnable, saved = ctx.saved_tensors
        wanted = [grads[0], *grads[2:5]]
        grad_x = grad_importance = grad_learnable = None
        if any(g is not None for g in wanted):
            wanted = [None if g is None else g.contiguous() for g in wanted]
            grad_x, grad_importance, grad_learnable = ops.cluster_backward(
                x,
                valid,
                importance,
                cu_seqlens,
                ctx.max_seqlen,
                *values,
                *wanted,
                saved,
                learnable,
                *ctx.mask_options,
            )
        if importance is None:
            grad_importance = None
        if learnable is None:
            grad_learnable = None
        found = (grad_x, None, grad_importance, *[None] * 7, grad_learnable)
        # Input 0 is the dispatcher's key set.
        return *found, *[None] * (len(ctx.needs_input_grad) - 1 - len(found))

    return backward


def _merge_setup(ctx, inputs, output):
    x, masks, labels, counts, weights, cu_seqlens, ctx.max_seqlen, _, ctx.eps = inputs
    ctx.save_for_backward(x, masks, labels, counts, weights, cu_seqlens)


def _merge_backward(ops):
    def backward(ctx, grad):
        # Input 0 is the dispatcher's key set.
        need_masks = ctx.needs_input_grad[2]
        *tensors, cu_seqlens = ctx.saved_tensors
        grad_x, grad_masks, grad_weights = ops.merge_backward(
            grad.contiguous(), *tensors, cu_seqlens, ctx.max_seqlen, ctx.eps, need_masks
        )
        weighted = ctx.needs_input_grad[5]
        return (
            grad_x,
            grad_masks if need_masks else None,
            None,
            None,
            grad_weights if weighted else None,
            *[None] * 4,
        )

    return backward


def _unmerge_setup(ctx, inputs, output):
    *tensors, ctx.max_seqlen = inputs
    ctx.save_for_backward(*tensors)


def _unmerge_backward(ops):
    def backward(ctx, grad):
        need_masks = ctx.needs_input_grad[2]
        grad_tokens, grad_masks = ops.unmerge_backward(
            grad.contiguous(), *ctx.saved_tensors, ctx.max_seqlen, need_masks
        )
        return grad_tokens, grad_masks if need_masks else None, *[None] * 4

    return backward


def _once_differentiable(name):
    def backward(ctx, *grads):
        raise RuntimeError(f"{name}: second derivatives are not supported; use backend='reference'")

    return backward


_FAKES = {
    "cluster": _cluster_fake,
    "cluster_backward": _cluster_backward_fake,
    "merge": _merge_fake,
    "merge_backward": _merge_backward_fake,
    "unmerge": _unmerge_fake,
    "unmerge_backward": _unmerge_backward_fake,
    "dpc_knn": _dpc_knn_fake,
    "threshold_greedy": _threshold_greedy_fake,
}
_FORMULAS = {
    "cluster": (_cluster_backward, _cluster_setup),
    "merge": (_merge_backward, _merge_setup),
    "unmerge": (_unmerge_backward, _unmerge_setup),
}


def _define(namespace: str, triton_key: str) -> torch.library.Library:
    """Register all operations in a namespace, with the Triton kernels under `triton_key`."""
    library = torch.library.Library(namespace, "DEF")
    ops = getattr(torch.ops, namespace)
    for name, schema in SCHEMAS.items():
        qualified = f"{namespace}::{name}"
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(qualified, _fake(name, triton_key), lib=library)
        library.impl(name, _triton_kernel(name), triton_key)
        if name in _FORMULAS:
            backward, setup = _FORMULAS[name]
            kernel = _autograd_kernel(getattr(ops, name).default, backward(ops), setup)
            library.impl(name, kernel, "Autograd", with_keyset=True)
        elif name.endswith("backward"):
            op = getattr(ops, name).default
            kernel = _autograd_kernel(op, _once_differentiable(qualified), lambda *_: None)
            library.impl(name, kernel, "Autograd", with_keyset=True)
    return library


def _autograd_kernel(op, backward, setup):
    """Return an autograd kernel like that of `torch.library.register_autograd`, but faster.

    torch's own looks up the schema in every call. That takes 170 us for the 25 arguments of
    `setok::cluster`, five times as long as the call itself.
    """

    def below(keyset, arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx, keyset, *arguments):
            output = below(keyset, arguments)
            setup(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return None, *backward(ctx, *grads)

    Formula.__name__ = f"{op._opname}_formula"

    def kernel(keyset, *arguments):
        if forward_ad._current_level >= 0 and any(map(_has_tangent, arguments)):
            raise RuntimeError(f"{op.name()}: forward-mode derivatives {_REMEDY}")
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            if torch._C._are_functorch_transforms_active():
                raise RuntimeError(f"{op.name()}: derivatives by torch.func {_REMEDY}")
            return Formula.apply(keyset, *arguments)
        return below(keyset, arguments)

    return kernel


_REMEDY = "are not supported; use backend='reference', which backend='auto' selects here"


def _has_tangent(argument) -> bool:
    """Return True if the argument carries a forward-mode tangent."""
    return isinstance(argument, Tensor) and forward_ad.unpack_dual(argument).tangent is not None


def _triton_kernel(name: str):
    named = _namer(name)

    def kernel(*args):
        check_operands(named(args))
        # Imported in the first call: triton is slow to import and may be missing.
        from setok_triton import backend

        # Triton launches on the current device, not on the device of the tensors.
        with torch.cuda.device_of(args[0]):
            return getattr(backend, name)(*args)

    return kernel


# The C++ kernels register themselves when their library loads. Without it the CPU has no kernels,
# and dispatch.py reports the reason.
_native.why_missing()
_LIBRARIES = [_define(NAMESPACE, "CUDA")]
if os.environ.get("TRITON_INTERPRET") == "1":
    _LIBRARIES.append(_define(INTERPRETED, "CPU"))
