import pytest
import torch

from setokim.tokenizer.shapelets import encode_shapelets
from setokim.tokenizer.token_statistics import channel_units, token_blocks


def test_blocks_of_a_token():
    """Content, centre, scale, shape: the order of a token's blocks."""
    assert token_blocks(20, 10) == (10, 2, 1, 7)
    share = torch.zeros(1, 2, 16)
    share[0, 0, 5] = 1  # row 1, column 1
    share[0, 1] = 1 / 16
    one, all_of_it = encode_shapelets(share, (4, 4), 10)[0]
    _, centre, scale, shape = torch.cat([torch.zeros(10), one]).split(token_blocks(20, 10))
    assert centre.tolist() == pytest.approx([0.375, 0.375])
    assert scale < all_of_it[2]
    assert shape.norm().item() == pytest.approx(1)


def test_units_by_hand():
    tokens = torch.tensor([[0.0, 1.0, 5.0, 2.0], [2.0, 5.0, 5.0, 2.0]])
    mean, scale = channel_units(tokens, (2, 1, 1))
    assert mean.tolist() == [1, 3, 5, 2]
    # Centred: ±1 and ±2 in the first block; the others are constant.
    assert scale.tolist() == pytest.approx([2.5**0.5, 2.5**0.5, 1, 1])
