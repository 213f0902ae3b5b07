"""SeTok model: images to semantic tokens, and tokens back to pixels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from setok_kernels import Clusters, Packed
from setok_kernels.layout import pad, valid_tokens
from setokim.tokenizer.absent_encoder import AbsentEncoder
from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.tokenizer.detokenizer import Detokenizer, initial_emphasis
from setokim.tokenizer.encoders import HFVisionEncoder, VisionEncoder
from setokim.tokenizer.factory import (
    absent_encoder,
    encoder_from_config,
    tokenizer_from_config,
)
from setokim.tokenizer.processing_setok import SetokProcessor
from setokim.tokenizer.stored_rows import StoredRows
from setokim.tokenizer.token_codes import TokenCodes
from setokim.tokenizer.token_grouping import ClusterGrouping, QueryGrouping, TokenGroups
from setokim.utils.pretrained import is_embedded, resolve_model


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """Tokens of B images.

    Attributes:
        tokens: (B, R, token_dim); 0 in unoccupied rows. R is max_clusters + 1, or the number of
            cells, queries or patches.
        occupied: (B, R) bool, the rows that hold a token.
        parts: clustering of the patches, or another grouping of them; of stored tokens their
            statistics.
        grid: rows and columns of the patches.
        features: (B, N, D), encoder features of the patches; None for tokens without an encoder,
            and for stored tokens without them.
    """

    tokens: Tensor
    occupied: Tensor
    parts: Clusters | TokenGroups | StoredRows
    grid: tuple[int, int]
    features: Tensor | None = None

    @property
    def masks(self) -> Tensor:
        """(B, R, N) float, fraction of each patch in each row; a patch's fractions sum to 1.

        Raises:
            ValueError: these are stored tokens, without their masks.
        """
        return _existing("masks", self.parts.masks)

    @property
    def labels(self) -> Tensor:
        """(B, N) int64, the row with the max fraction of each patch.

        Raises:
            ValueError: these are stored tokens, without their labels.
        """
        return _existing("labels", self.parts.labels)

    @property
    def has_patches(self) -> bool:
        """Whether masks and features are there, as segmentation needs them."""
        return self.parts.masks is not None and self.features is not None

    @property
    def clusters(self) -> Clusters | None:
        """Clustering behind the tokens; None for other kinds of tokens and for stored ones."""
        return self.parts if isinstance(self.parts, Clusters) else None

    def pack(self, order: Literal["seed", "raster", "size"] = "seed") -> Packed:
        """Pack the tokens as a ragged batch with `cu_seqlens`; waits for the device.

        Args:
            order: "seed", "raster" or "size", see `Clusters.pack`. The seed of a row that is no
                cluster is the patch with its max fraction.
        """
        parts = dataclasses.replace(self.parts, grid=self.grid)
        return parts.pack(self.tokens, order=order)

    def replaced(self, tokens: Tensor) -> VisualTokens:
        """Return the same parts with other tokens (S, token_dim) in the occupied rows, in order."""
        empty = torch.zeros_like(self.tokens)
        padded = empty.masked_scatter(self.occupied[..., None], tokens.to(self.tokens))
        return dataclasses.replace(self, tokens=padded)

    def select(self, index: Tensor) -> VisualTokens:
        """Select the tokens of some images, each as often as its index occurs.

        Args:
            index: (Q,) int64 or int32, indices of images.

        Returns:
            Tokens of Q images; carries gradient.

        Raises:
            TypeError: `index` has another dtype.
            ValueError: `index` has another shape.
        """
        if index.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"index: expected dtype torch.int64 or torch.int32, got {index.dtype}")
        if index.dim() != 1:
            raise ValueError(f"index: expected shape (Q,), got {tuple(index.shape)}")
        return _map(lambda tensors: tensors[0].index_select(0, index), [self])

    @classmethod
    def join(cls, parts: Sequence[VisualTokens]) -> VisualTokens:
        """Concatenate the images of several `VisualTokens` of one model; at least one."""
        return _map(torch.cat, parts)


class SetokModel(PreTrainedModel):
    """Vision encoder, clustering and merger (the tokenizer), and the detokenizer.

    `reads_features` is True while the tokenizer is trained: of stored images the features are used
    then, never the tokens.

    `clustering` groups the patches: it turns features (B, N, D) and their grid into `Clusters`, or
    into `TokenGroups` for other kinds of tokens. `merger` turns features, groups and grid into
    tokens (B, R, token_dim) and their occupied rows (B, R). `codes` encodes single
    tokens as short codes and decodes them; None without `config.code_dim`.

    Args:
        config: configuration of the model; the weights are random.
        with_encoder: flag; False builds and loads everything but the vision encoder, for stored
            tokens. `encoder` is an `AbsentEncoder` then, and saved files lack its weights.
    """

    config_class = SetokConfig
    base_model_prefix = "setok"
    main_input_name = "pixel_values"
    _no_split_modules = ("Block",)
    encoder: VisionEncoder
    detokenizer: Detokenizer
    reads_features = False

    def __init__(self, config: SetokConfig, with_encoder: bool = True):
        super().__init__(config)
        self.encoder = encoder_from_config(config) if with_encoder else absent_encoder(config)
        if not with_encoder:
            # Also those of a model around this one.
            self._keys_to_ignore_on_load_unexpected = [r"^(setok\.)?encoder\."]
        self.clustering, self.merger = tokenizer_from_config(config, self.encoder.feature_dim)
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
        # Stage 1 compares tokens and texts by it; nothing else does.
        self.to_concept: nn.Linear | None = None
        if config.concept_dim is not None:
            self.to_concept = nn.Linear(config.token_dim, config.concept_dim)
        self.codes: TokenCodes | None = None
        if config.code_dim is not None:
            self.codes = TokenCodes(
                config.token_dim, config.outline_dim, config.code_dim, config.code_width
            )
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None = None, *args: Any, **options: Any
    ) -> Any:
        """Load a model.

        Args:
            pretrained_model_name_or_path: folder, or name on the Hugging Face hub; None or the name
                of an embedded SeTokim model for the visual tokenizer of that model, in float32.
            *args: further arguments of transformers.
            **options: further arguments of transformers, such as `dtype`.

        Raises:
            OSError: the model does not exist.
            ValueError: this installation lacks the embedded model.
        """
        name = pretrained_model_name_or_path
        if is_embedded(name) and "state_dict" not in options:
            folder, name = resolve_model(name), None
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            weights = load_file(folder / "model.safetensors")
            prefix = f"{cls.base_model_prefix}."
            options = {
                "config": SetokConfig(**config["setok"]),
                "state_dict": {
                    key.removeprefix(prefix): value
                    for key, value in weights.items()
                    if key.startswith(prefix)
                },
                # bfloat16, as stored, is slow on CPUs.
                "dtype": torch.float32,
                **options,
            }
        return super().from_pretrained(name, *args, **options)

    @classmethod
    def from_encoder(cls, name_or_path: str, **fields: Any) -> SetokModel:
        """Build a model around a pretrained Hugging Face vision encoder, with random other weights.

        Args:
            name_or_path: name or folder of the encoder, see `HFVisionEncoder`.
            **fields: fields of `SetokConfig`.

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

    @property
    def has_encoder(self) -> bool:
        """False for a model that was built or loaded without its vision encoder."""
        return not isinstance(self.encoder, AbsentEncoder)

    @torch.no_grad()
    def max_tokens(self) -> int:
        """Return R, the number of rows of tokens of each image."""
        return self.tokenize_features(self._no_features()).tokens.shape[1]

    def _no_features(self) -> Tensor:
        """Return (0, H, W, D) features."""
        shape = (0, *self.encoder.grid, self.encoder.feature_dim)
        return torch.zeros(shape, device=self.device)

    def processor(self) -> SetokProcessor:
        """Return the processor that does the work of `preprocess`, to be saved with the weights."""
        return SetokProcessor(self.encoder.pixel_size, self.encoder.processor)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn B RGB images of any sizes into the encoder's pixels (B, 3, height, width)."""
        return self.encoder.preprocess(images)

    def tokenize(self, images: Sequence[Image.Image] | Tensor) -> VisualTokens:
        """Turn images into semantic tokens.

        Args:
            images: B RGB images, or their pixels from `preprocess`.

        Returns:
            The tokens; `.pack()` makes them ragged.
        """
        pixels = images if isinstance(images, Tensor) else self.preprocess(images)
        if not len(pixels) and not self.has_encoder:
            # Batches of text alone.
            return self.tokenize_features(self._no_features())
        return self.tokenize_features(self.encoder(pixels.to(self.device)))

    def tokenize_features(
        self, features: Tensor, clustering: nn.Module | None = None
    ) -> VisualTokens:
        """Turn the encoder's features into semantic tokens.

        Args:
            features: (B, H, W, D) float32, on the device of the model.
            clustering: grouping of the patches in place of the model's own, such as a
                `ClusterGrouping` with other options; None for the model's.
        """
        grid, features = (features.shape[1], features.shape[2]), features.flatten(1, 2)
        parts = (self.clustering if clustering is None else clustering)(features, grid)
        tokens, occupied = self.merger(features.to(self.dtype), parts, grid)
        return VisualTokens(tokens, occupied, parts, grid, features)

    def recode(self, visual: VisualTokens) -> VisualTokens:
        """Replace tokens by what the decoder makes of the means of their codes.

        Args:
            visual: tokens of B images; carries gradient.

        Raises:
            ValueError: the model has no codes.
            RuntimeError: the codes are not fitted.
        """
        if self.codes is None:
            raise ValueError("code_dim: expected a model with token codes, got None")
        return visual.replaced(self.codes.recode(visual.tokens[visual.occupied]))

    def detokenize(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Reconstruct images from ragged tokens.

        Args:
            tokens: (S, token_dim), the tokens of all images one after the other.
            cu_seqlens: (B + 1,) int32 offsets of the images.
            max_seqlen: max number of tokens of an image; None to read it from `cu_seqlens`, which
                waits for the device.
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
        """Return the tokens of preprocessed images, and the images reconstructed from them."""
        visual = self.tokenize(pixel_values)
        return visual, self.detokenizer(visual.tokens, visual.occupied)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Linear and LayerNorm keep torch's own initialisation; the encoder initialises itself.
        if isinstance(module, Detokenizer):
            module.queries.normal_(std=0.02)
            module.emphasis.copy_(initial_emphasis(module.outline_dim))
        elif isinstance(module, QueryGrouping):
            module.queries.normal_()
        elif isinstance(module, (nn.Linear, nn.LayerNorm, ClusterGrouping)):
            module.reset_parameters()


def _existing(name: str, value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError(f"{name}: expected tokens with {name}, got stored tokens without them")
    return value


def _map(function: Callable[[list[Tensor]], Tensor], values: Sequence[Any]) -> Any:
    """Apply a function to the tensors of equal structures, fields of dataclasses included."""
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
