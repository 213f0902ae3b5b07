"""Agreement of predicted masks with target masks: cIoU, gIoU and precision."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from setok_kernels.checks import check_shape
from setok_kernels.config import check_number

# Thresholds of the published precisions, in percent.
_THRESHOLDS = (50, 60, 70, 80, 90)


class SegmentationScore:
    """Intersections and unions of masks, accumulated over samples, and their metrics.

    If neither mask has a pixel, the sample's intersection over union is 1, as in LISA and
    ReasonSeg (X. Lai et al., "LISA: Reasoning Segmentation via Large Language Model", 2024). The
    order of the samples does not matter.
    """

    def __init__(self):
        # Areas of each sample, in pixels.
        self._intersections: list[int] = []
        self._unions: list[int] = []

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._unions)

    def add(self, predicted: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Add a sample.

        Args:
            predicted: (h, w) bool.
            target: (h, w) bool.

        Raises:
            TypeError, ValueError: dtypes or shapes do not fit.
        """
        predicted, target = _mask("predicted", predicted), _mask("target", target)
        check_shape("target", target, predicted.shape)
        self._intersections.append(int((predicted & target).sum()))
        self._unions.append(int((predicted | target).sum()))

    def merge(self, other: SegmentationScore) -> None:
        """Add the samples of another score, such as that of another process.

        Raises:
            TypeError: `other` is no score.
        """
        if not isinstance(other, SegmentationScore):
            raise TypeError(f"other: expected a SegmentationScore, got {type(other).__name__}")
        self._intersections += other._intersections
        self._unions += other._unions

    @property
    def ciou(self) -> float:
        """Sum of the intersections over that of the unions; large objects have more weight.

        Raises:
            ValueError: there is no sample.
        """
        self._check_samples()
        return _ratio(sum(self._intersections), sum(self._unions))

    @property
    def giou(self) -> float:
        """Mean over the samples of the intersection over union.

        Raises:
            ValueError: there is no sample.
        """
        ratios = self._ratios()
        return sum(ratios) / len(ratios)

    def precision_at(self, threshold: float) -> float:
        """Compute the fraction of samples with an intersection over union of at least a threshold.

        Args:
            threshold: number above 0 and at most 1.

        Raises:
            TypeError, ValueError: the threshold is out of range, or there is no sample.
        """
        check_number("threshold", threshold, above=0, most=1)
        ratios = self._ratios()
        return sum(ratio >= threshold for ratio in ratios) / len(ratios)

    def summary(self) -> dict[str, float]:
        """Return `ciou`, `giou`, and `p_at_50` to `p_at_90`, the precision at 0.5, 0.6, ... 0.9.

        Raises:
            ValueError: there is no sample.
        """
        precisions = {f"p_at_{one}": self.precision_at(one / 100) for one in _THRESHOLDS}
        return {"ciou": self.ciou, "giou": self.giou} | precisions

    def _ratios(self) -> list[float]:
        self._check_samples()
        return [_ratio(*pair) for pair in zip(self._intersections, self._unions, strict=True)]

    def _check_samples(self) -> None:
        if not self._unions:
            raise ValueError("samples: expected at least one, got none")


def _mask(name: str, value: Tensor | np.ndarray) -> Tensor:
    """Convert a mask to a (h, w) bool tensor on the CPU."""
    if not isinstance(value, (Tensor, np.ndarray)):
        raise TypeError(f"{name}: expected a tensor or an array, got {type(value).__name__}")
    mask = torch.as_tensor(value).cpu()
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected dtype bool, got {value.dtype}")
    if mask.dim() != 2 or not mask.numel():
        raise ValueError(f"{name}: expected shape (h, w) with pixels, got {tuple(mask.shape)}")
    return mask


def _ratio(intersection: int, union: int) -> float:
    return intersection / union if union else 1.0
