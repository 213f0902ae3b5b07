"""Groupings other than clusters: cells of a grid, learned queries, patches."""

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import setok_kernels as sk
from helpers.rounding import assert_same_but_for_rounding, assert_same_weights
from setok_bench.merger import loop_over_clusters
from setokim import SetokConfig, SetokModel
from setokim.tokenizer.configuration_setok import TOKENS
from setokim.tokenizer.merger import PatchMerger, QueryMerger, TokenMerger
from setokim.tokenizer.shapelets import encode_shapelets
from setokim.tokenizer.token_grouping import (
    ClusterGrouping,
    GridGrouping,
    PatchGrouping,
    QueryGrouping,
    QueryGroups,
    TokenGroups,
)

GRID = (6, 8)
FIELDS = dict(
    grid=GRID,
    patch_size=4,
    cluster=dict(max_clusters=6),
    width=32,
    heads=4,
    intra_layers=2,
    inter_layers=1,
    token_dim=24,
    outline_dim=8,
    decoder_width=32,
    decoder_layers=1,
    decoder_cross_layers=1,
    decoder_grid=(4, 4),
    decoder_patch_size=4,
    concept_dim=16,
)
KINDS = {
    "clusters": ({}, 7),
    "grid": (dict(token_grid=(2, 3)), 6),
    "queries": (dict(num_queries=5), 5),
    "patches": ({}, 48),
}


def build(kind):
    torch.manual_seed(0)
    return SetokModel(SetokConfig(**FIELDS, tokens=kind, **KINDS[kind][0]))


