"""A step of `setok train` on the fixture of each published data set."""

import json
import math

import pytest
import yaml

from helpers.published import NEEDS, PUBLISHED
from helpers.tiny_stage1 import TINY, write_setok
from setok_cli.main import main
from setokim.data import Conversation
from setokim.data.readers import READERS

LLM = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def setok(tmp_path_factory):
    return write_setok(tmp_path_factory.mktemp("stage1"))


@pytest.mark.parametrize("name", READERS)
def test_a_step_on_its_fixture(name, setok, tmp_path):
    train(name, setok, tmp_path, lambda root: None)


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("coco-captions", "annotations/captions_val2017.json", "caption 0"),
        ("llava-665k", "llava_v1_5_mix665k.json", "What is it?"),
        ("llava-665k", "llava_v1_5_mix665k.json", "A dog."),
        ("slimpajama", "chunk1/a.jsonl", "text 0"),
    ],
)
def test_names_of_special_tokens_in_texts(name, file, text, setok, tmp_path):
    special = r"<img> </img> <image> [SEG] <s> </s> <pad> <unk> \ud800"

    def rename(root):
        path = root / file
        before = path.read_text()
        path.write_text(before.replace(text, special))
        assert path.read_text() != before

    train(name, setok, tmp_path, rename)


def train(name, setok, tmp_path, change):
    """Train a step on the changed fixture of a data set."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    make, options = PUBLISHED[name]
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    change(root)
    is_conversation = isinstance(READERS[name](root, **options)[0], Conversation)
    data = {"kind": name, "path": str(root), "options": options}
    if name == "slimpajama":
        # The diffusion head needs images for its channel statistics.
        shapes = {"kind": "shapes-tasks", "size": 32, "weight": 1, "options": {"turns": 1}}
        parts = {"texts": data | {"weight": 1}, "shapes": shapes}
        data = {"kind": "mixture", "options": {"parts": parts}}
    common = {"steps": 1, "batch_size": 3, "accumulation": 1, "data": data}
    if is_conversation:
        values = {
            **{key: TINY[key] for key in ("precision", "every", "workers")},
            "stage": 2,
            "setok": str(setok),
            "pack": name == "slimpajama",
            "llm": LLM,
            "model": {"head_width": 16, "head_layers": 1, "segmentation_width": 8},
            "losses": {"text": 1.0, "diffusion": 1.0, "mask": 1.0},
            "train": ["llm"],
            "held_out": {"kind": "shapes-tasks", "size": 32, "samples": 2, "options": {"turns": 1}},
            "optimizer": {"lr": 1.0e-3, "warmup": 1},
            "generation": {"max_new_tokens": 2, "sampling_steps": 2},
            **common,
        }
    else:
        values = TINY | common | {name: {"warmup": 1} for name in ("optimizer", "discriminator")}
    path, out = tmp_path / "run.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(values))
    assert main(["train", "--config", str(path), "--out", str(out)]) == 0
    (line,) = (out / "losses.jsonl").read_text().splitlines()
    losses = json.loads(line)
    assert losses["step"] == 1 and all(math.isfinite(value) for value in losses.values())
