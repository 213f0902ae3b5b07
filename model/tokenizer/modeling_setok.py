"""SeTok: pictures to semantic tokens, and back to pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from setok_kernels import Clusters, Packed
from setok_kernels.layout import pad, valid_tokens
from setokim.data.image_processing import ImageProcessor
from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.tokenizer.detokenizer import Detokenizer, first_emphasis
from setokim.tokenizer.encoders import HFVisionEncoder, PatchStatisticsEncoder
from setokim.tokenizer.merger import PatchMerger, QueryMerger, TokenMerger
from setokim.tokenizer.processing_setok import SetokProcessor
from setokim.tokenizer.token_grouping import (
    ClusterPartition,
    GridPartition,
    Parts,
    PatchPartition,
    QueryPartition,
)


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """Tokens of B images.

    Attributes:
        tokens: (B, R, token_dim); 0 in rows that are not there. R is max_clusters + 1, or the
            number of cells, queries or patches.
        occupied: (B, R) bool, the rows that are there.
        parts: the clustering behind them, or other parts of the images.
        grid: rows and columns of the patches.
        features: (B, N, D), what the encoder says of each patch; None for tokens without an
            encoder.
    """

    tokens: Tensor
    occupied: Tensor
    parts: Clusters | Parts
    grid: tuple[int, int]
    features: Tensor | None = None

    @property
    def masks(self) -> Tensor:
        """(B, R, N) float, how much of each patch belongs to each row; a patch's sum to 1."""
        return self.parts.masks

    @property
    def labels(self) -> Tensor:
        """(B, N) int64, the row that each patch belongs to most."""
        return self.parts.labels

    @property
    def clusters(self) -> Clusters | None:
        """The clustering behind the tokens; None where there is none."""
        return None if isinstance(self.parts, Parts) else self.parts

    def pack(self, order: Literal["seed", "raster", "size"] = "seed") -> Packed:
        """The tokens one after the other with `cu_seqlens`; waits for the device.

        Args:
            order: "seed", "raster" or "size", as of `Clusters.pack`. The seed of a row that is no
                cluster is the patch that belongs to it most.
        """
        parts = dataclasses.replace(self.parts, grid=self.grid)
        return parts.pack(self.tokens, order=order)

    def select(self, index: Tensor) -> VisualTokens:
        """The tokens of some images, each as often as it is named.

        Args:
            index: (Q,) int64 or int32, numbers of images.

        Returns:
            Tokens of Q images; carries gradient.

        Raises:
            TypeError: `index` is of another dtype.
            ValueError: it has another shape.
        """
        if index.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"index: expected dtype torch.int64 or torch.int32, got {index.dtype}")
        if index.dim() != 1:
            raise ValueError(f"index: expected shape (Q,), got {tuple(index.shape)}")
        return _map(lambda tensors: tensors[0].index_select(0, index), [self])

    @classmethod
    def join(cls, parts: Sequence[VisualTokens]) -> VisualTokens:
        """The images of several of the same model, one after the other; at least one."""
        return _map(torch.cat, parts)


