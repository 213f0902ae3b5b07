"""Visual tokenizers of corpora: a trained model, or clusters of an encoder's features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from setok_kernels import cluster_tokens, merge_tokens
from setokim.corpus.settings import CorpusSettings, TokenizerSettings
from setokim.data.stored_image import StoredImage
from setokim.data.tokens.layout import DTYPES, Layout
from setokim.tokenizer.encoders import build_encoder, quiet_loading
from setokim.tokenizer.identity import encoder_identity, folder_identity, saved_config
from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens
from setokim.tokenizer.stored_tokens import to_stored
from setokim.utils.pretrained import load_whole, resolve_model
from setokim.utils.saved_tensors import SavedTensors


class CorpusTokenizer(ABC):
    """Base of the tokenizers: pixels to the device, tokens back as stored.

    Args:
        layout: what is stored of each image.
        device: device of the computation.
        precision: "fp32", or "bf16" for autocast.
    """

    def __init__(self, layout: Layout, device: torch.device, precision: str):
        self._layout, self._device = layout, device
        self._is_half = precision == "bf16"

    def tokenize(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[StoredImage]:
        """Tokenize B images.

        Args:
            pixels: (B, 3, height, width), on the host.
            sizes: height and width of each image before it was resized.
        """
        if self._device.type == "cuda":
            pixels = pixels.pin_memory().to(self._device, non_blocking=True)
        half = torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_half)
        with torch.inference_mode(), half:
            visual = self._visual_tokens(pixels)
        return to_stored(visual, sizes, self._layout.what, DTYPES[self._layout.dtype])

    @abstractmethod
    def _visual_tokens(self, pixels: Tensor) -> VisualTokens: ...

    @abstractmethod
    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn B RGB images into pixels (B, 3, height, width)."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return `fingerprint`, `rows`, `token_dim` and `feature_dim` for the manifest."""


class ModelTokenizer(CorpusTokenizer):
    """Tokenizer of a trained SeTok model.

    Args:
        settings: settings with `model`.
        layout: what is stored of each image.
        device: device of the computation.
        precision: "fp32", or "bf16" for autocast.

    Raises:
        ValueError: the model does not exist or is damaged.
    """

    def __init__(
        self, settings: TokenizerSettings, layout: Layout, device: torch.device, precision: str
    ):
        super().__init__(layout, device, precision)
        self._folder = resolve_model(settings.model)
        self._model = load_setok(self._folder).eval().to(device)
        _align(self._model)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        return self._model.preprocess(images)

    def _visual_tokens(self, pixels: Tensor) -> VisualTokens:
        return self._model.tokenize(pixels)

    def identity(self) -> dict[str, Any]:
        model = self._model
        dims = {"token_dim": model.config.token_dim, "feature_dim": model.encoder.feature_dim}
        return {"fingerprint": folder_identity(self._folder), "rows": model.max_tokens(), **dims}


class EncoderTokenizer(CorpusTokenizer):
    """Clusters of an encoder's features, each merged into one token.

    Args:
        settings: settings with `encoder`.
        layout: what is stored of each image.
        device: device of the computation.
        precision: "fp32", or "bf16" for autocast.

    Raises:
        ValueError: the encoder does not exist, is damaged, or cannot make the grid.
    """

    def __init__(
        self, settings: TokenizerSettings, layout: Layout, device: torch.device, precision: str
    ):
        super().__init__(layout, device, precision)
        assert settings.encoder is not None
        encoder: Any = build_encoder(settings.encoder, settings.grid, settings.trust_remote_code)
        self._encoder, self._settings = encoder.eval().to(device), settings
        _align(self._encoder)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        return self._encoder.preprocess(images)

    def _visual_tokens(self, pixels: Tensor) -> VisualTokens:
        features = self._encoder(pixels)  # (B, H, W, D)
        clusters = cluster_tokens(features, self._settings.cluster)
        tokens = merge_tokens(features, clusters, mode=self._settings.merge)  # type: ignore[arg-type]
        grid = features.shape[1], features.shape[2]
        return VisualTokens(tokens, clusters.occupied(), clusters, grid, features.flatten(1, 2))

    def identity(self) -> dict[str, Any]:
        dims = dict.fromkeys(("token_dim", "feature_dim"), self._encoder.feature_dim)
        found = encoder_identity(self._encoder, self._settings.cluster)
        rows = self._settings.cluster.max_clusters + 1
        return {"fingerprint": found, "rows": rows, **dims}


def build_tokenizer(settings: CorpusSettings, device: torch.device) -> CorpusTokenizer:
    """Build the tokenizer of settings on a device.

    Raises:
        ImportError: the model needs a package that is not installed.
        ValueError: the model does not exist or is damaged.
    """
    kind = EncoderTokenizer if settings.tokenizer.model is None else ModelTokenizer
    return kind(settings.tokenizer, settings.layout, device, settings.precision)


def load_setok(folder: Path) -> SetokModel:
    """Load the visual tokenizer of a SeTok or SeTokim model in float32; other parts are not read.

    Raises:
        ValueError: the model is missing or damaged.
    """
    try:
        config, prefix = saved_config(folder)
        if not prefix:
            with quiet_loading():
                return load_whole(SetokModel, folder, dtype=torch.float32)
        weights = {key: x.float() for key, x in SavedTensors(folder).under(prefix).items()}
    except OSError as error:
        raise ValueError(f"model: expected a complete model, got {folder}: {error}") from error
    model = SetokModel(config)
    missing, _ = model.load_state_dict(weights, strict=False)
    if missing:
        raise ValueError(f"model: expected all weights in {folder}, got none of {missing[0]}")
    return model


@torch.no_grad()
def _align(module: torch.nn.Module) -> None:
    """Move the weights to memory of torch's own alignment.

    Weights that are mapped from a file lie anywhere, and some processors round convolutions by the
    address of their weights.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
