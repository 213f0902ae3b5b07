"""Learning rate schedule, parameter groups for weight decay, and averaged weights."""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from setokim.utils.distributed import local_shard

# Names, in any module, of parameters that are biases, position embeddings or tokens.
_UNDECAYED_NAMES = ("bias", "queries", "query", "embedding", "embeddings", "token", "tokens")
_UNDECAYED_MODULES = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def cosine_with_warmup(step: int, warmup: int, total: int, least: float = 0.0) -> float:
    """Return the factor of the learning rate: a linear warm-up, then half a cosine down.

    Steps 0 to warmup - 1 have the factors 1 / warmup, 2 / warmup, ..., 1. Thus the first step is
    not wasted. Step `warmup` has 1; step `total` and all later ones have `least`.

    Args:
        step: number of completed optimizer steps.
        warmup: number of warm-up steps; may be 0.
        total: number of steps of the run, at least `warmup`.
        least: minimum factor, reached at the end, in [0, 1].

    Returns:
        Factor in [0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """
    if step < 0:
        raise ValueError(f"step: expected at least 0, got {step}")
    if warmup < 0:
        raise ValueError(f"warmup: expected at least 0, got {warmup}")
    if total < max(1, warmup):
        raise ValueError(f"total: expected at least max(1, warmup), {max(1, warmup)}, got {total}")
    if not 0 <= least <= 1:
        raise ValueError(f"least: expected a number in [0, 1], got {least}")
    if step < warmup:
        return (step + 1) / warmup
    if step >= total:
        return least
    progress = (step - warmup) / (total - warmup)
    return least + (1 - least) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups with and without weight decay.

    Weight decay applies to the matrices of linear layers and convolutions. Biases, scales and other
    parameters of fewer than two dimensions have none, nor do norms, embeddings, and learned queries
    and tokens. A tied parameter has weight decay only if all its uses have it.

    Args:
        module: module with the parameters; frozen ones are left out.
        lr: learning rate of both groups.
        weight_decay: weight decay of the first group.

    Returns:
        One or two non-empty groups, in the order of `module.parameters()`.

    Raises:
        ValueError: no parameter is trainable.
    """
    undecayed: set[Tensor] = set()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if (
                parameter.dim() < 2
                or isinstance(part, _UNDECAYED_MODULES)
                or name.endswith(_UNDECAYED_NAMES)
            ):
                undecayed.add(parameter)
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("module: expected at least one parameter with gradient, got none")
    groups = [
        {
            "params": [p for p in trained if p not in undecayed],
            "lr": lr,
            "weight_decay": weight_decay,
        },
        {"params": [p for p in trained if p in undecayed], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class EMA:
    """Exponential moving average of a model's trainable parameters, for evaluation.

    Buffers and frozen parameters have no average. Averages of sharded parameters are sharded alike.
    They are at least float32: at a decay of 0.9999 half precision would round every change away.

    Args:
        model: model without the wrapper of distributed training. No reference to it is kept.
        decay: decay of the average per update, in [0, 1). The n-th update, counted from 0, uses
            min(decay, (1 + n) / (10 + n)), so that the random start soon loses its weight.

    Raises:
        ValueError: `decay` is out of range.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
        self.decay = decay
        self._updates = 0
        self._swapped = False
        self._averages = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in model.named_parameters()
            if p.requires_grad
        }

    def to(self, device: torch.device | str) -> EMA:
        """Move the averages to a device."""
        self._averages = {name: a.to(device) for name, a in self._averages.items()}
        return self

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the averages with the model's parameters; call it after each optimizer step.

        Raises:
            RuntimeError: it is called inside `swapped`.
            ValueError: the model lacks a parameter.
        """
        parameters = self._parameters(model)
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        for name, average in self._averages.items():
            local_shard(average).lerp_(local_shard(parameters[name]).to(average.dtype), 1 - decay)
        self._updates += 1

    @property
    def averages(self) -> Mapping[str, Tensor]:
        """Averages by the names of their parameters."""
        return types.MappingProxyType(self._averages)

    @contextlib.contextmanager
    def swapped(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield the model with the averaged weights; restore its own bit for bit afterwards.

        Raises:
            RuntimeError: it is entered twice.
            ValueError: the model lacks a parameter.
        """
        parameters = self._parameters(model)
        own = {name: parameters[name].detach().clone() for name in self._averages}
        self._swapped = True
        try:
            _copy(self._averages, parameters)
            yield model
        finally:
            _copy(own, parameters)
            self._swapped = False

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the averages as "average.NAME", and the int64 number "updates"."""
        state = {f"average.{name}": a.clone() for name, a in self._averages.items()}
        return state | {"updates": torch.tensor(self._updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the averages from the result of `state_dict`.

        Raises:
            ValueError: the names or shapes do not match this model.
        """
        own = self.state_dict()
        for problem, names in (("missing", own.keys() - state), ("unknown", state.keys() - own)):
            if names:
                raise ValueError(
                    f"state: expected the {len(own)} tensors of this model, got a state with "
                    f"{len(names)} {problem} ones, such as {min(names)}"
                )
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                expected, got = tuple(tensor.shape), tuple(state[name].shape)
                raise ValueError(f"state: expected {name} of shape {expected}, got {got}")
        for name, average in self._averages.items():
            average.copy_(state[f"average.{name}"])
        self._updates = int(state["updates"])

    def _parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        if self._swapped:
            raise RuntimeError("the model holds the averaged weights; leave `swapped` first")
        parameters = dict(model.named_parameters())
        missing = self._averages.keys() - parameters
        if missing:
            raise ValueError(f"model: expected a parameter named {min(missing)}, got none")
        return parameters


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