class SetokModel(PreTrainedModel):
    """Vision encoder, clustering and merger (the tokenizer), and the detokenizer.

    `clustering` says which patches belong together: it turns features (B, N, D) and their grid into
    `Clusters`, or into `Parts` where the configuration asks for other tokens. `merger` turns
    features, these and the grid into tokens (B, R, token_dim) and which of them are there (B, R).

    Args:
        config: what to build; the weights are random.
    """

    config_class = SetokConfig
    base_model_prefix = "setok"
    main_input_name = "pixel_values"
    _no_split_modules = ("Block",)
    encoder: HFVisionEncoder | PatchStatisticsEncoder
    detokenizer: Detokenizer

    def __init__(self, config: SetokConfig):
        super().__init__(config)
        self.encoder = _build_encoder(config)
        self.clustering, self.merger = _build_tokenizer(config, self.encoder.feature_dim)
        self.detokenizer = Detokenizer(
            config.token_dim,
            config.outline_dim,
            config.decoder_width,
            config.heads,
            config.decoder_cross_layers,
            config.decoder_layers,
            (config.decoder_grid[0], config.decoder_grid[1]),
            config.decoder_patch_size,
            config.mlp_ratio,
        )
        self.to_concept = nn.Linear(config.token_dim, config.concept_dim)
        self.post_init()

    @classmethod
    def from_encoder(cls, name_or_path: str, **fields: Any) -> SetokModel:
        """A model around a pretrained Hugging Face vision encoder; the rest has random weights.

        Args:
            name_or_path: as of `HFVisionEncoder`.
            **fields: of `SetokConfig`.

        Raises:
            ValueError: the encoder cannot be loaded, or a field does not fit.
        """
        grid, layer = fields.get("grid"), fields.get("encoder_layer", -2)
        trainable = fields.get("encoder_trainable", False)
        encoder = HFVisionEncoder(name_or_path, grid, layer, trainable)
        config = SetokConfig(
            encoder="hf",
            encoder_config=encoder.backbone.config.to_dict(),
            preprocessor=dataclasses.asdict(encoder.processor),
            **fields,
        )
        model = cls(config)
        model.encoder = encoder
        return model

    def processor(self) -> SetokProcessor:
        """What `preprocess` does, to be kept beside the weights."""
        return SetokProcessor(self.encoder.pixel_size, self.encoder.processor)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """B RGB pictures of any sizes to (B, 3, height, width), as the encoder wants them."""
        return self.encoder.preprocess(images)

    def tokenize(self, images: Sequence[Image.Image] | Tensor) -> VisualTokens:
        """Pictures to semantic tokens.

        Args:
            images: B RGB pictures, or what `preprocess` made of them.

        Returns:
            The tokens; `.pack()` makes them ragged.
        """
        pixels = images if isinstance(images, Tensor) else self.preprocess(images)
        features = self.encoder(pixels.to(self.device))  # (B, H, W, D)
        grid, features = tuple(features.shape[1:3]), features.flatten(1, 2)
        parts = self.clustering(features, grid)
        tokens, occupied = self.merger(features.to(self.dtype), parts, grid)
        return VisualTokens(tokens, occupied, parts, grid, features)

    def detokenize(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Ragged tokens to pictures.

        Args:
            tokens: (S, token_dim), the tokens of all images one after the other.
            cu_seqlens: (B + 1,) int32 offsets of the images.
            max_seqlen: most tokens of an image; read from `cu_seqlens` when None, which waits for
                the device.
            size: height and width in pixels; None for the detokenizer's own.

        Returns:
            (B, 3, height, width), about [0, 1].

        Raises:
            ValueError: the shapes do not fit.
        """
        if tokens.dim() != 2 or tokens.shape[1] != self.config.token_dim:
            expected = f"(S, {self.config.token_dim})"
            raise ValueError(f"tokens: expected shape {expected}, got {tuple(tokens.shape)}")
        if max_seqlen is None:
            max_seqlen = int(cu_seqlens.diff().max()) if cu_seqlens.shape[0] > 1 else 0
        padded = pad(tokens, cu_seqlens, max_seqlen)
        return self.detokenizer(padded, valid_tokens(cu_seqlens, max_seqlen), size)

    def forward(self, pixel_values: Tensor) -> tuple[VisualTokens, Tensor]:
        """Tokens of preprocessed pictures, and the pictures drawn from them again."""
        visual = self.tokenize(pixel_values)
        return visual, self.detokenizer(visual.tokens, visual.occupied)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Linear and LayerNorm keep torch's own; the encoder initialises itself.
        if isinstance(module, Detokenizer):
            module.queries.normal_(std=0.02)
            module.emphasis.copy_(first_emphasis(module.outline_dim))
        elif isinstance(module, QueryPartition):
            module.queries.normal_()
        elif isinstance(module, (nn.Linear, nn.LayerNorm, ClusterPartition)):
            module.reset_parameters()


def _build_encoder(config: SetokConfig) -> HFVisionEncoder | PatchStatisticsEncoder:
    grid: Any = config.grid  # a list, as in JSON
    if config.encoder != "hf":
        weights = () if config.feature_weights is None else (config.feature_weights,)
        return PatchStatisticsEncoder(grid, config.patch_size, *weights)
    assert config.encoder_config is not None
    fields = dict(config.encoder_config)
    backbone = AutoConfig.for_model(fields.pop("model_type"), **fields)
    processor = ImageProcessor(**config.preprocessor) if config.preprocessor else ImageProcessor()
    return HFVisionEncoder(
        backbone, grid, config.encoder_layer, config.encoder_trainable, processor
    )


def _build_tokenizer(config: SetokConfig, feature_dim: int) -> tuple[nn.Module, nn.Module]:
    """What says which patches belong together, and what makes them tokens."""
    ends = (config.width, config.token_dim, config.outline_dim, config.heads)
    layers = (config.intra_layers, config.inter_layers, config.mlp_ratio)
    if config.tokens == "queries":
        assert config.num_queries is not None
        reading = (config.num_queries, config.width, config.heads, layers[0], config.mlp_ratio)
        return QueryPartition(feature_dim, *reading), QueryMerger(*ends, *layers[1:])
    if config.tokens == "patches":
        return PatchPartition(), PatchMerger(feature_dim, *ends, *layers[1:])
    if config.tokens == "grid":
        assert config.token_grid is not None
        partition: nn.Module = GridPartition(*config.token_grid)
    else:
        learnable = tuple(config.learnable)
        partition = ClusterPartition(config.cluster_config(), learnable, config.position_weight)
    return partition, TokenMerger(feature_dim, *ends, *layers)


def _map(function: Callable[[list[Tensor]], Tensor], values: Sequence[Any]) -> Any:
    """Applies a function to the tensors of like values, and to those in fields of dataclasses."""
    if isinstance(values[0], Tensor):
        return function(list(values))
    if not dataclasses.is_dataclass(values[0]):
        return values[0]
    first: Any = values[0]
    names = [field.name for field in dataclasses.fields(first)]
    return dataclasses.replace(
        first,
        **{name: _map(function, [getattr(value, name) for value in values]) for name in names},
    )


AutoConfig.register(SetokConfig.model_type, SetokConfig)
AutoModel.register(SetokConfig, SetokModel)
