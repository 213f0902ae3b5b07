import json

import pytest
import torch
from safetensors.torch import save_file

from setokim.utils.saved_tensors import SavedTensors

TENSORS = {"a.x": torch.ones(2), "a.y": torch.zeros(3).bfloat16(), "b.x": torch.arange(4)}


@pytest.fixture(params=["whole", "parts"])
def folder(request, tmp_path):
    if request.param == "whole":
        save_file(TENSORS, tmp_path / "model.safetensors")
        return tmp_path
    parts = {"a.x": "one", "a.y": "one", "b.x": "two"}
    for part in ("one", "two"):
        own = {name: TENSORS[name] for name, file in parts.items() if file == part}
        save_file(own, tmp_path / f"{part}.safetensors")
    names = {name: f"{part}.safetensors" for name, part in parts.items()}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return tmp_path


def test_tensors_are_read_as_stored(folder):
    found = SavedTensors(folder)
    assert len(found) == 3 and set(found) == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert found.under("a.").keys() == {"x", "y"}
    assert found.under("a.")["y"].dtype == torch.bfloat16


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: expected a weight_map"):
        SavedTensors(tmp_path)


def test_a_missing_or_damaged_part_is_named(folder):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{path}: expected safetensors"):
        SavedTensors(folder)
    path.unlink()
    with pytest.raises(OSError, match=path.name):
        SavedTensors(folder)
