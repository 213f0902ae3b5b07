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
