"""Loss functions: pixel loss, adversarial losses and the contrastive loss.

`contrastive_loss` and `adaptive_weight` are collectives: all processes call them together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from setokim.evaluation.perceptual import check_images
from setokim.utils.distributed import (
    gather_with_gradient,
    mean_over_ranks,
    rank,
    sizes_over_ranks,
    world_size,
)

# Minimum length of a vector in a cosine: shorter ones have no stable direction.
_MIN_LENGTH = 1e-6


def pixel_loss(image: Tensor, target: Tensor, l1: float = 1.0, l2: float = 1.0) -> Tensor:
    """Return the weighted sum of the mean absolute and mean squared difference of pixels.

    Args:
        image: generated images (B, 3, H, W), about in [0, 1].
        target: target images (B, 3, H, W) in [0, 1].
        l1: weight of the absolute difference.
        l2: weight of the squared difference.

    Returns:
        0-dim float32, with gradient for both arguments.

    Raises:
        ValueError: the images are empty, or the shapes differ.
    """
    check_images(image, target)
    difference = image.float() - target.float()
    return l1 * difference.abs().mean() + l2 * difference.square().mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the discriminator's loss (mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2.

    Lim & Ye, "Geometric GAN", 2017; halved as in VQGAN.

    Args:
        real_logits: logits of real images, of any shape.
        fake_logits: logits of generated images, of any shape. Detach the images, not the logits.

    Returns:
        0-dim float32.
    """
    return (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()) / 2


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """Return the generator's loss, minus the mean logit of its images, as 0-dim float32."""
    return -fake_logits.float().mean()


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: Tensor,
    max_weight: float = 1e4,
    eps: float = 1e-4,
) -> Tensor:
    """Return the weight that balances the gradients of the adversarial and reconstruction losses.

    Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2021, Eq. 7: the ratio
    of the norms of both gradients at the generator's last layer. Gradients are averaged over the
    ranks before their norms, so that two processes get the weight of one process with both batches.

    Args:
        reconstruction_loss: reconstruction loss, 0-dim; its graph is retained.
        adversarial_loss: adversarial loss of the generator, 0-dim; its graph is retained.
        last_layer: unsharded parameter that both losses depend on.
        max_weight: maximum weight.
        eps: constant added to the norm of the adversarial gradient.

    Returns:
        0-dim weight in [0, max_weight], without gradient.

    Raises:
        ValueError: one of the losses does not depend on `last_layer`.
    """
    norms = []
    for name, loss in (
        ("reconstruction_loss", reconstruction_loss),
        ("adversarial_loss", adversarial_loss),
    ):
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(
                loss, last_layer, retain_graph=True, allow_unused=True
            )
        if gradient is None:
            raise ValueError(f"{name}: expected a loss that depends on last_layer, got none")
        norms.append(torch.linalg.vector_norm(mean_over_ranks(gradient.float())))
    return (norms[0] / (norms[1] + eps)).clamp(0, max_weight)


def concept_similarity(
    tokens: Tensor, occupied: Tensor, concepts: Tensor, present: Tensor
) -> Tensor:
    """Compute the similarity of images and texts by late interaction of tokens and concepts.

    It is the mean, over the concepts of a text, of the maximum cosine with a token of the image.
    Tokens with equal cosines divide the gradient evenly. An intermediate (B, R, T, W) is stored.

    Args:
        tokens: visual tokens (B, R, d).
        occupied: flags of real tokens, (B, R) bool; padding may have any value, NaN included.
        concepts: concept vectors (T, W, d).
        present: flags of real concepts, (T, W) bool; padding may have any value, NaN included.

    Returns:
        (B, T) float32 in [-1, 1], also under autocast. An image without tokens or a text without
        concepts has 0, without gradient.

    Raises:
        ValueError: a shape or dtype is wrong.
    """
    _check_set("tokens", tokens, "occupied", occupied)
    _check_set("concepts", concepts, "present", present)
    if tokens.shape[2] != concepts.shape[2]:
        expected = f"as many channels as the tokens, {tokens.shape[2]}"
        raise ValueError(f"concepts: expected {expected}, got {concepts.shape[2]}")
    # torch raises an error for the maximum of an empty dimension.
    tokens, occupied = _pad(tokens, occupied, max(1, tokens.shape[1]))
    # In float32: a scale of 100 would amplify rounding errors.
    with torch.autocast(tokens.device.type, enabled=False):
        cosines = torch.einsum(
            "brd,twd->brtw", _directions(tokens, occupied), _directions(concepts, present)
        )
        cosines = cosines.masked_fill(~occupied[:, :, None, None], -torch.inf)
        best = cosines.amax(1)  # (B, T, W)
        found = occupied.any(1)[:, None, None] & present
        return best.masked_fill(~found, 0).sum(2) / present.sum(1).clamp(min=1)


