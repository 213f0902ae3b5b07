"""Vision encoders alone that return one token per cluster of patches."""

import copy

import pytest
import torch

import setok_kernels as sk
from setok_kernels.integrations.transformers import reduce_visual_tokens, restore

PATCHES = 36
SMALL = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=48,
    patch_size=8,
)
# Configuration class, model class and number of tokens in front of the patches.
MODELS = {
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", {}, 1),
    "clip_projection": ("CLIPVisionConfig", "CLIPVisionModelWithProjection", {}, 1),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", {}, 0),
    "dinov2": ("Dinov2Config", "Dinov2Model", {}, 1),
    "dinov2_registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        {"num_register_tokens": 3},
        4,
    ),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", {"num_register_tokens": 2}, 3),
}


@pytest.fixture(params=MODELS)
def encoder(request):
    """A random encoder, and the number of tokens in front of its patches."""
    import transformers

    config_class, model_class, options, front = MODELS[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**SMALL, **options)
    return getattr(transformers, model_class)(config).eval(), front


def pixels_of(images=3, seed=0):
    """Images of coarse blocks, finer from image to image, which have different clusters."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [
        torch.nn.functional.interpolate(
            torch.randn(1, 3, 2 + i, 2 + i, generator=generator), size=48, mode="nearest"
        )
        for i in range(images)
    ]
    return torch.cat(blocks) + 0.05 * torch.randn(images, 3, 48, 48, generator=generator)


def merged_by_hand(patches, **budget):
    """Return (place, mean of the members) for each cluster of one image, by place."""
    out = sk.cluster_tokens(patches[None], **budget)
    rows = []
    for row in out.labels[0].unique().tolist():
        members = (out.labels[0] == row).nonzero()[:, 0].tolist()
        seed = int(out.decisions.seeds[0, row]) if row < int(out.counts[0]) else -1
        rows.append((seed if seed in members else members[0], patches[members].mean(0)))
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.parametrize(
    "budget",
    [{}, {"rate": 0.3}, {"num_clusters": 5, "exact": True}],
    ids=["default", "rate", "exact"],
)
def test_the_output_has_the_merged_tokens_of_each_image(encoder, budget):
    model, front = encoder
    pixels = pixels_of()
    with torch.no_grad():
        full = model(pixels, output_hidden_states=True)
        reduction = reduce_visual_tokens(model, **budget)
        few = model(pixels, output_hidden_states=True)
    rows = [merged_by_hand(hidden[front:], **budget) for hidden in full.last_hidden_state]
    longest = max(map(len, rows))
    assert few.last_hidden_state.shape == (3, front + longest, 32)
    assert few.attention_mask.dtype == few.patches.dtype == torch.int64
    assert torch.equal(few.last_hidden_state[:, :front], full.last_hidden_state[:, :front])
    for image, row in enumerate(rows):
        end = front + len(row)
        assert few.patches[image, front:end].tolist() == [place for place, _ in row]
        expected = torch.stack([token for _, token in row])
        torch.testing.assert_close(few.last_hidden_state[image, front:end], expected)
        assert few.attention_mask[image].tolist() == [1] * end + [0] * (longest - len(row))
        assert not few.last_hidden_state[image, end:].any()
        assert (few.patches[image, :front] == -1).all() and (few.patches[image, end:] == -1).all()
    assert reduction.counts == [(PATCHES, len(row)) for row in rows]
    # All other fields are the model's own.
    for name, value in full.items():
        if name == "hidden_states":
            assert all(map(torch.equal, few.hidden_states, value))
        elif name != "last_hidden_state":
            assert torch.equal(few[name], value)


@torch.no_grad()
def test_one_cluster_per_patch_changes_nothing(encoder):
    model, front = encoder
    pixels = pixels_of()
    full = model(pixels).last_hidden_state
    reduce_visual_tokens(model, rate=1.0, exact=True)
    few = model(pixels)
    assert torch.equal(few.last_hidden_state, full)
    assert few.attention_mask.all()
    assert few.patches[:, front:].tolist() == [list(range(PATCHES))] * 3


@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one(encoder):
    model, _ = encoder
    pixels = pixels_of()
    reduce_visual_tokens(model, rate=0.3)
    together = model(pixels)
    for image in range(3):
        alone = model(pixels[image : image + 1])
        rows = together.attention_mask[image].bool()
        assert torch.equal(together.patches[image][rows], alone.patches[0])
        got = together.last_hidden_state[image][rows]
        torch.testing.assert_close(got, alone.last_hidden_state[0])


def test_the_gradient_reaches_the_pixels_and_the_weights(encoder):
    model, front = encoder
    pixels = pixels_of().requires_grad_()
    full = model(pixels).last_hidden_state
    loss = torch.stack(
        [
            torch.stack([token for _, token in merged_by_hand(hidden[front:], rate=0.3)])
            .square()
            .sum()
            for hidden in full
        ]
    ).sum()
    weight = next(p for n, p in model.named_parameters() if n.endswith("weight") and p.dim() == 4)
    expected = torch.autograd.grad(loss, [pixels, weight])
    reduce_visual_tokens(model, rate=0.3)
    out = model(pixels)
    assert out.last_hidden_state.requires_grad
    got = torch.autograd.grad(out.last_hidden_state[:, front:].square().sum(), [pixels, weight])
    for one, other in zip(got, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("by", ["handle", "function"])
def test_restoring_gives_the_original_bits(encoder, by):
    model, _ = encoder
    pixels = pixels_of()
    attributes, full = dict(model.__dict__), model(pixels)
    reduction = reduce_visual_tokens(model, rate=0.3)
    assert model(pixels).last_hidden_state.shape[1] < full.last_hidden_state.shape[1]
    if by == "handle":
        reduction.restore()
    else:
        restore(model)
    assert model.__dict__ == attributes
    again = model(pixels)
    assert type(again) is type(full)
    assert torch.equal(again.last_hidden_state, full.last_hidden_state)


@torch.no_grad()
def test_a_tuple_has_the_fields_in_order(encoder):
    model, _ = encoder
    pixels = pixels_of()
    reduce_visual_tokens(model, rate=0.3)
    out = model(pixels)
    fields = model(pixels, return_dict=False)
    assert isinstance(fields, tuple)
    names = ["last_hidden_state", "attention_mask", "patches"]
    assert list(out)[:3] == names
    assert len(fields) == len(out)
    assert all(map(torch.equal, fields, out.to_tuple()))


@torch.no_grad()
def test_a_copy_is_reduced_on_its_own(encoder):
    model, _ = encoder
    pixels = pixels_of()
    reduce_visual_tokens(model, rate=0.3)
    other = copy.deepcopy(model)
    few = model(pixels).last_hidden_state
    restore(model)
    assert torch.equal(other(pixels).last_hidden_state, few)
    assert model(pixels).last_hidden_state.shape[1] > few.shape[1]


@torch.no_grad()
def test_patches_that_are_padding_belong_to_no_cluster():
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    torch.manual_seed(0)
    sizes = {name: SMALL[name] for name in SMALL if name != "image_size"}
    model = Siglip2VisionModel(Siglip2VisionConfig(**sizes, num_patches=16)).eval()
    shapes = torch.tensor([[2, 5], [3, 4]])
    mask = torch.arange(12) < shapes.prod(1, keepdim=True)
    inputs = {
        "pixel_values": torch.randn(2, 12, 3 * 8 * 8),
        "pixel_attention_mask": mask.long(),
        "spatial_shapes": shapes,
    }
    full = model(**inputs)
    reduction = reduce_visual_tokens(model, rate=0.5, exact=True)
    few = model(**inputs)
    assert reduction.counts == [(10, 5), (12, 6)]
    assert few.attention_mask.tolist() == [[1] * 5 + [0], [1] * 6]
    for image, hidden in enumerate(full.last_hidden_state):
        rows = merged_by_hand(hidden[mask[image]], rate=0.5, exact=True)
        expected = torch.stack([token for _, token in rows])
        torch.testing.assert_close(few.last_hidden_state[image, : len(rows)], expected)
    assert torch.equal(few.pooler_output, full.pooler_output)


def test_a_head_on_the_encoder_is_named():
    from transformers import Dinov2Config, Dinov2ForImageClassification

    model = Dinov2ForImageClassification(Dinov2Config(**SMALL))
    with pytest.raises(ValueError, match="model: expected Dinov2Model, got Dinov2ForImageClass"):
        reduce_visual_tokens(model, rate=0.3)


def test_the_output_is_a_pytree():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = SiglipVisionModel(SiglipVisionConfig(**SMALL)).eval()
    reduce_visual_tokens(model, rate=0.3)
    out = model(pixels_of())
    leaves, spec = torch.utils._pytree.tree_flatten(out)
    again = torch.utils._pytree.tree_unflatten(leaves, spec)
    assert type(again) is type(out)
    assert again.patches is out.patches
