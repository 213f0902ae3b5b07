"""Losses of stage 1 by name: pixel, perceptual, contrastive and of phrases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens
from setokim.training.base_settings import check_extra
from setokim.training.losses import contrastive_loss, phrase_loss, pixel_loss
from setokim.training.stage1.phrase_queue import PhraseQueue
from setokim.utils.registry import Registry

_MAX_LOG_SCALE = math.log(100.0)


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses of stage 1; one of weight 0 is not computed.

    Attributes:
        l1: weight of the mean absolute difference of pixels.
        l2: weight of the mean squared difference of pixels.
        perceptual: weight of the feature distance in a frozen network.
        perceptual_network: network of the perceptual loss; "pyramid" (built in), "encoder" (a
            frozen copy of the model's encoder), or the path of a safetensors file of LPIPS.
        adversarial: weight of the adversarial loss, multiplied with its adaptive weight.
        adversarial_start: number of steps before adversarial training starts.
        contrastive: weight of the contrastive loss between visual tokens and text concepts.
        phrases: weight of the contrastive loss between visual tokens and single phrases.
        phrase_queue: number of phrases of earlier batches that those of a batch compete with.
        extra: weights of further losses by their names in `setokim.training.stage1.losses.LOSSES`.
    """

    l1: float = 1.0
    l2: float = 1.0
    perceptual: float = 1.0
    perceptual_network: str = "pyramid"
    adversarial: float = 0.5
    adversarial_start: int = 0
    contrastive: float = 1.0
    phrases: float = 0.0
    phrase_queue: int = 512
    extra: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        check_extra(self.extra, LOSSES, BUILT_IN)
        if self.phrase_queue < 0:
            raise ValueError(f"losses.phrase_queue: expected at least 0, got {self.phrase_queue}")

    def active(self) -> list[str]:
        """Return the names in `LOSSES` of the losses with a nonzero weight."""
        weighted = {"pixel": self.l1 or self.l2, **{n: getattr(self, n) for n in BUILT_IN[1:]}}
        weighted |= self.extra
        return [name for name in LOSSES if weighted.get(name)]


@dataclass(frozen=True)
class LossContext:
    """Inputs of a loss: the results and targets of one forward pass of stage 1.

    Attributes:
        weights: weights of the losses.
        setok: tokenizer and detokenizer.
        text: text encoder of the contrastive loss.
        log_scale: logarithm of the inverse temperature, a 0-dim parameter.
        perceptual: network of the perceptual loss; None if its weight is 0.
        visual: visual tokens of B images, without the noise of `token_noise`.
        images: reconstructed images (B, 3, h, w), float32.
        target: target images (B, 3, h, w) in [0, 1].
        words: token ids (B, W, L) of the phrases of each text.
        queue: phrases of earlier batches; None if the loss of phrases has no weight.
    """

    weights: LossSettings
    setok: SetokModel
    text: nn.Module
    log_scale: nn.Parameter
    perceptual: nn.Module | None
    visual: VisualTokens
    images: Tensor
    target: Tensor
    words: Tensor
    queue: PhraseQueue | None = None


# A loss returns a 0-dim float32 tensor with its graph. Built-in losses apply their own weights.
LOSSES: Registry[Callable[[LossContext], Tensor]] = Registry("losses")
BUILT_IN = ("pixel", "perceptual", "contrastive", "phrases")


def compute_losses(context: LossContext) -> dict[str, Tensor]:
    """Return the weighted losses by name, without those of weight 0."""
    losses = {name: LOSSES[name](context) for name in context.weights.active()}
    for name, weight in context.weights.extra.items():
        if name in losses:
            losses[name] = weight * losses[name]
    return losses


@LOSSES.register("pixel")
def _pixel(context: LossContext) -> Tensor:
    return pixel_loss(context.images, context.target, context.weights.l1, context.weights.l2)


@LOSSES.register("perceptual")
def _perceptual(context: LossContext) -> Tensor:
    return context.weights.perceptual * context.perceptual(context.images, context.target)


@LOSSES.register("contrastive")
def _contrastive(context: LossContext) -> Tensor:
    concepts, present = context.text(context.words)
    tokens = context.setok.to_concept(context.visual.tokens).float()
    # Clamps the parameter itself, as CLIP does. A clamp in the graph would stop its gradient.
    context.log_scale.data.clamp_(max=_MAX_LOG_SCALE)
    sets = (tokens, context.visual.occupied, concepts.float(), present)
    return context.weights.contrastive * contrastive_loss(*sets, context.log_scale)


@LOSSES.register("phrases")
def _phrases(context: LossContext) -> Tensor:
    assert context.queue is not None
    ids, own = context.queue.candidates(context.words)
    concepts, _ = context.text(ids[None])
    tokens = context.setok.to_concept(context.visual.tokens).float()
    context.log_scale.data.clamp_(max=_MAX_LOG_SCALE)
    occupied = context.visual.occupied
    loss = phrase_loss(tokens, occupied, concepts[0].float(), own, context.log_scale)
    return context.weights.phrases * loss
