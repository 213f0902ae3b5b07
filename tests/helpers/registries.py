"""Restores the tables of implementations that tests and pages of the documentation add to."""

import contextlib
import sys

# Imported for what they register, once for all.
import setokim.shapes_world.dataset
import setokim.shapes_world.tasks
import setokim.tokenizer.factory  # noqa: F401
from setok_kernels.integrations.transformers import registry as families
from setokim.data.build import GENERATED, READ
from setokim.tokenizer.configuration_setok import ENCODERS, GROUPINGS
from setokim.training.stage1 import losses as stage1
from setokim.vlm.losses import LOSSES


@contextlib.contextmanager
def restored():
    """Undo the registrations of the context and the imports of files that settings name."""
    registries = (LOSSES, stage1.LOSSES, ENCODERS, GROUPINGS, GENERATED, READ)
    tables = [registry._found for registry in registries] + [families._FAMILIES]
    before = [dict(table) for table in tables]
    modules = set(sys.modules)
    try:
        yield
    finally:
        for table, found in zip(tables, before, strict=True):
            table.clear()
            table.update(found)
        for name in set(sys.modules) - modules:
            if name.startswith("setokim_imports."):
                del sys.modules[name]
