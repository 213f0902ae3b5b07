"""Hypothesis strategies shared by the property tests."""

import torch
from hypothesis import strategies as st

import setok_kernels as sk
from setok_kernels import testing

configs = st.one_of(
    st.builds(
        sk.ClusterConfig,
        k=st.integers(1, 5),
        max_clusters=st.integers(1, 7),
        kernel=st.sampled_from(["gaussian", "laplacian", "epanechnikov"]),
        bandwidth=st.sampled_from([0.2, 0.5, 3.0]),
        beta=st.sampled_from([0.0, 0.1, 1.5, -0.4]),
        temperature=st.sampled_from([0.1, 1.0]),
        offset=st.sampled_from([0.5, 0.0, -0.3]),
        alpha=st.sampled_from(["sigmoid", "kernel"]),
        distance_scale=st.sampled_from(["variance", "dim", 0.37]),
        score_norm=st.sampled_from(["max", None]),
        distinct_seeds=st.booleans(),
        stop_residual=st.sampled_from([0.02, 0.0, 0.3, 1.0]),
        min_mass=st.sampled_from([0.0, 0.7, 2.3]),
        include_self=st.booleans(),
    ),
    st.builds(sk.ClusterConfig, max_clusters=st.integers(1, 7)),
    st.builds(sk.ClusterConfig.paper, max_clusters=st.integers(1, 7)),
)


@st.composite
def exact_tokens(draw, dtype=torch.float64, max_tokens=10):
    """(B, N, D) small integers: in general position, with duplicates, or one-hot."""
    batch, tokens, dim = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, max_tokens)),
        draw(st.integers(1, 4)),
    )
    seed = draw(st.integers(0, 2**16))
    kind = draw(st.sampled_from(["integers", "duplicates", "one hot", "wide"]))
    if kind == "duplicates":
        return testing.duplicate_tokens(batch, tokens, dim, seed, distinct=3, dtype=dtype)
    if kind == "one hot":
        return testing.one_hot_tokens(batch, tokens, dim, seed, dtype=dtype)
    high = 3 if kind == "integers" else 100
    return testing.integer_tokens(batch, tokens, dim, seed, high=high, dtype=dtype)


@st.composite
def real_tokens(draw, dtype=torch.float32, max_tokens=24):
    """(B, N, D) floats: blobs, or features with a few huge channels."""
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, max_tokens))
    dim, seed = draw(st.sampled_from([1, 3, 16, 33])), draw(st.integers(0, 2**16))
    if draw(st.booleans()):
        return testing.vit_like_tokens(batch, tokens, dim, seed, huge=1, dtype=dtype)
    return testing.planted_clusters(batch, tokens, dim, 4, seed, 0.2, dtype)[0]


# Of scores and cosines, some of which are these numbers.
thresholds = st.sampled_from([0.5, 0.0, 0.25, -0.5, 0.1, 1.0, -1.0, 2.0])


@st.composite
def peak_options(draw):
    """Arguments of `dpc_knn`."""
    counted = draw(st.booleans())
    return dict(
        num_clusters=draw(st.integers(1, 7)) if counted else None,
        threshold=None if counted and draw(st.booleans()) else draw(thresholds),
        k=draw(st.integers(1, 5)),
        min_clusters=draw(st.integers(1, 4)),
        order=draw(st.sampled_from(["score", "index"])),
        cap=draw(st.sampled_from(["diameter", "eccentricity"])),
    )


@st.composite
def exact_noise(draw, shape, dtype=torch.float64):
    """Eighths, or none: their sum with a density is the same in every order."""
    if draw(st.booleans()):
        return None
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return (torch.randint(-4, 5, shape, generator=generator) / 8).to(dtype)


@st.composite
def exact_directions(draw, dtype=torch.float64, max_tokens=10):
    """(B, N, 4) tokens whose norms are powers of two, or 0: quotients and cosines are exact."""
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, max_tokens))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    signs = torch.randint(2, (batch, tokens, 4), generator=generator) * 2 - 1
    hot = torch.nn.functional.one_hot(torch.randint(4, (batch, tokens), generator=generator), 4)
    kind, size = torch.randint(5, (2, batch, tokens, 1), generator=generator)
    x = signs * torch.where(kind < 2, 1, hot) * (kind < 4)
    return (x * 2.0 ** (size - 2)).to(dtype)


@st.composite
def token_masks(draw, x):
    """(B, N) bool; all tokens of the first image."""
    batch, tokens = x.shape[:2]
    return torch.tensor(
        [[draw(st.booleans()) if b else True for _ in range(tokens)] for b in range(batch)]
    )


@st.composite
def exact_importance(draw, shape, dtype=torch.float64):
    """Powers of two and 0, or none: products with them round as those without."""
    if draw(st.booleans()):
        return None
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    powers = torch.randint(-3, 3, shape, generator=generator)
    return torch.where(powers == -3, 0.0, 2.0**powers).to(dtype)


@st.composite
def guides(draw, shape, config, images=None, dtype=torch.float64):
    """Arguments of `check_backend` that guide the seeds of tokens of a shape (B, N) or (T,)."""
    images, most = shape[0] if images is None else images, config.max_clusters
    budgets = st.lists(st.integers(1, most), min_size=images, max_size=images)
    return dict(
        importance=draw(exact_importance(shape, dtype)),
        budget=draw(st.one_of(st.none(), budgets.map(lambda b: torch.tensor(b).long()))),
        exact_budget=config.distinct_seeds and draw(st.booleans()),
    )
