"""Configuration of the SeTok tokenizer and detokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from setok_kernels import ClusterConfig
from setok_kernels.config import LEARNABLE
from setokim.tokenizer.encoders import PATCH_STATISTICS
from setokim.tokenizer.shapelets import POSE
from setokim.utils.registry import Registry

TOKENS = ("clusters", "grid", "queries", "patches")
RESIDUALS = ("token", "nearest")
# What builds an encoder of a `SetokConfig`; a user's module may add one of its own.
ENCODERS: Registry[Callable[[SetokConfig], nn.Module]] = Registry("encoder")
# What builds a token grouping and its merger of a `SetokConfig` and the features' channels.
GROUPINGS: Registry[Callable[[SetokConfig, int], tuple[nn.Module, nn.Module]]] = Registry("tokens")


class SetokConfig(PretrainedConfig):
    """Configuration of a `SetokModel`; it is complete and refers to no other file.

    Attributes:
        encoder: "patch-statistics", "hf" for a Hugging Face vision model, or a name that is
            registered in `ENCODERS`.
        encoder_config: configuration of the "hf" encoder as a dict, `model_type` included; options
            of a registered encoder.
        preprocessor: fields of the "hf" encoder's `ImageProcessor` as a dict.
        encoder_layer: index of the "hf" encoder's hidden state; -2 is the penultimate layer's.
        encoder_trainable: trainability of the "hf" encoder.
        grid: rows and columns of patches; None for the encoder's own.
        patch_size: side of a "patch-statistics" patch in pixels.
        feature_weights: weights of the four groups of "patch-statistics" features: a patch's
            colour, that of its neighbourhood, the deviations, the contrasts; None for the
            encoder's own.
        tokens: kind of the tokens: "clusters" of patches, cells of a "grid" of patches, learned
            "queries" that attend to the patches as in a Q-Former, or the "patches" themselves.
        token_grid: rows and columns of the cells of tokens="grid", at most those of the patches.
        num_queries: number of queries of tokens="queries".
        token_options: options of a token grouping that is registered in `GROUPINGS`.
        cluster: fields of `ClusterConfig` that differ from its defaults. This and the next
            three apply to tokens="clusters" only.
        learnable: names of the learnable ones among bandwidth, beta, temperature and offset.
        residual: what becomes of patches in no cluster: a "token" of their own, or "nearest" for
            the cluster with their largest mask. Such patches lie on boundaries for the most part.
        position_weight: weight of the positions beside the features in the clustering: ratio of
            the mean squared distance between two patches in positions to that in features.
        feature_units: flag of a merger that reads the encoder's features in units of each
            channel's own mean and deviation, which stage 1 measures. Weak channels count as much
            as strong ones then. Not with tokens="queries".
        width: width of the merger's transformers.
        heads: number of heads of all attention.
        intra_layers: number of layers within clusters or cells, or of the queries' layers, at least
            1 then; patches have none.
        inter_layers: number of layers between the tokens of an image.
        token_dim: number of channels of a visual token.
        outline_dim: number of its last channels, the shapelets of the token's patches.
        code_dim: number of channels of a token's code, which a language model generates in place
            of the token (`TokenCodes`); None for no codes.
        code_width: hidden width of the encoder and decoder of codes.
        decoder_width: width of the detokenizer.
        decoder_cross_layers: number of detokenizer layers that attend to the tokens.
        decoder_layers: number of detokenizer layers after those.
        decoder_grid: rows and columns of the detokenizer's queries.
        decoder_patch_size: side of a reconstructed patch in pixels.
        mlp_ratio: ratio of an MLP's width to that of its transformer.
        concept_dim: number of dimensions of the space that compares tokens and text concepts; None
            for a model without that head, which only stage 1 needs.
    """

    model_type = "setok"

    def __init__(
        self,
        encoder: str = PATCH_STATISTICS,
        encoder_config: dict[str, Any] | None = None,
        preprocessor: dict[str, Any] | None = None,
        encoder_layer: int = -2,
        encoder_trainable: bool = False,
        grid: tuple[int, int] | None = None,
        patch_size: int = 14,
        feature_weights: tuple[float, float, float, float] | None = None,
        tokens: str = "clusters",
        token_grid: tuple[int, int] | None = None,
        num_queries: int | None = None,
        token_options: dict[str, Any] | None = None,
        cluster: dict[str, Any] | None = None,
        learnable: tuple[str, ...] = (),
        residual: str = "token",
        position_weight: float = 0.0,
        feature_units: bool = False,
        width: int = 1024,
        heads: int = 16,
        intra_layers: int = 2,
        inter_layers: int = 2,
        token_dim: int = 1024,
        outline_dim: int = 256,
        code_dim: int | None = None,
        code_width: int = 256,
        decoder_width: int = 1024,
        decoder_cross_layers: int = 2,
        decoder_layers: int = 12,
        decoder_grid: tuple[int, int] = (24, 24),
        decoder_patch_size: int = 16,
        mlp_ratio: float = 4.0,
        concept_dim: int | None = 512,
        **kwargs: Any,
    ):
        """Check the fields against one another.

        Raises:
            TypeError, ValueError: a field does not fit; the message names it.
        """
        self.encoder = encoder
        self.encoder_config = encoder_config
        self.preprocessor = preprocessor
        self.encoder_layer = encoder_layer
        self.encoder_trainable = encoder_trainable
        self.grid = None if grid is None else list(grid)
        self.patch_size = patch_size
        self.feature_weights = None if feature_weights is None else list(feature_weights)
        self.tokens = tokens
        self.token_grid = None if token_grid is None else list(token_grid)
        self.num_queries = num_queries
        self.token_options = dict(token_options or {})
        self.cluster = dict(cluster or {})
        self.learnable = list(learnable)
        self.residual = residual
        self.position_weight = position_weight
        self.feature_units = feature_units
        self.width = width
        self.heads = heads
        self.intra_layers = intra_layers
        self.inter_layers = inter_layers
        self.token_dim = token_dim
        self.outline_dim = outline_dim
        self.code_dim = code_dim
        self.code_width = code_width
        self.decoder_width = decoder_width
        self.decoder_cross_layers = decoder_cross_layers
        self.decoder_layers = decoder_layers
        self.decoder_grid = list(decoder_grid)
        self.decoder_patch_size = decoder_patch_size
        self.mlp_ratio = mlp_ratio
        self.concept_dim = concept_dim
        self._check()
        super().__init__(**kwargs)

    def cluster_config(self) -> ClusterConfig:
        """Return the options of the clustering."""
        return ClusterConfig(**self.cluster)

    def _check(self) -> None:
        own = [name for name in ENCODERS if name not in (PATCH_STATISTICS, "hf")]
        if self.encoder not in (PATCH_STATISTICS, "hf", *own):
            expected = " or ".join(map(repr, (PATCH_STATISTICS, "hf", *own)))
            raise ValueError(
                f"encoder: expected {expected}, got {self.encoder!r}; "
                "SetokModel.from_encoder takes the name of a model"
            )
        if self.encoder not in own and (self.encoder == "hf") != (self.encoder_config is not None):
            raise ValueError(
                "encoder_config: expected a dict with encoder='hf' and None otherwise, "
                f"got {self.encoder_config!r}"
            )
        if self.encoder == "hf" and self.feature_weights is not None:
            expected = "None with encoder='hf'"
            raise ValueError(f"feature_weights: expected {expected}, got {self.feature_weights}")
        self._check_tokens()
        known = [field.name for field in dataclasses.fields(ClusterConfig)]
        for name in self.cluster:
            if name not in known:
                raise ValueError(f"cluster: expected some of {', '.join(known)}, got {name!r}")
        for name in self.learnable:
            if name not in LEARNABLE:
                raise ValueError(
                    f"learnable: expected some of {', '.join(LEARNABLE)}, got {name!r}"
                )
        self.cluster_config()
        if self.residual not in RESIDUALS:
            expected = " or ".join(RESIDUALS)
            raise ValueError(f"residual: expected {expected}, got {self.residual!r}")
        for name in ("width", "decoder_width"):
            value = getattr(self, name)
            if value % 4 or value % self.heads:
                raise ValueError(
                    f"{name}: expected a multiple of 4 and of heads={self.heads}, got {value}"
                )
        if not POSE < self.outline_dim < self.token_dim:
            raise ValueError(
                f"outline_dim: expected more than {POSE} and less than token_dim={self.token_dim}, "
                f"got {self.outline_dim}"
            )
        for name in ("code_dim", "code_width", "concept_dim"):
            value = getattr(self, name)
            if not (_is_count(value) or (name != "code_width" and value is None)):
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if not self.position_weight >= 0:
            raise ValueError(f"position_weight: expected at least 0, got {self.position_weight!r}")
        if len(self.decoder_grid) != 2 or min(self.decoder_grid) < 1:
            raise ValueError(
                f"decoder_grid: expected two numbers of at least 1, got {self.decoder_grid}"
            )

    def _check_tokens(self) -> None:
        known = dict.fromkeys((*TOKENS, *GROUPINGS))
        if self.tokens not in known:
            raise ValueError(f"tokens: expected one of {', '.join(known)}, got {self.tokens!r}")
        if self.token_options and self.tokens in TOKENS:
            expected = f"none with tokens={self.tokens!r}"
            raise ValueError(f"token_options: expected {expected}, got {self.token_options}")
        for name, kind in (("token_grid", "grid"), ("num_queries", "queries")):
            value = getattr(self, name)
            if (self.tokens == kind) != (value is not None):
                raise ValueError(
                    f"{name}: expected a value with tokens={kind!r} and None otherwise, "
                    f"got {value!r} with tokens={self.tokens!r}"
                )
        if self.token_grid is not None:
            if len(self.token_grid) != 2 or not all(map(_is_count, self.token_grid)):
                raise ValueError(
                    f"token_grid: expected two whole numbers of at least 1, got {self.token_grid}"
                )
            if self.grid is not None and any(
                cells > patches for cells, patches in zip(self.token_grid, self.grid, strict=True)
            ):
                raise ValueError(
                    f"token_grid: expected at most grid={self.grid}, got {self.token_grid}"
                )
        if self.num_queries is not None and not _is_count(self.num_queries):
            raise ValueError(
                f"num_queries: expected a whole number of at least 1, got {self.num_queries!r}"
            )
        if not isinstance(self.feature_units, bool):
            raise ValueError(f"feature_units: expected a bool, got {self.feature_units!r}")
        if self.tokens == "queries" and self.feature_units:
            raise ValueError("feature_units: expected False with tokens='queries', got True")
        if self.tokens == "queries" and self.intra_layers < 1:
            raise ValueError(
                f"intra_layers: expected at least 1 with tokens='queries', got {self.intra_layers}"
            )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1
