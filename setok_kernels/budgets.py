"""Budgets: from a number or a rate of clusters to rows and clusters per image."""

import math

import torch
from torch import Tensor

from setok_kernels.arguments import (
    INDEX_DTYPES,
    MAX_COUNT,
    check_device,
    check_dtype,
    check_float,
    check_shape,
    check_values,
    readable,
)
from setok_kernels.config import check_count, check_number

# Relative rounding error of a product of a decimal rate and a number of tokens, with a margin:
# 0.07 * 100 is slightly above 7 and means 7.
_ROUNDING = 2.0**-40


def resolve_budget(
    num_clusters: int | Tensor | None,
    rate: float | Tensor | None,
    lengths: Tensor | None,
    images: int,
    longest: int,
    device: torch.device,
    most: int | None,
) -> tuple[int | None, Tensor | None]:
    """Check the arguments `num_clusters` and `rate`, and return rows and clusters per image.

    No value is read from a device: there the kernels clamp budgets that are out of range.

    Args:
        num_clusters: user's argument, of any type.
        rate: user's argument, of any type.
        lengths: (B,) number of valid tokens of each image; None if each has `longest`.
        images: number of images B.
        longest: maximum number of tokens of an image.
        device: device of x.
        most: upper bound of a budget tensor; None for no bound.

    Returns:
        Rows that a number sets, None for a tensor or without a budget; and (B,) int64 clusters per
        image, None if the rows bound every image alike.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    if num_clusters is not None and rate is not None:
        raise ValueError("rate: expected None with num_clusters, got both")
    if isinstance(num_clusters, Tensor):
        return None, _given(num_clusters, images, device, most)
    if num_clusters is not None:
        check_count("num_clusters", num_clusters, MAX_COUNT)
        return num_clusters, None
    if isinstance(rate, Tensor):
        return None, _by_rates(rate, lengths, images, longest, device, most)
    if rate is None:
        return None, None
    check_number("rate", rate, above=0, most=1)
    factor = float(rate) * (1 - _ROUNDING)
    rows = max(1, math.ceil(factor * longest))
    if lengths is None:
        return rows, None
    return rows, (lengths.double() * factor).ceil().long()


def _given(num_clusters: Tensor, images: int, device, most: int | None) -> Tensor:
    check_dtype("num_clusters", num_clusters, *INDEX_DTYPES)
    check_shape("num_clusters", num_clusters, (images,))
    check_device("num_clusters", num_clusters, device)
    check_values("num_clusters", num_clusters, 1, MAX_COUNT if most is None else most)
    return num_clusters.long()


def _by_rates(
    rate: Tensor, lengths: Tensor | None, images: int, longest: int, device, most: int | None
) -> Tensor:
    check_float("rate", rate)
    check_shape("rate", rate, (images,))
    check_device("rate", rate, device)
    if readable(rate):
        misfit = rate[~((rate > 0) & (rate <= 1))]
        if misfit.numel():
            raise ValueError(f"rate: expected values in (0, 1], got {misfit[0].item():g}")
    tokens = torch.full_like(rate, longest, dtype=torch.float64)
    if lengths is not None:
        tokens = lengths.double()
    # A product that is an integer up to the rounding of the rate means that integer.
    product = rate.detach().double().nan_to_num() * tokens
    nearest = product.round()
    slack = 2 * max(torch.finfo(rate.dtype).eps, _ROUNDING) * product
    clusters = torch.where((product - nearest).abs() <= slack, nearest, product.ceil())
    budget = clusters.maximum(tokens.clamp(max=1)).long()
    if most is not None and readable(budget) and (budget > most).any():
        raise ValueError(
            f"rate: expected at most config.max_clusters = {most} clusters per image, "
            f"got {int(budget.max())}"
        )
    return budget
