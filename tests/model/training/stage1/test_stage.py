import math

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny_stage1 import TINY, tiny_settings
from setokim import SetokConfig, SetokModel, SetokProcessor
from setokim.data import Sample, ShapesWorld
from setokim.training.stage1.collator import Stage1Collator
from setokim.training.stage1.losses import LossSettings
from setokim.training.stage1.stage import (
    TEXT_FILE,
    Stage1,
    build_model,
    build_perceptual,
)


@pytest.fixture
def build(tmp_path):
    """Function that builds a stage with weights of random seed 0."""

    def make(*overrides):
        torch.manual_seed(0)
        return Stage1(tiny_settings(tmp_path, *overrides))

    return make


def batch_of(stage, count=4):
    world = ShapesWorld(seed=0, size=32)
    return Stage1Collator(stage.setok, stage.text.tokenize)([world[i] for i in range(count)])


def sample(image, *concepts):
    return Sample(image, "", concepts, None, "")


def test_batches_by_hand(build):
    stage = build()
    collate = Stage1Collator(stage.setok, stage.text.tokenize)
    assert collate.size == (32, 32)
    exact = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    flat = Image.new("RGB", (50, 20), (255, 51, 0))
    batch = collate([sample(exact, "red dog", "cat"), sample(flat)])
    assert {name: value.dtype for name, value in batch.items()} == {
        "pixels": torch.float32,
        "target": torch.float32,
        "words": torch.int64,
    }
    target = batch["target"]
    assert np.array_equal(target[0].permute(1, 2, 0), np.asarray(exact, np.float32) / 255)
    assert target[1].flatten(1).unique(dim=1).flatten().tolist() == pytest.approx([1, 0.2, 0])
    assert torch.equal(batch["pixels"], stage.setok.preprocess([exact, flat]))
    assert batch["pixels"].shape == (2, 3, 24, 24)
    assert torch.equal(batch["words"], stage.text.tokenize([["red dog", "cat"], []]))


def test_stage_1_needs_the_space_of_concepts(build):
    with pytest.raises(ValueError, match=r"^model\.concept_dim: expected a number in stage 1, got"):
        build("model.concept_dim=null")


def test_targets_may_be_oblong(build):
    stage = build("model.decoder_grid=[2, 5]")
    batch = Stage1Collator(stage.setok, stage.text.tokenize)([sample(Image.new("RGB", (40, 16)))])
    assert batch["target"].shape == (1, 3, 16, 40)
    assert stage(batch).images.shape == (1, 3, 16, 40)


def test_losses_are_weighted(build):
    plain = build()
    batch = batch_of(plain)
    output = plain(batch)
    found, images = output.losses, output.images
    assert found.keys() == {"pixel", "perceptual", "contrastive"}
    assert all(loss.dim() == 0 and loss.dtype == torch.float32 for loss in found.values())
    difference = (images.detach() - batch["target"]).double().numpy()
    l1, l2 = np.abs(difference).mean(), (difference**2).mean()
    assert found["pixel"].item() == pytest.approx(l1 + l2, rel=1e-5)

    weights = ("losses.l1=3", "losses.l2=7", "losses.perceptual=5", "losses.contrastive=11")
    output = build(*weights)(batch)
    weighted = output.losses
    assert torch.equal(output.images, images)
    assert weighted["pixel"].item() == pytest.approx(3 * l1 + 7 * l2, rel=1e-5)
    for name, weight in (("perceptual", 5), ("contrastive", 11)):
        assert weighted[name].item() == pytest.approx(weight * found[name].item(), rel=1e-6)
    only_l2 = build("losses.l1=0", "losses.l2=2")(batch).losses
    assert only_l2["pixel"].item() == pytest.approx(2 * l2, rel=1e-5)


def test_contrastive_loss_from_similarities(build):
    stage = build()
    batch = batch_of(stage)
    with torch.no_grad():
        visual, _ = stage.setok(batch["pixels"])
        logits = (
            stage.similarity(visual.tokens, visual.occupied, batch["words"]).double().numpy() / 0.07
        )
        loss = stage(batch).losses["contrastive"].item()
    own = np.diag(logits)
    rows = np.log(np.exp(logits).sum(1)) - own
    columns = np.log(np.exp(logits).sum(0)) - own
    assert loss == pytest.approx((rows.mean() + columns.mean()) / 2, rel=1e-5)


def test_the_temperature_is_clipped_and_keeps_its_gradient(build):
    stage = build()
    batch = batch_of(stage)
    stage.log_scale.data.fill_(9.0)
    stage(batch).losses["contrastive"].backward()
    assert stage.log_scale.item() == pytest.approx(math.log(100))
    assert stage.log_scale.grad.item() != 0


def test_every_trained_parameter_has_a_gradient(build):
    # Otherwise distributed training waits for the missing gradients.
    combinations = [
        (),
        ("losses.contrastive=0",),
        ("losses.l1=0", "losses.l2=0"),
        ("losses.perceptual=0",),
        ("losses.l1=0", "losses.l2=0", "losses.perceptual=0", "losses.adversarial=0"),
        ("model.learnable=[bandwidth, beta, temperature, offset]",),
    ]
    for overrides in combinations:
        stage = build(*overrides)
        sum(stage(batch_of(stage)).losses.values()).backward()
        trained = {name for name, p in stage.named_parameters() if p.requires_grad}
        graded = {name for name, p in stage.named_parameters() if p.grad is not None}
        assert trained == graded, overrides


