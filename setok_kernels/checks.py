"""Checks of the arguments of the public functions."""

import torch
from torch import Tensor

from setok_kernels.arguments import (
    check_device,
    check_dtype,
    check_float,
    check_max_seqlen,
    check_offsets,
    check_shape,
    check_tensor,
    check_values,
    longest_image,
    readable,
)
from setok_kernels.config import ClusterConfig
from setok_kernels.records import check_record
from setok_kernels.result import Clusters, Decisions, HardClusters


def check_x(x, packed: bool) -> None:
    """Check that `x` has one of the documented shapes: padded, or (T, D) packed; D at least 1."""
    check_float("x", x)
    padded = "(B, N, D), (B, H, W, D) or (B, T, H, W, D)"
    expected = "(T, D) with cu_seqlens" if packed else padded
    if x.dim() not in ((2,) if packed else (3, 4, 5)):
        raise ValueError(f"x: expected shape {expected}, got {tuple(x.shape)}")
    if x.shape[-1] == 0:
        raise ValueError(f"x: expected at least 1 feature, got shape {tuple(x.shape)}")


def check_config(config) -> None:
    """Check that `config` is a `ClusterConfig`."""
    if not isinstance(config, ClusterConfig):
        raise TypeError(f"config: expected a ClusterConfig, got {type(config).__name__}")


def check_mask(mask, x: Tensor) -> None:
    """Check that `token_mask` is bool and has the shape of `x` without its features."""
    check_tensor("token_mask", mask)
    check_dtype("token_mask", mask, torch.bool)
    flat = (x.shape[0], x.shape[1:-1].numel())
    if tuple(mask.shape) not in (flat, tuple(x.shape[:-1])):
        raise ValueError(f"token_mask: expected shape {flat}, got {tuple(mask.shape)}")
    check_device("token_mask", mask, x.device)


def check_packing(x: Tensor, cu_seqlens, max_seqlen, token_mask) -> int:
    """Check packed offsets and return max_seqlen.

    Values are read, and max_seqlen is derived, only if that does not wait for a device.
    """
    if token_mask is not None:
        raise ValueError(
            "token_mask: expected None with cu_seqlens (drop the tokens instead), got a mask"
        )
    check_offsets("cu_seqlens", cu_seqlens)
    check_device("cu_seqlens", cu_seqlens, x.device)
    if max_seqlen is not None:
        check_max_seqlen(max_seqlen, "an int of at least 0")
    if not readable(cu_seqlens):
        if max_seqlen is None:
            raise ValueError(
                "max_seqlen: expected the longest image's token count (an int), got None; "
                f"reading it from cu_seqlens on {cu_seqlens.device} would wait for the device or "
                "break the graph"
            )
        return max_seqlen
    longest = longest_image(cu_seqlens, x.shape[0])
    if max_seqlen is not None and max_seqlen < longest:
        raise ValueError(f"max_seqlen: expected at least {longest}, got {max_seqlen}")
    return longest if max_seqlen is None else max_seqlen


def check_decisions(
    decisions, tokens: tuple[int, ...], images: int, longest: int, config: ClusterConfig, device
) -> None:
    """Check that `decisions` fits the input: shapes, int64, device, and ranges on the CPU.

    Args:
        decisions: user's argument of any type.
        tokens: shape of the tokens, (B, N), or (T,) when packed.
        images: number of images B.
        longest: maximum number of tokens of an image.
        config: options with K and max_clusters.
        device: device of x.
    """
    if not isinstance(decisions, Decisions):
        raise TypeError(f"decisions: expected a Decisions, got {type(decisions).__name__}")
    shapes = {
        "knn": (*tokens, config.k),
        "parent": tokens,
        "seeds": (images, config.max_clusters),
        "counts": (images,),
    }
    for name, shape in shapes.items():
        value, label = getattr(decisions, name), f"decisions.{name}"
        check_shape(label, value, shape)
        check_dtype(label, value, torch.int64)
        check_device(label, value, device)
        low, high = (0, config.max_clusters) if name == "counts" else (-1, longest - 1)
        check_values(label, value, low, high)


