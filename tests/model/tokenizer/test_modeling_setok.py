"""SeTok as a Hugging Face model."""

import json
import pickle

import pytest
import torch
from PIL import Image
from transformers import AutoModel, SiglipVisionConfig, SiglipVisionModel

import setok_kernels as sk
from helpers.rounding import assert_same_but_for_rounding, assert_same_weights
from setokim import ImageProcessor, SetokConfig, SetokModel, SetokProcessor
from setokim.tokenizer.detokenizer import Detokenizer
from setokim.tokenizer.pos_embed import grid_positions
from setokim.tokenizer.shapelets import encode_shapelets

SMALL = dict(
    grid=(8, 8),
    patch_size=4,
    cluster=dict(max_clusters=6),
    width=32,
    heads=4,
    token_dim=24,
    outline_dim=8,
    decoder_width=32,
    decoder_layers=1,
    decoder_cross_layers=1,
    decoder_grid=(4, 4),
    decoder_patch_size=8,
    concept_dim=16,
)
VISION = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SetokModel(SetokConfig(**SMALL, learnable=("beta", "bandwidth")))


@pytest.fixture(scope="module")
def pixels():
    torch.manual_seed(1)
    coarse = torch.rand(3, 3, 4, 4)
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="nearest")


@pytest.fixture
def siglip(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "siglip"
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(folder)
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_there_and_back(model, pixels):
    visual, picture = model(pixels)
    assert visual.tokens.shape == (3, 7, 24) and picture.shape == (3, 3, 32, 32)
    packed = visual.pack()
    assert packed.tokens.shape[0] == visual.occupied.sum()
    # Ragged and padded tokens reconstruct the same images.
    again = model.detokenize(packed.tokens, packed.cu_seqlens, packed.max_seqlen)
    torch.testing.assert_close(again, picture, atol=1e-5, rtol=0)
    assert torch.equal(again, model.detokenize(packed.tokens, packed.cu_seqlens))


def test_the_clusters_are_those_of_the_features(model, pixels):
    visual = model.tokenize(pixels)
    features = model.encoder(pixels).flatten(1, 2)
    expected = sk.cluster_tokens(features, model.config.cluster_config())
    assert torch.equal(visual.clusters.labels, expected.labels)
    assert visual.grid == (8, 8)


def test_images_and_their_pixels_give_the_same(model):
    images = [Image.effect_noise((50, 40), 60).convert("RGB") for _ in range(2)]
    assert torch.equal(
        model.tokenize(images).tokens, model.tokenize(model.preprocess(images)).tokens
    )


def test_positions_split_equal_features():
    """Two equal squares in opposite corners: one cluster by features, two with positions."""
    picture = torch.full((1, 3, 32, 32), 0.2)
    picture[:, 0, :12, :12] = picture[:, 0, 20:, 20:] = 0.9
    labels = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        made = SetokModel(SetokConfig(**SMALL, position_weight=weight))
        grid = made.tokenize(picture).clusters.labels.reshape(8, 8)
        labels.append((int(grid[0, 0]), int(grid[7, 7])))
    assert labels[0][0] == labels[0][1] and labels[1][0] != labels[1][1]


def test_everything_gets_a_gradient(pixels):
    torch.manual_seed(0)
    made = SetokModel(SetokConfig(**SMALL, learnable=("beta", "bandwidth")))
    visual, picture = made(pixels)
    (picture.square().sum() + made.to_concept(visual.tokens).square().sum()).backward()
    assert [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_saved_and_loaded_has_the_same_weights(model, pixels, tmp_path):
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    for loaded in (SetokModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, SetokModel)
        visual, picture = model(pixels)
        again, drawn = loaded(pixels)
        assert_same_weights(loaded, model)
        assert_same_but_for_rounding(again.tokens, visual.tokens)
        assert_same_but_for_rounding(drawn, picture)


def test_loading_never_unpickles(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    SetokModel.from_pretrained(tmp_path)
    # Weights in a pickle are not taken instead.
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises((OSError, ValueError, AssertionError)):
        SetokModel.from_pretrained(tmp_path, use_safetensors=True)


class TestHuggingFaceEncoder:
    def test_a_local_checkpoint_becomes_the_encoder(self, siglip, tmp_path):
        fields = {k: v for k, v in SMALL.items() if k not in ("grid", "patch_size")}
        torch.manual_seed(0)
        made = SetokModel.from_encoder(str(siglip), **fields)
        plain = SiglipVisionModel.from_pretrained(siglip)
        images = [Image.effect_noise((40, 40), 60).convert("RGB")]
        pixels = made.preprocess(images)
        expected = plain(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(made.encoder(pixels).flatten(1, 2), expected)
        assert not any(p.requires_grad for p in made.encoder.parameters())
        # Saved with its weights, it needs the checkpoint no more.
        made.save_pretrained(tmp_path / "out")
        for path in siglip.iterdir():
            path.unlink()
        loaded = SetokModel.from_pretrained(tmp_path / "out")
        assert_same_weights(loaded, made)
        found, expected = (m.tokenize(images).tokens for m in (loaded, made))
        assert_same_but_for_rounding(found, expected)

    def test_a_trainable_encoder_gets_gradients(self, siglip):
        fields = {k: v for k, v in SMALL.items() if k not in ("grid", "patch_size")}
        made = SetokModel.from_encoder(str(siglip), encoder_trainable=True, **fields)
        _, picture = made(torch.randn(2, 3, 32, 32))
        picture.square().sum().backward()
        grads = {name: p.grad for name, p in made.encoder.named_parameters()}
        (first,) = (g for name, g in grads.items() if "layers.0.mlp.fc1.weight" in name)
        assert first is not None and first.any()

    def test_a_frozen_encoder_passes_gradients_to_the_pixels(self, siglip):
        fields = {k: v for k, v in SMALL.items() if k not in ("grid", "patch_size")}
        encoder = SetokModel.from_encoder(str(siglip), **fields).encoder
        picture = torch.rand(1, 3, 20, 20, requires_grad=True)
        encoder.features(encoder.normalise(picture)).square().sum().backward()
        assert picture.grad.any() and not encoder(torch.randn(1, 3, 32, 32)).requires_grad


@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
def test_a_flat_image_has_a_finite_gradient(model, shade):
    picture = torch.full((1, 3, 32, 32), shade, requires_grad=True)
    model.encoder.features(model.encoder.normalise(picture)).sum().backward()
    assert picture.grad.isfinite().all()


class TestDetokenizer:
    @pytest.fixture
    def detokenizer(self):
        torch.manual_seed(0)
        return Detokenizer(8, 4, 16, 2, 1, 1, grid=(3, 4), patch_size=4)

    @pytest.mark.parametrize("size", [(12, 16), (24, 32), (13, 7), (1, 1)])
    def test_any_size(self, detokenizer, size):
        present = torch.tensor([[True, True, False]])
        tokens = torch.randn(1, 3, 8)
        assert detokenizer(tokens, present, size).shape == (1, 3, *size)

    def test_absent_tokens_do_not_matter(self, detokenizer):
        present, tokens = torch.tensor([[True, False]]), torch.randn(1, 2, 8)
        before = detokenizer(tokens, present)
        tokens[:, 1] = 50.0
        assert torch.equal(before, detokenizer(tokens, present))

    def test_a_set_has_no_order(self, detokenizer):
        present, tokens = torch.ones(1, 3, dtype=torch.bool), torch.randn(1, 3, 8)
        torch.testing.assert_close(
            detokenizer(tokens, present), detokenizer(tokens[:, [2, 0, 1]], present)
        )

    def test_a_patch_lands_in_its_position(self, detokenizer):
        """The query of row 1, column 2 determines rows 4 to 7 and columns 8 to 11."""
        with torch.no_grad():
            detokenizer.to_pixels.weight.zero_()
            detokenizer.to_pixels.bias.copy_(torch.arange(48.0))
            detokenizer.to_ground.weight[:3] = detokenizer.to_ground.bias[:3] = 0
        pixels = detokenizer(torch.randn(1, 1, 8), torch.ones(1, 1, dtype=torch.bool))
        assert torch.equal(pixels[0, :, 4:8, 8:12], torch.arange(48.0).reshape(3, 4, 4))

    def test_the_highest_orders_have_the_min_initial_weight(self, model):
        # A part of a model is made once more by it.
        for drawing in (model.detokenizer, Detokenizer(40, 31, 16, 2, 1, 1, (4, 4), 4)):
            emphasis = drawing.emphasis.detach()
            torch.testing.assert_close(emphasis[0], torch.tensor(4.0))
            assert (emphasis.diff() <= 0).all() and emphasis[-1] < 1

    def test_the_background_follows_the_shapelets(self):
        """Two tokens, of the left and of the right half, black and white."""
        torch.manual_seed(0)
        drawing = Detokenizer(40, 31, 16, 2, 1, 1, grid=(4, 4), patch_size=4)
        places = grid_positions(8, 8)
        halves = torch.stack([places[:, 1] < 0.5, places[:, 1] > 0.5]) / 32
        tokens = torch.zeros(1, 2, 40)
        tokens[..., -31:] = encode_shapelets(halves[None], (8, 8), 31)
        tokens[0, 1, 0] = 1.0
        with torch.no_grad():
            drawing.to_pixels.weight.zero_()
            drawing.to_pixels.bias.zero_()
            drawing.norm_tokens = torch.nn.Identity()
            drawing.to_ground.weight.zero_()
            drawing.to_ground.bias.zero_()
            drawing.to_ground.weight[:3, 0] = 1.0
            drawing.to_ground.bias[3] = 3.0
            both = torch.ones(1, 2, dtype=torch.bool)
            pixels = drawing(tokens, both)[0, 0]
        assert (pixels[:, :7] < 0.05).all() and (pixels[:, 9:] > 0.95).all()


def test_ragged_tokens_of_the_wrong_width(model):
    with pytest.raises(ValueError, match=r"tokens: expected shape \(S, 24\), got \(5, 8\)"):
        model.detokenize(torch.zeros(5, 8), torch.tensor([0, 5], dtype=torch.int32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": "siglip"}, "encoder: expected 'patch-statistics' or 'hf', got 'siglip'"),
        ({"encoder": "hf"}, "encoder_config: expected a dict with encoder='hf'"),
        ({"cluster": {"seeds": 3}}, "cluster: expected some of k, max_clusters.*got 'seeds'"),
        ({"cluster": {"k": 0}}, "k: expected at least 1, got 0"),
        ({"learnable": ("alpha",)}, "learnable: expected some of bandwidth.*got 'alpha'"),
        ({"width": 30}, "width: expected a multiple of 4 and of heads=4, got 30"),
        (
            {"outline_dim": 24},
            "outline_dim: expected more than 3 and less than token_dim=24, got 24",
        ),
        ({"outline_dim": 3}, "outline_dim: expected more than 3 and less than token_dim=24, got 3"),
        ({"position_weight": -1.0}, "position_weight: expected at least 0, got -1.0"),
        ({"decoder_grid": (4,)}, "decoder_grid: expected two numbers"),
        (
            {"tokens": "words"},
            "tokens: expected one of clusters, grid, queries, patches, got 'words'",
        ),
        (
            {"tokens": "grid"},
            "token_grid: expected a value with tokens='grid' and None otherwise, "
            "got None with tokens='grid'",
        ),
        ({"token_grid": (2, 2)}, r"token_grid: .*None otherwise, got \[2, 2\] with tokens='clus"),
        (
            {"tokens": "grid", "token_grid": (2,)},
            r"token_grid: expected two whole numbers of at least 1, got \[2\]",
        ),
        ({"tokens": "grid", "token_grid": (2, 0)}, r"token_grid: expected two .*got \[2, 0\]"),
        ({"tokens": "grid", "token_grid": (2, 1.5)}, r"token_grid: expected two .*got \[2, 1.5\]"),
        (
            {"tokens": "grid", "token_grid": (8, 9)},
            r"token_grid: expected at most grid=\[8, 8\], got \[8, 9\]",
        ),
        ({"tokens": "queries"}, "num_queries: .*got None with tokens='queries'"),
        ({"num_queries": 4}, "num_queries: .*got 4 with tokens='clusters'"),
        (
            {"tokens": "queries", "num_queries": True},
            "num_queries: expected a whole number of at least 1, got True",
        ),
        ({"tokens": "queries", "num_queries": 0}, "num_queries: expected a whole .*, got 0"),
        (
            {"tokens": "queries", "num_queries": 4, "intra_layers": 0},
            "intra_layers: expected at least 1 with tokens='queries', got 0",
        ),
    ],
)
def test_the_configuration_is_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        SetokConfig(**{**SMALL, **fields})


class TestProcessor:
    def test_saved_and_loaded(self, tmp_path):
        made = SetokProcessor((32, 24), ImageProcessor(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
        made.save_pretrained(tmp_path)
        assert SetokProcessor.from_pretrained(tmp_path) == made

    def test_any_image(self, model):
        grey = Image.new("L", (9, 5), 128)
        pixels = model.processor()(grey)["pixel_values"]
        assert pixels.shape == (1, 3, 32, 32)
        assert torch.equal(pixels, model.preprocess([grey.convert("RGB")]))

    def test_a_file_without_size(self, tmp_path):
        (tmp_path / "preprocessor_config.json").write_text("{}")
        with pytest.raises(ValueError, match="size: expected height and width"):
            SetokProcessor.from_pretrained(tmp_path)


def test_no_buffer_is_lost_on_the_way(model):
    """Weights alone determine the model: all other tensors are computed."""
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
