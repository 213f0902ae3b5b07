"""Bytes, flops and floors by hand, and the shapes they are of."""

import pytest
import torch

from setok_bench import work
from setok_bench.pipeline import encoder_work, prefill_work
from setok_bench.work import Rates, Shape, Work


def test_the_floor_is_what_takes_longest():
    rates = Rates(copy=10.0, matmul=100.0, step=3.0)
    assert Work(bytes=50, flops=100).floor(rates) == 5.0
    assert Work(bytes=5, flops=900).floor(rates) == 9.0
    assert Work(bytes=5, flops=100, steps=4).floor(rates) == 12.0


def test_works_add_up():
    assert Work(1, 2, 3) + Work(10, 20, 30) == Work(11, 22, 33)


def test_features_of_four_bytes_take_twice_the_bytes():
    half = work.product(Shape(2, 128, 64))
    full = work.product(Shape(2, 128, 64, dtype=torch.float32))
    assert full.bytes == 2 * half.bytes and full.flops == half.flops


# Two images of three tokens with five features, two neighbours, four clusters.
SMALL = Shape(2, 3, 5, k=2, clusters=4, dtype=torch.float32)


def test_forward_by_hand():
    # 6 pairs of each image, the token itself included, 5 multiply-adds each.
    assert work.pair_flops(SMALL) == 2 * 6 * 5 * 2
    features, masks, values = 6 * 5 * 4, 6 * 5 * 4, 6 * 3 * 4
    knn, parent, label, seeds = 6 * 2 * 8, 6 * 8, 6 * 8, 2 * 4 * 8
    counts = 2 * 8
    expected = features + masks + values + knn + parent + label + seeds + counts
    assert work.cluster_tokens(SMALL) == Work(expected, work.pair_flops(SMALL), 4)


def test_what_a_real_result_holds_is_what_the_formula_counts():
    import setok_kernels as sk
    from setok_bench.memory import held_bytes

    x = torch.randn(2, 30, 5)
    out = sk.cluster_tokens(x, sk.ClusterConfig(k=2, max_clusters=4))
    shape = Shape(2, 30, 5, k=2, clusters=4, dtype=torch.float32)
    assert held_bytes(out) == work.cluster_tokens(shape).bytes - shape.input_bytes


def test_product_and_merge_by_hand():
    assert work.product(SMALL) == Work(6 * 5 * 4 + 2 * 9 * 4, 2 * 9 * 5 * 2)
    rows = 2 * 5 * 5 * 4  # of merged tokens
    assert work.merge(SMALL, soft=True).flops == 2 * 5 * 3 * 5 * 2
    assert work.merge(SMALL, soft=True).bytes == 6 * 5 * 4 + 6 * 5 * 4 + rows
    assert work.merge(SMALL, soft=False).bytes == 6 * 5 * 4 + 6 * 8 + rows


def test_a_transformer_layer_by_hand():
    # Per token: four d x d and two d x h matrices, scores and mixture of the others' values.
    d, h, n = 8, 32, 10
    per_token = 2 * (4 * d * d + 2 * d * h) + 2 * (2 * n * d)
    flops = work.transformer(n, 3, 5, d, h, gated=False, causal=False)
    assert flops == 3 * n * 5 * per_token
    gated = work.transformer(n, 1, 1, d, h, gated=True, causal=True)
    assert gated == n * (2 * (4 * d * d + 3 * d * h) + 2 * n * d)


def test_known_models_have_known_sizes():
    # SigLIP-so400m at 384 px is quoted with 0.67 TFLOP an image, and has 0.43 billion weights.
    encoder = encoder_work(Shape(1, 729, 1152, dtype=torch.float32))
    assert 0.6e12 < encoder.flops < 0.75e12
    assert 0.40e9 < encoder.bytes / 4 < 0.45e9
    # LLaMA-7B takes two flops per weight and token, 6.5 billion of them in its layers.
    prefill = prefill_work(Shape(1, 729, 4096))
    assert 6.4e9 < prefill.flops / 2 / (729 + 64) < 6.8e9


@pytest.mark.parametrize("text", ["8x729", "8x729x", "0x4x4", "axbxc", "8 x 729 x 4", "8x729x4x2"])
def test_a_malformed_shape_is_named(text):
    with pytest.raises(ValueError, match=rf"shape: expected BxNxD.*got '{text}'"):
        Shape.parse(text)


def test_shapes_are_read_and_written():
    shape = Shape.parse("8x729x1152", torch.float16)
    assert (shape.images, shape.tokens, shape.features) == (8, 729, 1152)
    assert str(shape) == "8x729x1152"
    assert shape.to_dict()["dtype"] == "float16"