def check_finite_tokens(x: Tensor, valid: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """Check that all valid tokens of `x`, (B, N, D) or (T, D), are finite. Waits for the device."""
    bad = ~x.isfinite().all(-1)
    if valid is not None:
        bad = bad & valid
    if not bad.any():
        return
    where = bad.nonzero()[0].tolist()
    if cu_seqlens is not None:
        image = int(torch.searchsorted(cu_seqlens[1:].long(), where[0], right=True))
        where = [image, where[0] - cu_seqlens[image].item()]
    raise ValueError(
        f"x: expected finite features, got a non-finite one in image {where[0]}, token {where[1]}"
        f" ({int(bad.sum())} such tokens in all)"
    )


def check_noise(noise, x: Tensor) -> None:
    """Check that `noise` is floating point and has the shape of `x` without its features."""
    check_float("noise", noise)
    check_shape("noise", noise, x.shape[:-1])
    check_device("noise", noise, x.device)


def check_importance(importance, x: Tensor, valid: Tensor | None) -> None:
    """Check that `importance` is floating point, one weight per token, finite and at least 0.

    Args:
        importance: user's argument of any type.
        x: tokens as the user passed them.
        valid: (B, N) bool or None; weights of other tokens are not read.
    """
    check_float("importance", importance)
    flat = (x.shape[0], x.shape[1:-1].numel()) if x.dim() > 2 else tuple(x.shape[:-1])
    if tuple(importance.shape) not in (flat, tuple(x.shape[:-1])):
        raise ValueError(f"importance: expected shape {flat}, got {tuple(importance.shape)}")
    check_device("importance", importance, x.device)
    if not readable(importance) or (valid is not None and not readable(valid)):
        return
    # In the dtype of the score, where a large float64 weight may be infinite.
    weight = importance.reshape(flat).to(torch.promote_types(x.dtype, torch.float32))
    misfit = ~((weight >= 0) & weight.isfinite())
    if valid is not None:
        misfit = misfit & valid
    if misfit.any():
        got = weight[misfit][0].item()
        raise ValueError(f"importance: expected finite values of at least 0, got {got:g}")


def check_exact(exact, config: ClusterConfig) -> None:
    """Check that `exact` is a bool, and that with it the seeds of `config` are distinct."""
    if not isinstance(exact, bool):
        raise TypeError(f"exact: expected a bool, got {type(exact).__name__}")
    if exact and not config.distinct_seeds:
        raise ValueError("exact: expected config.distinct_seeds=True with it, got False")


def check_labels(name: str, labels: Tensor, rows: int) -> None:
    """Check that `labels` are int64 in [0, rows); a GPU asserts it later, without waiting."""
    check_dtype(name, labels, torch.int64)
    check_values(name, labels, 0, rows - 1)
    if not readable(labels):
        fit = (labels >= 0) & (labels < rows)
        torch._assert_async(fit.all(), f"{name}: expected values from 0 to {rows - 1}")


def check_clusters(out, mode) -> Clusters | HardClusters:
    """Check that `out` is a complete result that supports `mode`: "soft" needs masks.

    Returns:
        `out` with int64 indices and masks of at least 32 bits, as the backends take them.
    """
    if not isinstance(out, Clusters | HardClusters):
        raise TypeError(
            "out: expected the Clusters of cluster_tokens or HardClusters, "
            f"got {type(out).__name__}"
        )
    if mode not in ("hard", "soft"):
        raise ValueError(f"mode: expected 'hard' or 'soft', got {mode!r}")
    if mode == "soft" and not isinstance(out, Clusters):
        raise ValueError(
            f"mode: expected 'hard' for {type(out).__name__}, which has no masks, got 'soft'"
        )
    return check_record(out)
