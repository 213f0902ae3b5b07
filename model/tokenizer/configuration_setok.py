"""Configuration of the SeTok tokenizer and detokenizer."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PretrainedConfig

from setok_kernels import ClusterConfig
from setok_kernels.config import LEARNABLE
from setokim.tokenizer.encoders import PATCH_STATISTICS
from setokim.tokenizer.shapelets import POSE

TOKENS = ("clusters", "grid", "queries", "patches")


class SetokConfig(PretrainedConfig):
    """Everything that `SetokModel` is built from; nothing in it points to another file.

    Attributes:
        encoder: "patch-statistics", or "hf" for a Hugging Face vision model.
        encoder_config: with "hf", the configuration of that model as a dict, `model_type` included.
        preprocessor: with "hf", the fields of `ImageProcessor` as a dict.
        encoder_layer: with "hf", which hidden state is taken; -2 is the penultimate layer's.
        encoder_trainable: with "hf", whether the encoder gets gradients.
        grid: rows and columns of patches; None for the encoder's own.
        patch_size: with "patch-statistics", side of a patch in pixels.
        feature_weights: with "patch-statistics", of the four groups of features: a patch's colour,
            that of its neighbourhood, the deviations, the contrasts; None for the encoder's own.
        tokens: what a token stands for: "clusters" of patches; cells of a "grid" laid over them;
            what learned "queries" read in them, as a Q-Former does; or the "patches" themselves.
        token_grid: with tokens="grid", rows and columns of cells, at most those of the patches.
        num_queries: with tokens="queries", how many.
        cluster: fields of `ClusterConfig` that differ from its defaults. This and the next two are
            of tokens="clusters"; with others nothing reads them.
        learnable: which of bandwidth, beta, temperature and offset learn.
        position_weight: of a patch's position beside its features when it is clustered: the mean
            squared distance of two patches in their places, over that in their features.
        width: of the merger's transformers.
        heads: of all attention.
        intra_layers: layers within clusters or cells, or of queries that read, at least 1 then;
            patches have none.
        inter_layers: layers between the tokens of an image.
        token_dim: of the visual tokens.
        outline_dim: of these, the last ones, which say where the patches of the token lie.
        decoder_width: of the detokenizer.
        decoder_cross_layers: layers of the detokenizer that attend to the tokens.
        decoder_layers: its layers after those.
        decoder_grid: rows and columns of its queries.
        decoder_patch_size: side of a patch that it draws, in pixels.
        mlp_ratio: width of all MLPs over that of their transformer.
        concept_dim: of the space in which tokens and concepts of the text are compared.
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
        cluster: dict[str, Any] | None = None,
        learnable: tuple[str, ...] = (),
        position_weight: float = 0.0,
        width: int = 1024,
        heads: int = 16,
        intra_layers: int = 2,
        inter_layers: int = 2,
        token_dim: int = 1024,
        outline_dim: int = 256,
        decoder_width: int = 1024,
        decoder_cross_layers: int = 2,
        decoder_layers: int = 12,
        decoder_grid: tuple[int, int] = (24, 24),
        decoder_patch_size: int = 16,
        mlp_ratio: float = 4.0,
        concept_dim: int = 512,
        **kwargs: Any,
    ):
        """Checks the fields against one another.

        Raises:
            TypeError, ValueError: one does not fit; the message names it.
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
        self.cluster = dict(cluster or {})
        self.learnable = list(learnable)
        self.position_weight = position_weight
        self.width = width
        self.heads = heads
        self.intra_layers = intra_layers
        self.inter_layers = inter_layers
        self.token_dim = token_dim
        self.outline_dim = outline_dim
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
        """The options of the clustering."""
        return ClusterConfig(**self.cluster)

    def _check(self) -> None:
        if self.encoder not in (PATCH_STATISTICS, "hf"):
            raise ValueError(
                f"encoder: expected {PATCH_STATISTICS!r} or 'hf', got {self.encoder!r}; "
                "SetokModel.from_encoder takes the name of a model"
            )
        if (self.encoder == "hf") != (self.encoder_config is not None):
            raise ValueError(
                "encoder_config: expected a dict with encoder='hf' and None otherwise, "
                f"got {self.encoder_config!r}"
            )
        if self.encoder == "hf" and self.feature_weights is not None:
            expected = "None with encoder='hf', whose features are learnt"
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
        if not self.position_weight >= 0:
            raise ValueError(f"position_weight: expected at least 0, got {self.position_weight!r}")
        if len(self.decoder_grid) != 2 or min(self.decoder_grid) < 1:
            raise ValueError(
                f"decoder_grid: expected two numbers of at least 1, got {self.decoder_grid}"
            )

    def _check_tokens(self) -> None:
        if self.tokens not in TOKENS:
            raise ValueError(f"tokens: expected one of {', '.join(TOKENS)}, got {self.tokens!r}")
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
        if self.tokens == "queries" and self.intra_layers < 1:
            raise ValueError(
                f"intra_layers: expected at least 1 with tokens='queries', got {self.intra_layers}"
            )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1
