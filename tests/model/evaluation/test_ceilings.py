from types import SimpleNamespace

import numpy as np
import pytest
import torch

from setokim.data import BrokenSampleError, build_dataset
from setokim.evaluation import ceilings
from setokim.evaluation.ceilings import ceiling_metrics

OPTIONS = {"objects": (1, 3), "visible": 0.9, "contrast": 0.5}
TASKS = {"generate": 1, "edit": 1, "caption": 1}


class Mirror:
    """Tokenizer whose tokens are the images themselves; codes lose all of the image."""

    def __init__(self, codes=None):
        self.codes = codes

    def tokenize(self, images):
        pixels = np.stack([np.asarray(image) for image in images])
        return SimpleNamespace(tokens=torch.from_numpy(pixels).movedim(3, 1) / 255, occupied=None)

    def detokenizer(self, tokens, occupied):
        return tokens

    def recode(self, visual):
        return SimpleNamespace(tokens=torch.zeros_like(visual.tokens), occupied=None)


@pytest.fixture(scope="module")
def world():
    return build_dataset("shapes-tasks", seed=3, length=30, tasks=TASKS, **OPTIONS)


def test_a_lossless_tokenizer_reads_like_the_images(world, monkeypatch):
    monkeypatch.setattr(ceilings, "_BATCH_SIZE", 4)
    shown = []
    found = ceiling_metrics(Mirror(codes=object()), world, 30, shown.append)
    assert shown == list(range(1, 31))
    for name in ("generation", "generation_shape", "edit"):
        assert found[f"{name}_tokens"] == found[f"{name}_image"] > 0.8
        assert found[f"{name}_codes"] < 0.1
    tasks = [world[i].task for i in range(30)]
    assert found["samples"] == tasks.count("generate") + tasks.count("edit") > 10
    assert found["broken"] == 0


def test_samples_are_counted_to_the_last(world):
    """The last sample need not be a wanted image; without codes there are no metrics of them."""

    class Broken:
        def __getitem__(self, index):
            if index == 0:
                raise BrokenSampleError("none", "gone")
            return world[index]

    last = next(i for i in range(5, 30) if world[i].task == "caption")
    found = ceiling_metrics(Mirror(), Broken(), last + 1)
    assert found["broken"] == 1
    assert found["samples"] == sum(world[i].task != "caption" for i in range(1, last + 1))
    assert not [name for name in found if name.endswith("codes")]
    assert ceiling_metrics(Mirror(), Broken(), 1) == {"samples": 0, "broken": 1}
