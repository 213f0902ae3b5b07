"""Models are read whole, or not at all."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from setokim.utils.pretrained import load_whole

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "image_size": 8}
CONFIG = ViTConfig(**SIZES, num_attention_heads=1, patch_size=4)


@pytest.fixture
def folder(tmp_path):
    ViTModel(CONFIG).save_pretrained(tmp_path)
    return tmp_path


def change(folder, edit):
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, {"format": "pt"})


def test_complete_weights(tmp_path):
    saved = ViTModel(CONFIG)
    saved.save_pretrained(tmp_path)
    expected, found = saved.state_dict(), load_whole(ViTModel, tmp_path).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_missing_weights_are_refused(folder):
    change(folder, lambda weights: weights.pop("pooler.dense.bias"))
    load_whole(ViTModel, folder, unused=["pooler"])
    with pytest.raises(ValueError, match=r"the folder lacks 1, such as pooler\.dense\.bias$"):
        load_whole(ViTModel, folder)
    name = "layernorm.weight"
    change(folder, lambda weights: weights.update({name: torch.ones(9)}))
    with pytest.raises(ValueError, match=rf"the folder has others of 1, such as {name}$"):
        load_whole(ViTModel, folder, unused=["pooler"])


def test_a_damaged_file_and_none(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for data in (b"", whole[:100], whole[:-100], b"\xff" * 100):
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(ValueError, match=r"^expected whole weights, got a damaged file: "):
            load_whole(ViTModel, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_whole(ViTModel, folder)


@pytest.mark.parametrize("name", ["none", "a/b/c", "google/vit-base-patch16-224", "~/model"])
def test_a_missing_folder_is_no_name_on_the_hub(name, tmp_path):
    with pytest.raises(ValueError, match=r"^expected the folder of a model with a config\.json, "):
        load_whole(ViTModel, tmp_path / name)
    with pytest.raises(ValueError, match=rf"got {name}$"):
        load_whole(ViTModel, name)
