import json

import numpy as np
import pytest
import torch
from PIL import Image

import setok_kernels as sk
from helpers.rounding import assert_same_but_for_rounding
from setokim import HFVisionEncoder, PatchStatisticsEncoder, build_encoder
from setokim.tokenizer.patch_statistics import oriented_contrast, srgb_to_oklab

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {**VISION, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
del TEXT["image_size"], TEXT["patch_size"]


def noise_image(seed=0, size=(50, 40)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def make_model(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    match name:
        case "siglip" | "clip":
            prefix = {"siglip": "Siglip", "clip": "CLIP"}[name]
            config = getattr(transformers, f"{prefix}Config")
            model = getattr(transformers, f"{prefix}Model")
            return model(config(text_config=TEXT, vision_config=VISION))
        case "siglip-vision":
            return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))
        case "clip-vision":
            return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
        case "vit":
            return transformers.ViTModel(transformers.ViTConfig(**VISION))
        case "dinov2":
            return transformers.Dinov2Model(transformers.Dinov2Config(**VISION))
        case "dinov2-registers":
            config = transformers.Dinov2WithRegistersConfig(**VISION, num_register_tokens=4)
            return transformers.Dinov2WithRegistersModel(config)
        case "swin":
            config = transformers.SwinConfig(
                image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2]
            )
            return transformers.SwinModel(config)
        case "sam":
            options = {k: v for k, v in VISION.items() if k != "intermediate_size"}
            config = transformers.SamVisionConfig(**options, output_channels=8)
            return transformers.SamVisionModel(config)
        case "llama":
            return transformers.LlamaModel(transformers.LlamaConfig(**TEXT))


@pytest.fixture
def saved(tmp_path):
    def save(name):
        folder = tmp_path / name
        make_model(name).save_pretrained(folder)
        return str(folder)

    return save


def vision_tower(model):
    return getattr(model, "vision_model", model)


@pytest.mark.parametrize("grid", [None, (1, 1), (3, 7)])
def test_patch_statistics_shape(grid):
    encoder = PatchStatisticsEncoder(grid)
    features = encoder([noise_image(0), noise_image(1, (7, 90))])
    assert features.shape == (2, *(grid or (27, 27)), encoder.feature_dim)
    assert features.dtype == torch.float32 and features.isfinite().all()


def test_patch_statistics_are_deterministic_and_independent_of_the_batch():
    images = [noise_image(i) for i in range(3)]
    encoder = PatchStatisticsEncoder((4, 5))
    together = encoder(images)
    assert torch.equal(together, encoder(images))
    assert torch.equal(encoder(encoder.preprocess(images)), together)
    alone = torch.cat([encoder([image]) for image in images])
    torch.testing.assert_close(alone, together)


def test_a_plain_image_has_colour_and_no_texture():
    features = PatchStatisticsEncoder((3, 3))([Image.new("RGB", (9, 9), (200, 30, 30))])
    assert (features[0] - features[0, 0, 0]).abs().max() < 1e-5
    assert features[..., 6:].abs().max() < 1e-3
    assert features[..., :6].abs().min() > 0.01


