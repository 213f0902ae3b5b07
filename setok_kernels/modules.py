"""The clustering as a module whose hyper-parameters learn."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from setok_kernels.config import LEARNABLE, ClusterConfig
from setok_kernels.functional import cluster_tokens
from setok_kernels.result import Clusters, Decisions

# These must stay positive, so what is learnt is their logarithm.
_POSITIVE = ("bandwidth", "temperature")


class TokenClustering(nn.Module):
    """`cluster_tokens` with learnable bandwidth, beta, temperature and offset (Algorithm 1).

    Learnable ones are float32 parameters of shape (1,), which FSDP can shard, in the state dict as
    `log_bandwidth`, `beta`, `log_temperature` and `offset`; the logarithm keeps the first and the
    third positive. The others keep the value of `config`. State dicts of earlier versions, which
    had 0-dim parameters, load too.

    Args:
        config: options; None means `ClusterConfig()`. Tensors in it give the initial values.
        learnable: which of the four learn.
        backend: as in `cluster_tokens`.

    Raises:
        ValueError: `learnable` names something else.
    """

    def __init__(
        self,
        config: ClusterConfig | None = None,
        learnable: tuple[str, ...] = LEARNABLE,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        config = ClusterConfig() if config is None else config
        unknown = [name for name in learnable if name not in LEARNABLE]
        if unknown:
            raise ValueError(
                f"learnable: expected some of {', '.join(LEARNABLE)}, got {unknown[0]!r}"
            )
        values = config.to_dict()
        self.config: ClusterConfig = ClusterConfig(**values)
        self.learnable: tuple[str, ...] = tuple(name for name in LEARNABLE if name in learnable)
        self.backend = backend
        for name in self.learnable:
            parameter = nn.Parameter(torch.empty(1, dtype=torch.float32))
            self.register_parameter(_parameter_name(name), parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give the learnable numbers the values of the config again."""
        for name in self.learnable:
            value = getattr(self.config, name)
            value = math.log(value) if name in _POSITIVE else value
            nn.init.constant_(getattr(self, _parameter_name(name)), value)

    def current_config(self) -> ClusterConfig:
        """The config with the learnable numbers as tensors, which carry gradient."""
        learnt = {}
        for name in self.learnable:
            value = getattr(self, _parameter_name(name)).squeeze(0)
            learnt[name] = value.exp() if name in _POSITIVE else value
        return dataclasses.replace(self.config, **learnt)

    def forward(
        self,
        x: Tensor,
        token_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        decisions: Decisions | None = None,
    ) -> Clusters:
        """Cluster the tokens of each image; arguments and result are those of `cluster_tokens`."""
        return cluster_tokens(
            x,
            self.current_config(),
            token_mask=token_mask,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            decisions=decisions,
            backend=self.backend,
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name in self.learnable:
            key = prefix + _parameter_name(name)
            if key in state_dict and state_dict[key].dim() == 0:
                state_dict[key] = state_dict[key].unsqueeze(0)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """The options, and which of them learn."""
        options = [f"{name}={value!r}" for name, value in self.config.to_dict().items()]
        return ", ".join([*options, f"learnable={self.learnable!r}", f"backend={self.backend!r}"])


def _parameter_name(name: str) -> str:
    return f"log_{name}" if name in _POSITIVE else name
