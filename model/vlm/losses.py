"""Training losses of SetokimModel: text, visual tokens, masks, repeated tokens and names.

Means are over the tokens or masks of all processes. Each process returns its part, so that the mean
over the processes, which DDP takes, is the loss of one process with the whole batch. All processes
therefore compute the same set of losses.
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
from setokim.vlm.pointer_head import Pointed
from setokim.vlm.processing_setokim import IGNORED
from setokim.vlm.region_names import NameHead, RegionNames, bag_of_words_loss
from setokim.vlm.segmentation import MaskLogits


class LossModel(Protocol):
    """Interface of `SetokimModel` for the losses."""

    head: DiffusionHead
    names: NameHead | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the next token."""

    def generated_tokens(self, output: SetokimOutput) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what the diffusion head shall generate, with its conditions."""

    def point(self, output: SetokimOutput, rows: Tensor, positions: Tensor) -> Pointed:
        """Return the conditions of the tokens at some positions."""

    def segment(self, output: SetokimOutput, size: tuple[int, int]) -> tuple[MaskLogits, Tensor]:
        """Return the mask of each `[SEG]`."""


@dataclass(frozen=True)
class LossContext:
    """One forward pass and the targets of its losses.

    Attributes:
        model: `SetokimModel` of the pass.
        output: output of the pass; its `loss` is not set yet.
        masks: (K, h, w) bool or floating-point target of each `[SEG]` of the batch; None without
            masks.
        diffusion_repeats: number of timesteps and noise samples for each visual token.
        diffusion_noisiest: number of these at the last timestep.
        regions: named regions of the images; None without names.
    """

    model: LossModel
    output: SetokimOutput
    masks: Tensor | None = None
    diffusion_repeats: int = 4
    diffusion_noisiest: int = 0
    regions: RegionNames | None = None


# A loss returns a 0-dim float32 tensor that carries gradient.
LOSSES: Registry[Callable[[LossContext], Tensor]] = Registry("losses")


def compute_losses(context: LossContext, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the unweighted losses by name; losses of weight 0 are not computed.

    Args:
        context: forward pass and targets.
        weights: weights of the losses by names of `LOSSES`.

    Raises:
        ValueError: a loss is not in `LOSSES`.
    """
    for name in weights:
        if name not in LOSSES:
            raise LOSSES.unknown(name)
    # In the order of registration: losses consume random numbers.
    return {name: loss(context) for name, loss in LOSSES.items() if weights.get(name)}


@LOSSES.register("text")
def text_loss(context: LossContext) -> Tensor:
    """Return the mean cross-entropy of the assistant's tokens, ends of images included."""
    output = context.output
    labels = output.spliced.labels[:, 1:]
    trained = labels != IGNORED
    logits = context.model.logits(output.last_hidden_state[:, :-1][trained])
    count = mean_over_ranks(trained.sum().float()).clamp(min=1)
    return F.cross_entropy(logits, labels[trained], reduction="sum") / count


@LOSSES.register("diffusion")
def diffusion_loss(context: LossContext) -> Tensor:
    """Return the mean loss of the diffusion head over the generated visual tokens."""
    tokens, condition, base = context.model.generated_tokens(context.output)
    count = mean_over_ranks(condition.new_tensor(len(tokens), dtype=torch.float32))
    loss = context.model.head.loss(
        tokens,
        condition,
        context.diffusion_repeats,
        noisiest=context.diffusion_noisiest,
        base=base,
    )
    return loss * (len(tokens) / count.clamp(min=1))


@LOSSES.register("mask")
def segmentation_loss(context: LossContext) -> Tensor:
    """Return the `mask_loss` of the masks of all `[SEG]`.

    Raises:
        ValueError: the context has no target masks.
    """
    if context.masks is None:
        raise ValueError("masks: expected a (K, h, w) tensor for the mask loss, got None")
    logits, kept = context.model.segment(context.output, tuple(context.masks.shape[1:]))
    return mask_loss(logits, context.masks[kept])


@LOSSES.register("copy")
def copy_loss(context: LossContext) -> Tensor:
    """Return the mean cross-entropy of repeating a token of the source image or making a new one.

    The mean is over the tokens of edited images.

    Raises:
        ValueError: the model was built without `copy_tokens`.
    """
    output = context.output
    if output.repeated is None:
        raise ValueError("losses.copy: expected a model with copy_tokens, got one without")
    rows, positions, index = output.generated()
    pointed = context.model.point(output, rows, positions)
    assert pointed.choices is not None
    # Where no earlier token can be repeated there is no choice.
    possible = pointed.choices.isfinite()
    choosing = possible[:, :-1].any(1)
    source = output.repeated[index]
    # Position of each visual token in its row.
    column = torch.zeros_like(output.repeated)
    at_visual = output.spliced.visual >= 0
    column[output.spliced.visual[at_visual]] = at_visual.nonzero()[:, 1]
    new = pointed.choices.shape[1] - 1
    target = torch.where(source >= 0, column[source], new)
    # The source may be masked out, where an image has lost its condition.
    target = torch.where(possible.gather(1, target[:, None])[:, 0], target, new)
    count = mean_over_ranks(choosing.sum().float()).clamp(min=1)
    loss = F.cross_entropy(pointed.choices[choosing], target[choosing], reduction="sum")
    return loss / count