def test_clusters_follow_the_objects():
    """Left blue, right red with stripes: two regions, whatever else is found at their border."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, :64] = (20, 40, 220)
    pixels[:, 64:] = (220, 40, 20)
    pixels[::8, 64:] = 255
    encoder = PatchStatisticsEncoder((8, 16))
    labels = sk.cluster_tokens(encoder([Image.fromarray(pixels)])).labels.reshape(8, 16)
    assert labels[:, :6].unique().numel() == 1
    assert not set(labels[:, :6].flatten().tolist()) & set(labels[:, 10:].flatten().tolist())


def test_oklab_of_known_colours():
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0]]).T.reshape(1, 3, 1, 3)
    lab = srgb_to_oklab(rgb)[0, :, 0].T
    expected = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0.62796, 0.22486, 0.12585]])
    torch.testing.assert_close(lab, expected, atol=2e-4, rtol=0)


def test_oriented_contrast_of_a_ramp():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    inside = oriented_contrast(ramp, 4)[0, :, 4, 4]
    torch.testing.assert_close(inside, torch.tensor([1.0, 0.5, 0.0, 0.5]))


def test_patch_statistics_errors():
    with pytest.raises(ValueError, match=r"grid: expected two numbers of at least 1, got \(0, 3\)"):
        PatchStatisticsEncoder((0, 3))
    with pytest.raises(ValueError, match="patch_size: expected at least 4, got 3"):
        PatchStatisticsEncoder(patch_size=3)
    for weights in ((1, 1, 1), (1, 1, 1, -1), (0, 0, 0, 0), (1, 1, 1, float("nan"))):
        with pytest.raises(
            ValueError, match=r"^feature_weights: expected four numbers of at least"
        ):
            PatchStatisticsEncoder(weights=weights)


def test_weights_of_groups_of_features():
    halves = Image.new("RGB", (64, 48), (200, 30, 30))
    halves.paste((30, 30, 200), (0, 0, 32, 48))
    picture = [halves]
    plain = PatchStatisticsEncoder((6, 8))(picture)
    doubled = PatchStatisticsEncoder((6, 8), weights=(1.0, 2.4, 1.0, 2.0))(picture)
    assert torch.allclose(doubled, 2 * plain)
    alone = PatchStatisticsEncoder((6, 8), weights=(0.5, 0, 0, 0))(picture)
    assert torch.equal(alone[..., :3], plain[..., :3]) and not alone[..., 3:].any()
    # With a neighbourhood the patches at the edge have colours of neither half.
    assert len(alone.flatten(0, 2).unique(dim=0)) < len(plain.flatten(0, 2).unique(dim=0))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("siglip", 0),
        ("siglip-vision", 0),
        ("clip", 1),
        ("clip-vision", 1),
        ("vit", 1),
        ("dinov2", 1),
        ("dinov2-registers", 5),
    ],
)
def test_patches_of_the_penultimate_layer_and_nothing_else(saved, name, extra):
    path = saved(name)
    encoder = HFVisionEncoder(path)
    images = [noise_image(0), noise_image(1)]
    features = encoder(images)

    model = vision_tower(make_model(name)).eval()
    with torch.no_grad():
        states = model(encoder.preprocess(images), output_hidden_states=True).hidden_states[-2]
    assert states.shape[1] == 16 + extra
    assert_same_but_for_rounding(features, states[:, extra:].reshape(2, 4, 4, 16))
    assert encoder.grid == (4, 4) and encoder.feature_dim == 16
    assert not features.requires_grad


@pytest.mark.parametrize("name", ["siglip", "clip", "vit", "dinov2", "swin"])
def test_no_image_has_no_features_and_runs_the_model(saved, name):
    encoder = HFVisionEncoder(saved(name), trainable=True)
    found = encoder(torch.zeros(0, 3, *encoder.pixel_size))
    assert found.shape == (0, *encoder.grid, encoder.feature_dim) and found.dtype == torch.float32
    # No process may leave out what the others compute.
    found.sum().backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", ["siglip", "clip", "vit", "dinov2", "dinov2-registers"])
def test_grids_that_are_not_square(saved, name):
    encoder = build_encoder(saved(name), grid=(3, 5))
    assert encoder.grid == (3, 5)
    assert encoder([noise_image()]).shape == (1, 3, 5, 16)


def test_patches_keep_their_position(saved):
    """Before any attention, a change in one corner of the image moves that patch only."""
    encoder = HFVisionEncoder(saved("clip"), grid=(2, 3), layer=0)
    pixels = torch.zeros(1, 3, 16, 24)
    changed = pixels.clone()
    changed[:, :, :8, 16:] = 1
    moved = (encoder(pixels) != encoder(changed)).any(-1)[0]
    assert moved.tolist() == [[False, False, True], [False, False, False]]


@pytest.mark.parametrize(("name", "shape"), [("swin", (8, 8, 16)), ("sam", (4, 4, 16))])
def test_models_that_make_feature_maps(saved, name, shape):
    encoder = HFVisionEncoder(saved(name))
    assert encoder([noise_image()]).shape == (1, *shape)
    assert (*encoder.grid, encoder.feature_dim) == shape


def test_frozen_and_trainable(saved):
    path = saved("vit")
    frozen = HFVisionEncoder(path).train()
    assert frozen.training and not frozen.backbone.training
    assert not any(p.requires_grad for p in frozen.parameters())

    trained = HFVisionEncoder(path, trainable=True).train()
    assert trained.backbone.training
    trained([noise_image()]).sum().backward()
    assert trained.backbone.embeddings.patch_embeddings.projection.weight.grad is not None


def test_preprocessing_comes_from_the_checkpoint(saved, tmp_path):
    clip, vit, dinov2 = saved("clip"), saved("vit"), saved("dinov2")
    assert HFVisionEncoder(clip).processor.mean[0] == pytest.approx(0.48145466)
    assert HFVisionEncoder(dinov2).processor.mean[0] == pytest.approx(0.485)
    assert HFVisionEncoder(vit).processor.mean[0] == 0.5
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))
    assert HFVisionEncoder(vit).processor.mean == (0.1, 0.2, 0.3)


def test_a_language_model_is_refused(saved):
    with pytest.raises(ValueError, match=r"expected a vision model .* of type 'llama'"):
        build_encoder(saved("llama"))


def test_missing_weights_are_refused(saved, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = saved("vit")
    file = tmp_path / "vit" / "model.safetensors"
    weights = safetensors.load_file(file)
    del weights["encoder.layer.0.attention.output.dense.weight"]
    safetensors.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"without 1 of them, .* they would be random"):
        HFVisionEncoder(path)


def test_a_grid_the_model_cannot_make_is_refused(saved):
    path = saved("sam")
    with pytest.raises(ValueError, match=r"cannot run with grid=\(3, 5\)"):
        HFVisionEncoder(path, grid=(3, 5))
    with pytest.raises(ValueError, match=r"grid: expected a grid that .* for which it returns"):
        HFVisionEncoder(saved("swin"), grid=(16, 16))


def test_a_layer_the_model_does_not_have_is_refused(saved):
    with pytest.raises(ValueError, match="layer=-9"):
        HFVisionEncoder(saved("vit"), layer=-9)


def test_unknown_names_and_folders(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    # The setting of HF_HUB_OFFLINE=1; the variable itself is read at import only.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'nobody/nothing': it is not in the local cache and the"):
        build_encoder("nobody/nothing")
    with pytest.raises(ValueError, match="expected 'patch-statistics', a folder with a config"):
        build_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="got '_not a name_'"):
        build_encoder("_not a name_")


def test_preprocessor_file_of_a_hub_model(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    from setokim.tokenizer import encoders

    file = tmp_path / "preprocessor_config.json"
    file.write_text("{}")
    answers = {
        "with": lambda *_: str(file),
        "without": lambda *_: (_ for _ in ()).throw(hub.errors.EntryNotFoundError("404")),
        "offline": lambda *_: (_ for _ in ()).throw(hub.errors.LocalEntryNotFoundError("offline")),
    }
    monkeypatch.setattr(hub, "hf_hub_download", lambda name, _: answers[name]())
    assert encoders._find_file("with", file.name) == file
    assert encoders._find_file("without", file.name) is None
    with pytest.raises(ValueError, match=r"preprocessor_config\.json of 'offline' is not in the"):
        encoders._find_file("offline", file.name)
