"""Segmentation head against formulas and loops, and its loss against hand-computed values."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from setokim.vlm import losses
from setokim.vlm.losses import mask_loss
from setokim.vlm.segmentation import MaskLogits, SegmentationHead, _scales

GRID, SIZE = (3, 4), (10, 7)
NAMES = ("hidden_states", "tokens", "occupied", "masks", "features")


def make_head(width=8, layers=1, trained=False):
    torch.manual_seed(0)
    head = SegmentationHead(5, 6, 7, width, layers)
    if trained:
        torch.nn.init.normal_(head.to_residual.weight)
        torch.nn.init.normal_(head.to_residual.bias)
    return head


def make_inputs(queries=3, rows=4, grid=GRID, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    patches = grid[0] * grid[1]
    occupied = torch.ones(queries, rows, dtype=torch.bool)
    occupied[:, -1:] = False
    return {
        "hidden_states": torch.randn(queries, 5, generator=generator).to(dtype),
        "tokens": torch.randn(queries, rows, 6, generator=generator).to(dtype),
        "occupied": occupied,
        "masks": torch.randn(queries, rows, patches, generator=generator).softmax(1).to(dtype),
        "features": torch.randn(queries, patches, 7, generator=generator).to(dtype),
    }


def parts_of(logits):
    return logits.clusters, logits.coarse, logits.fine, logits.memberships


def bilinear(image, size):
    """Upsample (H, W) to (h, w) between pixel centres, with edges repeated."""
    rows, columns = image.shape
    result = torch.empty(size, dtype=image.dtype)
    for i in range(size[0]):
        y = min(max((i + 0.5) * rows / size[0] - 0.5, 0), rows - 1)
        for j in range(size[1]):
            x = min(max((j + 0.5) * columns / size[1] - 0.5, 0), columns - 1)
            top, left = min(int(y), max(rows - 2, 0)), min(int(x), max(columns - 2, 0))
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            v, u = y - top, x - left
            upper = (1 - u) * image[top, left] + u * image[top, right]
            lower = (1 - u) * image[bottom, left] + u * image[bottom, right]
            result[i, j] = (1 - v) * upper + v * lower
    return result


def test_logits_of_clusters_and_patches_equal_loops():
    head, inputs = make_head(), make_inputs()
    out = head(**inputs, grid=GRID, size=SIZE)
    for q in range(3):
        query = head.to_query(inputs["hidden_states"][q])[:8]
        logits = [head.to_key(inputs["tokens"][q, r]) @ query / math.sqrt(8) for r in range(3)]
        torch.testing.assert_close(out.clusters[q, :3], torch.stack(logits))
        for n in range(12):
            weights = inputs["masks"][q, :3, n] / inputs["masks"][q, :3, n].sum()
            patch = (q, n // 4, n % 4)
            torch.testing.assert_close(out.coarse[patch], weights @ torch.stack(logits))
            torch.testing.assert_close(out.memberships[q, :3, n // 4, n % 4], weights)
    assert (out.clusters[:, 3] == 0).all() and (out.memberships[:, 3] == 0).all()


def test_a_new_head_upsamples_the_coarse_logits_bilinearly():
    out = make_head()(**make_inputs(), grid=GRID, size=SIZE)
    expected = torch.stack([bilinear(coarse, SIZE) for coarse in out.coarse])
    torch.testing.assert_close(out.fine, expected, atol=1e-6, rtol=1e-5)


def test_fine_decoder_equals_its_formula():
    head, inputs = make_head(layers=2, trained=True), make_inputs()
    out = head(**inputs, grid=GRID, size=SIZE)
    for q in range(3):
        patches = head.to_patch(inputs["features"][q])  # (N, width)
        similarity = patches @ head.to_query(inputs["hidden_states"][q])[8:] / math.sqrt(8)
        evidence = torch.stack([out.coarse[q].flatten().sigmoid(), similarity], 1)
        x = head.mix(torch.cat([patches, evidence], 1)).T.reshape(8, *GRID)
        for scale in (GRID, (6, 7), (10, 7)):
            x = torch.stack([bilinear(channel, scale) for channel in x])
            for layer in head.convolutions:
                weight, bias = layer.around.weight, layer.around.bias
                shifted = F.pad(x, (1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
                around = (shifted * weight[:, 0, None, None]).sum((-1, -2)) + bias[:, None, None]
                across = torch.einsum("oc,chw->ohw", layer.across.weight[..., 0, 0], around)
                x = x + F.gelu(across + layer.across.bias[:, None, None])
        added = torch.einsum("c,chw->hw", head.to_residual.weight[0, :, 0, 0], x)
        expected = bilinear(out.coarse[q], SIZE) + added + head.to_residual.bias
        torch.testing.assert_close(out.fine[q], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "grid, size, expected",
    [
        ((20, 20), (64, 64), [(20, 20), (40, 40), (64, 64)]),
        ((8, 8), (32, 32), [(8, 8), (16, 16), (32, 32)]),
        ((8, 8), (8, 8), [(8, 8)]),
        # Never below the grid, each axis on its own.
        ((4, 9), (16, 5), [(4, 9), (8, 9), (16, 9)]),
        ((8, 8), (1, 3), [(8, 8)]),
    ],
)
def test_scales_double_up_to_the_size(grid, size, expected):
    assert _scales(grid, size) == expected


@pytest.mark.parametrize("grid", [(1, 1), (5, 2)])
@pytest.mark.parametrize("size", [(1, 1), (3, 11), (5, 2)])
def test_any_grid_and_any_size(grid, size):
    head = make_head(trained=True)
    out = head(**make_inputs(2, 3, grid), grid=list(grid), size=list(size))
    assert out.clusters.shape == (2, 3) and out.memberships.shape == (2, 3, *grid)
    assert out.coarse.shape == (2, *grid) and out.fine.shape == (2, *size)
    assert out.fine.isfinite().all()


def test_a_smaller_mask_averages_the_patches():
    out = make_head()(**make_inputs(grid=(4, 4)), grid=(4, 4), size=(1, 1))
    # The antialiasing filter of scale 1 / 4 is a triangle 8 patches wide.
    weight = torch.tensor([2.5, 3.5, 3.5, 2.5]) / 12
    expected = torch.einsum("i,qij,j->q", weight, out.coarse, weight)
    torch.testing.assert_close(out.fine[:, 0, 0], expected)


def test_queries_are_independent():
    head, inputs = make_head(trained=True), make_inputs()
    together = head(**inputs, grid=GRID, size=SIZE)
    alone = head(**{name: x[1:2] for name, x in inputs.items()}, grid=GRID, size=SIZE)
    torch.testing.assert_close(alone.fine[0], together.fine[1], atol=1e-5, rtol=1e-5)


def test_the_order_of_the_rows_does_not_matter():
    head, inputs = make_head(trained=True), make_inputs()
    order = torch.tensor([3, 1, 0, 2])
    mixed = {name: inputs[name][:, order] for name in ("tokens", "occupied", "masks")}
    out = head(**inputs, grid=GRID, size=SIZE)
    other = head(**(inputs | mixed), grid=GRID, size=SIZE)
    torch.testing.assert_close(other.clusters, out.clusters[:, order])
    torch.testing.assert_close(other.fine, out.fine, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
def test_unoccupied_rows_leak_nowhere(junk):
    head, inputs = make_head(trained=True), make_inputs()
    target = torch.zeros(3, *SIZE, dtype=torch.bool)
    results = []
    for filling in (0.0, junk):
        for name in ("tokens", "masks"):
            inputs[name] = inputs[name].detach().clone()
            inputs[name][:, 3] = filling
            inputs[name].requires_grad_()
        out = head(**inputs, grid=GRID, size=SIZE)
        loss = mask_loss(out, target)
        over = [inputs["tokens"], inputs["masks"], *head.parameters()]
        results.append([*parts_of(out), loss, *torch.autograd.grad(loss, over)])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
    assert (results[1][5][:, 3] == 0).all() and (results[1][6][:, 3] == 0).all()


def test_without_occupied_rows_a_new_head_has_zero_logits():
    head, inputs = make_head(), make_inputs()
    inputs["occupied"][1] = False
    out = head(**inputs, grid=GRID, size=SIZE)
    assert (out.fine[1] == 0).all() and (out.fine[0] != 0).all()
    loss = mask_loss(out, torch.ones(3, *SIZE))
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(head.parameters())))


def test_gradient_reaches_every_input_and_every_parameter():
    head, inputs = make_head(trained=True), make_inputs()
    floats = [inputs[name].requires_grad_() for name in NAMES if name != "occupied"]
    target = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) > 0.5
    mask_loss(head(**inputs, grid=GRID, size=SIZE), target).backward()
    for x in [*floats, *head.parameters()]:
        assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_no_query_gives_zero_connected_to_every_parameter():
    head = make_head()
    out = head(**make_inputs(0), grid=GRID, size=SIZE)
    assert out.fine.shape == (0, *SIZE) and out.clusters.shape == (0, 4)
    loss = mask_loss(out, torch.zeros(0, *SIZE, dtype=torch.bool))
    assert loss.shape == () and loss == 0
    loss.backward()
    assert all((p.grad == 0).all() for p in head.parameters())


def test_half_precision_and_autocast_give_a_float32_loss():
    inputs, target = make_inputs(), torch.ones(3, *SIZE, dtype=torch.bool)
    exact = mask_loss(make_head(trained=True)(**inputs, grid=GRID, size=SIZE), target)
    with torch.autocast("cpu", torch.bfloat16):
        out = make_head(trained=True)(**inputs, grid=GRID, size=SIZE)
        cast = mask_loss(out, target)
    assert out.coarse.dtype == torch.bfloat16
    # Features and hidden states are float32 even for a model in half precision.
    for size in (SIZE, (2, 2)):
        half = make_head(trained=True).bfloat16()(**inputs, grid=GRID, size=size)
        assert half.fine.dtype == torch.bfloat16 and half.fine.shape == (3, *size)
    for loss in (exact, cast):
        assert loss.dtype == torch.float32
    torch.testing.assert_close(cast, exact, atol=0, rtol=0.03)
    # The loss adds no rounding to logits in half precision: a sum of 200 pixels exceeds bfloat16.
    logits = MaskLogits(*(x.bfloat16() for x in parts_of(out)))
    with torch.autocast("cpu", torch.bfloat16):
        found = mask_loss(logits, target)
    again = MaskLogits(*(x.float() for x in parts_of(logits)))
    assert torch.equal(found, mask_loss(again, target))


def hand_made(fine=0.0):
    """Return one mask of 2 × 2 pixels on 1 × 2 patches; the last of three clusters is empty."""
    memberships = torch.tensor([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]]).reshape(1, 3, 1, 2)
    clusters = torch.tensor([[math.log(2), -math.log(3), 99.0]])
    pixels = torch.full((1, 2, 2), fine)
    return MaskLogits(clusters, torch.zeros(1, 1, 2), pixels, memberships)


def test_loss_equals_hand_computed_values():
    target = torch.tensor([[[True, False], [False, False]]])
    parts = [
        mask_loss(hand_made(), target, bce=a, dice=b, clusters=c).item()
        for a, b, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    # Probabilities of 1/2: Dice is 1 - (2 · 1/2 + 1) / (2 + 1 + 1). The target is half of the
    # first patch, so 1/3 of the first cluster, which has 1.5 patches, and 0 of the second.
    first = math.log(3) - math.log(2) / 3
    second = math.log(4 / 3)
    assert parts == pytest.approx([math.log(2), 0.5, (first + second) / 2], abs=1e-6)
    weighted = mask_loss(hand_made(), target.double(), bce=2, dice=3, clusters=5)
    assert weighted.item() == pytest.approx(2 * parts[0] + 3 * parts[1] + 5 * parts[2], abs=1e-6)


def test_the_targets_of_clusters_carry_no_gradient():
    logits = hand_made()
    logits.memberships.requires_grad_()
    logits.clusters.requires_grad_()
    loss = mask_loss(logits, torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    over = [logits.memberships, logits.clusters]
    d_memberships, d_clusters = torch.autograd.grad(loss, over, allow_unused=True)
    assert d_memberships is None
    # (probability - target fraction) / 2, over the two clusters with patches.
    expected = torch.tensor([[(2 / 3 - 1 / 3) / 2, 1 / 4 / 2, 0]])
    torch.testing.assert_close(d_clusters, expected)


def test_the_loss_is_a_mean_over_masks():
    target = torch.tensor([[[1.0, 0.25], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    one, other = hand_made(0.5), hand_made(-2.0)
    pairs = zip(parts_of(one), parts_of(other), strict=True)
    both = MaskLogits(*(torch.cat(pair) for pair in pairs))
    expected = (mask_loss(one, target[:1]) + mask_loss(other, target[1:])) / 2
    torch.testing.assert_close(mask_loss(both, target), expected)


def test_ranks_with_different_numbers_of_masks_average_to_the_loss_of_all(monkeypatch):
    head, inputs = make_head(trained=True), make_inputs()
    target = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) > 0.5
    everything = mask_loss(head(**inputs, grid=GRID, size=SIZE), target)
    monkeypatch.setattr(losses, "world_size", lambda: 4)
    for split, mean in (((0, 1, 3, 3, 3), 0.75), ((0, 0, 0, 1, 1), 0.25)):
        monkeypatch.setattr(losses, "mean_over_ranks", lambda x, mean=mean: torch.tensor(mean))
        parts = []
        for a, b in itertools.pairwise(split):
            own = {name: x[a:b] for name, x in inputs.items()}
            parts.append(mask_loss(head(**own, grid=GRID, size=SIZE), target[a:b]))
        if mean == 0.25:
            monkeypatch.undo()
            first = {name: x[:1] for name, x in inputs.items()}
            everything = mask_loss(head(**first, grid=GRID, size=SIZE), target[:1])
        torch.testing.assert_close(sum(parts) / 4, everything)


def test_the_loss_of_an_empty_target_is_finite():
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert mask_loss(hand_made(-40.0), nothing, clusters=0).item() == pytest.approx(0, abs=1e-6)
    # Four false-positive pixels: the cross-entropy of each is 40, Dice 1 - 1 / (4 + 1).
    assert mask_loss(hand_made(40.0), nothing, clusters=0).item() == pytest.approx(40.8)
    everything = torch.ones(1, 2, 2)
    assert mask_loss(hand_made(40.0), everything, clusters=0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "target, message",
    [
        (torch.zeros(1, 2, 3), r"target: expected the shape of the masks, \(1, 2, 2\), got"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), "target: expected bool or a floating-point"),
    ],
)
def test_errors_name_the_target(target, message):
    with pytest.raises(ValueError, match=message):
        mask_loss(hand_made(), target)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (
            {"hidden_states": torch.zeros(3, 6)},
            ValueError,
            r"^hidden_states: expected shape \(3, 5\), got \(3, 6\)",
        ),
        (
            {"hidden_states": torch.zeros(3, 5).long()},
            TypeError,
            "^hidden_states: expected dtype float64",
        ),
        ({"tokens": torch.zeros(3, 5, 6)}, ValueError, r"tokens: expected shape \(3, 4, 6\)"),
        ({"occupied": torch.ones(3, 4)}, TypeError, "occupied: expected dtype torch.bool"),
        ({"occupied": torch.ones(3).bool()}, ValueError, r"occupied: expected shape \(Q, R\)"),
        ({"occupied": None}, TypeError, "occupied: expected a torch.Tensor, got NoneType"),
        ({"masks": torch.zeros(3, 4, 11)}, ValueError, r"masks: expected shape \(3, 4, 12\)"),
        ({"masks": torch.zeros(3, 4, 12).bool()}, TypeError, "masks: expected dtype float64"),
        ({"features": torch.zeros(3, 12, 8)}, ValueError, r"features: expected shape \(3, 12, 7\)"),
        ({"grid": (3, 5)}, ValueError, r"features: expected shape \(3, 15, 7\)"),
        ({"grid": (12,)}, ValueError, r"grid: expected \(height, width\), got \(12,\)"),
        ({"size": (0, 3)}, ValueError, "size: expected at least 1, got 0"),
        ({"size": (2.0, 3)}, TypeError, "size: expected an int, got 2.0"),
    ],
)
def test_errors_name_the_input(changes, error, message):
    with pytest.raises(error, match=message):
        make_head()(**(make_inputs() | {"grid": GRID, "size": SIZE} | changes))


@pytest.mark.parametrize("name", ["hidden_dim", "token_dim", "feature_dim", "width", "layers"])
def test_errors_name_a_size_of_zero(name):
    fields = dict.fromkeys(("hidden_dim", "token_dim", "feature_dim", "width", "layers"), 2)
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        SegmentationHead(**(fields | {name: 0}))


def discs(generator, embeddings, colours, samples=24, grid=8, size=24):
    """Return discs of different kinds on a background; the hidden state names one of four kinds.

    Returns:
        Arguments of the head, (samples, size, size) bool targets, and (samples,) named rows.
    """
    y, x = torch.meshgrid(*2 * [torch.arange(size) + 0.5], indexing="ij")
    labels = torch.zeros(samples, size, size, dtype=torch.int64)
    for row in (1, 2, 3):
        v, u = size * torch.rand(2, samples, 1, 1, generator=generator)
        radius = 3 + 4 * torch.rand(samples, 1, 1, generator=generator)
        labels[(y - v) ** 2 + (x - u) ** 2 < radius**2] = row
    one_hot = F.one_hot(labels, 4).permute(0, 3, 1, 2).float()  # (samples, 4, size, size)
    fractions = F.adaptive_avg_pool2d(one_hot, grid).flatten(2)  # (samples, 4, N)
    masks = F.one_hot(fractions.argmax(1), 4).mT.float()
    occupied = masks.any(2)
    kinds = torch.rand(samples, len(embeddings), generator=generator).argsort(1)[:, :4]
    named = (torch.rand(samples, 4, generator=generator) * occupied).argmax(1)
    hidden_states = embeddings[kinds[torch.arange(samples), named]]
    features = fractions.mT @ colours[kinds]
    arguments = (
        hidden_states,
        embeddings[kinds],
        occupied,
        masks,
        features,
        (grid, grid),
        (size, size),
    )
    return arguments, labels == named[:, None, None], named


def test_training_selects_the_named_cluster_and_refines_boundaries():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(6, 12, generator=generator)
    colours = torch.randn(6, 8, generator=generator)
    torch.manual_seed(0)
    head = SegmentationHead(12, 12, 8, width=24)
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    for _ in range(120):
        arguments, target, _ = discs(generator, embeddings, colours)
        optimizer.zero_grad()
        mask_loss(head(*arguments), target).backward()
        optimizer.step()
    arguments, target, named = discs(generator, embeddings, colours, samples=100)
    with torch.no_grad():
        out = head(*arguments)
    selected = (out.clusters > 0) == F.one_hot(named, 4).bool()
    assert selected[arguments[2]].float().mean() > 0.98
    upsampled = F.interpolate(out.coarse[:, None], target.shape[1:], mode="bilinear")[:, 0]
    coarse, fine = (
        ((mask > 0) & target).sum((1, 2)) / ((mask > 0) | target).sum((1, 2))
        for mask in (upsampled, out.fine)
    )
    assert fine.mean() > coarse.mean() + 0.08 and fine.mean() > 0.8
