"""Models with the methods of LLaVA's own classes, whose prompts hold one token an image."""

import pytest
import torch
from torch import nn

import setok_kernels as sk
from setok_kernels.integrations.transformers import reduce_visual_tokens

IMAGE = -200


class Config:
    model_type = "llava_llama"


class Speaker(nn.Module):
    """Embeds a prompt as LLaVA does: the image token becomes as many as there are features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = Config()
        self.tower = nn.Conv2d(3, 8, 4, 4)
        self.mm_projector = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 6))
        self.embed = nn.Embedding(10, 6)

    def get_model(self):
        return self

    def encode_images(self, images):
        return self.mm_projector(self.tower(images).flatten(2).mT)

    def prepare_inputs_labels_for_multimodal(self, input_ids, images, image_sizes=None):
        features = self.encode_images(images)
        rows = []
        for ids, feature in zip(input_ids, features, strict=True):
            place = int((ids == IMAGE).nonzero())
            rows.append(torch.cat([self.embed(ids[:place]), feature, self.embed(ids[place + 1 :])]))
        return rows


@pytest.fixture
def model():
    return Speaker()


IDS = torch.tensor([[1, 2, IMAGE, 3], [4, IMAGE, 5, 6]])


def images():
    blocks = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(blocks, size=24, mode="nearest")


@pytest.mark.parametrize("features", ["encoder", "projected"])
def test_the_prompt_holds_the_merged_tokens(model, features):
    pixels = images()
    encoded = model.tower(pixels).flatten(2).mT
    projected = model.mm_projector(encoded)
    out = sk.cluster_tokens(encoded if features == "encoder" else projected, rate=0.25)
    expected = []
    for image, ids in enumerate(IDS):
        groups = []
        for row in out.labels[image].unique().tolist():
            members = (out.labels[image] == row).nonzero()[:, 0].tolist()
            seed = int(out.decisions.seeds[image, row]) if row < int(out.counts[image]) else -1
            place = seed if seed in members else members[0]
            groups.append((place, projected[image, members].mean(0)))
        tokens = torch.stack([token for _, token in sorted(groups, key=lambda group: group[0])])
        place = int((ids == IMAGE).nonzero())
        expected.append(
            torch.cat([model.embed(ids[:place]), tokens, model.embed(ids[place + 1 :])])
        )
    reduction = reduce_visual_tokens(model, rate=0.25, features=features)
    rows = model.prepare_inputs_labels_for_multimodal(IDS, images=pixels)
    for row, wanted in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, wanted)
    assert reduction.counts == [(36, len(row) - 3) for row in rows]


def test_one_cluster_per_token_and_restoring_change_nothing(model):
    pixels = images()
    before = dict(model.__dict__)
    expected = model.prepare_inputs_labels_for_multimodal(IDS, pixels)
    reduction = reduce_visual_tokens(model, rate=1.0, exact=True)
    rows = model.prepare_inputs_labels_for_multimodal(IDS, pixels)
    assert all(map(torch.equal, rows, expected))
    reduction.restore()
    assert model.__dict__ == before


def test_the_gradient_reaches_the_tower(model):
    reduce_visual_tokens(model, rate=0.25)
    rows = model.prepare_inputs_labels_for_multimodal(IDS, images())
    sum(row.square().sum() for row in rows).backward()
    assert model.tower.weight.grad.abs().max() > 0


def test_what_the_classes_cannot_do_is_named(model):
    with pytest.raises(ValueError, match="positions: expected 'compact' for llava_llama"):
        reduce_visual_tokens(model, rate=0.25, positions="original")
    reduce_visual_tokens(model, rate=0.25)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\), got \(1, 2, 3"):
        model.prepare_inputs_labels_for_multimodal(IDS, torch.zeros(1, 2, 3, 24, 24))
    with pytest.raises(ValueError, match="got a list; for tiles, use LlavaNext"):
        model.prepare_inputs_labels_for_multimodal(IDS, [torch.zeros(3, 24, 24)])