@pytest.fixture(scope="module")
def models():
    assert KINDS.keys() == set(TOKENS)
    return {kind: build(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(models, kind):
    return models[kind]


@pytest.fixture(scope="module")
def pixels():
    coarse = torch.rand(3, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, (24, 32), mode="nearest")


@pytest.fixture
def features():
    return torch.randn(2, 48, 12, generator=torch.Generator().manual_seed(2))


class TestEveryKind:
    def test_shapes_and_types(self, model, kind, pixels):
        visual, picture = model(pixels)
        rows = KINDS[kind][1]
        assert visual.tokens.shape == (3, rows, 24) and picture.shape == (3, 3, 16, 16)
        assert visual.occupied.shape == (3, rows) and visual.occupied.dtype == torch.bool
        assert visual.masks.shape == (3, rows, 48) and visual.masks.dtype == torch.float32
        assert visual.labels.shape == (3, 48) and visual.labels.dtype == torch.int64
        assert torch.equal(visual.features, model.encoder(pixels).flatten(1, 2))
        assert visual.grid == GRID
        assert (visual.clusters is not None) == (kind == "clusters")
        assert kind == "clusters" or visual.occupied.all()

    def test_masks_sum_to_one_and_labels_are_their_largest(self, model, pixels):
        visual = model.tokenize(pixels)
        torch.testing.assert_close(visual.masks.sum(1), torch.ones(3, 48))
        assert (visual.masks >= 0).all()
        assert torch.equal(visual.labels, visual.masks.max(1).indices)

    def test_shapes_have_unit_length(self, model, pixels):
        visual = model.tokenize(pixels)
        length = visual.tokens[..., -5:].norm(dim=-1)
        torch.testing.assert_close(length, visual.occupied.float(), atol=1e-5, rtol=0)

    def test_an_image_does_not_see_another(self, model, pixels):
        alone = model.tokenize(pixels[1:2]).tokens
        torch.testing.assert_close(model.tokenize(pixels).tokens[1:2], alone, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("order", ["seed", "raster", "size"])
    def test_packed(self, model, pixels, order):
        visual = model.tokenize(pixels)
        packed = visual.pack(order)
        assert packed.cu_seqlens.diff().tolist() == visual.occupied.sum(1).tolist()
        assert torch.equal(packed.tokens, visual.tokens[packed.images, packed.rows])
        assert torch.equal(packed.unpack(), visual.tokens)
        per_image = torch.split(torch.arange(len(packed.rows)), packed.cu_seqlens.diff().tolist())
        for own in per_image:
            key = {
                "seed": packed.rows[own],
                "raster": 100 * packed.centroids[own, 0].round() + packed.centroids[own, 1],
                "size": -packed.sizes[own],
            }[order]
            assert (key.diff() >= 0).all()

    def test_ragged_and_padded_tokens_reconstruct_the_same(self, model, pixels):
        visual, picture = model(pixels)
        packed = visual.pack()
        again = model.detokenize(packed.tokens, packed.cu_seqlens)
        torch.testing.assert_close(again, picture, atol=1e-5, rtol=0)

    def test_everything_gets_a_gradient(self, kind, pixels):
        made = build(kind)
        visual, picture = made(pixels)
        (picture.square().sum() + made.to_concept(visual.tokens).square().sum()).backward()
        assert [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []

    def test_saved_and_loaded_has_the_same_weights(self, model, kind, pixels, tmp_path):
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["tokens"] == kind
        loaded = SetokModel.from_pretrained(tmp_path)
        assert_same_weights(loaded, model)
        found, expected = (m.tokenize(pixels).tokens for m in (loaded, model))
        assert_same_but_for_rounding(found, expected)

    def test_bfloat16(self, kind, pixels):
        made = build(kind)
        exact = made.tokenize(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            # With the same groups: rounded features may give other clusters.
            tokens, occupied = made.merger(exact.features, exact.parts, GRID)
            assert made.tokenize(pixels).masks.dtype == torch.float32
        assert torch.equal(occupied, exact.occupied)
        assert (tokens.float() - exact.tokens).abs().max() < 0.05
        assert made.bfloat16().tokenize(pixels).tokens.dtype == torch.bfloat16

    def test_no_image(self, model):
        visual = model.tokenize(torch.zeros(0, 3, 24, 32))
        assert visual.tokens.shape[0] == 0 and visual.pack().tokens.shape == (0, 24)

    def test_the_rest_of_the_model_is_the_same(self, models, model):
        for name in ("encoder", "detokenizer", "to_concept"):
            shapes = [
                {n: p.shape for n, p in getattr(m, name).named_parameters()}
                for m in (model, models["clusters"])
            ]
            assert shapes[0] == shapes[1]


def test_weights_of_clusters_keep_their_names(models):
    """Folders written before there were other kinds load."""
    config = SetokConfig(**FIELDS, learnable=("beta", "bandwidth"))
    names = {n for n, _ in SetokModel(config).named_parameters() if n.split(".")[0] != "encoder"}
    modules = {n.removesuffix(".weight").removesuffix(".bias") for n in names}
    assert {n for n in modules if n.startswith("clustering")} == {
        "clustering.beta",
        "clustering.log_bandwidth",
    }
    merger = {n.removeprefix("merger.") for n in modules if n.startswith("merger")}
    ends = {"norm_in", "project_in", "norm_mean", "project_mean", "norm_out", "project_out"}
    assert {n for n in merger if "." not in n} == ends
    assert {n.split(".")[0] for n in merger - ends} == {"intra", "inter"}
    # Random weights are sampled in this order, so a seed gives the same model as before.
    order = [name for name, _ in models["clusters"].merger.named_children()]
    assert order == [
        *("norm_in", "project_in", "intra", "norm_mean", "project_mean"),
        *("inter", "norm_out", "project_out"),
    ]


class TestGrid:
    @pytest.mark.parametrize(
        ("cells", "rows", "columns"),
        [
            # By hand: patch i of n, with its centre at (2i + 1) / 2n, is in cell (2i + 1) k // 2n.
            ((2, 3), [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 2, 2, 2]),
            ((6, 8), [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]),
            ((1, 1), [0] * 6, [0] * 8),
            ((4, 5), [0, 1, 1, 2, 3, 3], [0, 0, 1, 2, 2, 3, 4, 4]),
        ],
    )
    def test_cells_by_hand(self, features, cells, rows, columns):
        groups = GridGrouping(*cells)(features, GRID)
        expected = [y * cells[1] + x for y in rows for x in columns]
        assert groups.labels.tolist() == [expected, expected]
        assert torch.equal(groups.masks.argmax(1), groups.labels)
        assert (groups.sizes() > 0).all() and groups.num_rows == cells[0] * cells[1]

    def test_means_are_those_of_average_pooling(self, features):
        groups = GridGrouping(3, 4)(features, GRID)
        share = TokenMerger.membership(groups)
        maps = features.mT.unflatten(-1, GRID)  # (B, D, H, W)
        expected = F.adaptive_avg_pool2d(maps, (3, 4)).flatten(2).mT
        torch.testing.assert_close(share @ features, expected)

    def test_tokens_equal_a_loop_over_cells(self, features):
        torch.manual_seed(0)
        merger = TokenMerger(12, 16, 10, 6, 4, 2, 1)
        groups = GridGrouping(2, 3)(features, GRID)
        tokens, _ = merger(features, groups, GRID)
        expected = loop_over_clusters(merger, features, groups, GRID)
        torch.testing.assert_close(tokens.flatten(0, 1), expected, atol=1e-5, rtol=0)

    def test_more_cells_than_patches(self, features):
        message = "token_grid: expected at most the 6 × 8 patches of the encoder, got 7 × 2"
        with pytest.raises(ValueError, match=message):
            GridGrouping(7, 2)(features, GRID)


def test_patches_equal_a_loop_over_clusters_of_one(features):
    torch.manual_seed(0)
    merger = PatchMerger(12, 16, 10, 6, 4, 1)
    plain = TokenMerger(12, 16, 10, 6, 4, 0, 1)
    plain.load_state_dict(merger.state_dict())
    groups = PatchGrouping()(features, GRID)
    tokens, occupied = merger(features, groups, GRID)
    expected = loop_over_clusters(plain, features, groups, GRID)
    torch.testing.assert_close(tokens.flatten(0, 1), expected, atol=1e-5, rtol=0)
    assert occupied.all()
    # No mask of all patches for each image.
    assert groups.masks.untyped_storage().nbytes() == 48 * 48 * 4


class TestQueries:
    @pytest.fixture
    def grouping(self):
        torch.manual_seed(0)
        return QueryGrouping(12, 5, 16, 4, 2)

    def test_attention_is_that_of_the_last_layer(self, grouping, features):
        read = grouping(features, GRID)
        assert isinstance(read, QueryGroups) and read.hidden_states.shape == (2, 5, 16)
        seen = {}
        last = grouping.layers[-1]
        last.register_forward_pre_hook(lambda _, given: seen.update(x=given[0], context=given[2]))
        grouping(features, GRID)
        query = last.attend_cross.query(last.norm_cross(seen["x"]))
        key = last.attend_cross.key_value(seen["context"])[..., :16]
        heads = [
            (query[..., part] @ key[..., part].mT / 2).softmax(-1)
            for part in (slice(4 * h, 4 * h + 4) for h in range(4))
        ]
        share = sum(heads) / 4
        torch.testing.assert_close(read.attention, share)
        torch.testing.assert_close(read.masks, share / share.sum(1, keepdim=True))

    def test_shapelets_encode_the_attention(self, grouping, features):
        read = grouping(features, GRID)
        merger = QueryMerger(16, 14, 8, 4, 1)
        tokens, occupied = merger(features, read, GRID)
        torch.testing.assert_close(tokens[..., -8:], encode_shapelets(read.attention, GRID, 8))
        assert occupied.all()

    def test_the_area_is_the_fraction_of_the_image(self, features):
        """The channel beside content and shapelets, read by the next layer."""
        merger = QueryMerger(4, 9, 4, 2, 0)
        with torch.no_grad():
            for layer in (merger.project_mean, merger.project_out):
                layer.weight.zero_()
                layer.bias.zero_()
            merger.project_mean.weight[0, -1] = 1.0
            merger.project_out.weight[0, 0] = 1.0
            merger.norm_out = torch.nn.Identity()
        share = torch.tensor([[[0.5, 0.5, 0, 0], [0, 0.5, 0.25, 0.25]]])
        masks = torch.tensor([[[1, 0.5, 0, 0], [0, 0.5, 1, 1]]])
        read = QueryGroups(
            masks=masks,
            labels=masks.argmax(1),
            grid=(2, 2),
            hidden_states=torch.zeros(1, 2, 4),
            attention=share,
        )
        tokens, _ = merger(features[:1, :4], read, (2, 2))
        expected = torch.tensor([1.5 / 4, 2.5 / 4]).log()
        torch.testing.assert_close(tokens[0, :, 0], expected)

    def test_a_query_trains_its_attention(self, grouping, features):
        read = grouping(features, GRID)
        (read.masks[:, 0, :8].sum()).backward()
        assert all(p.grad is not None for p in grouping.layers[-1].attend_cross.query.parameters())
        assert grouping.queries.grad.any() and grouping.project_in.weight.grad.any()

    def test_every_query_is_packed(self):
        """Also for a row that is no patch's label."""
        masks = torch.tensor([[[0.6, 0.6, 0.1], [0.3, 0.2, 0.2], [0.1, 0.2, 0.7]]])
        groups = TokenGroups(masks=masks, labels=masks.argmax(1), grid=(1, 3))
        packed = groups.pack(torch.arange(3.0)[None, :, None])
        assert packed.rows.tolist() == [0, 1, 2] and packed.sizes.tolist() == [2, 0, 1]
        # The second lies where it is looked at most.
        assert packed.seeds.tolist() == [0, 0, 2]
        assert packed.centroids.tolist() == [[0, 0.5], [0, 0], [0, 2]]
        assert groups.pack(packed.unpack(), drop_empty=True).rows.tolist() == [0, 2]


class TestSelect:
    def test_every_field(self, model, pixels):
        visual = model.tokenize(pixels)
        chosen = visual.select(torch.tensor([2, 0, 2]))
        assert type(chosen) is type(visual) and chosen.grid == visual.grid
        for name in ("tokens", "occupied", "masks", "labels", "features"):
            assert torch.equal(getattr(chosen, name), getattr(visual, name)[[2, 0, 2]])
        lengths = visual.pack().cu_seqlens.diff()[[2, 0, 2]]
        assert torch.equal(chosen.pack().cu_seqlens.diff(), lengths)

    def test_the_decisions_behind_clusters(self, models, pixels):
        visual = models["clusters"].tokenize(pixels)
        chosen = visual.select(torch.tensor([1], dtype=torch.int32)).clusters
        alone = sk.cluster_tokens(visual.features[1:2], models["clusters"].config.cluster_config())
        for field in dataclasses.fields(alone.decisions):
            found = getattr(chosen.decisions, field.name)
            assert torch.equal(found, getattr(alone.decisions, field.name))
        assert torch.equal(chosen.counts, alone.counts)

    def test_gradient(self, model, pixels):
        visual = model.tokenize(pixels)
        tokens = visual.tokens.detach().requires_grad_()
        chosen = dataclasses.replace(visual, tokens=tokens).select(torch.tensor([1, 1]))
        chosen.tokens.sum().backward()
        assert tokens.grad.sum((1, 2)).tolist() == [0, 2 * tokens[1].numel(), 0]

    def test_none(self, model, pixels):
        empty = torch.zeros(0, dtype=torch.int64)
        assert model.tokenize(pixels).select(empty).tokens.shape[0] == 0

    def test_malformed_indices(self, models, pixels):
        visual = models["patches"].tokenize(pixels)
        with pytest.raises(TypeError, match=r"index: expected dtype .*, got torch\.bool"):
            visual.select(torch.tensor([True]))
        with pytest.raises(ValueError, match=r"index: expected shape \(Q,\), got \(1, 1\)"):
            visual.select(torch.tensor([[0]]))


def test_images_of_one_colour(model):
    images = [Image.new("RGB", (9, 9), colour) for colour in ("black", "red")]
    made = copy.deepcopy(model)
    visual, picture = made(made.preprocess(images))
    picture.sum().backward()
    assert visual.tokens.isfinite().all()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)


def test_patches_of_the_residual_go_to_the_cluster_of_their_largest_mask():
    torch.manual_seed(0)
    features = torch.rand(4, GRID[0] * GRID[1], 5)
    # No patch of an image without features is in a cluster.
    config = sk.ClusterConfig(max_clusters=3, offset=0.8, min_mass=1.0)
    kept = ClusterGrouping(config, (), 0.0)(features, GRID)
    found = ClusterGrouping(config, (), 0.0, residual="nearest")(features, GRID)
    moved = 0
    for image in range(4):
        count = int(kept.counts[image])
        for patch in range(features.shape[1]):
            label = int(kept.labels[image, patch])
            if label == count and count:
                label = int(kept.masks[image, :count, patch].argmax())
                moved += 1
            assert int(found.labels[image, patch]) == label
    assert moved > 5
    assert torch.equal(found.masks, kept.masks) and torch.equal(found.counts, kept.counts)
    # An image without a cluster keeps its residual.
    none = dataclasses.replace(config, min_mass=1e6)
    found = ClusterGrouping(none, (), 0.0, residual="nearest")(features, GRID)
    assert not found.counts.any() and not found.labels.any()
    assert found.occupied()[:, 0].all()
    with pytest.raises(ValueError, match="residual: expected token or nearest, got 'none'"):
        SetokConfig(residual="none")
