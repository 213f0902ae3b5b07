"""Autocast would run the products of the reference in 16 bits, and other tokens would be seeds."""

import functools

import torch


def own_dtype(function):
    """Runs `function(x, ...)` in the dtype of its tensors, whatever autocast wants."""

    @functools.wraps(function)
    def call(x, *args):
        device = x.device.type
        if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
            return function(x, *args)
        with torch.autocast(device, enabled=False):
            return function(x, *args)

    return call
