"""Learning rates over time, what is decayed, and averaged weights."""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from setokim.utils.distributed import local_shard

# Own names of parameters, whatever module they are in, that stand for positions or tokens.
_UNDECAYED_NAMES = ("bias", "queries", "query", "embedding", "embeddings", "token", "tokens")
_UNDECAYED_MODULES = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def cosine_with_warmup(step: int, warmup: int, total: int, least: float = 0.0) -> float:
    """Factor of the learning rate: a straight line up, half a cosine down.

    Steps 0 to warmup - 1 have 1 / warmup, 2 / warmup, ..., 1: the first step is no wasted one. Step
    `warmup` has 1, step `total` and all later ones `least`.

    Args:
        step: number of optimizer steps made so far.
        warmup: number of steps on the way up; may be 0.
        total: number of steps of the run, at least `warmup`.
        least: factor at the end, in [0, 1].

    Raises:
        ValueError: one of the numbers is out of its range.
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
    """Parameters for an optimizer: those with weight decay, and those without.

    Decay draws towards 0, which means something for the matrix of a linear layer or a convolution.
    It is left out for biases, scales and other parameters of fewer than two dimensions, norms,
    embeddings, and learned queries and tokens. A tied parameter is decayed only if all its uses
    are.

    Args:
        module: frozen parameters are left out.
        lr: learning rate of both groups.
        weight_decay: of the first group.

    Returns:
        One or two groups, without empty ones, in the order of `module.parameters()`.

    Raises:
        ValueError: nothing is to be trained.
    """
    plain: set[Tensor] = set()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if (
                parameter.dim() < 2
                or isinstance(part, _UNDECAYED_MODULES)
                or name.endswith(_UNDECAYED_NAMES)
            ):
                plain.add(parameter)
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("module: expected at least one parameter with gradient, got none")
    groups = [
        {
            "params": [p for p in trained if p not in plain],
            "lr": lr,
            "weight_decay": weight_decay,
        },
        {"params": [p for p in trained if p in plain], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class EMA:
    """Exponential moving average of a model's trainable parameters, to evaluate with.

    Buffers and frozen parameters are the model's own, and have no copy here. Parameters spread over
    processes have averages that are spread likewise. Averages are at least float32, whatever the
    parameters are: at a decay of 0.9999 half precision would round every change away.

    Args:
        model: not wrapped, so that names stay what they are. It is not kept.
        decay: of the average per update, in [0, 1). The n-th update, counted from 0, uses
            min(decay, (1 + n) / (10 + n)), so that the random start is soon forgotten.

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
        """Moves the averages to where the model is."""
        self._averages = {name: a.to(device) for name, a in self._averages.items()}
        return self

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the averages towards the model's parameters; call it after each optimizer step.

        Raises:
            RuntimeError: called inside `swapped`.
            ValueError: it is another model.
        """
        parameters = self._parameters(model)
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        for name, average in self._averages.items():
            local_shard(average).lerp_(local_shard(parameters[name]).to(average.dtype), 1 - decay)
        self._updates += 1

    @property
    def averages(self) -> Mapping[str, Tensor]:
        """The averages by the names of their parameters."""
        return types.MappingProxyType(self._averages)

    @contextlib.contextmanager
    def swapped(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, the model has the averages; afterwards it has its own weights again, to the bit.

        Raises:
            RuntimeError: entered twice.
            ValueError: it is another model.
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
        """Copies of the averages, "average." before their names, and "updates", int64."""
        state = {f"average.{name}": a.clone() for name, a in self._averages.items()}
        return state | {"updates": torch.tensor(self._updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: the names or shapes are those of another model.
        """
        own = self.state_dict()
        for what, names in (("missing", own.keys() - state), ("unknown", state.keys() - own)):
            if names:
                raise ValueError(
                    f"state: expected the {len(own)} tensors of this model, got one in which "
                    f"{len(names)} are {what}, such as {min(names)}"
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
            raise RuntimeError("the model has the averages; leave `swapped` first")
        parameters = dict(model.named_parameters())
        missing = self._averages.keys() - parameters
        if missing:
            raise ValueError(f"model: expected a parameter named {min(missing)}, got none")
        return parameters


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
