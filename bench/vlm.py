"""Entries of vision-language decoders that read all visual tokens or clusters of them.

Decoders have the shapes of published models and random weights. The number of features selects the
model; small ones, of an eighth of the width and fewer layers, are for a CPU.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import setok_kernels as sk
from setok_bench import work
from setok_bench.clustering import OURS
from setok_bench.registry import Case, Entry, Implementation, Unavailable
from setok_bench.timing import Call
from setok_bench.work import Shape, Work
from setok_kernels import testing

RATES = (0.5, 0.25, 0.1)
# Number of text tokens around the image, and of tokens of an answer.
TEXT_TOKENS = 64
NEW_TOKENS = 32


@dataclass(frozen=True)
class Decoder:
    """Shape of a language model, and of the visual features that are clustered.

    Attributes:
        name: name of the model and scale, for results.
        layers: number of layers.
        heads: number of heads of queries.
        kv_heads: number of heads of keys and values.
        hidden: width of the MLP.
        vocabulary: number of tokens of the vocabulary.
        encoder: width of the features that are clustered.
        biased: flag: queries, keys and values have a bias, as in Qwen.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    encoder: int
    biased: bool = False

    def cache_width(self, features: int) -> int:
        """Return the width of the keys of one token and layer."""
        return features // self.heads * self.kv_heads


# Decoders by the number of features.
DECODERS = {
    4096: Decoder("LLaVA-1.5-7B, full size", 32, 32, 32, 11008, 32064, 1024),
    3584: Decoder("Qwen2.5-VL-7B, full size", 28, 28, 4, 18944, 152064, 3584, True),
    512: Decoder("LLaVA-1.5-7B, 1/8 of the width, 6 of 32 layers", 6, 8, 8, 1376, 4008, 128),
    448: Decoder(
        "Qwen2.5-VL-7B, 1/8 of the width, 6 of 28 layers", 6, 7, 1, 2368, 19008, 448, True
    ),
}


def decoder_of(features: int) -> Decoder:
    """Return the decoder with this number of features.

    Raises:
        ValueError: there is none.
    """
    if features not in DECODERS:
        known = ", ".join(map(str, DECODERS))
        raise ValueError(f"features: expected one of {known}, got {features}")
    return DECODERS[features]


@dataclass(frozen=True)
class Prefilled:
    """Result of a prefill.

    Attributes:
        logits: (B, 1, V) logits of the last position.
        cache: keys and values of each layer, (B, heads, length, width).
    """

    logits: Tensor
    cache: tuple[Tensor, ...]


