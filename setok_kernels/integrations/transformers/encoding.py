"""Run a model's own feature functions, and record what its projector read."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from setok_kernels.integrations.transformers.clustering import Encoded
from setok_kernels.integrations.transformers.registry import Modality


@contextmanager
def recorded_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Record the first argument of each call of a module."""
    calls: list[Tensor] = []

    def record(_, args, kwargs):
        calls.append(args[0] if args else next(iter(kwargs.values())))

    hook = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def replaced_method(module: nn.Module, name: str, function) -> Iterator[None]:
    """Replace a method of one module for a while."""
    absent = object()
    former = module.__dict__.get(name, absent)
    module.__dict__[name] = function
    try:
        yield
    finally:
        if former is absent:
            del module.__dict__[name]
        else:
            module.__dict__[name] = former


def run_features(
    base: nn.Module, modality: Modality, inputs: Mapping[str, Any]
) -> tuple[Any, Tensor]:
    """Run the feature function with those of the inputs that it takes.

    Returns:
        output: its output, with `pooler_output`.
        encoded: first argument of the module `modality.encoder`.
    """
    function = getattr(base, modality.function)
    # The pixels come first: some versions of transformers name them otherwise.
    _, *names = inspect.signature(function).parameters
    arguments = {name: inputs[name] for name in names if inputs.get(name) is not None}
    with recorded_inputs(base.get_submodule(modality.encoder)) as calls:
        output = function(inputs[modality.pixels], **arguments, return_dict=True)
    if not calls:
        raise RuntimeError(f"{modality.encoder}: expected a call by {modality.function}, got none")
    return output, calls[0]


def flat_items(pooled: Tensor | list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, list[int]]:
    """Return pooled features as (T, D), and the number of tokens of each item."""
    if isinstance(pooled, Tensor):
        return pooled.flatten(0, 1), [pooled.shape[1]] * pooled.shape[0]
    return torch.cat(list(pooled)), [item.shape[0] for item in pooled]


def encode_items(base: nn.Module, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
    """Encode images of which each item of the output is a group."""
    output, encoded = run_features(base, modality, inputs)
    tokens, items = flat_items(output.pooler_output)
    return Encoded(
        output=output,
        tokens=tokens,
        features=encoded.flatten(0, -2),
        items=items,
        groups=items,
    )


def encode_tiles(base: nn.Module, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
    """Encode images whose tiles, the batch of the projector, are groups."""
    output, encoded = run_features(base, modality, inputs)
    tokens, items = flat_items(output.pooler_output)
    tiles, length = encoded.shape[:2]
    return Encoded(
        output=output,
        tokens=tokens,
        features=encoded.flatten(0, 1),
        items=items,
        groups=[length] * tiles,
    )
