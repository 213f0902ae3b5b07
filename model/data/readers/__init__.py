"""Readers of published data sets in the layouts of their authors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from setokim.data.readers.captions import CaptionedParquet, CocoCaptions, KarpathyCaptions
from setokim.data.readers.chats import Chats
from setokim.data.readers.edits import Edits, ListedEdits
from setokim.data.readers.hub_questions import or_hub
from setokim.data.readers.labels import ImageNetFolder, ImageNetParquet, OpenImages
from setokim.data.readers.objects import CocoInstances, CocoPanoptic
from setokim.data.readers.questions import (
    AokvqaQuestions,
    GqaQuestions,
    MmVet,
    VqaQuestions,
)
from setokim.data.readers.referring import ReasonSeg, ReferringExpressions
from setokim.data.readers.texts import SlimPajama
from setokim.data.readers.yes_no import Mme, Pope
from setokim.data.samples import Dataset

# Each takes the folder as first argument, and further arguments by name.
READERS: dict[str, Callable[..., Dataset]] = {
    "imagenet-folder": ImageNetFolder,
    "imagenet-parquet": ImageNetParquet,
    "openimages": OpenImages,
    "slimpajama": SlimPajama,
    "coco-captions": or_hub(CocoCaptions, "coco-captions"),
    "coco-karpathy": partial(KarpathyCaptions, name="coco"),
    "coco-instances": CocoInstances,
    "coco-panoptic": CocoPanoptic,
    "allava": Chats,
    "llava-665k": partial(Chats, file="llava_v1_5_mix665k.json"),
    "vqav2": or_hub(VqaQuestions, "vqav2"),
    "okvqa": or_hub(VqaQuestions, "okvqa"),
    "aokvqa": AokvqaQuestions,
    "gqa": or_hub(GqaQuestions, "gqa"),
    "laion-parquet": CaptionedParquet,
    "instructpix2pix": partial(Edits, name="instructpix2pix"),
    "magicbrush": partial(Edits, name="magicbrush"),
    "evr": partial(ListedEdits, name="evr"),
    "ma5k": partial(ListedEdits, name="ma5k"),
    "flickr30k": partial(KarpathyCaptions, name="flickr30k"),
    "refcoco": partial(ReferringExpressions, name="refcoco"),
    "refcoco+": partial(ReferringExpressions, name="refcoco+"),
    "refcocog": partial(ReferringExpressions, name="refcocog"),
    "refcocog-google": partial(ReferringExpressions, name="refcocog-google"),
    "reasonseg": ReasonSeg,
    "pope": or_hub(Pope, "pope"),
    "pope-aokvqa": partial(Pope, data="aokvqa"),
    "pope-gqa": partial(Pope, data="gqa"),
    "mme": or_hub(Mme, "mme"),
    "mm-vet": MmVet,
}
