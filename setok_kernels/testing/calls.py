"""Random calls of the public functions and the operations `setok::…`, valid and invalid."""

import dataclasses
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from setok_kernels import functional
from setok_kernels.compiled import Compiled, mask_options
from setok_kernels.config import ALPHAS, CAPS, KERNELS, LEARNABLE, NAMESPACE, ORDERS, ClusterConfig
from setok_kernels.ops import wide_dtype
from setok_kernels.result import Clusters, HardClusters
from setok_kernels.testing.generators import integer_tokens, ragged_batch, vit_like_tokens
from setok_kernels.testing.spoil import OPERANDS, TENSORS, spoiled

# Building a scene takes longer than a call.
_CALLS_PER_SCENE = 10
_TOKENS = (0, 1, 5, 17, 40, 90)


@dataclass(frozen=True)
class Call:
    """A call with its arguments, and the errors that it may raise.

    Attributes:
        name: name of the function.
        function: function with keyword arguments.
        arguments: arguments by name, some of them invalid.
        spoiled: names of the changed arguments.
        public: flag: errors must be a `ValueError` or `TypeError` with the argument's name.
    """

    name: str
    function: Callable
    arguments: dict
    spoiled: tuple[str, ...]
    public: bool

    def __call__(self):
        """Call the function."""
        return self.function(**self.arguments)


@dataclass(frozen=True)
class _Scene:
    """Tokens and options, with their soft and hard clustering for the merge."""

    x: Tensor
    layout: dict  # token_mask, or cu_seqlens and max_seqlen
    config: ClusterConfig
    out: Clusters
    hard: HardClusters
    backend: str


