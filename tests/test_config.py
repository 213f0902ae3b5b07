"""ClusterConfig: presets, immutability, JSON."""

import dataclasses
import json
import math

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


def test_default_config_is_used():
    x = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sk.cluster_tokens(x).masks, sk.cluster_tokens(x, sk.ClusterConfig()).masks)


def test_float_and_tensor_options_agree():
    x = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    names = ("bandwidth", "beta", "temperature", "offset")
    tensors = {n: torch.tensor(getattr(sk.ClusterConfig(), n), dtype=torch.float64) for n in names}
    a, b = sk.cluster_tokens(x), sk.cluster_tokens(x, sk.ClusterConfig(**tensors))
    assert torch.equal(a.masks, b.masks)
