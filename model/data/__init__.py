"""Data sets: generated scenes, folders, shards, conversations; their order and broken samples."""

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
from setokim.shapes_world.dataset import ShapesWorld
from setokim.shapes_world.render import render
from setokim.shapes_world.scene import Object, Scene
from setokim.shapes_world.tasks import ShapesTasks

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
