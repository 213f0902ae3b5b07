"""Validation of arguments: every message names the argument, what was expected and what came."""

import itertools

import torch
from torch import Tensor

from setok_kernels.config import ClusterConfig
from setok_kernels.result import Clusters, Decisions, HardClusters

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_DTYPE_NAMES = "float64, float32, bfloat16 or float16"


def check_tensor(name: str, value) -> None:
    """`value` is a dense tensor: neither nested, nor sparse, nor in a layout of MKL-DNN."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(
            f"{name}: expected a dense tensor, got a nested one; pad it with `to_padded_tensor` "
            "and give a token_mask, or pass its values with cu_seqlens"
        )
    if value.layout != torch.strided:
        raise TypeError(
            f"{name}: expected a dense tensor, got layout {value.layout}; use `to_dense()`"
        )


def check_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    """`value` is a tensor of exactly this shape."""
    check_tensor(name, value)
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}, got {tuple(value.shape)}")


def check_device(name: str, value: Tensor, device: torch.device) -> None:
    """`value` lies on the device of x."""
    if value.device != device:
        raise ValueError(f"{name}: expected device {device} like x, got {value.device}")


def check_float(name: str, value) -> None:
    """`value` is a tensor of a dtype the backends take."""
    check_tensor(name, value)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected dtype {_DTYPE_NAMES}, got {value.dtype}")


def check_x(x, packed: bool) -> None:
    """`x` is (B, N, D) or (B, H, W, D), or (T, D) when packed; D is at least 1."""
    check_float("x", x)
    expected = "(T, D) with cu_seqlens" if packed else "(B, N, D) or (B, H, W, D)"
    if x.dim() not in ((2,) if packed else (3, 4)):
        raise ValueError(f"x: expected shape {expected}, got {tuple(x.shape)}")
    if x.shape[-1] == 0:
        raise ValueError(f"x: expected at least 1 feature, got shape {tuple(x.shape)}")


def check_config(config) -> None:
    """`config` is a `ClusterConfig`."""
    if not isinstance(config, ClusterConfig):
        raise TypeError(f"config: expected a ClusterConfig, got {type(config).__name__}")


def check_mask(mask, x: Tensor) -> None:
    """`token_mask` is bool with the shape of `x` without its features."""
    check_tensor("token_mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"token_mask: expected dtype torch.bool, got {mask.dtype}")
    flat = (x.shape[0], x.shape[1:-1].numel())
    if tuple(mask.shape) not in (flat, tuple(x.shape[:-1])):
        raise ValueError(f"token_mask: expected shape {flat}, got {tuple(mask.shape)}")
    check_device("token_mask", mask, x.device)


def check_packing(x: Tensor, cu_seqlens, max_seqlen, token_mask) -> int:
    """Validate packed offsets and return max_seqlen.

    Values are read, and max_seqlen derived, only where that needs no wait for a device.
    """
    if token_mask is not None:
        raise ValueError(
            "token_mask: expected None with cu_seqlens (leave the tokens out), got one"
        )
    check_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens: expected dtype torch.int32, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens: expected shape (B + 1,), got {tuple(cu_seqlens.shape)}")
    check_device("cu_seqlens", cu_seqlens, x.device)
    if max_seqlen is not None and (not isinstance(max_seqlen, int) or max_seqlen < 0):
        raise ValueError(f"max_seqlen: expected an int of at least 0, got {max_seqlen!r}")
    if not _readable(cu_seqlens):
        if max_seqlen is None:
            raise ValueError(
                "max_seqlen: expected the longest image's token count (an int), got None; "
                f"reading it from cu_seqlens on {cu_seqlens.device} would wait for the device or "
                "break the graph"
            )
        return max_seqlen
    offsets = cu_seqlens.tolist()
    lengths = [b - a for a, b in itertools.pairwise(offsets)]
    if offsets[0] != 0 or offsets[-1] != x.shape[0] or min(lengths, default=0) < 0:
        raise ValueError(
            f"cu_seqlens: expected non-decreasing offsets from 0 to {x.shape[0]}, got {offsets}"
        )
    longest = max(lengths, default=0)
    if max_seqlen is not None and max_seqlen < longest:
        raise ValueError(f"max_seqlen: expected at least {longest}, got {max_seqlen}")
    return longest if max_seqlen is None else max_seqlen


def check_decisions(
    decisions, tokens: tuple[int, ...], images: int, longest: int, config: ClusterConfig, device
) -> None:
    """`decisions` fits the input: shapes, int64, device, and on the CPU the range of the values.

    Args:
        decisions: what the user passed.
        tokens: (B, N), or (T,) when packed.
        images: B.
        longest: most tokens of an image.
        config: gives K and max_clusters.
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
        if value.dtype != torch.int64:
            raise TypeError(f"{label}: expected dtype torch.int64, got {value.dtype}")
        check_device(label, value, device)
        if not _readable(value) or value.numel() == 0:
            continue
        low, high = (0, config.max_clusters) if name == "counts" else (-1, longest - 1)
        least, most = value.min().item(), value.max().item()
        if least < low or most > high:
            raise ValueError(
                f"{label}: expected values from {low} to {high}, got {least} to {most}"
            )


def _readable(value: Tensor) -> bool:
    """Whether values can be read without waiting for a device or breaking a traced graph."""
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # Under `torch.vmap` a tensor has a value for each sample.
    return not torch._C._functorch.is_functorch_wrapped_tensor(value)


def check_finite_tokens(x: Tensor, valid: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """No valid token of `x`, (B, N, D) or (T, D), is non-finite. Waits for the device."""
    bad = ~x.isfinite().all(-1)
    if valid is not None:
        bad = bad & valid
    if not bad.any():
        return
    where = bad.nonzero()[0].tolist()
    if cu_seqlens is not None:
        image = torch.searchsorted(cu_seqlens[1:].long(), where[0], right=True).item()
        where = [image, where[0] - cu_seqlens[image].item()]
    raise ValueError(
        f"x: expected finite features, got a non-finite one in image {where[0]}, token {where[1]}"
        f" ({int(bad.sum())} such tokens in all)"
    )


def check_noise(noise, x: Tensor) -> None:
    """`noise` is floating point with the shape of `x` without its features."""
    check_float("noise", noise)
    check_shape("noise", noise, x.shape[:-1])
    check_device("noise", noise, x.device)


def check_labels(name: str, labels: Tensor, rows: int) -> None:
    """`labels` are int64 in [0, rows). A GPU finds out later, without waiting."""
    if labels.dtype != torch.int64:
        raise TypeError(f"{name}: expected dtype torch.int64, got {labels.dtype}")
    if labels.numel() == 0:
        return
    if _readable(labels):
        least, most = labels.min().item(), labels.max().item()
        if least < 0 or most >= rows:
            raise ValueError(f"{name}: expected values from 0 to {rows - 1}, got {least} to {most}")
    else:
        fit = (labels >= 0) & (labels < rows)
        torch._assert_async(fit.all(), f"{name}: expected values from 0 to {rows - 1}")


def check_clusters(out, mode) -> None:
    """`out` is a result that knows `mode`: "hard", or "soft" where it has masks."""
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
