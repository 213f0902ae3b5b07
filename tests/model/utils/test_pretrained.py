"""Folders that bring code, that are damaged, and that are not there; the embedded model."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, SiglipVisionConfig, SiglipVisionModel

from helpers.tiny_setokim import build
from setokim import HFVisionEncoder, SetokConfig, SetokModel, SetokProcessor, build_encoder
from setokim.training.text_encoder import build_text_encoder
from setokim.utils.pretrained import (
    EMBEDDED,
    is_embedded,
    load_pretrained,
    load_whole,
    resolve_model,
)
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
WORDS = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": [None, "code.Words"]}}
CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import PreTrainedTokenizerFast, SiglipVisionConfig, SiglipVisionModel
class Config(SiglipVisionConfig):
    model_type = "foreign"
class Model(SiglipVisionModel):
    config_class = Config
class Words(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(autouse=True)
def _without_prompts(monkeypatch, tmp_path):
    """Disable prompts and the hub, and forget the modules of other tests."""

    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    yield
    assert asked == []


@pytest.fixture
def mark(tmp_path):
    """Return the file that the folder's code creates when it is run."""
    return tmp_path / "it-ran"


@pytest.fixture
def foreign(tmp_path, mark):
    """Save a vision model with its configuration and class in a file of the folder."""
    folder = tmp_path / "foreign"
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(folder)
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    path = folder / "config.json"
    auto_map = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    fields = json.loads(path.read_text()) | {"model_type": "foreign", "auto_map": auto_map}
    path.write_text(json.dumps(fields))
    (folder / "tokenizer_config.json").write_text(json.dumps(WORDS))
    return folder


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A SeTokim model in a folder."""
    folder = tmp_path_factory.mktemp("speaker")
    for part in build():
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: load_pretrained(AutoConfig, folder),
        lambda folder: load_pretrained(AutoModel, folder),
        lambda folder: load_pretrained(AutoTokenizer, folder),
        lambda folder: build_encoder(str(folder)),
        lambda folder: build_text_encoder(str(folder), 8),
    ],
    ids=["config", "model", "tokenizer", "encoder", "text"],
)
def test_code_of_a_folder_is_refused_and_the_option_named(load, foreign, mark):
    with pytest.raises(ValueError, match=r"brings Python code of its own.*--trust-remote-code"):
        load(foreign)
    assert not mark.exists()


def test_code_of_a_folder_runs_where_it_is_allowed(foreign, mark):
    encoder = build_encoder(str(foreign), trust_remote_code=True)
    assert mark.exists() and isinstance(encoder, HFVisionEncoder)
    assert type(encoder.backbone).__name__ == "Model" and encoder.grid == (4, 4)


def test_code_of_a_tokenizer(speaker, mark, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in speaker.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | WORDS))
    with pytest.raises(ValueError, match=r"brings Python code of its own"):
        SetokimProcessor.from_pretrained(folder)
    assert not mark.exists()
    processor = SetokimProcessor.from_pretrained(folder, trust_remote_code=True)
    assert mark.exists() and type(processor.tokenizer).__name__ == "Words"


def test_code_of_the_language_model_inside(speaker, mark, tmp_path):
    """Fields of `llm` name a class that the settings do not."""
    (tmp_path / "code.py").write_text(CODE.format(mark=str(mark)))
    config = load_pretrained(AutoConfig, speaker)
    auto_map = {"AutoModelForCausalLM": f"{tmp_path}--code.Model"}
    config.llm = VISION | {"model_type": "siglip_vision_model", "auto_map": auto_map}
    with pytest.raises(ValueError, match="trust_remote_code"):
        SetokimModel(config)
    assert not mark.exists()


@pytest.mark.parametrize("size", [0, 7, 100, -100], ids=str)
def test_weights_that_are_cut_off(speaker, tmp_path, size):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((speaker / name).read_bytes())
    whole = (speaker / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"\S"):
        load_pretrained(SetokimModel, tmp_path)


def test_weights_that_are_missing(speaker, tmp_path):
    (tmp_path / "config.json").write_bytes((speaker / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_pretrained(SetokimModel, tmp_path)


@pytest.mark.parametrize("name", ["{}/no/folder", "./nothing", "../nothing", "a/b/c", "~/nothing"])
def test_a_folder_that_is_not_there(name, tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        load_pretrained(AutoConfig, name.format(tmp_path))


def test_a_folder_that_is_not_there_below_one_that_is(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        load_pretrained(AutoConfig, "models/siglip")
    with pytest.raises(ValueError, match=r"not in the local cache.* nor is there a folder"):
        load_pretrained(AutoConfig, "nobody/siglip")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(ValueError, match="expected a folder, got a file"):
        load_pretrained(AutoConfig, tmp_path / "model.bin")


@pytest.fixture
def embedded(speaker, monkeypatch):
    monkeypatch.setitem(EMBEDDED, "small-world", speaker)
    return speaker


def test_which_folder_a_name_stands_for(embedded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model() == resolve_model("small-world") == embedded
    for name in (tmp_path, str(tmp_path), "."):
        assert resolve_model(name) == Path(name) and not is_embedded(name)
    # A path is no name.
    for name in (Path("small-world"), "./small-world", "nothing", "", tmp_path / "nothing"):
        expected = "^model: expected a folder with a SeTokim model, or the name small-world, got "
        with pytest.raises(ValueError, match=expected + re.escape(repr(str(name)))):
            resolve_model(name)
    Path("a-file").touch()
    with pytest.raises(ValueError, match=r"got 'a-file'$"):
        resolve_model("a-file")
    # As on the hub, a folder comes first.
    Path("small-world").mkdir()
    assert resolve_model("small-world") == Path("small-world") and resolve_model() == embedded


def test_an_installation_without_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDED, "small-world", tmp_path)
    loads = [resolve_model, *(k.from_pretrained for k in (SetokimModel, SetokimProcessor))]
    loads += [SetokModel.from_pretrained, SetokProcessor.from_pretrained]
    for load in loads:
        with pytest.raises(ValueError, match=r"^model: expected .* lacks the embedded model"):
            load()
        with pytest.raises(ValueError, match=r"got small-world$"):
            load("small-world")


def test_the_embedded_model_is_stored_in_bfloat16_and_loaded_in_float32(
    speaker, tmp_path, monkeypatch
):
    folder = Path(shutil.copytree(speaker, tmp_path / "half"))
    weights = load_file(folder / "model.safetensors")
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in weights.items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setitem(EMBEDDED, "small-world", folder)
    model, info = SetokimModel.from_pretrained(output_loading_info=True)
    assert not any(info.values()) and not model.training
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == weights[name].dtype and torch.equal(tensor, half[name].to(tensor))
    setok, info = SetokModel.from_pretrained("small-world", output_loading_info=True)
    assert not any(info.values()) and setok.dtype == torch.float32 and not setok.training
    for name, tensor in setok.state_dict().items():
        assert torch.equal(tensor, model.setok.state_dict()[name])
    assert SetokModel.from_pretrained(dtype=torch.bfloat16).dtype == torch.bfloat16
    assert SetokimModel.from_pretrained("small-world", dtype=torch.bfloat16).dtype == torch.bfloat16
    processor, images = SetokimProcessor.from_pretrained(), SetokProcessor.from_pretrained()
    assert processor.image_processor == images == setok.processor()
    # `state_dict` says which weights to load.
    config = SetokConfig(**model.config.setok)
    again = SetokModel.from_pretrained(None, config=config, state_dict=setok.state_dict())
    assert torch.equal(again.to_concept.weight, setok.to_concept.weight)


def test_a_model_without_the_head_of_stage_1(speaker, tmp_path):
    setok = SetokimModel.from_pretrained(speaker).setok
    setok.config.concept_dim = setok.to_concept = None
    setok.save_pretrained(tmp_path)
    again = load_whole(SetokModel, tmp_path)
    assert again.to_concept is None and again.config.concept_dim is None
    with pytest.raises(ValueError, match=r"^concept_dim: expected a whole number"):
        SetokConfig(concept_dim=0)