def contrastive_loss(
    tokens: Tensor, occupied: Tensor, concepts: Tensor, present: Tensor, log_scale: Tensor
) -> Tensor:
    """Compute the symmetric InfoNCE loss between the images and captions of all ranks.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    over `concept_similarity`. A rank computes the rows of its own images and the columns of its own
    texts; the mean over the ranks, which DDP takes, is the loss of one process with all samples.

    Two images with the same caption still count as negatives of each other. An image without tokens
    or a text without concepts is equally similar to everything. It adds only a constant to its own
    row or column.

    Args:
        tokens: visual tokens (B, R, d); B is equal on all ranks, R may differ.
        occupied: flags of real tokens, (B, R) bool.
        concepts: concept vectors (B, W, d) of the captions, in the order of the images.
        present: flags of real concepts, (B, W) bool.
        log_scale: logarithm of the inverse temperature, 0-dim. It is not clipped here; CLIP clips
            the parameter to log(100) after each step.

    Returns:
        0-dim float32, with gradient for the samples of all ranks: all must run backward.

    Raises:
        ValueError: a shape or dtype is wrong, there are no samples, or their number differs
            between ranks.
    """
    _check_set("tokens", tokens, "occupied", occupied)
    _check_set("concepts", concepts, "present", present)
    batch = tokens.shape[0]
    if batch == 0:
        raise ValueError("tokens: expected at least one image, got none")
    if concepts.shape[0] != batch:
        expected = f"one text per image, {batch}"
        raise ValueError(f"concepts: expected {expected}, got {concepts.shape[0]}")
    own_sizes = (batch, tokens.shape[1], concepts.shape[1])
    batches, slots, phrases = zip(*sizes_over_ranks(own_sizes, tokens.device), strict=True)
    if len(set(batches)) > 1:
        raise ValueError(f"tokens: expected as many images on every rank, got {list(batches)}")

    all_tokens, all_occupied = _gather(tokens, occupied, max(slots))  # (world · B, R, d)
    all_concepts, all_present = _gather(concepts, present, max(phrases))  # (world · B, W, d)
    scale = log_scale.float().exp()
    # both (B, world · B)
    rows = scale * concept_similarity(tokens, occupied, all_concepts, all_present)
    columns = scale * concept_similarity(all_tokens, all_occupied, concepts, present).T
    own = rank() * batch + torch.arange(batch, device=tokens.device)  # (B,)
    return (F.cross_entropy(rows, own) + F.cross_entropy(columns, own)) / 2


def phrase_loss(
    tokens: Tensor,
    occupied: Tensor,
    phrases: Tensor,
    own: Tensor,
    log_scale: Tensor,
) -> Tensor:
    """Compute the InfoNCE loss of single phrases: which of many does an image contain?

    The similarity of a phrase and an image is its maximum cosine with a token. Each phrase of an
    image competes with all phrases that the image does not have. `contrastive_loss` compares whole
    texts, which a few properties of their objects tell apart; phrases that differ in one word
    demand that a token has all of them.

    Args:
        tokens: visual tokens (B, R, d).
        occupied: flags of real tokens, (B, R) bool.
        phrases: concept vectors (K, d) of different phrases.
        own: (B, K) bool, the phrases of each image.
        log_scale: logarithm of the inverse temperature, 0-dim.

    Returns:
        0-dim float32: the mean over the phrases of all images, 0 without any.
    """
    _check_set("tokens", tokens, "occupied", occupied)
    with torch.autocast(tokens.device.type, enabled=False):
        real = torch.ones(len(phrases), dtype=torch.bool, device=phrases.device)
        directions = _directions(phrases[None], real[None])[0]
        cosines = _directions(tokens, occupied) @ directions.T  # (B, R, K)
        cosines = cosines.masked_fill(~occupied[..., None], -torch.inf)
        best = cosines.amax(1) if tokens.shape[1] else cosines.new_zeros(own.shape)
        # An image without tokens is equally similar to everything.
        scores = log_scale.float().exp() * best.masked_fill(~occupied.any(1)[:, None], 0)
        others = scores.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1)
        losses = torch.logaddexp(scores, others) - scores
        return losses[own].sum() / own.sum().clamp(min=1)


def _directions(vectors: Tensor, real: Tensor) -> Tensor:
    """Normalise vectors (N, M, d) to unit length, at least float32; padding becomes 0."""
    # Padding may be NaN, which 0 · NaN would not remove.
    vectors = vectors.masked_fill(~real[..., None], 0)
    precise = torch.promote_types(vectors.dtype, torch.float32)
    return F.normalize(vectors.to(precise), dim=-1, eps=_MIN_LENGTH)


def _pad(vectors: Tensor, real: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Pad vectors (N, M, d) and flags (N, M) to `slots` slots."""
    missing = slots - vectors.shape[1]
    return F.pad(vectors, (0, 0, 0, missing)), F.pad(real, (0, missing))


def _gather(vectors: Tensor, real: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    if world_size() == 1:
        return vectors, real
    vectors, real = _pad(vectors, real, slots)
    return gather_with_gradient(vectors), gather_with_gradient(real)


def _check_set(name: str, vectors: Tensor, flags_name: str, flags: Tensor) -> None:
    if vectors.dim() != 3 or not vectors.is_floating_point():
        got = f"{tuple(vectors.shape)} {vectors.dtype}"
        raise ValueError(f"{name}: expected a floating-point (N, M, d), got {got}")
    if flags.shape != vectors.shape[:2] or flags.dtype != torch.bool:
        expected = f"{tuple(vectors.shape[:2])} bool, one flag per vector of {name}"
        got = f"{tuple(flags.shape)} {flags.dtype}"
        raise ValueError(f"{flags_name}: expected {expected}, got {got}")