def random_call(seed: int, backend: str = "cpp") -> Call:
    """Return the call of a random seed; about a quarter of all calls are valid.

    Args:
        seed: random seed of every choice.
        backend: name of a backend with operations `setok::…` on the CPU.
    """
    choices = random.Random(seed)
    scene = _scene(seed // _CALLS_PER_SCENE, backend)
    public = choices.random() < 0.5
    make = _public_call if public else _operation_call
    name, function, arguments = make(choices, scene)
    changed: tuple[str, ...] = ()
    if choices.random() < 0.75:
        changed = tuple(
            choices.sample(sorted(arguments), k=min(len(arguments), choices.choice([1, 1, 2, 3])))
        )
    kinds = TENSORS if public else OPERANDS
    for argument in changed:
        arguments[argument] = spoiled(choices, arguments[argument], kinds)
    return Call(name, function, arguments, changed, public)


@functools.lru_cache(maxsize=1)
def _scene(seed: int, backend: str) -> _Scene:
    choices = random.Random(seed)
    images, dim = choices.randint(0, 3), choices.choice([1, 3, 16, 33])
    dtype = choices.choice([torch.float64, torch.float32, torch.float32, torch.bfloat16])
    if choices.random() < 0.4:
        lengths = [choices.choice(_TOKENS) for _ in range(images)]
        x, cu_seqlens, _, _ = ragged_batch(lengths, dim, seed, dtype=dtype)
        layout: dict[str, Any] = dict(cu_seqlens=cu_seqlens, max_seqlen=max(lengths, default=0))
    else:
        tokens = choices.choice(_TOKENS)
        make = choices.choice([integer_tokens, vit_like_tokens])
        x = make(images, tokens, dim, seed, dtype=dtype)
        layout = {}
        if choices.random() < 0.5:
            generator = torch.Generator().manual_seed(seed)
            layout["token_mask"] = torch.rand(x.shape[:2], generator=generator) > 0.3
    if x.numel() and choices.random() < 0.2:
        x.flatten(0, -2)[choices.randrange(x.shape[:-1].numel())] = torch.nan
    learnable = choices.random() < 0.3
    numbers: dict[str, Any] = dict(bandwidth=0.5, beta=0.1, temperature=0.1, offset=0.4)
    options: dict[str, Any] = dict(
        k=choices.randint(1, 9),
        max_clusters=choices.randint(1, 7),
        kernel=choices.choice(KERNELS),
        alpha=choices.choice(ALPHAS),
        distance_scale=choices.choice(["variance", "dim", 0.4]),
        score_norm=choices.choice(["max", None]),
        distinct_seeds=choices.random() < 0.7,
        include_self=choices.random() < 0.3,
        **{n: torch.tensor(v) if learnable else v for n, v in numbers.items()},
    )
    config = ClusterConfig(**options)
    out = functional.cluster_tokens(x, config, **layout, backend=backend)
    hard = functional.dpc_knn(x, choices.randint(1, 5), **layout, backend=backend)
    return _Scene(x, layout, config, out, hard, backend)


def _public_call(choices: random.Random, scene: _Scene) -> tuple[str, Callable, dict]:
    x, out = scene.x, choices.choice([scene.out, scene.hard])
    mode = choices.choice(["hard", "soft"]) if out is scene.out else "hard"
    weights = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(0))
    tokens = torch.zeros(out.counts.shape[0], out.num_rows, x.shape[-1], dtype=x.dtype)
    backend = choices.choice([scene.backend, scene.backend, "reference"])
    common = dict(scene.layout, backend=backend)
    replayed = choices.random() < 0.4
    images, most = out.counts.shape[0], scene.config.max_clusters
    importance = choices.choice([None, None, weights])
    rates = torch.full((images,), 0.01 * most)
    budgets = [None, None, most, torch.full((images,), choices.randint(1, most))]
    calls = {
        "cluster_tokens": dict(
            x=x,
            config=scene.config,
            num_clusters=choices.choice(budgets),
            rate=None,
            exact=scene.config.distinct_seeds and choices.random() < 0.3,
            importance=importance,
            decisions=scene.out.decisions if replayed else None,
            **common,
        ),
        "dpc_knn": dict(
            x=x,
            num_clusters=choices.choice([None, *budgets]),
            rate=None,
            importance=importance,
            threshold=0.3,
            k=scene.config.k,
            noise=choices.choice([None, weights]),
            order=choices.choice(ORDERS),
            cap=choices.choice(CAPS),
            **common,
        ),
        "threshold_greedy": dict(x=x, threshold=choices.choice([0.5, 0.9, 1.0]), **common),
        "merge_tokens": dict(
            x=x,
            out=out,
            mode=mode,
            weights=choices.choice([None, weights]),
            eps=1e-6,
            backend=backend,
        ),
        "unmerge_tokens": dict(tokens=tokens, out=out, mode=mode, backend=backend),
        "sizes": dict(out=out),
        "occupied": dict(out=out),
        "pack": dict(
            out=out,
            tokens=tokens,
            drop_empty=choices.random() < 0.5,
            order=choices.choice(["seed", "raster", "size"]),
        ),
    }
    for name in ("cluster_tokens", "dpc_knn"):
        # A rate as a number changes the shape of the decisions.
        if calls[name]["num_clusters"] is None:
            calls[name]["rate"] = choices.choice([None, rates, *[0.3] * (name == "dpc_knn")])
    calls["ClusterConfig"] = vars(scene.config).copy()
    name = choices.choice(list(calls))
    if name == "ClusterConfig":
        return name, ClusterConfig, calls[name]
    if name in ("sizes", "occupied", "pack"):
        return name, lambda out, **rest: getattr(type(scene.out), name)(out, **rest), calls[name]
    return name, _differentiated(getattr(functional, name)), calls[name]


