"""Shards the weights of a module over all processes with torch's `fully_shard` (FSDP2)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from setokim.utils.distributed import full_tensor, mean_over_ranks, world_size


class Sharded:
    """Module whose weights, gradients and optimizer state are sharded over all processes.

    Its submodules name block classes in `_no_split_modules`. A block is gathered while it runs; the
    rest is gathered as one unit. Gradients are reduced after each batch, even if a step has
    several, because no process holds a full gradient. Parameters without dimensions cannot be
    sharded: every process has them, and `reduce` averages their gradients.

    Args:
        module: module with equal weights in all processes, on its device; it is changed in place.
        precision: number format; "no", or "bf16" to gather and run the blocks of Hugging Face
            models in bfloat16. Other modules use autocast. The stored weights and the sums of
            gradients stay float32.
    """

    def __init__(self, module: nn.Module, precision: str):
        # A copy without memory for parameters: a sharded module cannot be copied.
        empty = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in module.parameters()}
        self._empty = copy.deepcopy(module, empty)
        self._module = module
        self._scalars = [p for p in module.parameters() if p.dim() == 0]
        device = next(module.parameters()).device
        options = {
            "mesh": init_device_mesh(device.type, (world_size(),)),
            "ignored_params": set(self._scalars),
        }
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for part in blocks(module):
            if precision == "bf16" and type(part).__module__.startswith("transformers."):
                fully_shard(part, mp_policy=half, **options)
            else:
                fully_shard(part, **options)
        fully_shard(module, **options)

    def reduce(self) -> None:
        """Average the gradients of unsharded parameters; call it before each update."""
        for parameter in self._scalars:
            if parameter.grad is not None:
                parameter.grad = mean_over_ranks(parameter.grad)

    @contextlib.contextmanager
    def gathered(self, averages: Mapping[str, Tensor]):
        """Yield an unsharded copy of the module; all processes enter the context.

        Args:
            averages: averaged weights by the names of the parameters that they replace.
        """
        state = self._module.state_dict()
        parameters: dict[int, nn.Parameter] = {}
        for name, parameter in self._module.named_parameters(remove_duplicate=False):
            # Tied parameters stay tied.
            if id(parameter) not in parameters:
                value = full_tensor(averages.get(name, parameter)).detach().to(parameter.dtype)
                parameters[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
            state[name] = parameters[id(parameter)]
        plain = copy.deepcopy(self._empty)
        plain.load_state_dict(state, assign=True)
        yield plain


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks that Hugging Face models declare indivisible, inner ones first."""
    lists = (getattr(part, "_no_split_modules", None) or () for part in module.modules())
    names = {name for own in lists for name in own}
    # Blocks may be nested.
    for part in reversed(list(module.modules())):
        if part is not module and type(part).__name__ in names:
            yield part
