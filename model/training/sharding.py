"""Training with the weights spread over all processes, by torch's `fully_shard` (FSDP2)."""

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
    """A module whose weights, gradients and optimizer are spread over all processes.

    Each block of the classes that its parts name in `_no_split_modules` is gathered when it runs,
    and the rest is gathered as a whole. Gradients are exchanged after each batch, also where a step
    has several: nobody holds a whole gradient. Parameters of no dimensions cannot be split: every
    process has them, and `reduce` averages their gradients.

    Args:
        module: the same in all processes, on its device; it is changed in place.
        precision: "no", or "bf16" to gather the blocks of Hugging Face models, and compute in
            them, in bfloat16. They are written for that; the rest is left to autocast. Weights are
            kept, and gradients summed, in float32 all the same.
    """

    def __init__(self, module: nn.Module, precision: str):
        # Without the parameters' memory. Later the module could not be copied.
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
        """Averages the gradients that `fully_shard` leaves alone; call it before each update."""
        for parameter in self._scalars:
            if parameter.grad is not None:
                parameter.grad = mean_over_ranks(parameter.grad)

    @contextlib.contextmanager
    def gathered(self, averages: Mapping[str, Tensor]):
        """Inside, a plain copy of the module with all of its weights; all processes enter it.

        Args:
            averages: by the names of parameters, in place of these.
        """
        state = self._module.state_dict()
        parameters: dict[int, nn.Parameter] = {}
        for name, parameter in self._module.named_parameters(remove_duplicate=False):
            # Tied ones stay one.
            if id(parameter) not in parameters:
                value = full_tensor(averages.get(name, parameter)).detach().to(parameter.dtype)
                parameters[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
            state[name] = parameters[id(parameter)]
        plain = copy.deepcopy(self._empty)
        plain.load_state_dict(state, assign=True)
        yield plain


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What Hugging Face models in a module do not want to be torn apart, from the inside out."""
    lists = (getattr(part, "_no_split_modules", None) or () for part in module.modules())
    names = {name for own in lists for name in own}
    # Blocks may lie in blocks.
    for part in reversed(list(module.modules())):
        if part is not module and type(part).__name__ in names:
            yield part