@LOSSES.register("names")
def names_loss(context: LossContext) -> Tensor:
    """Return the mean cross-entropy of the words for visual tokens, before and at each of them.

    A linear layer on the hidden state before a generated token, and another one on the state at
    every token, predict the words of the region that the token shows (`RegionNames`). Tokens
    without words do not count.

    Raises:
        ValueError: the model was built without `name_regions`, or there are no regions.
    """
    head, output = context.model.names, context.output
    if head is None:
        raise ValueError("losses.names: expected a model with name_regions, got one without")
    if context.regions is None:
        raise ValueError("regions: expected named regions for the loss of names, got None")
    words = context.regions.of_tokens(output.visual, output.packed)  # (S, W)
    visual, hidden = output.spliced.visual, output.last_hidden_state
    drawn = output.generated()[:2]
    read = (visual >= 0).nonzero().unbind(1)
    # In half precision a count above 256 would be rounded.
    total, count = (hidden.new_zeros((), dtype=torch.float32) for _ in range(2))
    for layer, (rows, positions), shift in ((head.drawn, drawn, 1), (head.read, read, 0)):
        own = words[visual[rows, positions]]
        named = (own >= 0).any(1)
        logits = context.model.logits(layer(hidden[rows, positions - shift][named]))
        total = total + bag_of_words_loss(logits, own[named])
        count = count + named.sum()
    return total / mean_over_ranks(count).clamp(min=1)


def mask_loss(
    logits: MaskLogits, target: Tensor, bce: float = 1.0, dice: float = 1.0, clusters: float = 1.0
) -> Tensor:
    """Return the cross-entropy and Dice losses of masks, and the cross-entropy of their clusters.

    Dice is 1 - (2 Σ p t + 1) / (Σ p + Σ t + 1) over the probabilities p and targets t of a mask's
    pixels; the 1 keeps the loss of an empty target finite. The target of a cluster is the fraction
    of its patches inside the mask. All clusters of an image weigh the same, so that small objects
    are selected as precisely as the background; the pixel losses weigh by area already.

    Args:
        logits: logits of Q masks; Q may be 0, for a loss of 0 that carries gradient.
        target: (Q, h, w) target masks, bool, or floating-point in [0, 1].
        bce: weight of the pixels' cross-entropy.
        dice: weight of the Dice loss.
        clusters: weight of the clusters' cross-entropy.

    Returns:
        0-dim float32, under autocast too: the mean over the masks of all processes.

    Raises:
        ValueError: the target has another shape, or an integer dtype.
    """
    if target.shape != logits.fine.shape:
        expected = f"the shape of the masks, {tuple(logits.fine.shape)}"
        raise ValueError(f"target: expected {expected}, got {tuple(target.shape)}")
    if target.dtype != torch.bool and not target.is_floating_point():
        raise ValueError(f"target: expected bool or a floating-point dtype, got {target.dtype}")
    count = mean_over_ranks(torch.tensor(float(len(target)), device=target.device))
    fine, target = logits.fine.float(), target.float()
    pixels = F.binary_cross_entropy_with_logits(fine, target, reduction="none").mean((1, 2))
    probabilities = fine.sigmoid()
    intersection = (probabilities * target).sum((1, 2))  # (Q,)
    total_area = (probabilities + target).sum((1, 2))  # (Q,)
    dice_loss = 1 - (2 * intersection + 1) / (total_area + 1)

    members = logits.memberships.detach().float()  # (Q, R, H, W)
    patches = F.adaptive_avg_pool2d(target[:, None], members.shape[2:])  # (Q, 1, H, W)
    sizes = members.sum((2, 3))  # (Q, R)
    inside = ((members * patches).sum((2, 3)) / sizes.clamp(min=1e-12)).clamp(max=1)
    occupied = sizes > 0
    selection = F.binary_cross_entropy_with_logits(
        logits.clusters.float(), inside, occupied.float(), reduction="none"
    ).sum(1) / occupied.sum(1).clamp(min=1)  # (Q,)
    total = (bce * pixels + dice * dice_loss + clusters * selection).sum()
    # The mean count is a multiple of 1 / world_size; the lower bound acts where it is 0.
    return total / count.clamp(min=1 / world_size())
