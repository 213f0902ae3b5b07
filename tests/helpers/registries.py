"""Restores the tables of implementations that tests and pages of the documentation add to."""

import contextlib
import sys

# Imported for what they register, once for all.
import setokim.shapes_world.dataset
import setokim.shapes_world.tasks
import setokim.tokenizer.factory  # noqa: F401
from setokim.data.build import GENERATED, READ
from setokim.tokenizer.configuration_setok import ENCODERS, GROUPINGS
from setokim.training.stage1 import losses as stage1
from setokim.vlm.losses import LOSSES


@contextlib.contextmanager
def restored():
    """Undo the registrations of the context and the imports of files that settings name."""
    registries = (LOSSES, stage1.LOSSES, ENCODERS, GROUPINGS, GENERATED, READ)
    before = [dict(registry) for registry in registries]
    modules = set(sys.modules)
    try:
        yield
    finally:
        for registry, found in zip(registries, before, strict=True):
            registry._found.clear()
            registry._found.update(found)
        for name in set(sys.modules) - modules:
            if name.startswith("setokim_imports."):
                del sys.modules[name]
