"""Perceptual distance of two images: the distance of their features under a frozen network."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# Below this squared length, features have no meaningful direction, so their gradient is damped.
_SHORTEST_SQUARED = 1e-8

# VGG16: output channels of each convolution by its number in torchvision's `features`, and which
# of them end a stage. A pooling follows each stage but the last.
_VGG_CHANNELS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
_VGG_CHANNELS |= {17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
_VGG_STAGE_ENDS = (2, 7, 14, 21, 28)
_LPIPS_SHIFT = (-0.030, -0.088, -0.188)
_LPIPS_SCALE = (0.458, 0.448, 0.450)

# Rows: lightness (ITU-R BT.601), red against green, yellow against blue.
_OPPONENTS = ((0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))
_SCALES = 3


class PerceptualLoss(nn.Module):
    """Squared distance of the features of two images, summed over channels and layers.

    `from_encoder`, `lpips` and `pyramid` build one. The network is frozen and stays in evaluation
    mode; gradients flow through it to the image, and none to the target.

    Args:
        network: module from (B, 3, H, W) in [0, 1] to a list of feature maps (B, C, h, w).

    Raises:
        ValueError: the network has parameters to train.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        trainable = [name for name, p in network.named_parameters() if p.requires_grad]
        if trainable:
            raise ValueError(
                f"network: expected a frozen module, got {len(trainable)} parameters with "
                f"gradients, such as {trainable[0]}"
            )
        self.network = network
        self.train(self.training)

    @classmethod
    def from_encoder(cls, encoder: nn.Module) -> PerceptualLoss:
        """Compare the features of a vision encoder, each scaled to unit length.

        Args:
            encoder: frozen encoder with the differentiable methods `normalise`, from (B, 3, H, W)
                in [0, 1] to its pixels, and `features`, from those to (B, rows, columns, D).

        Raises:
            TypeError: the encoder lacks one of these methods.
            ValueError: the encoder is trainable.
        """
        for name in ("normalise", "features"):
            if not callable(getattr(encoder, name, None)):
                got = type(encoder).__name__
                raise TypeError(f"encoder: expected a module with a method {name}, got {got}")
        return cls(_EncoderFeatures(encoder))

    @classmethod
    def lpips(cls, path: str | Path) -> PerceptualLoss:
        """Load LPIPS with VGG16.

        Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
        2018. Nothing is downloaded.

        Args:
            path: safetensors file with `features.N.weight` and `features.N.bias` of the 13
                convolutions in torchvision's numbering, and `lin0.weight` to `lin4.weight`, each
                (1, C, 1, 1) and not negative.

        Raises:
            ValueError: the file cannot be read, or has other tensors.
        """
        return cls(_LpipsFeatures(_load_lpips(path)))

    @classmethod
    def pyramid(cls) -> PerceptualLoss:
        """Compare colours and edges at three scales, without parameters or files.

        At each scale, from the full size to a quarter: lightness, two opponent colours, and the
        horizontal and vertical derivatives of the lightness. All of them are linear in the pixels,
        so the loss is a quadratic form of the difference: smooth everywhere, and 0 only if the
        images are equal. It is a filtered squared error without semantic features.
        """
        return cls(_PyramidFeatures())

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Set the mode of the module; the network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Compute the distance of images from their targets.

        Args:
            image: (B, 3, H, W), about [0, 1].
            target: (B, 3, H, W) in [0, 1].

        Returns:
            Scalar float32: the squared distances averaged over positions and images. Carries
            gradient to `image` only.

        Raises:
            ValueError: the shapes differ or are too small for the network.
        """
        check_images(image, target)
        with torch.no_grad():
            wanted = self.network(target.float())
        layers = zip(self.network(image.float()), wanted, strict=True)
        return sum((a.float() - b.float()).square().sum(1).mean() for a, b in layers)


class _EncoderFeatures(nn.Module):
    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.encoder.features(self.encoder.normalise(image))  # (B, rows, columns, D)
        return [_unit(features.float().permute(0, 3, 1, 2))]


class _LpipsFeatures(nn.Module):
    """VGG16 up to its last convolution, with the linear weights of LPIPS folded in."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        self.convolutions = nn.ModuleDict()
        # Modules on the meta device are not initialised, so that no random number is sampled.
        before = 3
        for n, after in _VGG_CHANNELS.items():
            convolution = nn.Conv2d(before, after, 3, padding=1, device="meta")
            state = {name: tensors[f"features.{n}.{name}"] for name in ("weight", "bias")}
            convolution.load_state_dict(state, assign=True)
            self.convolutions[str(n)] = convolution
            before = after
        # Σ w (a - b)² is the squared distance of √w a and √w b.
        for i in range(len(_VGG_STAGE_ENDS)):
            self.register_buffer(f"lin{i}", tensors[f"lin{i}.weight"].sqrt())
        self.register_buffer("shift", torch.tensor(_LPIPS_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_LPIPS_SCALE)[:, None, None])
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        _check_size(image, 2 ** (len(_VGG_STAGE_ENDS) - 1))
        x = (2 * image - 1 - self.shift) / self.scale
        maps: list[Tensor] = []
        for n in _VGG_CHANNELS:
            x = F.relu(self.convolutions[str(n)](x))
            if n in _VGG_STAGE_ENDS:
                maps.append(self.get_buffer(f"lin{len(maps)}") * _unit(x))
                if n != _VGG_STAGE_ENDS[-1]:
                    x = F.max_pool2d(x, 2)
        return maps


