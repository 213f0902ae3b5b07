"""Names of regions: the words for each visual token, and their loss."""

import pytest
import torch
from torch.testing import assert_close

from helpers.tiny_setokim import build, picture
from setokim.vlm.region_names import RegionNames, bag_of_words_loss


@pytest.fixture(scope="module")
def visual():
    model, _ = build()
    with torch.no_grad():
        return model.setok.tokenize([picture(seed) for seed in range(3)])


def test_words_of_tokens_by_loop(visual):
    packed = visual.pack("raster")
    labels = torch.full((3, 24, 24), -1)
    # Image 0: two halves; image 1: a part without a name and one with; image 2: nothing known.
    labels[0, :, :12], labels[0, :, 12:] = 0, 1
    labels[1, :6], labels[1, 6:] = 0, 1
    words = torch.full((3, 2, 2), -100)
    words[0, 0], words[0, 1, 0], words[1, 1] = torch.tensor([4, 5]), 6, torch.tensor([7, 8])
    found = RegionNames(labels, words).of_tokens(visual, packed)
    rows, columns = visual.grid
    assert 24 % rows == 24 % columns == 0
    named = 0
    for token, (image, row) in enumerate(zip(packed.images, packed.rows, strict=True)):
        mask = visual.masks[image, row].unflatten(0, (rows, columns))
        shares = []
        for region in range(2):
            inside = (labels[image] == region).float()
            patches = inside.unflatten(0, (rows, -1)).unflatten(2, (columns, -1)).mean((1, 3))
            shares.append(float((mask * patches).sum() / mask.sum()))
        best = max(range(2), key=lambda region: shares[region])
        expected = words[image, best] if shares[best] >= 0.5 else torch.full((2,), -100)
        assert found[token].tolist() == expected.tolist()
        named += int((expected >= 0).any())
    assert 0 < named < len(found)


def test_without_regions_no_token_has_words(visual):
    packed = visual.pack()
    none = RegionNames(torch.full((3, 8, 8), -1), torch.zeros(3, 0, 0, dtype=torch.int64))
    assert none.of_tokens(visual, packed).shape == (len(packed.tokens), 0)
    unknown = RegionNames(torch.full((3, 8, 8), -1), torch.zeros(3, 2, 4, dtype=torch.int64))
    assert (unknown.of_tokens(visual, packed) == -100).all()


def test_the_loss_is_a_mean_over_the_words_of_each_token():
    torch.manual_seed(0)
    logits = torch.randn(3, 6)
    words = torch.tensor([[1, 4, -100], [2, -100, -100], [-100] * 3])
    log_probabilities = logits.log_softmax(1)
    expected = -(log_probabilities[0, [1, 4]].mean() + log_probabilities[1, 2])
    assert_close(bag_of_words_loss(logits, words), expected)
    assert bag_of_words_loss(logits, words[:, :0]) == 0
