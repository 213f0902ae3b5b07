"""Entries of the clustering, of its gradient and of merging."""

from __future__ import annotations

import dataclasses
import functools

import torch

import setok_kernels as sk
from setok_bench import checks, work
from setok_bench.registry import Case, Entry, Implementation, Unavailable
from setok_bench.timing import Call
from setok_kernels.dispatch import select_backend

# Device types of each backend.
BACKENDS = {"cpp": ("cpu",), "triton": ("cuda",), "reference": ("cpu", "cuda")}
# Compiled backend of each device type. "auto" would not choose unverified Triton kernels.
OURS = {"cpu": "cpp", "cuda": "triton"}


def backend_implementation(name: str, make, check) -> Implementation:
    """Return the implementation of a backend; `make(case, backend)` returns its call."""

    def checked_make(case: Case) -> Call:
        try:
            select_backend(name, case.device)
        except RuntimeError as error:
            raise Unavailable(str(error)) from error
        return make(case, name)

    role = "reference" if name == "reference" else "ours"
    return Implementation(name, checked_make, check, role, BACKENDS[name])


def backend_implementations(make, check) -> tuple[Implementation, ...]:
    """Return the implementations of all backends."""
    return tuple(backend_implementation(name, make, check) for name in BACKENDS)


def make_product(case: Case) -> Call:
    """Return the yardstick call: the products of all pairs by the library."""
    x = case.tokens()
    return lambda: torch.bmm(x, x.mT)


BMM = Implementation("bmm", make_product, checks.check_product, "yardstick", work=work.product)


def make_cluster(case: Case, backend: str) -> Call:
    """Return a call of the whole forward pass."""
    x, config = case.tokens(), case.config
    return lambda: sk.cluster_tokens(x, config, backend=backend)


def make_compiled(case: Case) -> Call:
    """Return a call of the reference through torch.compile, with all steps in one graph."""
    x, config = case.tokens(), case.config
    torch.compiler.reset()
    cluster = torch.compile(
        lambda x: sk.cluster_tokens(x, config, backend="reference"), fullgraph=True, dynamic=False
    )
    return lambda: cluster(x)


def make_backward(case: Case, backend: str) -> Call:
    """Return a call of forward and backward, to tokens and hyper-parameters."""
    x = case.tokens().requires_grad_()
    module = sk.TokenClustering(case.config, backend=backend).to(x.device)
    leaves, grad = [x, *module.parameters()], checks.mask_gradient(case)

    def call():
        out = module(x)
        return out, torch.autograd.grad(out.masks, leaves, grad)

    return call


CLUSTER_TOKENS = Entry(
    "cluster_tokens",
    work.cluster_tokens,
    (
        *backend_implementations(make_cluster, checks.check_clusters),
        Implementation("compiled_reference", make_compiled, checks.check_clusters, "reference"),
        BMM,
    ),
    yardstick="bmm",
)

# The forward pass alone is the yardstick, so the ratio has the cost of the gradient.
CLUSTER_BACKWARD = Entry(
    "cluster_backward",
    work.cluster_backward,
    (
        *backend_implementations(make_backward, checks.check_gradients),
        Implementation(
            "forward",
            lambda case: make_cluster(case, OURS[case.device.type]),
            checks.check_clusters,
            "yardstick",
            work=work.cluster_tokens,
        ),
    ),
    yardstick="forward",
)


def merge_entry(soft: bool, back: bool) -> Entry:
    """Return the entry of merge or (`back`) unmerge, soft or hard."""
    mode = "soft" if soft else "hard"

    @functools.lru_cache(maxsize=1)
    def inputs(case: Case):
        x = case.tokens()
        # One clustering for all implementations and for the check.
        out = sk.cluster_tokens(x, case.config)
        merged = sk.merge_tokens(x, out, mode, backend="reference")
        return x, out, merged

    def carry_out(case: Case, backend: str, dtype: torch.dtype):
        x, out, merged = inputs(case)
        if dtype == torch.float64:
            # Soft sums are computed in the dtype of the masks.
            out = dataclasses.replace(out, masks=out.masks.double())
        if back:
            return sk.unmerge_tokens(merged.to(dtype), out, mode, backend=backend)
        return sk.merge_tokens(x.to(dtype), out, mode, backend=backend)

    def make(case: Case, backend: str) -> Call:
        return lambda: carry_out(case, backend, case.shape.dtype)

    def check(case: Case, result) -> None:
        checks.check_merged(case, result, lambda dtype: carry_out(case, "reference", dtype))

    def make_bmm(case: Case) -> Call:
        x, out, merged = inputs(case)
        masks = out.masks.to(x.dtype)
        if back:
            return lambda: torch.bmm(masks.mT, merged)
        return lambda: torch.bmm(masks, x)

    implementations = backend_implementations(make, check)
    if soft:
        # The product alone, without the division by the mass.
        implementations += (
            Implementation("bmm", make_bmm, lambda case, result: None, "yardstick"),
        )
    return Entry(
        f"{'unmerge' if back else 'merge'}_{mode}",
        lambda shape: work.merge(shape, soft),
        implementations,
        yardstick="bmm" if soft else None,
    )


MERGES = tuple(merge_entry(soft, back) for soft in (True, False) for back in (False, True))
