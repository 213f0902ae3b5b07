"""Zero-shot classification: SigLIP's own features, the means of tokens, and images of classes."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from helpers.tiny_setokim import build, picture
from helpers.tiny_stage1 import TINY
from setok_cli.main import main
from setokim import SetokModel
from setokim.evaluation.dual_encoder import DualEncoder
from setokim.evaluation.image_networks import ImageNetworks
from setokim.evaluation.zero_shot import (
    TEMPLATES,
    ZeroShotImages,
    class_embeddings,
    mean_patches,
    zero_shot_metrics,
)
from setokim.vlm.word_tokenizer import build_word_tokenizer

NAMES = {"n00000001": "red", "n00000002": "blue", "n00000003": "green"}
COLOURS = {"n00000001": (250, 20, 20), "n00000002": (20, 20, 250), "n00000003": (20, 250, 20)}


def write_images(root, number=3):
    root.mkdir(exist_ok=True)
    lines = [f"{one} {name}, a colour" for one, name in NAMES.items()]
    (root / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")
    for name, colour in COLOURS.items():
        (root / "val" / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.full((24, 24, 3), colour, np.uint8)
            pixels[: 4 * index + 4, :12] = 128
            Image.fromarray(pixels).save(root / "val" / name / f"{index}.JPEG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random SigLIP with its tokenizer."""
    folder = tmp_path_factory.mktemp("siglip")
    words = {word for text in TEMPLATES for word in text.format("").lower().split()}
    tokenizer = build_word_tokenizer([*words, *NAMES.values(), "."])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = dict(sizes, vocab_size=len(tokenizer), max_position_embeddings=12, num_hidden_layers=1)
    vision = dict(sizes, image_size=24, patch_size=4, num_hidden_layers=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = transformers.SiglipModel(config)
        for parameter in model.parameters():
            # The small initial weights hardly tell two images apart.
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(folder):
    return transformers.SiglipModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def dual(folder):
    return DualEncoder(folder)


@pytest.fixture(scope="module")
def setok(folder):
    fields = {k: v for k, v in TINY["model"].items() if not k.startswith("encoder") and k != "grid"}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SetokModel.from_encoder(str(folder), **fields).eval()


@torch.no_grad()
def test_features_are_those_of_transformers(dual, siglip, setok, folder):
    pixels = setok.preprocess([picture(seed) for seed in range(4)])
    expected = F.normalize(siglip.get_image_features(pixels).pooler_output, dim=1)
    assert torch.allclose(dual.pool(dual.patches(pixels)), expected, atol=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["a photo of the large red.", "art of the blue."]
    ids = tokenizer(texts, padding="max_length", max_length=12, return_tensors="pt").input_ids
    expected = F.normalize(siglip.get_text_features(ids).pooler_output, dim=1)
    assert torch.allclose(dual.texts([texts[0].upper(), texts[1]]), expected, atol=1e-6)
    classes = class_embeddings(dual, ["red", "blue"])
    each = dual.texts([template.format("blue") for template in TEMPLATES]).mean(0)
    assert torch.allclose(classes[1], each / each.norm(), atol=1e-6)


def test_a_token_counts_as_its_patches(dual):
    patches = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    patches[:, 1] = patches[:, 2] = patches[:, 0]
    masks = torch.zeros(2, 4, 5)
    masks[:, 0, :3] = masks[:, 1, 3] = masks[:, 3, 4] = 1
    means, sizes = mean_patches(patches, masks)
    assert sizes.tolist() == [[3, 1, 0, 1]] * 2 and not means[:, 2].any()
    assert torch.allclose(means[:, 0], patches[:, 0])
    whole = dual.pool(patches)
    assert torch.allclose(dual.pool(means, sizes), whole, atol=1e-6)
    # Without the sizes it is another vector.
    kept = means[:, [0, 1, 3]]
    assert not torch.allclose(dual.pool(kept), whole, atol=1e-3)
    # Each patch a token of its own.
    assert torch.allclose(
        dual.pool(*mean_patches(patches, torch.eye(5).expand(2, 5, 5))), whole, atol=1e-6
    )


@torch.no_grad()
def test_accuracies_by_hand(dual, siglip, setok, tmp_path):
    write_images(tmp_path)
    data, shown = ZeroShotImages(tmp_path), []
    found = zero_shot_metrics(setok, data, 9, shown.append, ImageNetworks(dual=dual))
    classes = class_embeddings(dual, list(NAMES.values()))
    samples = [data[index] for index in range(9)]
    pixels = setok.preprocess([one.image for one in samples])
    pooled = F.normalize(siglip.get_image_features(pixels).pooler_output, dim=1)
    nearest = (pooled @ classes.T).argmax(1)
    true = torch.tensor([list(NAMES).index(one.caption) for one in samples])
    assert found["top1"] == pytest.approx(100 * (nearest == true).double().mean().item())
    # Of three classes.
    assert found["top5"] == found["token_top5"] == 100
    visual = setok.tokenize(pixels)
    means, sizes = mean_patches(siglip.vision_model(pixels).last_hidden_state, visual.masks)
    own = (dual.pool(means, sizes) @ classes.T).argmax(1)
    assert found["token_top1"] == pytest.approx(100 * (own == true).double().mean().item())
    assert found["agreement"] == pytest.approx(100 * (own == nearest).double().mean().item())
    assert found["tokens"] == pytest.approx(visual.occupied.sum(1).double().mean().item())
    assert found["samples"] == 9 and found["broken"] == 0 and shown == list(range(1, 10))


def test_parquet_files_and_damaged_names(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_images(tmp_path)
    path = tmp_path / "val" / "n00000002" / "0.JPEG"
    image = {"bytes": path.read_bytes(), "path": None}
    table = pyarrow.table({"image": [image], "label": [1]})
    (tmp_path / "data").mkdir()
    parquet.write_table(table, tmp_path / "data" / "validation-0.parquet")
    (tmp_path / "val").rename(tmp_path / "away")
    sample = ZeroShotImages(tmp_path)[0]
    assert sample.names[sample.caption] == "blue" and len(sample.names) == 3
    (tmp_path / "LOC_synset_mapping.txt").write_text("red\n")
    with pytest.raises(ValueError, match="expected a WordNet id and names, got 'red'"):
        ZeroShotImages(tmp_path)
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(ValueError, match=r"^names: expected a file, got .*LOC_synset"):
        ZeroShotImages(tmp_path)


def test_another_encoder_is_refused(dual, folder, setok, tmp_path):
    with pytest.raises(ValueError, match="for an encoder that is no vision tower"):
        dual.check_encoder(build()[0].setok)
    dual.check_encoder(setok)
    weight = setok.encoder.backbone.state_dict()["embeddings.patch_embedding.bias"]
    before = weight.clone()
    weight[0] += 1
    with pytest.raises(ValueError, match=r"has other weights of embeddings.patch_embedding.bias"):
        dual.check_encoder(setok)
    weight.copy_(before)
    with pytest.raises(ValueError, match="expected the folder of a SigLIP model"):
        DualEncoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"type 'siglip' .* got one of 'clip'"):
        DualEncoder(tmp_path)


def test_the_command(setok, folder, tmp_path, capsys):
    data, model, out = (tmp_path / name for name in ("data", "model", "out"))
    write_images(data)
    setok.save_pretrained(model)
    (data / "val" / "n00000001" / "0.JPEG").write_bytes(b"none")
    where = ["--data", str(data), "--model", str(model), "--out", str(out), "--allow-missing"]
    command = ["eval", "--benchmark", "imagenet-zero-shot", *where]
    assert main(command) == 2
    assert "text_encoder: expected the folder of a SigLIP model" in capsys.readouterr().err
    assert main([*command, "--text-encoder", str(model)]) == 2
    assert "--text-encoder: expected a model of type 'siglip'" in capsys.readouterr().err
    assert main([*command, "--text-encoder", str(folder)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["samples"] == 8 and metrics["broken"] == 1 and metrics["token_top5"] == 100
    report = json.loads((out / "figures.json").read_text())["figures"]
    assert report["top1"]["interval"] is not None and report["top1"]["samples"] == 8
