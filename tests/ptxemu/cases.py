"""Cases of all Triton kernels of setok_kernels, through the package's own functions.

Imported after `driver.prepare()`.
"""

import contextlib
import dataclasses
import itertools

import torch

import setok_kernels as sk
from ptxemu.comparisons import arrange, mask_scale, near, roundoff, same
from setok_kernels import compiled, testing

FLOAT = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Dtypes with the precision of float32 products.
KINDS = [
    ("float32", "highest"), ("float32", "high"), ("float32", "medium"),
    ("bfloat16", "highest"), ("float16", "highest"),
]  # fmt: skip
SHAPES = [
    (1, 1, 3, 1),
    (2, 5, 8, 2),
    (2, 33, 48, 3),
    (1, 65, 64, 8),
    (1, 130, 100, 5),
    (1, 200, 8, 8),
]
LAYOUTS = ["plain", "masked", "packed", "unaligned", "padded"]
CONFIGS = {
    "default": {},
    "kernel": dict(kernel="laplacian", alpha="kernel", include_self=True),
    "mass": dict(kernel="epanechnikov", min_mass=0.5, distance_scale=2.0),
    "paper": dict(score_norm=None, distinct_seeds=False, temperature=1.0, offset=0.0,
        beta=0.5, bandwidth=1.0, distance_scale="dim"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    call: object
    precision: str = "highest"
    dense: bool = True
    quick: bool = False


@contextlib.contextmanager
def settings(case):
    before, limit = torch.get_float32_matmul_precision(), compiled.DENSE_LIMITS["triton"]
    torch.set_float32_matmul_precision(case.precision)
    compiled.DENSE_LIMITS["triton"] = 2048 if case.dense else 0
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        compiled.DENSE_LIMITS["triton"] = limit


def named(shape, dtype, precision, dense, layout):
    rows = "dense" if dense else "streaming"
    return f"B,N,D,K={shape} {dtype} {precision} {rows} {layout}"


def tokens_of(kind, shape, seed=0):
    b, n, d, _ = shape
    made = {
        "vit": lambda: testing.vit_like_tokens(b, n, d, seed, huge=min(2, d)),
        "integers": lambda: testing.integer_tokens(b, n, d, seed),
        "duplicates": lambda: testing.duplicate_tokens(b, n, d, seed, distinct=max(1, n // 3)),
        "equal": lambda: torch.ones(b, n, d),
        "planted": lambda: testing.planted_clusters(b, n, d, max(1, min(5, n)), seed, noise=0.3)[0],
    }
    return made[kind]()


def cluster_case(shape, dtype, precision, dense, layout, config, kind, quick=False):
    def call():
        x, given = arrange(tokens_of(kind, shape).to(FLOAT[dtype]), layout)
        options = sk.ClusterConfig(k=shape[3], max_clusters=9, **CONFIGS[config])
        exact = kind in ("integers", "duplicates")
        if roundoff(dtype, precision) and not exact:
            # Values have tf32 precision: only decisions and invariants have exact bounds.
            out = sk.cluster_tokens(x, options, backend="triton", **given)
            testing.assert_invariants(x, out, options, given.get("token_mask"))
            testing.assert_valid_decisions(
                x, out, options, given.get("token_mask"), roundoff(dtype, precision)
            )
        else:
            out = testing.check_backend("triton", x, options, exact=exact, **given)
        again = sk.cluster_tokens(x, options, backend="triton", decisions=out.decisions, **given)
        same(again, out, ("masks", "labels", "density", "delta", "score"))

    name = f"cluster {kind} {named(shape, dtype, precision, dense, layout)} {config}"
    return Case(name, call, precision, dense, quick)


def guided_case(shape, dtype, precision, dense, layout, config, kind, exact, quick=False):
    """Return a case of importance and budgets: decisions, values, a replay and gradients."""

    def call():
        x, given = arrange(tokens_of(kind, shape).to(FLOAT[dtype]), layout)
        images = x.shape[0] if x.dim() == 3 else given["cu_seqlens"].numel() - 1
        options = sk.ClusterConfig(k=shape[3], max_clusters=6, **CONFIGS[config])
        # Zeros, and powers of two, whose products are exact.
        powers = torch.randint(-3, 3, x.shape[:-1], generator=torch.Generator().manual_seed(2))
        importance = torch.where(powers == -3, 0.0, 2.0**powers)
        budget = 1 + (4 * torch.arange(images)) % 6
        guide = dict(importance=importance, budget=budget, exact_budget=exact)
        integers = kind in ("integers", "duplicates")
        out = testing.check_backend("triton", x, options, exact=integers, **guide, **given)
        guide = dict(importance=importance, num_clusters=budget, exact=exact, backend="triton")
        again = sk.cluster_tokens(x, options, decisions=out.decisions, **guide, **given)
        same(again, out, ("masks", "labels", "density", "delta", "score"))
        testing.assert_replayed_gradients(x, options, "triton", importance=importance, **given)

    name = f"guided {kind} {named(shape, dtype, precision, dense, layout)} {config}"
    return Case(name + (" exact" if exact else ""), call, precision, dense, quick)


def peaks_case(shape, dtype, precision, dense, layout, options, kind, quick=False):
    def call():
        x, given = arrange(tokens_of(kind, shape).to(FLOAT[dtype]), layout)
        wanted = dict(options, k=shape[3])
        images = x.shape[0] if x.dim() == 3 else given["cu_seqlens"].numel() - 1
        if wanted.pop("guided", False):
            powers = torch.randint(-2, 3, x.shape[:-1], generator=torch.Generator().manual_seed(2))
            wanted |= dict(importance=2.0**powers, num_clusters=1 + 2 * torch.arange(images))
        elif "num_clusters" in wanted:
            wanted["num_clusters"] = min(wanted["num_clusters"], shape[1])
        noise = None
        if wanted.pop("noise", False):
            noise = 1e-3 * torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(1))
        out = sk.dpc_knn(x, backend="triton", noise=noise, **given, **wanted)
        if kind in ("integers", "duplicates"):
            testing.assert_same_hard_clusters(
                out, sk.dpc_knn(x, backend="reference", noise=noise, **given, **wanted)
            )
        else:
            given.pop("cu_seqlens", None)
            rounding = roundoff(dtype, precision)
            if rounding:
                assert out.score.isfinite().all()
            else:
                if isinstance(wanted.get("num_clusters"), torch.Tensor):
                    wanted["budget"] = wanted.pop("num_clusters")
                testing.assert_valid_density_peaks(
                    x, out, noise=noise, input_roundoff=rounding, **given, **wanted
                )

    name = f"dpc_knn {kind} {named(shape, dtype, precision, dense, layout)} {options}"
    return Case(name, call, precision, dense, quick)


def greedy_case(shape, dtype, precision, layout, threshold, quick=False):
    def call():
        x, given = arrange(tokens_of("planted", shape).to(FLOAT[dtype]), layout)
        out = sk.threshold_greedy(x, threshold, backend="triton", **given)
        given.pop("cu_seqlens", None)
        testing.assert_valid_threshold_greedy(
            x, out, threshold, input_roundoff=roundoff(dtype, precision), **given
        )

    return Case(
        f"threshold_greedy B,N,D={shape[:3]} {dtype} {precision} {layout} {threshold}",
        call,
        precision,
        True,
        quick,
    )


def merge_case(shape, dtype, precision, layout, mode, weighted, clusters, quick=False):
    """Return a case of merge and unmerge, forward and backward."""

    def call():
        x, given = arrange(tokens_of("vit", shape).to(FLOAT[dtype]), layout)
        config = sk.ClusterConfig(k=shape[3], max_clusters=clusters, stop_residual=0.0)
        out = sk.cluster_tokens(x, config, backend="reference", **given)
        generator = torch.Generator().manual_seed(0)
        weights = 5 * torch.rand(x.shape[:-1], generator=generator) if weighted else None

        def run(backend, wide, features=None):
            """Return values and gradients, optionally with the features in another order."""
            order = slice(None) if features is None else features
            kind = torch.float64 if wide == "double" else torch.float32
            given = x if features is None else x[..., order]
            leaf = (given.double() if wide == "double" else given).detach().requires_grad_()
            masks = out.masks.to(kind).detach().requires_grad_()
            w = None if weights is None else weights.to(kind).detach().requires_grad_()
            shares = dataclasses.replace(out, masks=masks)
            merged = sk.merge_tokens(leaf, shares, mode, w, backend=backend)
            spread = sk.unmerge_tokens(merged, shares, mode, backend=backend)
            draw = torch.Generator().manual_seed(1)
            grads = [torch.randn(t.shape, generator=draw)[..., order] for t in (merged, spread)]
            loss = sum(
                (t.to(kind) * g.to(kind)).sum()
                for t, g in zip((merged, spread), grads, strict=True)
            )
            leaves = [leaf] + [t for t in (masks if mode == "soft" else None, w) if t is not None]
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            values = [merged.detach(), spread.detach(), *found]
            if features is not None:
                back = features.argsort()
                values[:3] = [value[..., back] for value in values[:3]]
            return values

        got, truth = run("triton", "own"), run("reference", "double")
        # The error of one run of so few numbers is a matter of luck.
        orders = [torch.randperm(shape[2], generator=generator) for _ in range(3)]
        plain = [run("reference", "own", order) for order in (None, *orders)]
        names = [
            "merged",
            "spread",
            "gradient of x",
            "gradient of masks or weights",
            "gradient of weights",
        ]
        tf32 = roundoff(dtype, precision)
        for name, a, b, *c in zip(names, got, truth, *plain, strict=False):
            if b is None or a is None:
                assert a is None and b is None, name
                continue
            if "masks" in name and mode == "soft":
                scale = mask_scale(out, weights)
                a, b, *c = (t * scale for t in (a, b, *c))
            if tf32:
                error = (a.double() - b.double()).abs().max() if b.numel() else 0
                # A rough bound: differences of products lose more.
                assert error <= 2**-6 * b.abs().max(), f"{name}: error {error:.3g}"
            else:
                near(name, a, b, c)

    name = f"merge {mode} B,N,D={shape[:3]} {clusters} clusters {dtype} {precision} {layout}"
    name += " weighted" if weighted else ""
    return Case(name, call, precision, True, quick)


def gradient_case(shape, dtype, precision, dense, layout, config, quick=False):
    def call():
        x, given = arrange(tokens_of("planted", shape).to(FLOAT[dtype]), layout)
        options = sk.ClusterConfig(k=shape[3], max_clusters=7, **CONFIGS[config])
        testing.assert_replayed_gradients(x, options, "triton", **given)

    name = f"gradients {named(shape, dtype, precision, dense, layout)} {config}"
    return Case(name, call, precision, dense, quick)


def large_cases():
    """Return cases with the sizes of real images, which take up to a minute each."""
    for dtype, precision in KINDS:
        yield cluster_case((1, 729, 1152, 8), dtype, precision, True, "plain", "default", "vit")
    yield cluster_case((1, 729, 1152, 8), "bfloat16", "highest", False, "plain", "default", "vit")
    yield cluster_case((1, 729, 65, 8), "float32", "highest", True, "masked", "paper", "integers")
    yield peaks_case(
        (1, 729, 1152, 5), "bfloat16", "highest", True, "plain", dict(num_clusters=64), "planted"
    )
    # Several blocks to an image in the loop of single steps, and in that of the claims.
    for dtype in ("float32", "bfloat16"):
        yield cluster_case(
            (1, 2100, 16, 4), dtype, "highest", False, "masked", "default", "planted"
        )
    yield greedy_case((1, 4200, 16, 1), "bfloat16", "highest", "plain", 0.75)
    for dtype in FLOAT:
        yield greedy_case((1, 729, 1152, 1), dtype, "highest", "plain", 0.65)
        for mode in ("soft", "hard"):
            yield merge_case((1, 729, 1152, 8), dtype, "highest", "plain", mode, True, 64)
        yield gradient_case((1, 300, 1152, 8), dtype, "highest", True, "plain", "default")


def cases():
    """All of them. Layouts, options and sizes go round against one another."""
    turn = itertools.count()
    configs = list(CONFIGS)

    def layout(n):
        # Pairs, as of kept and streaming rows, share one, and five pairs later it is another.
        return LAYOUTS[(n // 2 + n // 10) % len(LAYOUTS)]

    for i, shape in enumerate(SHAPES):
        for j, (dtype, precision) in enumerate(KINDS):
            for dense in (True, False):
                n = next(turn)
                config = configs[(i + j) % 4]
                yield cluster_case(
                    shape,
                    dtype,
                    precision,
                    dense,
                    layout(n),
                    config,
                    "vit",
                    quick=i in (1, 2) and (i + j) % 2 == 0,
                )
    for i, shape in enumerate([(2, 35, 9, 3), (1, 70, 16, 8), (1, 140, 5, 4)]):
        for kind, dense in itertools.product(("integers", "duplicates"), (True, False)):
            n = next(turn)
            dtype = list(FLOAT)[n % 3]
            yield cluster_case(
                shape, dtype, "highest", dense, layout(n), configs[n % 4], kind, quick=i == 0
            )
    # Several bands of tiles, in pairs and alone, and long lists of equal distances.
    bands = (("bfloat16", "vit", "masked"), ("float32", "duplicates", "packed"))
    for dtype, kind, arranged in bands:
        shape, config = (1, 700, 24, 8), "default"
        yield cluster_case(shape, dtype, "highest", False, arranged, config, kind, quick=True)
    peaks = [
        dict(num_clusters=7),
        dict(threshold=0.3, order="index", cap="eccentricity"),
        dict(num_clusters=5, cap="eccentricity", noise=True),
    ]
    for i, shape in enumerate([(2, 5, 8, 2), (1, 65, 64, 5), (1, 140, 37, 8), (1, 33, 3, 30)]):
        for j, (dtype, precision) in enumerate(KINDS):
            for dense in (True, False):
                n = next(turn)
                yield peaks_case(
                    shape,
                    dtype,
                    precision,
                    dense,
                    layout(n),
                    peaks[n % 3],
                    "planted",
                    quick=i == 0 and (j + dense) % 2 == 0,
                )
    # A list of neighbours as wide as a warp and wider.
    for k, (dtype, precision), dense in itertools.product((32, 64), KINDS[::3], (True, False)):
        n = next(turn)
        yield cluster_case((1, 130, 24, k), dtype, precision, dense, layout(n), "default", "vit")
        yield peaks_case(
            (1, 130, 24, k), dtype, precision, dense, layout(n), peaks[n % 3], "planted"
        )
    for kind, dense in itertools.product(("integers", "duplicates"), (True, False)):
        yield peaks_case(
            (2, 70, 5, 5), "float32", "highest", dense, "masked", peaks[next(turn) % 2], kind
        )
    guided = [
        ((2, 20, 5, 3), "float32", True, "packed", "default", "integers", True),
        ((2, 20, 5, 3), "bfloat16", False, "masked", "default", "integers", True),
        ((2, 33, 48, 3), "bfloat16", True, "padded", "mass", "vit", True),
        ((2, 33, 48, 3), "float32", False, "unaligned", "mass", "vit", True),
        ((1, 130, 24, 5), "float16", True, "plain", "paper", "planted", False),
        ((1, 130, 24, 5), "float32", False, "packed", "kernel", "planted", False),
    ]
    for i, (shape, dtype, dense, *rest) in enumerate(guided):
        yield guided_case(shape, dtype, "highest", dense, *rest, quick=i < 2)
    for shape, dense in (((2, 20, 8, 3), True), ((2, 35, 9, 3), False)):
        yield peaks_case(
            shape, "float32", "highest", dense, "masked", dict(guided=True), "integers", quick=dense
        )
    yield peaks_case(
        (2, 33, 16, 3), "bfloat16", "highest", True, "padded", dict(guided=True), "vit"
    )
    for i, shape in enumerate([(2, 5, 8, 1), (1, 33, 48, 1), (1, 130, 100, 1), (1, 200, 16, 1)]):
        for dtype, precision in KINDS:
            n = next(turn)
            yield greedy_case(shape, dtype, precision, layout(n), (0.3, 0.75)[n % 2], quick=i == 1)
    for i, (shape, clusters) in enumerate(
        [((2, 20, 8, 3), 4), ((1, 70, 37, 4), 12), ((1, 150, 130, 4), 70)]
    ):
        for dtype, precision in KINDS:
            for mode in ("soft", "hard"):
                n = next(turn)
                yield merge_case(
                    shape,
                    dtype,
                    precision,
                    layout(n),
                    mode,
                    n // 2 % 2 == 0,
                    clusters,
                    quick=i == 0,
                )
    for i, shape in enumerate(
        [(1, 1, 3, 1), (2, 20, 5, 3), (1, 40, 37, 4), (1, 70, 64, 8), (1, 130, 16, 5)]
    ):
        for j, (dtype, precision) in enumerate(KINDS):
            if precision == "medium":
                continue
            n = next(turn)
            yield gradient_case(
                shape,
                dtype,
                precision,
                n % 2 == 0,
                layout(n),
                configs[(i + j) % 3],
                quick=i == 1,
            )
