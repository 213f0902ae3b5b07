import dataclasses

import pytest
import torch

from helpers.rounding import assert_same_but_for_rounding
from helpers.tiny_setokim import picture
from helpers.tiny_stage1 import TINY
from setokim import SetokConfig, SetokModel
from setokim.data.stored_image import StoredImage
from setokim.data.tokens.layout import KINDS as STORABLE
from setokim.tokenizer.modeling_setok import VisualTokens
from setokim.tokenizer.stored_tokens import (
    as_stored,
    from_stored,
    join_stored,
    no_tokens,
    to_stored,
    visual_tokens,
)

CPU = torch.device("cpu")
KINDS = {
    "clusters": {},
    "hard clusters": {"residual": "nearest"},
    # Clusters that win no patch leave unoccupied rows between occupied ones.
    "empty rows": {
        "cluster": {"max_clusters": 8, "k": 4, "bandwidth": 1.2, "beta": 5.0, "offset": 0.9}
    },
    "grid": {"tokens": "grid", "token_grid": [2, 3]},
    "queries": {"tokens": "queries", "num_queries": 5},
    "patches": {"tokens": "patches"},
}


def tokenizer(kind: str) -> SetokModel:
    torch.manual_seed(0)
    return SetokModel(SetokConfig(**TINY["model"] | KINDS[kind])).eval()


@pytest.fixture(scope="module", params=KINDS)
def visual(request):
    with torch.no_grad():
        return tokenizer(request.param).tokenize([picture(seed) for seed in range(5)])


def assert_same_packed(found, expected):
    for order in ("seed", "raster", "size"):
        a, b = found.pack(order), expected.pack(order)
        for name in ("tokens", "cu_seqlens", "images", "sizes", "seeds", "seed_positions"):
            assert torch.equal(getattr(a, name), getattr(b, name)), (order, name)
            assert getattr(a, name).dtype == getattr(b, name).dtype, (order, name)
        assert torch.equal(a.centroids, b.centroids), order
        assert (a.max_seqlen, a.num_rows) == (b.max_seqlen, b.num_rows)


def sizes_of(visual):
    return [(24, 24)] * len(visual.tokens)


def test_float32_keeps_every_bit(visual):
    images = to_stored(visual, sizes_of(visual), STORABLE, torch.float32)
    rows = visual.tokens.shape[1]
    found = from_stored(images, rows, CPU, torch.float32)
    assert_same_packed(found, visual)
    assert found.grid == visual.grid and torch.equal(found.features, visual.features)
    assert found.clusters is None
    # Each patch has the label and the fractions of the same token.
    a, b = found.pack(), visual.pack()
    assert torch.equal(found.masks[a.images, a.rows], visual.masks[b.images, b.rows])
    for image in range(len(visual.tokens)):
        own = b.images == image
        token = torch.full((rows,), -1)
        token[b.rows[own]] = torch.arange(int(own.sum()))
        assert torch.equal(found.labels[image], token[visual.labels[image]])
    assert torch.equal(found.occupied, found.parts.occupied())
    assert not found.tokens[~found.occupied].any()


