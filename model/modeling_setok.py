"""SeTok: pictures to semantic tokens, and back to pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from setok_kernels import Clusters, Packed, TokenClustering
from setok_kernels.layout import pad, valid_tokens
from setokim.configuration_setok import SetokConfig
from setokim.detokenizer import Detokenizer
from setokim.encoders import HFVisionEncoder, PatchStatisticsEncoder
from setokim.images import ImageProcessor
from setokim.merger import TokenMerger
from setokim.positions import grid_positions, wave_taper
from setokim.processing_setok import SetokProcessor


@dataclass(frozen=True)
class VisualTokens:
    """Tokens of B images.

    Attributes:
        tokens: (B, R, token_dim) with R = max_clusters + 1; 0 in rows that are nobody's label.
        occupied: (B, R) bool, the rows that are there.
        clusters: the clustering behind them: masks, labels, seeds.
        grid: rows and columns of the patches.
    """

    tokens: Tensor
    occupied: Tensor
    clusters: Clusters
    grid: tuple[int, int]

    def pack(self, order: str = "seed") -> Packed:
        """The tokens one after the other with `cu_seqlens`; waits for the device."""
        clusters = dataclasses.replace(self.clusters, grid=self.grid)
        return clusters.pack(self.tokens, order=order)


class SetokModel(PreTrainedModel):
    """Vision encoder, clustering and merger (the tokenizer), and the detokenizer.

    Args:
        config: what to build; the weights are random.
    """

    config_class = SetokConfig
    base_model_prefix = "setok"
    main_input_name = "pixel_values"
    _no_split_modules = ("Block",)

    def __init__(self, config: SetokConfig):
        super().__init__(config)
        self.encoder = _build_encoder(config)
        self.clustering = TokenClustering(config.cluster_config(), tuple(config.learnable))
        self.merger = TokenMerger(
            self.encoder.feature_dim,
            config.width,
            config.token_dim,
            config.outline_dim,
            config.heads,
            config.intra_layers,
            config.inter_layers,
            config.mlp_ratio,
        )
        self.detokenizer = Detokenizer(
            config.token_dim,
            config.outline_dim,
            config.decoder_width,
            config.heads,
            config.decoder_cross_layers,
            config.decoder_layers,
            config.decoder_grid,
            config.decoder_patch_size,
            config.mlp_ratio,
        )
        self.to_concept = nn.Linear(config.token_dim, config.concept_dim)
        self.post_init()

    @classmethod
    def from_encoder(cls, name_or_path: str, **fields) -> SetokModel:
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
        clusters = self.clustering(self._place(features, grid))
        tokens, occupied = self.merger(features.to(self.dtype), clusters, grid)
        return VisualTokens(tokens, occupied, clusters, grid)

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

    def _place(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features (B, N, D), with positions beside them where the configuration gives them weight.

        Positions are scaled so that their mean squared distance over all pairs of patches is
        `position_weight` times that of the features.
        """
        weight = self.config.position_weight
        if weight == 0:
            return features
        place = grid_positions(*grid, features.device)
        spread = place.var(0, unbiased=False).sum()
        own = features.detach().float().var(1, unbiased=False).sum(-1)  # (B,)
        scale = (weight * own / spread.clamp(min=1e-12)).sqrt()
        return torch.cat([features, (scale[:, None, None] * place).to(features.dtype)], -1)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Linear and LayerNorm keep torch's own; the encoder initialises itself.
        if isinstance(module, Detokenizer):
            module.queries.normal_(std=0.02)
            module.emphasis.copy_(wave_taper(module.outline_dim))
        elif isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.reset_parameters()


def _build_encoder(config: SetokConfig) -> nn.Module:
    if config.encoder != "hf":
        return PatchStatisticsEncoder(config.grid, config.patch_size)
    fields = dict(config.encoder_config)
    backbone = AutoConfig.for_model(fields.pop("model_type"), **fields)
    processor = ImageProcessor(**config.preprocessor) if config.preprocessor else ImageProcessor()
    return HFVisionEncoder(
        backbone, config.grid, config.encoder_layer, config.encoder_trainable, processor
    )


AutoConfig.register(SetokConfig.model_type, SetokConfig)
AutoModel.register(SetokConfig, SetokModel)
