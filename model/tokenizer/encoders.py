"""Vision encoders: from images to one feature vector per patch."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from setokim.data.image_processing import ImageProcessor
from setokim.tokenizer.patch_statistics import PatchStatisticsEncoder, resized
from setokim.utils.host_memory import require_memory
from setokim.utils.pretrained import load_pretrained

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PATCH_STATISTICS = "patch-statistics"

_IMAGENET = ImageProcessor(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_OPENAI = ImageProcessor(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
# For checkpoints without a preprocessor_config.json; all other families were trained on [-1, 1].
_PROCESSOR_BY_FAMILY = {
    "clip": _OPENAI,
    "convnext": _IMAGENET,
    "dinov2": _IMAGENET,
    "dinov3": _IMAGENET,
    "resnet": _IMAGENET,
    "swin": _IMAGENET,
}
# Layers on top of the features, which only downstream tasks use.
_HEADS = ("head", "pooler", "classifier")


class VisionEncoder(Protocol):
    """Interface of the encoders, all of which are `nn.Module`s.

    Attributes:
        grid: rows and columns of the features.
        feature_dim: number of features per patch.
        processor: resizing and normalisation.
        pixel_size: height and width of the resized images.
    """

    grid: tuple[int, int]
    feature_dim: int
    processor: ImageProcessor

    @property
    def pixel_size(self) -> tuple[int, int]: ...

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn B RGB images of any sizes into pixels (B, 3, height, width)."""

    def normalise(self, images: Tensor) -> Tensor:
        """Turn images (B, 3, h, w) in [0, 1] into such pixels, with gradient."""

    def features(self, pixels: Tensor) -> Tensor:
        """Compute features as `__call__`, from pixels only and with gradient to them."""

    def __call__(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Turn images, or pixels from `preprocess`, into features (B, rows, columns, D) float32."""


class HFVisionEncoder(nn.Module):
    """Patch features of a Hugging Face vision model, or of the vision tower of a composite one.

    Only patch tokens stay: class and register tokens are dropped, and SigLIP, which has none, keeps
    all its tokens. Models whose stages return feature maps work too, with the grid of the chosen
    stage.

    Attributes:
        backbone: transformers model.
        grid: rows and columns of the features.
        feature_dim: number of features per patch.
        processor: resizing and normalisation of the checkpoint.
        pixel_size: height and width of the resized images.
        trainable: trainability of the backbone.
    """

    def __init__(
        self,
        name_or_path: str | PretrainedConfig,
        grid: tuple[int, int] | None = None,
        layer: int = -2,
        trainable: bool = False,
        processor: ImageProcessor | None = None,
        trust_remote_code: bool = False,
    ):
        """Load the model and run it on one blank image for the shape of its features.

        Args:
            name_or_path: name on the Hugging Face hub or folder with a `config.json`; or the
                configuration of a vision model, which then gets random weights.
            grid: rows and columns of patches; None for the model's own. Another grid needs a model
                that can interpolate its position embedding.
            layer: index of the hidden state: -2 is the penultimate layer's, 0 the embedding.
            trainable: training of the backbone; otherwise it stays frozen and in evaluation mode.
            processor: resizing and normalisation; None for the checkpoint's own.
            trust_remote_code: permission to run the model's own Python code.

        Raises:
            ValueError: the model does not exist or cannot be reached, is no vision model, has
                incomplete or damaged weights, cannot make this grid or not in the free memory, or
                has Python code of its own.
        """
        super().__init__()
        if isinstance(name_or_path, str):
            config = _load_vision_config(name_or_path, trust_remote_code)
            self.processor = processor or _load_processor(name_or_path, config.model_type)
            self.backbone: Any = _load_backbone(name_or_path, config, trust_remote_code)
        else:
            config = name_or_path
            self.processor = processor or _default_processor(config.model_type)
            self.backbone = _random_backbone(config)
        self.layer = layer
        self.trainable = trainable
        self.backbone.requires_grad_(trainable)
        self.train(self.training)

        self._patch = _pair(getattr(config, "patch_size", None) or 1)
        native = _pair(getattr(config, "image_size", None) or 224)
        self.pixel_size = native
        if grid is not None:
            self.pixel_size = (grid[0] * self._patch[0], grid[1] * self._patch[1])
        accepted = inspect.signature(self.backbone.forward).parameters
        self._options: dict[str, Any] = {"output_hidden_states": True}
        if self.pixel_size != native and "interpolate_pos_encoding" in accepted:
            self._options["interpolate_pos_encoding"] = True

        if grid is not None:
            # The pixels and one hidden state, float32.
            hidden = math.prod(grid) * getattr(config, "hidden_size", 0)
            needed = 4 * (3 * math.prod(self.pixel_size) + hidden)
            require_memory(needed, f"grid {grid[0]}x{grid[1]}")
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, 3, *self.pixel_size))
        except (ValueError, RuntimeError, IndexError) as error:
            raise ValueError(
                f"encoder {name_or_path!r} cannot run with grid={grid}, layer={layer}: {error}"
            ) from error
        self.grid = tuple(features.shape[1:3])
        self.feature_dim = features.shape[3]
        if grid is not None and self.grid != tuple(grid):
            raise ValueError(
                f"grid: expected a grid that {name_or_path!r} supports, got {tuple(grid)}, for "
                f"which it returns {self.grid}"
            )

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Resize and normalise B RGB images to (B, 3, height, width), float32."""
        return self.processor(images, self.pixel_size)

    def forward(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Compute the features of every patch.

        Args:
            images: B RGB images, or their pixels from `preprocess`.

        Returns:
            (B, rows, columns, feature_dim), float32; carries gradient only when `trainable`.
        """
        pixels = images if isinstance(images, Tensor) else self.preprocess(images)
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return self.features(pixels)

    def normalise(self, images: Tensor) -> Tensor:
        """Resize and normalise images (B, 3, h, w) in [0, 1] as `preprocess`, with gradient."""
        mean, std = (
            images.new_tensor(values)[:, None, None]
            for values in (self.processor.mean, self.processor.std)
        )
        return (resized(images, self.pixel_size) - mean) / std

    def features(self, pixels: Tensor) -> Tensor:
        """Compute features as `forward`, from pixels only, with gradient to them even if frozen."""
        weight = next(self.backbone.parameters())
        if not len(pixels):
            # Batches of text alone: most models fail on no image, and with sharded weights all
            # processes have to run the model together.
            return self.features(pixels.new_zeros(1, *pixels.shape[1:]))[:0]
        output = self.backbone(pixels.to(weight.device, weight.dtype), **self._options)
        return self._to_grid(output, pixels.shape[-2:]).float()

    def train(self, mode: bool = True) -> HFVisionEncoder:
        """Set the mode of the module; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and self.trainable)
        return self

    def _to_grid(self, output: Any, size: Sequence[int]) -> Tensor:
        maps = getattr(output, "reshaped_hidden_states", None)  # each (B, D, rows, columns)
        hidden = (maps or output.hidden_states)[self.layer]
        if hidden.dim() == 4:
            # SAM's maps have their channels last, all others have them first.
            hidden_size = getattr(self.backbone.config, "hidden_size", None)
            return hidden if hidden.shape[-1] == hidden_size else hidden.permute(0, 2, 3, 1)
        rows, columns = size[0] // self._patch[0], size[1] // self._patch[1]
        extra = hidden.shape[1] - rows * columns
        if extra < 0:
            raise ValueError(
                f"expected at least {rows} x {columns} tokens, got {hidden.shape[1]} of layer "
                f"{self.layer}"
            )
        # Class and register tokens come first in every model that has them.
        return hidden[:, extra:].unflatten(1, (rows, columns))


def build_encoder(
    name: str, grid: tuple[int, int] | None = None, trust_remote_code: bool = False
) -> VisionEncoder:
    """Build an encoder by name: "patch-statistics", or a Hugging Face name or folder.

    Raises:
        ValueError: see the encoders.
    """
    if name == PATCH_STATISTICS:
        return PatchStatisticsEncoder(grid)
    return HFVisionEncoder(name, grid, trust_remote_code=trust_remote_code)


def _load_vision_config(name: str, trust_remote_code: bool) -> Any:
    from transformers import MODEL_MAPPING, AutoConfig

    try:
        config = load_pretrained(AutoConfig, name, trust_remote_code)
    except ValueError as error:
        raise ValueError(
            f"encoder: expected {PATCH_STATISTICS!r}, a folder with a config.json, or the name of "
            f"a vision model on the Hugging Face hub, got {name!r}: {error}"
        ) from error
    config = getattr(config, "vision_config", config)
    takes_pixels = (
        type(config) in MODEL_MAPPING
        and MODEL_MAPPING[type(config)].main_input_name == "pixel_values"
    )
    # The inputs of a model with its own code are known only after it is built.
    is_foreign = trust_remote_code and "AutoModel" in (getattr(config, "auto_map", None) or {})
    if not takes_pixels and not is_foreign:
        raise _no_vision_model(name, config)
    return config


def _no_vision_model(name: str, config: Any) -> ValueError:
    return ValueError(
        f"encoder: expected a vision model or one with a vision tower, got {name!r}, a model "
        f"of type {config.model_type!r}"
    )


def _load_backbone(name: str, config: Any, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoModel

    options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    try:
        with quiet_loading():
            backbone, info = load_pretrained(AutoModel, name, trust_remote_code, **options)
    except ValueError as error:
        raise ValueError(f"encoder: cannot load the weights of {name!r}: {error}") from error
    if backbone.main_input_name != "pixel_values":
        raise _no_vision_model(name, config)
    missing = sorted(key for key in info["missing_keys"] if not set(_HEADS) & set(key.split(".")))
    if missing:
        raise ValueError(
            f"encoder: expected all weights of the vision model, got {name!r} without "
            f"{len(missing)} of them, such as {missing[0]}; they would be random"
        )
    return backbone


def _random_backbone(config: PretrainedConfig) -> nn.Module:
    from transformers import AutoModel

    return AutoModel.from_config(config, trust_remote_code=False)


@contextlib.contextmanager
def quiet_loading():
    """Mute the progress of loading, and the report on a composite model's text weights."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _load_processor(name: str, model_type: str) -> ImageProcessor:
    path = _find_file(name, "preprocessor_config.json")
    if path is not None:
        return ImageProcessor.from_file(path)
    return _default_processor(model_type)


def _default_processor(model_type: str) -> ImageProcessor:
    family = (p for key, p in _PROCESSOR_BY_FAMILY.items() if model_type.startswith(key))
    return next(family, ImageProcessor())


def _find_file(name: str, file_name: str) -> Path | None:
    if Path(name).is_dir():
        path = Path(name) / file_name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file_name))
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"encoder: {file_name} of {name!r} is not in the local cache and the hub cannot be "
            f"reached, so the image preprocessing of the model is unknown"
        ) from error
    except EntryNotFoundError:
        return None


def _pair(size: Any) -> tuple[int, int]:
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)
