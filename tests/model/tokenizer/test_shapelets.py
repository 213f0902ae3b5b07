"""Shapelets of parts: pose, shape, and their decoded indicators."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from setokim.tokenizer.pos_embed import grid_positions
from setokim.tokenizer.shapelets import POSE, decode_shapelets, encode_shapelets, taper, unit_shapes

WIDTH = POSE + 120


def share_of(inside):
    """(1, 1, N) for a mask (H, W)."""
    share = inside.float().flatten()
    return (share / share.sum())[None, None]


def disc(side, y, x, radius):
    away = grid_positions(side, side) - torch.tensor([y, x])
    return (away.norm(dim=1) <= radius).view(side, side)


def angular(side, y=0.4, x=0.55, size=1.0):
    """An L of patches."""
    place = (grid_positions(side, side) - torch.tensor([y, x])) / size
    v, u = place.unbind(1)
    upright = (v.abs() < 0.3) & ((u + 0.15).abs() < 0.07)
    foot = ((v - 0.23).abs() < 0.07) & (u.abs() < 0.22)
    return (upright | foot).view(side, side)


def test_pose_by_hand():
    # Rows 1 and 2 of the third of four columns: centre (0.5, 0.625). Down: ±1/8 and a patch's own
    # 1/(12·16); across: the patch's own.
    inside = torch.zeros(4, 4)
    inside[1:3, 2] = 1
    outline = encode_shapelets(share_of(inside), (4, 4), 9)[0, 0]
    squared = (1 / 64 + 2 / (12 * 16)) / 2
    assert_close(outline[:POSE], torch.tensor([0.5, 0.625, 0.5 * math.log(squared)]))


def test_shape_by_hand():
    """Of one patch: the products of Hermite functions at 0, where the odd ones vanish."""
    outline = encode_shapelets(torch.ones(1, 1, 1), (1, 1), POSE + 6)[0, 0]
    zeroth, second = math.pi**-0.25, -(math.pi**-0.25) / math.sqrt(2)
    # Orders (0,0), (1,0), (0,1), (2,0), (1,1), (0,2).
    shape = zeroth * torch.tensor([zeroth, 0, 0, second, 0, second])
    assert_close(outline[POSE:], shape / shape.norm())


def test_functions_are_orthonormal():
    """Coefficients are orthogonal: the sum over a fine grid is a product."""
    width = POSE + 10
    outlines = torch.zeros(1, 10, width)
    outlines[0, :, :2], outlines[0, :, 2] = 0.5, math.log(0.1)
    outlines[0, :, POSE:] = torch.eye(10)
    drawn = decode_shapelets(outlines, 200, 200, torch.ones(10))[0].double()
    unit = 0.1 / 1.5  # of a Hermite function, in sides
    gain = 2 * 1.5 * math.sqrt(math.pi)
    assert_close(
        drawn @ drawn.T / 200**2 / unit**2 / gain**2, torch.eye(10).double(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("inside", [angular(32), disc(32, 0.5, 0.5, 0.2), disc(32, 0.3, 0.7, 0.1)])
def test_shapelets_are_decoded_to_their_part(inside):
    outline = encode_shapelets(share_of(inside), (32, 32), WIDTH)
    drawn = decode_shapelets(outline, 32, 32, torch.ones(120))[0, 0]
    best = drawn.topk(int(inside.sum())).indices
    assert inside.flatten()[best].float().mean() > 0.93


def test_a_disc_is_decoded_as_about_1():
    outline = encode_shapelets(share_of(disc(64, 0.5, 0.5, 0.2)), (64, 64), WIDTH)
    drawn = decode_shapelets(outline, 64, 64, torch.ones(120)).view(64, 64)
    assert 0.85 < drawn[disc(64, 0.5, 0.5, 0.15)].mean() < 1.15
    assert drawn[~disc(64, 0.5, 0.5, 0.3)].abs().max() < 0.1


def test_moved_and_larger_it_has_the_same_shape():
    small = angular(48)
    large = small.repeat_interleave(2, 0).repeat_interleave(2, 1)
    here, there = torch.zeros(2, 128, 128)
    here[:48, :48], there[20:116, 30:126] = small, large
    here, there = (
        encode_shapelets(share_of(one), (128, 128), WIDTH)[0, 0] for one in (here, there)
    )
    assert_close(there[POSE:], here[POSE:], atol=2e-3, rtol=0)
    moved = 2 * here[:2] + torch.tensor([20, 30]) / 128
    assert_close(there[:2], moved, atol=1e-5, rtol=0)
    assert_close(there[2] - here[2], torch.tensor(2.0).log(), atol=1e-3, rtol=0)


def test_a_finer_grid_decodes_the_same():
    """A position between others is decoded as nearly their mean."""
    outline = encode_shapelets(share_of(disc(32, 0.5, 0.4, 0.2)), (32, 32), WIDTH)
    coarse, fine = (decode_shapelets(outline, n, n, taper(WIDTH)).view(n, n) for n in (32, 96))
    assert_close(fine.view(32, 3, 32, 3).mean((1, 3)), coarse, atol=0.1, rtol=0)


def test_rows_and_columns_are_not_mixed_up():
    inside = torch.zeros(6, 10)
    inside[0:2, 5:10] = 1
    outline = encode_shapelets(share_of(inside), (6, 10), WIDTH)
    assert_close(outline[0, 0, :2], torch.tensor([1 / 6, 0.75]))
    drawn = decode_shapelets(outline, 6, 10, taper(WIDTH)).view(6, 10)
    assert inside.flatten()[drawn.flatten().topk(10).indices].sum() >= 9


def test_parts_that_are_nowhere_are_finite_with_gradient():
    share = torch.zeros(1, 2, 16)
    share[0, 0, 3] = 1
    share.requires_grad_()
    outlines = encode_shapelets(share, (4, 4), 20)
    outlines[:, 0].sum().backward()
    assert outlines.isfinite().all() and share.grad.isfinite().all()
    assert not share.grad[0, 1].any()


def test_gradient():
    share = torch.rand(1, 2, 12, dtype=torch.float64)
    share = (share / share.sum(-1, keepdim=True)).requires_grad_()
    # float32 within: differences are as coarse as that.
    torch.autograd.gradcheck(
        lambda s: encode_shapelets(s, (3, 4), 9), share, eps=1e-3, atol=2e-2, rtol=2e-2
    )


def test_any_pose_decodes_finite_numbers():
    """A diffusion may sample one that no part has."""
    outlines = torch.zeros(1, 4, 13)
    outlines[0, :, 2] = torch.tensor([-1e4, 1e4, -40.0, 0.0])
    outlines[0, :, 0] = torch.tensor([0.0, 1e6, -1e6, 0.5])
    outlines[..., POSE:] = 1
    assert decode_shapelets(outlines, 8, 8, torch.ones(10)).isfinite().all()


def test_autocast_moves_nothing():
    """A small part would be moved by a part of its size."""
    outline = encode_shapelets(share_of(disc(32, 0.3, 0.7, 0.06)), (32, 32), WIDTH)
    exact = decode_shapelets(outline, 64, 64, torch.ones(120))
    with torch.autocast("cpu", torch.bfloat16):
        again = encode_shapelets(share_of(disc(32, 0.3, 0.7, 0.06)), (32, 32), WIDTH)
        drawn = decode_shapelets(outline, 64, 64, torch.ones(120))
    assert torch.equal(again, outline) and torch.equal(drawn, exact)


def test_taper():
    weights = taper(POSE + 10)
    orders = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])
    assert_close(weights, torch.exp(-2 * (orders / 3).square()))
    assert taper(POSE + 1).tolist() == [1.0]


def test_unit_shapes():
    rows = unit_shapes(torch.tensor([[9.0, 0.1, 0.2, -3.0, 3.0, 4.0]]), 5)
    assert_close(rows, torch.tensor([[9.0, 0.1, 0.2, -3.0, 0.6, 0.8]]))


@pytest.mark.parametrize("width", [0, POSE])
def test_width(width):
    with pytest.raises(ValueError, match=f"width: expected more than 3, got {width}"):
        encode_shapelets(torch.ones(1, 1, 1), (1, 1), width)
    with pytest.raises(ValueError, match=f"width: expected more than 3, got {width}"):
        taper(width)
