"""Builds the encoder, the token grouping and the merger that a configuration names."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig

from setokim.data.image_processing import ImageProcessor
from setokim.tokenizer.absent_encoder import AbsentEncoder
from setokim.tokenizer.configuration_setok import ENCODERS, GROUPINGS, SetokConfig
from setokim.tokenizer.encoders import (
    PATCH_STATISTICS,
    HFVisionEncoder,
    PatchStatisticsEncoder,
    VisionEncoder,
)
from setokim.tokenizer.merger import PatchMerger, QueryMerger, TokenMerger
from setokim.tokenizer.token_grouping import (
    ClusterGrouping,
    GridGrouping,
    PatchGrouping,
    QueryGrouping,
)

# Grouping of patches (features, grid) and merger of groups into tokens (features, groups, grid).
Tokenizer = tuple[nn.Module, nn.Module]


def encoder_from_config(config: SetokConfig) -> VisionEncoder:
    """Build the vision encoder of a configuration, with random weights."""
    return ENCODERS[config.encoder](config)  # type: ignore[return-value]


def encoder_without_weights(config: SetokConfig) -> VisionEncoder:
    """Build the vision encoder of a configuration for its shapes, without memory for its weights.

    An encoder that is registered in `ENCODERS` is built with weights: it may read them from files.
    """
    if config.encoder != "hf":
        return encoder_from_config(config)
    with torch.device("meta"):
        return encoder_from_config(config)


def absent_encoder(config: SetokConfig) -> AbsentEncoder:
    """Build the stand-in for the vision encoder of a configuration."""
    return AbsentEncoder(encoder_without_weights(config))


def tokenizer_from_config(config: SetokConfig, feature_dim: int) -> Tokenizer:
    """Build the token grouping and the merger of a configuration, with random weights.

    Args:
        config: configuration of the tokenizer.
        feature_dim: number of channels of the encoder's features.
    """
    return GROUPINGS[config.tokens](config, feature_dim)


def build_merger(config: SetokConfig, feature_dim: int) -> TokenMerger:
    """Build the merger of a grouping whose groups are sets of patches.

    Args:
        config: configuration of the tokenizer.
        feature_dim: number of channels of the encoder's features.
    """
    layers = (config.intra_layers, config.inter_layers, config.mlp_ratio)
    return TokenMerger(feature_dim, *_ends(config), *layers, config.feature_units)


def _ends(config: SetokConfig) -> tuple[int, int, int, int]:
    return config.width, config.token_dim, config.outline_dim, config.heads


@ENCODERS.register(PATCH_STATISTICS)
def _patch_statistics(config: SetokConfig) -> nn.Module:
    weights = () if config.feature_weights is None else (config.feature_weights,)
    return PatchStatisticsEncoder(config.grid, config.patch_size, *weights)


@ENCODERS.register("hf")
def _hugging_face(config: SetokConfig) -> nn.Module:
    fields = dict(config.encoder_config)
    backbone = AutoConfig.for_model(fields.pop("model_type"), **fields)
    processor = ImageProcessor(**config.preprocessor) if config.preprocessor else ImageProcessor()
    return HFVisionEncoder(
        backbone, config.grid, config.encoder_layer, config.encoder_trainable, processor
    )


@GROUPINGS.register("clusters")
def _clusters(config: SetokConfig, feature_dim: int) -> Tokenizer:
    learnable = tuple(config.learnable)
    grouping = ClusterGrouping(
        config.cluster_config(), learnable, config.position_weight, config.residual
    )
    return grouping, build_merger(config, feature_dim)


@GROUPINGS.register("grid")
def _grid(config: SetokConfig, feature_dim: int) -> Tokenizer:
    return GridGrouping(*config.token_grid), build_merger(config, feature_dim)


@GROUPINGS.register("queries")
def _queries(config: SetokConfig, feature_dim: int) -> Tokenizer:
    dims = (config.width, config.heads, config.intra_layers, config.mlp_ratio)
    grouping = QueryGrouping(feature_dim, config.num_queries, *dims)
    return grouping, QueryMerger(*_ends(config), config.inter_layers, config.mlp_ratio)


@GROUPINGS.register("patches")
def _patches(config: SetokConfig, feature_dim: int) -> Tokenizer:
    layers = (config.inter_layers, config.mlp_ratio)
    merger = PatchMerger(feature_dim, *_ends(config), *layers, config.feature_units)
    return PatchGrouping(), merger
