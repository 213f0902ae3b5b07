"""Protection from autocast, which would run the products in 16 bits and change the decisions."""

import functools

import torch


def own_dtype(function):
    """Run `function(x, ...)` in the dtype of its tensors, with autocast off."""

    @functools.wraps(function)
    def call(x, *args):
        device = x.device.type
        if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
            return function(x, *args)
        with torch.autocast(device, enabled=False):
            return function(x, *args)

    return call
