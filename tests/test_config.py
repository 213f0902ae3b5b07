"""ClusterConfig: presets, immutability, JSON."""

import dataclasses
import json
import math

import numpy
import pytest
import torch

import setok_kernels as sk


def test_defaults():
    assert sk.ClusterConfig().to_dict() == dict(
        k=8, max_clusters=64, kernel="gaussian", bandwidth=0.5, beta=0.1, temperature=0.1,
        offset=0.5, alpha="sigmoid", distance_scale="variance", score_norm="max",
        distinct_seeds=True, stop_residual=0.02, min_mass=0.0, include_self=False,
    )  # fmt: skip


def test_paper_preset():
    config = sk.ClusterConfig.paper()
    assert (config.distance_scale, config.score_norm) == ("dim", None)
    assert (config.temperature, config.offset, config.distinct_seeds) == (1.0, 0.0, False)
    assert config.bandwidth == 1 / (64 * math.log(2))
    assert sk.ClusterConfig.paper(max_clusters=8).bandwidth == 1 / (8 * math.log(2))
    assert sk.ClusterConfig.paper(bandwidth=2.0, k=3) == dataclasses.replace(
        config, bandwidth=2.0, k=3
    )


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        sk.ClusterConfig().k = 3


def test_to_dict_is_json():
    config = sk.ClusterConfig(beta=torch.tensor(0.25, requires_grad=True))
    assert json.loads(json.dumps(config.to_dict()))["beta"] == 0.25


def test_numbers_of_numpy_are_numbers():
    """An option is often read from an array; what is written as JSON reads the same."""
    config = sk.ClusterConfig(
        k=numpy.int64(3), max_clusters=numpy.uint8(7), bandwidth=numpy.float32(0.5),
        beta=numpy.float64(0.25), offset=numpy.array(0.5), distance_scale=numpy.float16(2.0),
        distinct_seeds=numpy.bool_(False), stop_residual=numpy.int32(0),
    )  # fmt: skip
    plain = sk.ClusterConfig(
        k=3, max_clusters=7, bandwidth=0.5, beta=0.25, distance_scale=2.0, distinct_seeds=False,
        stop_residual=0,
    )  # fmt: skip
    assert sk.ClusterConfig(**json.loads(json.dumps(config.to_dict()))) == config == plain
    assert {type(v) for v in config.to_dict().values()} <= {int, float, bool, str}
    x = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    counts = (numpy.int64(4), numpy.float64(0.3), numpy.int64(5))
    assert torch.equal(sk.dpc_knn(x, *counts).labels, sk.dpc_knn(x, 4, 0.3, 5).labels)
    with pytest.raises(TypeError, match="k: expected an int, got True"):
        sk.ClusterConfig(k=numpy.bool_(True))


def test_equal_configs_hash_alike():
    beta = torch.tensor(0.25, requires_grad=True)
    one, same = (sk.ClusterConfig(beta=beta, k=3) for _ in range(2))
    assert one == same and hash(one) == hash(same) and len({one, same}) == 1
    with torch.no_grad():
        beta += 1
    assert one == same and hash(one) == hash(same)
    for other in (
        sk.ClusterConfig(beta=torch.tensor(1.25), k=3),
        sk.ClusterConfig(beta=1.25, k=3),
        sk.ClusterConfig(beta=beta, k=4),
        "config",
    ):
        assert one != other


def test_results_equal_only_themselves():
    x = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    for call in (
        lambda: sk.cluster_tokens(x),
        lambda: sk.cluster_tokens(x).decisions,
        lambda: sk.dpc_knn(x, 3),
        lambda: sk.threshold_greedy(x, 0.5),
        lambda: sk.dpc_knn(x, 3).pack(torch.zeros(1, 3, 2)),
    ):
        one, other = call(), call()
        assert one == one and one != other and len({one, other, one}) == 2


def test_default_config_is_used():
    x = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sk.cluster_tokens(x).masks, sk.cluster_tokens(x, sk.ClusterConfig()).masks)


def test_float_and_tensor_options_agree():
    x = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    names = ("bandwidth", "beta", "temperature", "offset")
    tensors = {n: torch.tensor(getattr(sk.ClusterConfig(), n), dtype=torch.float64) for n in names}
    a, b = sk.cluster_tokens(x), sk.cluster_tokens(x, sk.ClusterConfig(**tensors))
    assert torch.equal(a.masks, b.masks)