@functools.lru_cache(maxsize=1)
def _model(features: int, dtype: torch.dtype, device: torch.device) -> Any:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
    except ImportError as error:
        raise Unavailable(
            'transformers is not installed; pip install "setok-kernels[model]"'
        ) from error
    size = decoder_of(features)
    # One-dimensional positions stand for Qwen2.5-VL's three: the products are the same.
    kinds = (Qwen2Config, Qwen2ForCausalLM) if size.biased else (LlamaConfig, LlamaForCausalLM)
    config = kinds[0](
        hidden_size=features,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        intermediate_size=size.hidden,
        vocab_size=size.vocabulary,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = kinds[1](config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    # Random weights must not end an answer early.
    model.generation_config.eos_token_id = None
    return model


def _normal(case: Case, tokens: int, width: int, seed: int) -> Tensor:
    """Return (B, tokens, width) standard normal values."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(case.shape.images, tokens, width, generator=generator)
    return x.to(case.device, case.shape.dtype)


@dataclass(frozen=True)
class Inputs:
    """Inputs of one case.

    Attributes:
        features: (B, N, E) features of the encoder, which are clustered.
        visual: (B, N, D) the same tokens behind the projector, which are merged.
        text: (B, T, D) embeddings of the text.
    """

    features: Tensor
    visual: Tensor
    text: Tensor


def _inputs(case: Case) -> Inputs:
    s = case.shape
    width = decoder_of(s.features).encoder
    return Inputs(
        _normal(case, s.tokens, width, 0),
        _normal(case, s.tokens, s.features, 1),
        _normal(case, TEXT_TOKENS, s.features, 2),
    )


def kept_tokens(shape: Shape, rate: float | None) -> int:
    """Return the number of visual tokens of an image that the decoder reads."""
    return shape.tokens if rate is None else math.ceil(rate * shape.tokens)


def _cluster(case: Case, inputs: Inputs, rate: float) -> sk.Clusters:
    config = sk.ClusterConfig(k=case.shape.k, stop_residual=0.0)
    backend = OURS[case.device.type]
    return sk.cluster_tokens(inputs.features, config, rate=rate, exact=True, backend=backend)


def _prompt(case: Case, inputs: Inputs, rate: float | None) -> Tensor:
    """Return (B, n + T, D) embeddings of the visual tokens and the text."""
    visual = inputs.visual
    if rate is not None:
        out = _cluster(case, inputs, rate)
        # Each image has the same number of tokens, so there is no padding.
        visual, _ = out.pack(sk.merge_tokens(visual, out)).padded()
    return torch.cat([visual, inputs.text], 1)


def make_prefill(rate: float | None):
    """Return the prefill of a decoder; with a rate, the clustering and the merge are part of it."""

    def make(case: Case) -> Call:
        model = _model(case.shape.features, case.shape.dtype, case.device)
        inputs = _inputs(case)

        @torch.inference_mode()
        def prefill() -> Prefilled:
            return _prefilled(model, _prompt(case, inputs, rate))

        return prefill

    return make


def make_answer(rate: float | None):
    """Return the greedy generation of an answer, prefill included."""

    def make(case: Case) -> Call:
        model = _model(case.shape.features, case.shape.dtype, case.device)
        inputs = _inputs(case)

        @torch.inference_mode()
        def answer() -> Tensor:
            prompt = _prompt(case, inputs, rate)
            mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
            return model.generate(
                inputs_embeds=prompt,
                attention_mask=mask,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )

        return answer

    return make


def make_clustering(rate: float):
    """Return the part of a prefill that chooses and merges the visual tokens."""

    def make(case: Case) -> Call:
        inputs = _inputs(case)

        @torch.inference_mode()
        def cluster():
            out = _cluster(case, inputs, rate)
            return out, out.pack(sk.merge_tokens(inputs.visual, out)).padded()[0]

        return cluster

    return make


def _prefilled(model: Any, prompt: Tensor) -> Prefilled:
    found = model(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)
    layers = found.past_key_values.layers
    return Prefilled(found.logits, tuple(t for layer in layers for t in (layer.keys, layer.values)))


def _merged_by_hand(visual: Tensor, labels: Tensor, kept: int) -> Tensor:
    """Return (B, kept, D): the mean of each cluster, computed in a loop."""
    rows = [
        torch.stack([x[of == c].double().mean(0) for c in range(kept)])
        for x, of in zip(visual, labels, strict=True)
    ]
    return torch.stack(rows).to(visual.dtype)


def check_prefill(rate: float | None):
    """Return the check of a prefill: the logits and the length of tokens merged by hand."""

    @torch.inference_mode()
    def check(case: Case, found: Prefilled) -> None:
        inputs, kept = _inputs(case), kept_tokens(case.shape, rate)
        visual = inputs.visual
        if rate is not None:
            visual = _merged_by_hand(visual, _cluster(case, inputs, rate).labels, kept)
        prompt, length = torch.cat([visual, inputs.text], 1), kept + TEXT_TOKENS
        assert found.cache[0].shape[2] == length, f"cache: {found.cache[0].shape[2]} positions"
        expected = _prefilled(_model(case.shape.features, prompt.dtype, case.device), prompt).logits
        tolerance = 1e-4 if prompt.dtype == torch.float32 else 5e-2
        error = (found.logits.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert error <= tolerance, f"logits: differ by {error:.3g} from tokens merged by hand"

    return check


def check_answer(case: Case, found: Tensor) -> None:
    """Check that each answer has all its tokens."""
    expected = (case.shape.images, NEW_TOKENS)
    assert tuple(found.shape) == expected, f"answer: {tuple(found.shape)}, expected {expected}"


def check_clustering(rate: float):
    """Return the check of the clusters: decisions, their number, and the merged tokens."""

    def check(case: Case, result) -> None:
        out, merged = result
        inputs, kept = _inputs(case), kept_tokens(case.shape, rate)
        assert out.counts.tolist() == [kept] * case.shape.images, f"counts: {out.counts.tolist()}"
        config = sk.ClusterConfig(k=case.shape.k, max_clusters=kept, stop_residual=0.0)
        testing.assert_valid_decisions(inputs.features, out, config)
        expected = _merged_by_hand(inputs.visual, out.labels, kept)
        tolerance = 1e-5 if merged.dtype == torch.float32 else 2e-2
        error = (merged.float() - expected.float()).abs().max()
        assert error <= tolerance, f"merged tokens: differ by {error:.3g} from those by hand"

    return check


def weights_of(features: int) -> int:
    """Return the number of weights that each new token multiplies."""
    size = decoder_of(features)
    attention = 2 * features * (features + size.cache_width(features))
    layer = attention + 3 * features * size.hidden
    return size.layers * layer + features * size.vocabulary


def cache_bytes(shape: Shape, length: int) -> int:
    """Return the bytes of keys and values of `length` positions of each image."""
    size = decoder_of(shape.features)
    width = size.cache_width(shape.features)
    return 2 * shape.images * length * size.layers * width * shape.dtype.itemsize


def clustering_work(shape: Shape, rate: float) -> Work:
    """Return the work of clustering the features and merging the projected tokens."""
    size, kept = decoder_of(shape.features), kept_tokens(shape, rate)
    kinds = {"k": shape.k, "clusters": kept, "dtype": shape.dtype}
    features = Shape(shape.images, shape.tokens, size.encoder, **kinds)
    visual = Shape(shape.images, shape.tokens, shape.features, **kinds)
    return work.cluster_tokens(features) + work.merge(visual, soft=False)


def prefill_work(shape: Shape, rate: float | None = None) -> Work:
    """Return the work of the prefill; the logits are those of the last position."""
    size, d = decoder_of(shape.features), shape.features
    length = kept_tokens(shape, rate) + TEXT_TOKENS
    flops = work.transformer(
        length, shape.images, size.layers, d, size.hidden, gated=True, causal=True
    )
    # The formula counts keys and values of full width.
    narrow = 4 * d * (d - size.cache_width(d))
    flops += shape.images * (2 * d * size.vocabulary - length * size.layers * narrow)
    moved = (weights_of(d) + shape.images * length * d) * shape.dtype.itemsize
    own = Work(moved + cache_bytes(shape, length), flops)
    return own if rate is None else own + clustering_work(shape, rate)


def answer_work(shape: Shape, rate: float | None = None) -> Work:
    """Return the work of an answer; each new token reads the weights and the cache."""
    length, steps = kept_tokens(shape, rate) + TEXT_TOKENS, NEW_TOKENS - 1
    weights = weights_of(shape.features)
    moved = steps * (weights * shape.dtype.itemsize + cache_bytes(shape, length + steps // 2))
    return prefill_work(shape, rate) + Work(moved, 2 * steps * shape.images * weights)


def name_of(rate: float | None) -> str:
    """Return the name of the implementation with this rate."""
    return "all_tokens" if rate is None else f"rate_{rate:g}"


def _implementation(rate: float | None, make, check, count) -> Implementation:
    return Implementation(
        name_of(rate),
        make(rate),
        check,
        "yardstick" if rate is None else "ours",
        work=lambda shape: count(shape, rate),
    )


VLM_PREFILL = Entry(
    "vlm_prefill",
    prefill_work,
    (
        *(
            _implementation(rate, make_prefill, check_prefill(rate), prefill_work)
            for rate in (None, *RATES)
        ),
        *(
            Implementation(
                f"clustering_{rate:g}",
                make_clustering(rate),
                check_clustering(rate),
                "ours",
                work=lambda shape, rate=rate: clustering_work(shape, rate),
            )
            for rate in RATES
        ),
    ),
    yardstick=name_of(None),
)
VLM_ANSWER = Entry(
    "vlm_answer",
    answer_work,
    tuple(_implementation(rate, make_answer, check_answer, answer_work) for rate in (None, *RATES)),
    yardstick=name_of(None),
)
