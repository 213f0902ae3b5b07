import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from helpers.tiny_setokim import build, picture
from helpers.tiny_stage1 import TINY, write_setok
from setokim import SetokimModel, SetokModel
from setokim.tokenizer.encoders import HFVisionEncoder
from setokim.utils.pretrained import load_whole

SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 4,
}


@pytest.fixture(scope="module")
def with_siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).save_pretrained(folder / "siglip")
    fields = {n: v for n, v in TINY["model"].items() if n not in ("grid", "patch_size")}
    model = SetokModel.from_encoder(str(folder / "siglip"), grid=(5, 6), **fields)
    model.save_pretrained(folder / "setok")
    return folder / "setok"


@pytest.fixture(scope="module")
def without_weights(tmp_path_factory):
    return write_setok(tmp_path_factory.mktemp("setok"))


@pytest.fixture(params=["with_siglip", "without_weights"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_shapes_are_known_without_the_encoder(folder):
    whole = load_whole(SetokModel, folder)
    model = load_whole(SetokModel, folder, with_encoder=False)
    assert whole.has_encoder and not model.has_encoder
    assert not [name for name in model.state_dict() if name.startswith("encoder")]
    for name in ("grid", "pixel_size", "feature_dim", "processor"):
        assert getattr(model.encoder, name) == getattr(whole.encoder, name), name
    assert model.processor() == whole.processor()
    images = [picture(0), picture(1)]
    assert torch.equal(model.preprocess(images), whole.preprocess(images))
    assert model.max_tokens() == whole.tokenize(images).tokens.shape[1] == 5
    own, all_of_it = model.state_dict(), whole.state_dict()
    assert all(torch.equal(value, all_of_it[name]) for name, value in own.items())
    assert {n for n in all_of_it if not n.startswith("encoder.")} == own.keys()


def test_images_cannot_be_encoded(folder):
    model = load_whole(SetokModel, folder, with_encoder=False)
    pixels = model.preprocess([picture(0)])
    for call in (model.tokenize, model.encoder, model.encoder.features, model.encoder.normalise):
        with pytest.raises(RuntimeError, match="encoder: expected a model with its vision encoder"):
            call(pixels)


def test_features_are_tokenized_without_the_encoder(folder):
    whole = load_whole(SetokModel, folder)
    model = load_whole(SetokModel, folder, with_encoder=False)
    expected = whole.tokenize([picture(0), picture(1)])
    found = model.tokenize_features(expected.features.unflatten(1, expected.grid))
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.masks, expected.masks)


def test_the_weights_of_the_encoder_are_not_allocated(with_siglip, monkeypatch):
    """Not even for a moment."""
    devices = []
    built = HFVisionEncoder.__init__

    def spied(self, *arguments):
        built(self, *arguments)
        devices.extend(p.device.type for p in self.parameters())

    monkeypatch.setattr(HFVisionEncoder, "__init__", spied)
    load_whole(SetokModel, with_siglip, with_encoder=False)
    assert devices and set(devices) == {"meta"}


def test_the_unread_weights_are_not_reported(with_siglip, tmp_path):
    """A report of them would hide other unexpected weights."""
    options = {"with_encoder": False, "output_loading_info": True}
    _, info = SetokModel.from_pretrained(with_siglip, **options)
    assert not info["unexpected_keys"]
    model, _ = build(code_dim=4)
    model.setok.encoder = SetokModel.from_pretrained(with_siglip).encoder
    model.save_pretrained(tmp_path)
    _, info = SetokimModel.from_pretrained(tmp_path, **options)
    assert not info["unexpected_keys"] and not info["missing_keys"]


def test_a_whole_model_loads_without_the_encoder(tmp_path):
    model, _ = build(code_dim=4)
    model.save_pretrained(tmp_path)
    found = load_whole(SetokimModel, tmp_path, with_encoder=False)
    assert not found.setok.has_encoder
    expected = model.state_dict()
    assert expected.keys() == found.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
