"""Loss functions of stage 1: pixels, adversarial training and the contrastive loss.

`contrastive_loss` and `adaptive_weight` communicate: all processes call them together.
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

# Shorter vectors have no direction worth a gradient.
_SHORTEST = 1e-6


def pixel_loss(image: Tensor, target: Tensor, l1: float = 1.0, l2: float = 1.0) -> Tensor:
    """Mean absolute and mean squared difference of pixels, weighted and added.

    Args:
        image: (B, 3, H, W), about [0, 1].
        target: (B, 3, H, W) in [0, 1].
        l1: weight of the absolute difference.
        l2: weight of the squared difference.

    Returns:
        Scalar float32; carries gradient of both images.

    Raises:
        ValueError: the images are empty, or the shapes differ.
    """
    check_images(image, target)
    difference = image.float() - target.float()
    return l1 * difference.abs().mean() + l2 * difference.square().mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What a discriminator minimises: (mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2.

    Lim & Ye, "Geometric GAN", 2017; halved as in VQGAN.

    Args:
        real_logits: any shape, of real pictures.
        fake_logits: any shape, of drawn ones; detach the pictures, not the logits.

    Returns:
        Scalar float32.
    """
    return (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()) / 2


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """What a generator minimises: minus the mean logit of its pictures, a float32 scalar."""
    return -fake_logits.float().mean()


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: Tensor,
    most: float = 1e4,
    eps: float = 1e-4,
) -> Tensor:
    """Weight at which the adversarial loss pulls as hard as the reconstruction.

    Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2021, Eq. 7: the ratio
    of both gradients' norms at the generator's last layer. Gradients are averaged over the ranks
    before their norms are taken: two processes get what one gets with both batches, because the
    norm of a mean is not the mean of the norms.

    Args:
        reconstruction_loss: scalar, with its graph, which is kept.
        adversarial_loss: scalar, with its graph, which is kept.
        last_layer: a parameter that both depend on, whole on every rank.
        most: largest weight.
        eps: added to the adversarial norm.

    Returns:
        Scalar in [0, most], without gradient.

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
    return (norms[0] / (norms[1] + eps)).clamp(0, most)


def concept_similarity(
    tokens: Tensor, occupied: Tensor, concepts: Tensor, present: Tensor
) -> Tensor:
    """How well the concepts of texts are found among the tokens of images (late interaction).

    The mean over a text's concepts of the cosine of the image's token that suits each best. Tokens
    that suit equally well share the gradient. An intermediate (B, R, T, W) is kept.

    Args:
        tokens: (B, R, d).
        occupied: (B, R) bool; the rest is padding and may hold anything.
        concepts: (T, W, d).
        present: (T, W) bool, likewise.

    Returns:
        (B, T) in [-1, 1], float32, whatever autocast says; 0, without gradient, for an image with
        no token and for a text with no concept.

    Raises:
        ValueError: the shapes or dtypes do not fit.
    """
    _check_set("tokens", tokens, "occupied", occupied)
    _check_set("concepts", concepts, "present", present)
    if tokens.shape[2] != concepts.shape[2]:
        expected = f"as many dimensions as the tokens, {tokens.shape[2]}"
        raise ValueError(f"concepts: expected {expected}, got {concepts.shape[2]}")
    # The maximum of nothing is an error.
    tokens, occupied = _pad(tokens, occupied, max(1, tokens.shape[1]))
    # A scale of 100 multiplies rounding errors too.
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
    """Symmetric InfoNCE between the images and the captions of all ranks.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    over `concept_similarity`. A rank computes the rows of its own images and the columns of its own
    texts; the mean over the ranks, which DDP takes, is the loss of one process with all samples.

    Two images may have the same caption: each still counts as the other's negative. An image
    without tokens or a text without concepts is equally similar to everything and only adds a
    constant to its own row or column.

    Args:
        tokens: (B, R, d); B is the same on all ranks, R need not be.
        occupied: (B, R) bool.
        concepts: (B, W, d), of the captions in the order of the images.
        present: (B, W) bool.
        log_scale: scalar, logarithm of the inverse temperature. It is taken as it is: CLIP clips
            the parameter to log(100) after each step.

    Returns:
        Scalar float32; carries gradient to the samples of all ranks, so all must run backward.

    Raises:
        ValueError: the shapes or dtypes do not fit, there is no sample, or ranks hold different
            numbers of samples.
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
    batches, slots, words = zip(*sizes_over_ranks(own_sizes, tokens.device), strict=True)
    if len(set(batches)) > 1:
        raise ValueError(f"tokens: expected as many images on every rank, got {list(batches)}")

    all_tokens, all_occupied = _gather(tokens, occupied, max(slots))  # (world · B, R, d)
    all_concepts, all_present = _gather(concepts, present, max(words))  # (world · B, W, d)
    scale = log_scale.float().exp()
    # (B, world · B) both
    rows = scale * concept_similarity(tokens, occupied, all_concepts, all_present)
    columns = scale * concept_similarity(all_tokens, all_occupied, concepts, present).T
    own = rank() * batch + torch.arange(batch, device=tokens.device)  # (B,)
    return (F.cross_entropy(rows, own) + F.cross_entropy(columns, own)) / 2


def _directions(vectors: Tensor, real: Tensor) -> Tensor:
    """(N, M, d) to unit length, at least float32; what is not real becomes 0."""
    # Padding may be NaN, which 0 · NaN would not remove.
    vectors = vectors.masked_fill(~real[..., None], 0)
    precise = torch.promote_types(vectors.dtype, torch.float32)
    return F.normalize(vectors.to(precise), dim=-1, eps=_SHORTEST)


def _pad(vectors: Tensor, real: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """(N, M, d) and (N, M) to `slots` slots."""
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
