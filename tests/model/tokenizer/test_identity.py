import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from helpers.tiny_setokim import build
from helpers.tiny_stage1 import TINY
from setok_kernels import ClusterConfig
from setokim import SetokConfig, SetokModel
from setokim.tokenizer.encoders import HFVisionEncoder, build_encoder
from setokim.tokenizer.identity import (
    PARTS,
    differing_parts,
    encoder_identity,
    folder_identity,
    tokenizer_identity,
)

SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 4,
}
HF = {name: value for name, value in TINY["model"].items() if name not in ("grid", "patch_size")}
KINDS = {
    "clusters": {},
    "learnable": {"learnable": ["beta", "bandwidth"], "feature_units": True},
    "grid": {"tokens": "grid", "token_grid": [2, 3]},
    "queries": {"tokens": "queries", "num_queries": 5},
    "patches": {"tokens": "patches"},
}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).save_pretrained(folder)
    return folder


def model_of(kind: str = "clusters", **fields) -> SetokModel:
    torch.manual_seed(0)
    return SetokModel(SetokConfig(**TINY["model"] | KINDS[kind] | fields))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_has_the_identity_of_its_model(kind, tmp_path):
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    expected = tokenizer_identity(model)
    assert tuple(expected) == PARTS
    assert folder_identity(tmp_path) == expected
    assert tokenizer_identity(SetokModel.from_pretrained(tmp_path)) == expected
    without = SetokModel.from_pretrained(tmp_path, with_encoder=False)
    assert tokenizer_identity(without) == {n: expected[n] for n in ("clustering", "merger")}


def test_a_whole_model_has_the_identity_of_its_tokenizer(tmp_path):
    model, _ = build()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert folder_identity(tmp_path) == tokenizer_identity(model.setok)


def test_a_pretrained_encoder_is_the_same_alone_and_in_a_model(siglip, tmp_path):
    encoder = build_encoder(str(siglip))
    alone = encoder_identity(encoder, ClusterConfig(max_clusters=5))
    model = SetokModel.from_encoder(str(siglip), **HF | {"cluster": {"max_clusters": 5}})
    expected = tokenizer_identity(model)
    assert alone == {name: expected[name] for name in ("encoder", "clustering")}
    model.save_pretrained(tmp_path)
    assert folder_identity(tmp_path) == expected
    assert tokenizer_identity(SetokModel.from_pretrained(tmp_path)) == expected
    other_layer = HFVisionEncoder(str(siglip), layer=-1)
    assert encoder_identity(other_layer) != encoder_identity(encoder)
    assert encoder_identity(build_encoder(str(siglip), (5, 6))) != encoder_identity(encoder)


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"grid": [5, 6]}, ["encoder"]),
        ({"feature_weights": [1.0, 1.0, 1.0, 1.0]}, ["encoder"]),
        ({"cluster": TINY["model"]["cluster"] | {"k": 3}}, ["clustering"]),
        ({"position_weight": 0.5}, ["clustering"]),
        ({"residual": "nearest"}, ["clustering"]),
        ({"tokens": "grid", "token_grid": [2, 2]}, ["clustering", "merger"]),
        ({"heads": 1}, ["merger"]),
        ({"token_dim": 25}, ["merger"]),
        # An option that is written out is not another one.
        ({"cluster": TINY["model"]["cluster"] | {"include_self": False, "beta": 0}}, []),
    ],
)
def test_an_option_changes_its_part_alone(changed, parts):
    found = tokenizer_identity(model_of(**changed))
    assert differing_parts(tokenizer_identity(model_of()), found, PARTS) == parts


def test_other_parts_do_not_count():
    model, other = model_of(), model_of(decoder_layers=2, concept_dim=None)
    # The random weights of the merger are sampled after those.
    other.merger.load_state_dict(model.merger.state_dict())
    assert tokenizer_identity(other) == tokenizer_identity(model)


@pytest.mark.parametrize("name", ["merger.project_out.bias", "clustering.beta"])
def test_one_bit_of_a_weight_changes_its_part(name, tmp_path):
    model = model_of("learnable")
    model.save_pretrained(tmp_path)
    before = folder_identity(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    keys = [key for key in tensors if key.startswith(name)]
    tensors[keys[0]].view(torch.int32).reshape(-1)[0] ^= 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    after = folder_identity(tmp_path)
    assert differing_parts(before, after, PARTS) == [name.partition(".")[0]]


def test_another_dtype_is_another_tokenizer(tmp_path):
    model = model_of()
    before = tokenizer_identity(model)
    assert differing_parts(before, tokenizer_identity(model.bfloat16()), PARTS) == ["merger"]


def test_a_lacking_part_differs():
    expected = tokenizer_identity(model_of())
    bare = {"encoder": expected["encoder"]}
    assert differing_parts(expected, bare, PARTS) == ["clustering", "merger"]
    assert differing_parts(expected, bare, ("encoder",)) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "expected JSON, got"),
        ("config.json", "[]", "expected a SeTok or SeTokim model, got model_type None"),
        ("config.json", json.dumps({"model_type": "llama"}), "got model_type 'llama'"),
        ("model.safetensors", "x" * 99, "expected safetensors, got"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, name, content, message):
    model_of().save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path / name}: .*{message}"):
        folder_identity(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match=name):
        folder_identity(tmp_path)
