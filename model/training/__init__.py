"""Training: checkpoints, learning rate schedules and averaged weights."""

from setokim.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    open_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from setokim.training.nested import flatten_state, unflatten_state
from setokim.training.schedule import EMA, cosine_with_warmup, parameter_groups

__all__ = [
    "EMA",
    "cosine_with_warmup",
    "flatten_state",
    "latest_checkpoint",
    "load_checkpoint",
    "open_checkpoint",
    "parameter_groups",
    "rng_state",
    "save_checkpoint",
    "set_rng_state",
    "unflatten_state",
]
