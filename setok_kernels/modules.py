"""Clustering as an `nn.Module` with trainable hyper-parameters."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from setok_kernels.config import LEARNABLE, ClusterConfig
from setok_kernels.functional import cluster_tokens
from setok_kernels.result import Clusters, Decisions

# Positive hyper-parameters: the logarithm is trained.
_POSITIVE = ("bandwidth", "temperature")


class TokenClustering(nn.Module):
    """`cluster_tokens` with learnable bandwidth, beta, temperature and offset (Algorithm 1).

    Learnable hyper-parameters are float32 parameters of shape (1,), which FSDP can shard. Their
    names are `log_bandwidth`, `beta`, `log_temperature` and `offset`; the logarithm keeps bandwidth
    and temperature positive. The others keep their value in `config`. State dicts of earlier
    versions with 0-dim parameters also load.

    Args:
        config: options; None means `ClusterConfig()`. Tensors in it give the initial values.
        learnable: names of the hyper-parameters to train.
        backend: name of the backend, see `cluster_tokens`.

    Raises:
        ValueError: `learnable` has an unknown name.
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
        """Reset the learnable hyper-parameters to the values of the config."""
        for name in self.learnable:
            value = getattr(self.config, name)
            value = math.log(value) if name in _POSITIVE else value
            nn.init.constant_(getattr(self, _parameter_name(name)), value)

    def current_config(self) -> ClusterConfig:
        """Return the config with the learnable hyper-parameters as tensors that carry gradient."""
        trained = {}
        for name in self.learnable:
            value = getattr(self, _parameter_name(name)).squeeze(0)
            trained[name] = value.exp() if name in _POSITIVE else value
        return dataclasses.replace(self.config, **trained)

    def forward(
        self,
        x: Tensor,
        token_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        decisions: Decisions | None = None,
        *,
        num_clusters: int | Tensor | None = None,
        rate: float | Tensor | None = None,
        exact: bool = False,
        importance: Tensor | None = None,
    ) -> Clusters:
        """Cluster the tokens of each image; arguments and result are those of `cluster_tokens`."""
        return cluster_tokens(
            x,
            self.current_config(),
            num_clusters=num_clusters,
            rate=rate,
            exact=exact,
            importance=importance,
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
        """Return the options and the names of the learnable ones."""
        options = [f"{name}={value!r}" for name, value in self.config.to_dict().items()]
        return ", ".join([*options, f"learnable={self.learnable!r}", f"backend={self.backend!r}"])


def _parameter_name(name: str) -> str:
    return f"log_{name}" if name in _POSITIVE else name