class _PyramidFeatures(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        _check_size(image, 2 ** (_SCALES - 1))
        x = torch.einsum("ij,bjhw->bihw", image.new_tensor(_OPPONENTS), image)
        maps = []
        for scale in range(_SCALES):
            x = F.avg_pool2d(x, 2) if scale else x
            padded = F.pad(x[:, :1], (1, 1, 1, 1), mode="replicate")
            dx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2  # (B, 1, h, w)
            dy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
            maps.append(torch.cat([x, dx, dy], 1))  # (B, 5, h, w)
        return maps


def _unit(maps: Tensor) -> Tensor:
    """Scale (B, C, h, w) to unit length along C, smoothly at 0."""
    return maps * (maps.square().sum(1, keepdim=True) + _SHORTEST_SQUARED).rsqrt()


def _check_size(image: Tensor, min_size: int) -> None:
    height, width = image.shape[2:]
    if min(height, width) < min_size:
        expected = f"at least {min_size} x {min_size} pixels"
        raise ValueError(f"image: expected {expected}, got {height} x {width}")


def _lpips_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    before = 3
    for n, after in _VGG_CHANNELS.items():
        shapes |= {f"features.{n}.weight": (after, before, 3, 3), f"features.{n}.bias": (after,)}
        before = after
    for i, n in enumerate(_VGG_STAGE_ENDS):
        shapes[f"lin{i}.weight"] = (1, _VGG_CHANNELS[n], 1, 1)
    return shapes


def _load_lpips(path: str | Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"path: expected a safetensors file, got {path}: {error}") from error
    shapes = _lpips_shapes()
    for what, keys in (("missing", shapes.keys() - tensors), ("unknown", tensors.keys() - shapes)):
        if keys:
            raise ValueError(
                f"path: expected the {len(shapes)} tensors of LPIPS with VGG16, got {path}, in "
                f"which {len(keys)} are {what}, such as {min(keys)}"
            )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"path: expected {name} of shape {shape}, got {tuple(tensors[name].shape)}"
            )
        if name.startswith("lin") and not (tensors[name] >= 0).all():
            raise ValueError(f"path: expected no negative number in {name}, got {path}")
    return {name: tensor.float() for name, tensor in tensors.items()}


def check_images(image: Tensor, target: Tensor) -> None:
    """Raises a ValueError unless both are (B, 3, H, W), of one shape, with something in it."""
    if image.dim() != 4 or image.shape[1] != 3 or not image.numel():
        expected = "shape (B, 3, H, W) with B, H and W of at least 1"
        raise ValueError(f"image: expected {expected}, got {tuple(image.shape)}")
    if target.shape != image.shape:
        expected = f"the shape of the image, {tuple(image.shape)}"
        raise ValueError(f"target: expected {expected}, got {tuple(target.shape)}")