def test_the_form_on_the_device_is_that_of_the_files(visual):
    images = to_stored(visual, sizes_of(visual), STORABLE, torch.float32)
    expected = from_stored(images, visual.tokens.shape[1], CPU, torch.float32)
    found = as_stored(visual)
    assert as_stored(found) is found
    for name in ("tokens", "occupied", "features", "masks", "labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for field in dataclasses.fields(found.parts):
        a, b = (getattr(one.parts, field.name) for one in (found, expected))
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_rows_without_patches_are_dropped():
    with torch.no_grad():
        visual = tokenizer("empty rows").tokenize([picture(seed) for seed in range(5)])
    last = visual.occupied.int().cumsum(1).argmax(1)
    gaps = last + 1 > visual.occupied.sum(1)
    assert gaps.any(), "the case needs an unoccupied row before an occupied one"
    images = to_stored(visual, sizes_of(visual))
    assert [len(image.sizes) for image in images] == visual.occupied.sum(1).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_floats_alone(visual, dtype):
    images = to_stored(visual, sizes_of(visual), STORABLE, dtype)
    assert {images[0].tokens.dtype, images[0].masks.dtype, images[0].features.dtype} == {dtype}
    assert images[0].positions.dtype == torch.float32
    found = from_stored(images, visual.tokens.shape[1], CPU, torch.float32)
    assert found.tokens.dtype == found.masks.dtype == found.features.dtype == torch.float32
    a, b = found.pack("raster"), visual.pack("raster")
    assert torch.equal(a.tokens, b.tokens.to(dtype).float())
    assert torch.equal(a.centroids, b.centroids) and torch.equal(a.sizes, b.sizes)


def test_what_is_not_stored_is_named(visual):
    images = to_stored(visual, sizes_of(visual), ("tokens",))
    assert images[0].labels is images[0].masks is images[0].features is None
    found = from_stored(images, visual.tokens.shape[1], CPU, torch.float32)
    assert found.features is None
    for name in ("masks", "labels"):
        with pytest.raises(ValueError, match=f"{name}: expected tokens with {name}, got stored"):
            getattr(found, name)


def test_images_join_with_what_all_have(visual):
    number = len(visual.tokens)
    bare = from_stored(
        to_stored(visual, sizes_of(visual), ("tokens", "labels"), torch.float32),
        visual.tokens.shape[1],
        CPU,
        torch.float32,
    )
    joined = join_stored([bare, as_stored(visual)])
    assert joined.features is None and joined.parts.masks is None
    assert_same_packed(joined, VisualTokens.join([visual, visual]))
    assert torch.equal(joined.labels[:number], joined.labels[number:])
    chosen = joined.select(torch.tensor([number, 0]))
    assert torch.equal(chosen.tokens[0], chosen.tokens[1])


def test_gradients_reach_the_tokenizer():
    model = tokenizer("clusters")
    tokens = as_stored(model.tokenize([picture(0), picture(1)])).pack("size").tokens
    tokens.square().sum().backward()
    assert model.merger.project_out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_knows_its_rows_without_an_image(kind):
    model = tokenizer(kind)
    rows = model.tokenize([picture(0)]).tokens.shape[1]
    assert model.max_tokens() == rows
    nothing = no_tokens(model, rows)
    assert nothing.tokens.shape == (0, rows, model.config.token_dim)
    assert nothing.pack("size").cu_seqlens.tolist() == [0] and nothing.grid == (6, 6)


def test_images_of_all_kinds_in_any_order():
    """Stored images are not tokenized; features are, and RGB images by the given function."""
    model, images = tokenizer("clusters"), [picture(seed) for seed in range(6)]
    with torch.no_grad():
        expected = model.tokenize(images)
    whole = to_stored(expected, sizes_of(expected), STORABLE, torch.float32)
    bare = [dataclasses.replace(image, tokens=None, masks=None) for image in whole]
    mixed = [whole[0], images[1], bare[2], whole[3], bare[4], images[5]]
    asked = []

    def tokenize(own):
        asked.extend(own)
        return model.tokenize(own)

    with torch.no_grad():
        found = visual_tokens(model, mixed, tokenize)
        assert asked == [images[1], images[5]]
        assert_same_but_for_rounding(found.pack("raster").tokens, expected.pack("raster").tokens)
        assert torch.equal(found.pack("raster").sizes, expected.pack("raster").sizes)
        assert torch.equal(found.features, expected.features)
        # Of one kind there is nothing to convert.
        assert visual_tokens(model, images).clusters is not None
    model.reads_features = True
    loss = visual_tokens(model, mixed[2:4]).tokens.square().sum()
    loss.backward()
    assert model.merger.project_out.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="expected stored images with features to tokenize, got"):
        visual_tokens(model, [dataclasses.replace(whole[0], features=None)])
    model.reads_features = False
    with pytest.raises(ValueError, match="expected stored images with tokens or features, got"):
        visual_tokens(model, [dataclasses.replace(bare[0], features=None)])


def stored(n=2, grid=(1, 2, 2), channels=3, **fields):
    return StoredImage(
        height=8,
        width=8,
        grid=grid,
        sizes=torch.ones(n, dtype=torch.int64),
        positions=torch.zeros(n, 3),
        seeds=torch.zeros(n, dtype=torch.int64),
        **{"tokens": torch.ones(n, channels)} | fields,
    )


def test_an_image_may_have_no_token():
    found = from_stored([stored(0), stored(2), stored(0)], 3, CPU, torch.float32)
    packed = found.pack("raster")
    assert packed.cu_seqlens.tolist() == [0, 0, 2, 2] and found.tokens.shape == (3, 3, 3)
    only = from_stored([stored(0)], 3, CPU, torch.float32).pack()
    assert only.tokens.shape == (0, 3) and only.max_seqlen == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([stored(tokens=None)], "expected stored tokens, got an image without"),
        ([stored(4)], "expected at most 3 tokens, got 4"),
        (
            [stored(), stored(grid=(1, 1, 4))],
            r"expected one frame and the grid of the first image, \(1, 2, 2\), got",
        ),
        ([stored(grid=(2, 1, 2))], r"expected one frame .* got \(2, 1, 2\)"),
        ([stored(), stored(channels=4)], "expected tokens of 3 channels, got 4"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ValueError, match=f"images: {message}"):
        from_stored(images, 3, CPU, torch.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"what": ("tokens", "pixels")}, ValueError, "what: expected some of tokens, .*'pixels'"),
        ({"dtype": torch.int8}, TypeError, "dtype: expected one of .*bfloat16.* got torch.int8"),
        ({"sizes": []}, ValueError, r"sizes: expected one for each of 1 images, got \[\]"),
    ],
)
def test_what_cannot_be_stored_is_refused(arguments, error, message):
    with torch.no_grad():
        visual = tokenizer("grid").tokenize([picture(0)])
    with pytest.raises(error, match=message):
        to_stored(visual, **{"sizes": [(24, 24)]} | arguments)


def test_tokens_without_features_cannot_store_them(visual):
    with pytest.raises(ValueError, match="what: expected no features"):
        to_stored(dataclasses.replace(visual, features=None), sizes_of(visual), ("features",))