def test_untrained_parts_are_frozen(build):
    def frozen(*overrides):
        names = [name for name, p in build(*overrides).named_parameters() if not p.requires_grad]
        return {name.removeprefix("setok.").partition(".")[0] for name in names}

    assert frozen() == set()
    assert frozen("losses.contrastive=0") == {"to_concept", "text", "log_scale"}
    image_losses = ("losses.l1=0", "losses.l2=0", "losses.perceptual=0")
    assert frozen(*image_losses) == set()
    assert frozen(*image_losses, "losses.adversarial=0") == {"detokenizer"}


def test_the_perceptual_network_is_a_setting(build, tmp_path):
    model = build().setok
    assert build_perceptual(LossSettings(perceptual=0.0, perceptual_network="none"), model) is None
    with pytest.raises(ValueError, match=r"path: expected a safetensors file, got .*/none"):
        build_perceptual(LossSettings(perceptual_network=str(tmp_path / "none")), model)
    pyramid = build_perceptual(LossSettings(), model)
    own = build_perceptual(LossSettings(perceptual_network="encoder"), model)
    image, target = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert own(image, target) > 0 and own(target, target) == 0
    assert own(image, target) != pyramid(image, target)
    # A copy: training the model's encoder does not change the perceptual loss.
    shared = {id(m) for m in model.encoder.modules()} & {id(m) for m in own.modules()}
    assert not shared


def test_exported_files_read_back(build, tmp_path):
    stage, other = build(), build()
    torch.manual_seed(5)
    for parameter in stage.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    stage.export(tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", TEXT_FILE}
    model = SetokModel.from_pretrained(tmp_path / "model")
    for name, value in stage.setok.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    image = ShapesWorld(seed=0, size=50)[0].image
    pixels = SetokProcessor.from_pretrained(tmp_path / "model")(image)["pixel_values"]
    assert torch.equal(pixels, stage.setok.preprocess([image]))
    assert not torch.equal(other.log_scale, stage.log_scale)
    other.load_text_side(tmp_path / "model")
    assert torch.equal(other.log_scale, stage.log_scale)
    for name, value in stage.text.state_dict().items():
        assert torch.equal(other.text.state_dict()[name], value)


def test_models_from_settings():
    model = build_model(TINY["model"])
    assert model.config.to_dict() == SetokConfig(**TINY["model"]).to_dict()
    with pytest.raises(
        ValueError, match=r"^model\.widht: expected one of encoder, .*, got 'widht'"
    ):
        build_model(TINY["model"] | {"widht": 8})
    with pytest.raises(ValueError, match="width: expected a multiple of 4"):
        build_model(TINY["model"] | {"width": 10})
    with pytest.raises(ValueError, match=r"encoder.*no-such-folder"):
        build_model(TINY["model"] | {"encoder": "./no-such-folder"})


class TestTokenNoise:
    @pytest.fixture
    def noisy(self, build):
        """Stage with noise, and a function that reconstructs the images of a fixed batch."""
        stage = build("token_noise=0.5", "losses.adversarial=0")
        batch = batch_of(stage)
        return stage, lambda: stage(batch).images

    def test_only_in_training(self, noisy):
        stage, reconstruct = noisy
        assert not torch.equal(reconstruct(), reconstruct())
        stage.eval()
        assert torch.equal(reconstruct(), reconstruct())

    def test_levels_and_units(self, noisy):
        stage, _ = noisy
        visual = stage.setok.tokenize(torch.rand(64, 3, 24, 24))
        noise = (stage._noisy(visual) - visual.tokens).detach()[..., :16]
        scale = visual.tokens[visual.occupied][:, :16]
        scale = (scale - scale.mean(0)).square().mean().sqrt()
        level = (noise / scale).square().mean((1, 2)).sqrt()
        assert level.max() < 0.6 and level.min() < 0.1 and 0.2 < level.mean() < 0.3

    def test_shapes_keep_their_length(self, noisy):
        stage, _ = noisy
        visual = stage.setok.tokenize(torch.rand(4, 3, 24, 24))
        length = stage._noisy(visual)[visual.occupied][:, -5:].norm(dim=-1)
        torch.testing.assert_close(length, torch.ones_like(length))

    def test_without_a_token(self, noisy):
        stage, _ = noisy
        visual = stage.setok.tokenize(torch.rand(0, 3, 24, 24))
        assert stage._noisy(visual).shape == visual.tokens.shape

    @pytest.mark.parametrize("noise", [-0.1, float("inf"), float("nan")])
    def test_bad_noise(self, tmp_path, noise):
        with pytest.raises(ValueError, match="token_noise: expected a finite number of at least 0"):
            tiny_settings(tmp_path, f"token_noise={'.inf' if noise == float('inf') else noise}")


def test_features_in_units_of_their_channels(build):
    stage = build("model.feature_units=true")
    world = ShapesWorld(seed=0, size=32)
    stage.prepare([world[i] for i in range(9)])
    units = stage.setok.merger.feature_units
    with torch.no_grad():
        features = stage.setok.encoder([world[i].image for i in range(9)]).flatten(0, -2)
    normal = units.normalise(features)
    torch.testing.assert_close(normal.mean(0), torch.zeros(normal.shape[1]), rtol=0, atol=1e-4)
    varies = features.std(0) > 1e-5
    torch.testing.assert_close(
        normal.std(0, unbiased=False)[varies], torch.ones(int(varies.sum())), rtol=1e-3, atol=0
    )
    batch = batch_of(stage, 3)
    before = stage.setok.tokenize(batch["pixels"]).tokens
    # Channels in other units give the same tokens, once those are measured.
    weights = stage.setok.encoder.weights
    stage.setok.encoder.weights = tuple(2 * weight for weight in weights)
    stage.prepare([world[i] for i in range(9)])
    again = stage.setok.tokenize(batch["pixels"]).tokens
    torch.testing.assert_close(again, before, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="feature_units: expected False with tokens='queries'"):
        SetokConfig(tokens="queries", num_queries=3, feature_units=True)
