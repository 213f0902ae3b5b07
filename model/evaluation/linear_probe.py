"""Linear probe: classes of images from the mean of their tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from setokim.data import Dataset, Sample
from setokim.data.readers.files import check_root
from setokim.data.readers.labels import ImageNetFolder
from setokim.data.samples import check_index
from setokim.evaluation.readable import read_samples
from setokim.tokenizer.modeling_setok import SetokModel

_BATCH_SIZE = 32
_TOP = 5
# Of L-BFGS, as in the linear probe of CLIP.
_MAX_STEPS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeSample(Sample):
    """An image whose caption is its class.

    Attributes:
        is_training: whether the classifier is trained on it.
    """

    is_training: bool = False


class ProbeImages:
    """Validation images, then training images in a fixed random order.

    The first samples of all are thus the whole validation set and training images of all classes.

    Args:
        root: folder with the folders val and train, each as `ImageNetFolder` reads it.

    Raises:
        ValueError: a folder does not exist or has no image.
    """

    def __init__(self, root: str | Path):
        folder = check_root(root)
        self._judged, self._training = (ImageNetFolder(folder / one) for one in ("val", "train"))
        self._order = np.random.default_rng(0).permutation(len(self._training))

    @property
    def datasets(self) -> tuple[Dataset, Dataset]:
        """Data sets inside, for `contents_of`."""
        return self._judged, self._training

    def __len__(self) -> int:
        return len(self._judged) + len(self._training)

    def __getitem__(self, index: int) -> ProbeSample:
        check_index(index, len(self))
        rest = index - len(self._judged)
        sample = self._judged[index] if rest < 0 else self._training[int(self._order[rest])]
        fields = {one.name: getattr(sample, one.name) for one in dataclasses.fields(sample)}
        return ProbeSample(**fields, is_training=rest >= 0)


@torch.no_grad()
def probe_metrics(
    setok: SetokModel,
    dataset: Dataset,
    number: int,
    show: Callable[[int], None] = lambda number: None,
) -> dict[str, float]:
    """Train a linear classifier on the mean tokens of images, and compute its accuracy.

    Args:
        setok: model in evaluation mode.
        dataset: samples of `ProbeImages`.
        number: number of samples, from the beginning.
        show: callback with the number of samples read so far.

    Returns:
        `top1` and `top5`, the percentages of validation images whose class is the first, or among
        the first five; a class without training images is never found. `samples` is their number,
        `training_samples` that of the training images, and `broken` that of unreadable samples.
        These counts come alone if there are not two classes to train on.
    """
    features: dict[bool, list[Tensor]] = {False: [], True: []}
    labels: dict[bool, list[str]] = {False: [], True: []}
    waiting: list[ProbeSample] = []
    broken = 0

    def measure() -> None:
        visual = setok.tokenize(setok.preprocess([one.image for one in waiting]))
        weights = visual.occupied.float()  # (B, K)
        means = torch.einsum("bk,bkd->bd", weights, visual.tokens.float())
        means = (means / weights.sum(1, keepdim=True)).cpu()
        for one, own in zip(waiting, means, strict=True):
            features[one.is_training].append(own)
            labels[one.is_training].append(one.caption)
        waiting.clear()

    for sample in read_samples(dataset, number, show):
        if sample is None:
            broken += 1
            continue
        waiting.append(sample)
        if len(waiting) == _BATCH_SIZE:
            measure()
    if waiting:
        measure()
    counts = {"samples": len(labels[False]), "training_samples": len(labels[True])}
    counts["broken"] = broken
    classes = sorted(set(labels[True]))
    if not features[False] or len(classes) < 2:
        return counts
    weight, bias, mean, scale = fit_classifier(
        torch.stack(features[True]).to(setok.device), _numbers(labels[True], classes)
    )
    judged = (torch.stack(features[False]).to(mean) - mean) / scale
    order = (
        (judged @ weight + bias).topk(min(_TOP, len(classes)), 1).indices.cpu()
    )  # (N, 5 or fewer)
    true = torch.tensor([classes.index(one) if one in classes else -1 for one in labels[False]])
    found = order == true[:, None]
    top1, top5 = (100 * float(part.any(1).double().mean()) for part in (found[:, :1], found))
    return {"top1": top1, "top5": top5} | counts


@torch.enable_grad()
def fit_classifier(
    features: Tensor, labels: Tensor, decay: float = 1e-4
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit multinomial logistic regression on standardised features by L-BFGS.

    It minimises the mean cross entropy plus `decay` / 2 times the sum of the squared weights.

    Args:
        features: (N, D) floating point.
        labels: (N,) int64, classes from 0 to C - 1.
        decay: strength of the regularisation.

    Returns:
        Weights (D, C) and biases (C,), for features minus the mean (D,) over the scale (D,).
    """
    mean, scale = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    features, labels = (features - mean) / scale, labels.to(features.device)
    weight = features.new_zeros(features.shape[1], int(labels.max()) + 1, requires_grad=True)
    bias = features.new_zeros(weight.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_STEPS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight + bias, labels)
        loss = loss + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach(), mean, scale


def _numbers(labels: Sequence[str], classes: Sequence[str]) -> Tensor:
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[one] for one in labels])
