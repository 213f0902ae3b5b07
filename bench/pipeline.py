"""Entries of the pipeline from pixels to the language model: cost and savings of clustering.

Models have the shapes of the paper's models and random weights. The number of features selects
smaller models for a CPU.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import nn

import setok_kernels as sk
from setok_bench import work
from setok_bench.clustering import OURS
from setok_bench.registry import Case, Entry, Implementation, Unavailable
from setok_bench.timing import Call
from setok_bench.work import Shape, Work
from setok_kernels import testing

PATCH = 14
# Number of text tokens of a question about the image.
TEXT_TOKENS = 64


@dataclass(frozen=True)
class Size:
    """Size of a transformer: layers, heads and width of the MLP."""

    name: str
    layers: int
    heads: int
    hidden: int


# Sizes by the number of features.
ENCODERS = {
    1152: Size("SigLIP-so400m-patch14-384", 27, 16, 4304),
    384: Size("a small one of SigLIP's kind", 6, 6, 1536),
}
LANGUAGE_MODELS = {
    4096: Size("LLaMA-7B", 32, 32, 11008),
    512: Size("a small one of LLaMA's kind", 6, 8, 1376),
}


def _size(sizes: dict[int, Size], features: int) -> Size:
    if features not in sizes:
        known = ", ".join(map(str, sizes))
        raise ValueError(f"features: expected one of {known}, got {features}")
    return sizes[features]


@functools.lru_cache(maxsize=1)
def _model(
    kind: str, features: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    try:
        from transformers import LlamaConfig, LlamaModel, SiglipVisionConfig, SiglipVisionModel
    except ImportError as error:
        raise Unavailable(
            'transformers is not installed; pip install "setok-kernels[model]"'
        ) from error
    if kind == "encoder":
        size, make = _size(ENCODERS, features), SiglipVisionModel
        config = SiglipVisionConfig(
            hidden_size=features,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.hidden,
            image_size=PATCH * math.isqrt(tokens),
            patch_size=PATCH,
        )
    else:
        size, make = _size(LANGUAGE_MODELS, features), LlamaModel
        config = LlamaConfig(
            hidden_size=features,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.hidden,
        )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return make(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


def _encode(case: Case):
    """Return a function that computes the (B, N, D) features of the penultimate layer."""
    s = case.shape
    if math.isqrt(s.tokens) ** 2 != s.tokens:
        raise ValueError(f"tokens: expected a square number, got {s.tokens}")
    model = _model("encoder", s.features, s.tokens, s.dtype, case.device)
    side = PATCH * math.isqrt(s.tokens)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(s.images, 3, side, side, generator=generator).to(case.device, s.dtype)

    @torch.inference_mode()
    def encode():
        return model(pixels, output_hidden_states=True).hidden_states[-2]

    return encode


def _cluster(case: Case):
    backend, config = OURS[case.device.type], case.config
    return lambda features: sk.cluster_tokens(features, config, backend=backend)


def make_encoder(case: Case) -> Call:
    """Return a call of the encoder alone."""
    return _encode(case)


def check_features(case: Case, features) -> None:
    """Check that the features are finite, one for each patch."""
    s = case.shape
    expected = (s.images, s.tokens, s.features)
    assert tuple(features.shape) == expected, f"features: {tuple(features.shape)}"
    assert features.isfinite().all(), "features: not finite"


def make_clusters(case: Case) -> Call:
    """Return a call of the clustering of the encoder's features, without the encoder."""
    features, cluster = _encode(case)().clone(), _cluster(case)
    return lambda: (features, cluster(features))


def make_encoder_and_clusters(case: Case) -> Call:
    """Return a call of encoder and clustering."""
    encode, cluster = _encode(case), _cluster(case)

    def call():
        features = encode()
        return features, cluster(features)

    return call


def check_both(case: Case, result) -> None:
    """Check the features and the decisions."""
    features, out = result
    check_features(case, features)
    testing.assert_invariants(features, out, case.config)
    testing.assert_valid_decisions(features, out, case.config)


