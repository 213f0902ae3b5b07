"""Data of stage 1: drawn scenes, folders and shards, their order, and what is broken in them."""

from setokim.data.build import Counted, GuardedCollator, build_dataset
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
from setokim.data.scene import Object, Scene
from setokim.data.shapes_render import render
from setokim.data.shapes_world import ShapesWorld
from setokim.data.shards import Shards

__all__ = [
    "ENDLESS",
    "Broken",
    "BrokenSampleError",
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
    "ShapesWorld",
    "Shards",
    "TooManyBrokenError",
    "build_dataset",
    "render",
    "split_concepts",
]
