"""Losses of stages 2 and 3: weights of the model's losses, and the reconstruction loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from setokim.tokenizer.detokenizer import Detokenizer
from setokim.tokenizer.modeling_setok import VisualTokens
from setokim.training.base_settings import check_extra
from setokim.training.losses import pixel_loss
from setokim.utils.distributed import mean_over_ranks
from setokim.vlm.losses import LOSSES

# Weights of the absolute and of the squared difference of pixels.
_L1, _L2 = 0.3, 10.0
# Losses of the model that have settings of their own.
_BUILT_IN = ("text", "diffusion", "mask", "names", "copy")


@dataclass(frozen=True)
class InstructLossSettings:
    """Weights of the losses of stages 2 and 3; one of weight 0 is not computed.

    Attributes:
        text: weight of the cross-entropy of the next text token.
        diffusion: weight of the diffusion loss of visual tokens to generate.
        mask: weight of the segmentation loss.
        reconstruction: weight of the pixel loss of the detokenizer's images; above 0 only if the
            tokenizer or the detokenizer is trained.
        names: weight of the loss of region names (`names_loss`); needs `model.name_regions` and
            data that name the regions of their images.
        copy: weight of the loss of repeated tokens (`copy_loss`); needs `model.copy_tokens`.
        extra: weights of further losses by their names in `setokim.vlm.losses.LOSSES`.
    """

    text: float = 1.0
    diffusion: float = 1.0
    mask: float = 1.0
    reconstruction: float = 0.0
    names: float = 0.0
    copy: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        check_extra(self.extra, LOSSES, _BUILT_IN)

    @property
    def model_weights(self) -> dict[str, float]:
        """Weights of the losses that `SetokimModel` computes."""
        return {name: getattr(self, name) for name in _BUILT_IN} | self.extra


def reconstruction_loss(detokenizer: Detokenizer, visual: VisualTokens, images: Tensor) -> Tensor:
    """Compute the pixel loss of images that are reconstructed from their visual tokens.

    Args:
        detokenizer: detokenizer of the model.
        visual: visual tokens of M images.
        images: target images (M, 3, h, w) in [0, 1].

    Returns:
        0-dim float32, the mean over the images of all processes. Without images it is 0 but depends
        on all parameters, because distributed training waits for their gradients.
    """
    generated = detokenizer(visual.tokens, visual.occupied)
    number = mean_over_ranks(generated.new_tensor(len(generated), dtype=torch.float32))
    if not len(generated):
        return sum(p.sum() for p in (visual.tokens, *detokenizer.parameters())) * 0.0
    target = F.interpolate(images, generated.shape[-2:], mode="area")
    return pixel_loss(generated.float(), target, _L1, _L2) * (len(generated) / number)