@functools.lru_cache(maxsize=1)
def tokens_of_photographs() -> tuple[int, ...]:
    """Return the numbers of clusters of eight photographs, with the built-in encoder."""
    try:
        from setokim import PatchStatisticsEncoder
        from setokim.data.photographs import PHOTOGRAPHS, photograph

        photos = [photograph(name).convert("RGB") for name in PHOTOGRAPHS]
    except ImportError as error:
        raise Unavailable(
            f'{error.name} is not installed; pip install "setok-kernels[cli,photographs]"'
        ) from error
    return tuple(sk.cluster_tokens(PatchStatisticsEncoder()(photos)).counts.tolist())


def visual_tokens(name: str, shape: Shape) -> int:
    """Return the number of visual tokens of an image for one implementation."""
    if name == "all_patches":
        return shape.tokens
    if name == "most_clusters":
        return shape.clusters
    counts = tokens_of_photographs()
    return round(sum(counts) / len(counts))


def make_prefill(name: str):
    """Return the prefill of the language model, with a question and that many visual tokens."""

    def make(case: Case) -> Call:
        s = case.shape
        model = _model("llm", s.features, s.tokens, s.dtype, case.device)
        length = TEXT_TOKENS + visual_tokens(name, s)
        generator = torch.Generator().manual_seed(0)
        embeds = torch.randn(s.images, length, s.features, generator=generator)
        embeds = embeds.to(case.device, s.dtype)

        @torch.inference_mode()
        def prefill():
            return model(inputs_embeds=embeds, use_cache=True).last_hidden_state

        return prefill

    return make


def check_states(case: Case, states) -> None:
    """Check that the hidden states are finite, one for each token."""
    assert states.shape[0] == case.shape.images and states.shape[2] == case.shape.features
    assert states.isfinite().all(), "hidden states: not finite"


def encoder_work(shape: Shape) -> Work:
    """Return the work of the encoder; its weights are read once."""
    size = _size(ENCODERS, shape.features)
    d, h = shape.features, size.hidden
    flops = work.transformer(
        shape.tokens, shape.images, size.layers, d, h, gated=False, causal=False
    )
    flops += 2 * shape.total * 3 * PATCH**2 * d  # patch embedding
    weights = size.layers * (4 * d * d + 2 * d * h) + (3 * PATCH**2 + shape.tokens) * d
    pixels = 3 * PATCH**2 * shape.total
    return Work((weights + pixels) * shape.dtype.itemsize + shape.input_bytes, flops)


def prefill_work(shape: Shape, visual: int | None = None) -> Work:
    """Return the work of the language model with `visual` visual tokens, or all patches."""
    size = _size(LANGUAGE_MODELS, shape.features)
    visual = shape.tokens if visual is None else visual
    d, h, length = shape.features, size.hidden, visual + TEXT_TOKENS
    flops = work.transformer(length, shape.images, size.layers, d, h, gated=True, causal=True)
    weights = size.layers * (4 * d * d + 3 * d * h)
    return Work((weights + 2 * shape.images * length * d) * shape.dtype.itemsize, flops)


ENCODE = Entry(
    "encode",
    encoder_work,
    (
        Implementation("encoder", make_encoder, check_features, "yardstick"),
        Implementation(
            "encoder_and_clusters",
            make_encoder_and_clusters,
            check_both,
            "ours",
            work=lambda shape: encoder_work(shape) + work.cluster_tokens(shape),
        ),
        Implementation("clusters", make_clusters, check_both, "ours", work=work.cluster_tokens),
    ),
    yardstick="encoder",
)
PREFILL = Entry(
    "prefill",
    prefill_work,
    tuple(
        Implementation(
            name,
            make_prefill(name),
            check_states,
            "yardstick" if name == "all_patches" else "ours",
            work=lambda shape, name=name: prefill_work(shape, visual_tokens(name, shape)),
        )
        for name in ("all_patches", "most_clusters", "clusters_of_photographs")
    ),
    yardstick="all_patches",
)
