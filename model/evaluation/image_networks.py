"""Networks whose features judge images, loaded from local files without any download."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, CLIPModel

from setokim.data.image_processing import ImageProcessor
from setokim.data.records import read_json
from setokim.evaluation.dual_encoder import DualEncoder
from setokim.evaluation.perceptual import PerceptualLoss
from setokim.utils.pretrained import load_pretrained, load_whole

# Shorter side and side of the centre crop, as in the official script of MagicBrush.
_CLIP_SIDES = (224, 224)
_DINO_SIDES = (256, 224)
_KEPT = 4096

Embedder = Callable[[Image.Image], Tensor]


@dataclasses.dataclass(frozen=True)
class ImageNetworks:
    """Networks that judge images; None for missing ones.

    Attributes:
        clip_image: function from an image to its (D,) features by CLIP.
        clip_text: function from a text to its (D,) features by CLIP.
        dino: function from an image to the (D,) hidden state of DINO's class token.
        inception: function from an image to its (D,) features, for FID.
        lpips: distance of two images of one size.
        dual: SigLIP that classifies images by texts.
    """

    clip_image: Embedder | None = None
    clip_text: Callable[[str], Tensor] | None = None
    dino: Embedder | None = None
    inception: Embedder | None = None
    lpips: Callable[[Image.Image, Image.Image], float] | None = None
    dual: DualEncoder | None = None

    @classmethod
    def load(
        cls,
        clip: str | Path | None = None,
        dino: str | Path | None = None,
        inception: str | Path | None = None,
        lpips: str | Path | None = None,
        text_encoder: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> ImageNetworks:
        """Load the networks.

        Args:
            clip: folder of a CLIP model of transformers with its tokenizer; published metrics use
                ViT-B/32.
            dino: folder of a ViT of transformers with a class token; published metrics use DINO
                ViT-S/16.
            inception: TorchScript file of FID's network, as published by NVIDIA for StyleGAN; its
                inputs are (B, 3, h, w) uint8 and `return_features=True`.
            lpips: file of `PerceptualLoss.lpips`.
            text_encoder: folder of a `DualEncoder`.
            device: device of the networks.

        Raises:
            ValueError: a file is missing or holds something else.
        """
        given = {"clip": clip, "dino": dino, "inception": inception, "lpips": lpips}
        given["text_encoder"] = text_encoder
        networks: dict[str, Any] = {}
        for name, path in given.items():
            if path is None:
                continue
            try:
                networks |= _LOADERS[name](Path(path), device)
            except (OSError, ValueError) as error:
                raise ValueError(f"{name}: {error}") from error
        return cls(**networks)


def _clip(folder: Path, device: str | torch.device) -> dict[str, Callable]:
    _check_folder(folder, "clip")
    model = load_whole(CLIPModel, folder).to(device).eval()
    tokenizer = load_pretrained(AutoTokenizer, folder, local_files_only=True)
    processor = ImageProcessor.from_file(folder / "preprocessor_config.json")
    max_length = model.config.text_config.max_position_embeddings
    side = model.config.vision_config.image_size

    @torch.no_grad()
    def embed(image: Image.Image) -> Tensor:
        pixels = _centre_crop(image, processor, side, side).to(device)
        return model.get_image_features(pixels).pooler_output[0].float().cpu()

    @functools.lru_cache(_KEPT)
    @torch.no_grad()
    def embed_text(text: str) -> Tensor:
        given = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt").to(
            device
        )
        found = model.get_text_features(given["input_ids"], given["attention_mask"])
        return found.pooler_output[0].float().cpu()

    return {"clip_image": embed, "clip_text": embed_text}


def _dino(folder: Path, device: str | torch.device) -> dict[str, Callable]:
    _check_folder(folder)
    # Published DINO has no pooler; the class token is used directly.
    model = load_whole(AutoModel, folder, unused=["pooler"]).to(device).eval()
    processor = ImageProcessor.from_file(folder / "preprocessor_config.json")
    side = model.config.image_size

    @torch.no_grad()
    def embed(image: Image.Image) -> Tensor:
        short, cut = (round(one * side / _DINO_SIDES[1]) for one in _DINO_SIDES)
        pixels = _centre_crop(image, processor, short, cut).to(device)
        return model(pixels).last_hidden_state[0, 0].float().cpu()

    return {"dino": embed}


def _inception(path: Path, device: str | torch.device) -> dict[str, Callable]:
    if not path.is_file():
        raise ValueError(f"expected a TorchScript file, got {path}")
    try:
        with warnings.catch_warnings():
            # torch deprecates TorchScript, but this network is published in no other format.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"expected a TorchScript file, got {path}: {error}") from error

    @torch.no_grad()
    def embed(image: Image.Image) -> Tensor:
        return network(_levels(image).to(device), return_features=True)[0].float().cpu()

    return {"inception": embed}


def _lpips(path: Path, device: str | torch.device) -> dict[str, Callable]:
    loss = PerceptualLoss.lpips(path).to(device)

    @torch.no_grad()
    def distance(one: Image.Image, other: Image.Image) -> float:
        return float(loss(*(_levels(image).to(device).float() / 255 for image in (one, other))))

    return {"lpips": distance}


def _dual(folder: Path, device: str | torch.device) -> dict[str, DualEncoder]:
    return {"dual": DualEncoder(folder, device)}


_LOADERS: dict[str, Callable[..., dict[str, Any]]] = {
    "clip": _clip,
    "dino": _dino,
    "inception": _inception,
    "lpips": _lpips,
    "text_encoder": _dual,
}


def _levels(image: Image.Image) -> Tensor:
    """Return the pixels of an image, (1, 3, h, w) uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]


def _centre_crop(image: Image.Image, processor: ImageProcessor, short: int, side: int) -> Tensor:
    """Resize the shorter side to `short` and crop the centre, (1, 3, side, side)."""
    scale = short / min(image.size)
    size = tuple(max(short, round(scale * one)) for one in image.size)
    resized = image.convert("RGB").resize(size, processor.resample)
    left, top = ((one - side) // 2 for one in size)
    return processor([resized.crop((left, top, left + side, top + side))], (side, side))


def _check_folder(folder: Path, kind: str | None = None) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"expected the folder of a model, got {folder}")
    config = read_json(path)
    found = config.get("model_type") if isinstance(config, dict) else None
    if kind not in (None, found):
        raise ValueError(f"expected a model of type {kind!r} in {folder}, got one of {found!r}")