def _differentiated(function: Callable) -> Callable:
    """Return a function that also computes the gradient of every floating-point input."""

    def call(**arguments):
        leaves = []
        for name in sorted({"x", "tokens", "weights", "importance"} & set(arguments)):
            value = arguments[name]
            if isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta:
                arguments[name] = value.detach().requires_grad_()
                leaves.append(arguments[name])
        result = function(**arguments)
        values = [result]
        if dataclasses.is_dataclass(result):
            values = [v for v in vars(result).values() if isinstance(v, Tensor)]
        values = [v.sum() for v in values if v.requires_grad]
        if values and leaves:
            torch.autograd.grad(sum(values), leaves, allow_unused=True)
        return result

    return call


def _operation_call(choices: random.Random, scene: _Scene) -> tuple[str, Callable, dict]:
    operands = {**_clustering_operands(choices, scene), **_merging_operands(choices, scene)}
    name = choices.choice(list(operands))
    operation = getattr(getattr(torch.ops, NAMESPACE), name)
    names = [argument.name for argument in operation.default._schema.arguments]
    arguments = dict(zip(names, operands[name], strict=True))
    return f"ops.{name}", lambda **given: operation(*given.values()), arguments


def _clustering_operands(choices: random.Random, scene: _Scene) -> dict[str, tuple]:
    x, config, out = scene.x.contiguous(), scene.config, scene.out
    valid, cu_seqlens = scene.layout.get("token_mask"), scene.layout.get("cu_seqlens")
    longest = scene.layout.get("max_seqlen", x.shape[1])
    images = (cu_seqlens, longest)
    d, limit = out.decisions, choices.choice([0, 3072])
    known = (d.knn, d.parent, d.seeds, d.counts)
    options = mask_options(config, x)
    values = (out.masks, out.density, out.delta, out.score)
    grads = [choices.choice([None, torch.ones_like(value)]) for value in values]
    exact = config.distinct_seeds and choices.random() < 0.3
    loop = (config.k, config.max_clusters, config.distinct_seeds, config.include_self, exact)
    noise = torch.zeros(x.shape[:-1], dtype=wide_dtype(x))
    importance = choices.choice([None, torch.rand_like(noise)])
    budget = choices.choice([None, torch.full_like(d.counts, choices.randint(0, 1))])
    if choices.random() < 0.3:
        numbers = torch.tensor([0.5, 0.1, 0.1, 0.4], dtype=wide_dtype(x))
        options = (numbers, *options[1:])
        assert len(numbers) == len(LEARNABLE)
    return {
        "cluster": (
            x, valid, importance, budget, *images, *choices.choice([(None,) * 4, known]),
            *options, *loop, 0.02, 0.0, limit,
        ),
        "cluster_backward": (
            x, valid, importance, *images, *known, *values, *grads, None, *options,
        ),
        "dpc_knn": (
            x, valid, *images, choices.choice([None, noise]), importance, budget, config.k, 3,
            0.3, 2, choices.random() < 0.5, choices.random() < 0.5, limit,
        ),
        "threshold_greedy": (x, valid, *images, 0.5),
    }  # fmt: skip


def _merging_operands(choices: random.Random, scene: _Scene) -> dict[str, tuple]:
    soft = choices.random() < 0.5
    out: Any = scene.out if soft else choices.choice([scene.out, scene.hard])
    assignment = Compiled("cpp")._assignment(out, "soft" if soft else "hard")
    rows_of, images = assignment[:3], assignment[3:]
    dtype = out.masks.dtype if soft else choices.choice([torch.float64, torch.float32])
    x = scene.x.to(dtype).contiguous()
    rows, weights = out.num_rows, choices.choice([None, torch.ones(x.shape[:-1], dtype=dtype)])
    tokens = torch.ones(out.counts.shape[0], rows, x.shape[-1], dtype=dtype)
    need = choices.random() < 0.5
    return {
        "merge": (x, *rows_of, weights, *images, rows, 1e-6),
        "merge_backward": (tokens, x, *rows_of, weights, *images, 1e-6, need),
        "unmerge": (tokens, *rows_of, *images),
        "unmerge_backward": (x, tokens, *rows_of, *images, need),
    }
