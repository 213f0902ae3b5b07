"""Data sets: generated scenes, folders, shards, conversations; their order and broken samples."""

import importlib

from setokim.data.build import Counted, GuardedCollator, build_dataset
from setokim.data.conversations import Conversation
from setokim.data.image_folder import ImageFolder
from setokim.data.order import ENDLESS, Order
from setokim.data.samples import (
    Broken,
    BrokenSampleError,
    Dataset,
    Guarded,
    Reading,
    Sample,
    TooManyBrokenError,
    split_concepts,
)
from setokim.data.shards import Shards

__all__ = [
    "ENDLESS",
    "Broken",
    "BrokenSampleError",
    "Conversation",
    "Counted",
    "Dataset",
    "Guarded",
    "GuardedCollator",
    "ImageFolder",
    "Object",
    "Order",
    "Reading",
    "Sample",
    "Scene",
    "ShapesTasks",
    "ShapesWorld",
    "Shards",
    "TooManyBrokenError",
    "build_dataset",
    "render",
    "split_concepts",
]

# Names of a package above this one, kept for programs that import them from here.
_SHAPES_WORLD = {
    "Object": "scene",
    "Scene": "scene",
    "ShapesTasks": "tasks",
    "ShapesWorld": "dataset",
    "render": "render",
}


def __getattr__(name: str):
    if name not in _SHAPES_WORLD:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"setokim.shapes_world.{_SHAPES_WORLD[name]}")
    return getattr(module, name)
