"""Training losses of SetokimModel: text, visual tokens and masks.

Means are over the tokens or masks of all processes: each process returns its own part, so that the
mean over the processes, which DDP takes, is the loss of one process with the whole batch. All
processes therefore compute the same losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from setokim.utils.distributed import mean_over_ranks, world_size
from setokim.utils.registry import Registry
from setokim.vlm.diffusion_head import DiffusionHead
from setokim.vlm.outputs import SetokimOutput
from setokim.vlm.processing_setokim import IGNORED
from setokim.vlm.segmentation import MaskLogits


class LossModel(Protocol):
    """The parts of `SetokimModel` that losses read."""

    head: DiffusionHead

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the next token."""

    def generated_tokens(self, output: SetokimOutput) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the visual tokens that the assistant generates, with their conditions."""

    def segment(self, output: SetokimOutput, size: tuple[int, int]) -> tuple[MaskLogits, Tensor]:
        """Return the mask of each `[SEG]`."""


@dataclass(frozen=True)
class LossContext:
    """One forward pass, with what it is trained towards.

    Attributes:
        model: `SetokimModel` of the pass.
        output: output of the pass; its `loss` is not set yet.
        masks: (K, h, w) bool or floating-point target of each `[SEG]` of the batch; None for none.
        diffusion_repeats: number of timesteps and noise samples for each visual token.
        diffusion_noisiest: number of these at the last timestep.
    """

    model: LossModel
    output: SetokimOutput
    masks: Tensor | None = None
    diffusion_repeats: int = 4
    diffusion_noisiest: int = 0


# A loss returns a 0-dim float32 tensor with its graph.
LOSSES: Registry[Callable[[LossContext], Tensor]] = Registry("losses")


def compute_losses(context: LossContext, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the losses whose weight is not 0, by name and not weighted.

    Args:
        context: forward pass to compute them from.
        weights: weights by names of `LOSSES`.

    Raises:
        ValueError: there is no loss of that name.
    """
    for name in weights:
        if name not in LOSSES:
            raise LOSSES.unknown(name)
    # In the order of the table, which random numbers depend on.
    return {name: loss(context) for name, loss in LOSSES.items() if weights.get(name)}


@LOSSES.register("text")
def text_loss(context: LossContext) -> Tensor:
    """Mean cross-entropy of the assistant's next tokens, ends of images included."""
    output = context.output
    labels = output.spliced.labels[:, 1:]
    learnt = labels != IGNORED
    logits = context.model.logits(output.last_hidden_state[:, :-1][learnt])
    number = mean_over_ranks(learnt.sum().float()).clamp(min=1)
    return F.cross_entropy(logits, labels[learnt], reduction="sum") / number


@LOSSES.register("diffusion")
def diffusion_loss(context: LossContext) -> Tensor:
    """Mean loss of the diffusion head over the visual tokens that the assistant generates."""
    tokens, condition, base = context.model.generated_tokens(context.output)
    number = mean_over_ranks(condition.new_tensor(len(tokens), dtype=torch.float32))
    loss = context.model.head.loss(
        tokens,
        condition,
        context.diffusion_repeats,
        noisiest=context.diffusion_noisiest,
        base=base,
    )
    return loss * (len(tokens) / number.clamp(min=1))


@LOSSES.register("mask")
def segmentation_loss(context: LossContext) -> Tensor:
    """`mask_loss` of the masks of all `[SEG]`.

    Raises:
        ValueError: there are no target masks.
    """
    if context.masks is None:
        raise ValueError("masks: expected a (K, h, w) tensor for the mask loss, got None")
    logits, kept = context.model.segment(context.output, tuple(context.masks.shape[1:]))
    return mask_loss(logits, context.masks[kept])


def mask_loss(
    logits: MaskLogits, target: Tensor, bce: float = 1.0, dice: float = 1.0, clusters: float = 1.0
) -> Tensor:
    """Cross-entropy and Dice loss of masks, and the cross-entropy of the clusters they select.

    Dice is 1 - (2 Σ p t + 1) / (Σ p + Σ t + 1) over the probabilities p and targets t of a mask's
    pixels; the 1 keeps that of an empty target finite. A cluster's target is the fraction of it
    that lies in the mask. All clusters of an image count the same: those of small objects are
    selected as carefully as the background is left out, and the pixels weigh by size already.

    Args:
        logits: logits of Q masks; Q may be 0, for a loss of 0 with its graph.
        target: (Q, h, w), bool, or floating-point in [0, 1].
        bce: weight of the pixels' cross-entropy.
        dice: weight of the Dice loss.
        clusters: weight of the clusters' cross-entropy.

    Returns:
        Scalar float32, under autocast too: the mean over the masks of all processes.

    Raises:
        ValueError: the target has another shape, or integers.
    """
    if target.shape != logits.fine.shape:
        expected = f"the shape of the masks, {tuple(logits.fine.shape)}"
        raise ValueError(f"target: expected {expected}, got {tuple(target.shape)}")
    if target.dtype != torch.bool and not target.is_floating_point():
        raise ValueError(f"target: expected bool or a floating-point dtype, got {target.dtype}")
    number = mean_over_ranks(torch.tensor(float(len(target)), device=target.device))
    fine, target = logits.fine.float(), target.float()
    pixels = F.binary_cross_entropy_with_logits(fine, target, reduction="none").mean((1, 2))
    probabilities = fine.sigmoid()
    both = (probabilities * target).sum((1, 2))  # (Q,)
    either = (probabilities + target).sum((1, 2))  # (Q,)
    dice_loss = 1 - (2 * both + 1) / (either + 1)

    members = logits.memberships.detach().float()  # (Q, R, H, W)
    patches = F.adaptive_avg_pool2d(target[:, None], members.shape[2:])  # (Q, 1, H, W)
    sizes = members.sum((2, 3))  # (Q, R)
    inside = ((members * patches).sum((2, 3)) / sizes.clamp(min=1e-12)).clamp(max=1)
    there = sizes > 0
    selection = F.binary_cross_entropy_with_logits(
        logits.clusters.float(), inside, there.float(), reduction="none"
    ).sum(1) / there.sum(1).clamp(min=1)  # (Q,)
    total = (bce * pixels + dice * dice_loss + clusters * selection).sum()
    # Without a mask on any process there is nothing to divide.
    return total / number.clamp(min=1 / world_size())
