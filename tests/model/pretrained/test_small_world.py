"""The embedded model small-world itself: its files, its figures, and the examples that use it.

Without the weights in the checkout these tests fail.
"""

import json
import shlex
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.markdown import code_blocks, commands
from setok_cli.main import main
from setokim import SetokimModel, SetokimProcessor, SetokModel
from setokim.evaluation.benchmarks import BENCHMARKS, HELD_OUT
from setokim.evaluation.prompting import BLIND, prompts_of
from setokim.training.release import FIGURES, MAX_BYTES, SAMPLES, SCENE, measure
from setokim.utils.pretrained import resolve_model

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "README.md", ROOT / "docs" / "embedded-model.md")
# Fractions of right answers, with the task of each and the number of its answers that may differ.
# Processors round differently, and where two words or two clusters are nearly equal, the other one
# may win. cIoU weighs masks by their area, so that a large one counts as two.
MAY_DIFFER = {
    "vqa_accuracy": ("vqa", 1),
    "vqa_language_only": (BLIND, 1),
    "caption_accuracy": ("caption", 1),
    "locate_accuracy": ("locate", 1),
    "generation_accuracy": ("generate", 1),
    "edit_success": ("edit", 1),
    "ciou": ("segment", 2),
    "giou": ("segment", 1),
    "text_accuracy": ("text", 1),
}
# Relative difference of a mean loss: rounding alone changes its sixth digit, and a patch that goes
# to another cluster changes the tokens of one image of many.
LOSS_TOLERANCE = 0.01


@pytest.fixture(scope="module")
def folder():
    return resolve_model()


@pytest.fixture(scope="module")
def figures(folder):
    return json.loads((folder / FIGURES).read_text())


def test_the_weights_are_small_and_load_in_float32(folder, figures):
    path = folder / "model.safetensors"
    assert path.stat().st_size == figures["bytes"] <= MAX_BYTES
    kinds = {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()}
    assert kinds == {torch.bfloat16}
    model, info = SetokimModel.from_pretrained(output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.float32
    assert model.generation_config.image_temperature == 0
    assert SetokModel.from_pretrained().dtype == torch.float32
    assert SetokimProcessor.from_pretrained().special_ids()["segment_id"] == model.config.segment_id
    assert "Apache-2.0" in (folder / "README.md").read_text()


def test_its_figures(folder, figures, threads):
    """A random model of its size takes 12 s; with more threads than free cores it takes minutes."""
    threads(1)
    first = figures["first"]
    assert first["samples"] == SAMPLES
    found = measure(folder, SAMPLES)
    assert found.keys() == first.keys() - {"samples"}
    data = BENCHMARKS["shapes-world"].open(folder / HELD_OUT)
    answers = Counter(
        prompt.part for i in range(SAMPLES) for prompt in prompts_of(i, data[i], blind=True)
    )
    for name, (task, number) in MAY_DIFFER.items():
        assert found[name] == pytest.approx(first[name], abs=number / answers[task] + 1e-9), name
    # It depends on the data alone.
    assert found["vqa_chance"] == first["vqa_chance"]
    losses = [name for name in found if name.endswith("text_loss")]
    assert len(losses) == 8
    for name in losses:
        assert found[name] == pytest.approx(first[name], rel=LOSS_TOLERANCE), name


def examples(page):
    """Commands of a page that run the embedded model, as words."""
    lines = [line for block in code_blocks(page.read_text()) for line in commands(block.code)]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("setok ")]
    names = ("chat", "generate", "edit", "segment", "eval")
    return [w[1:] for w in found if w[1] in names and not {"--model", "--data"} & set(w)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, folder, tmp_path, monkeypatch, threads):
    """In their order: some use the result of another."""
    threads(1)
    shutil.copy(folder / SCENE, tmp_path / "scene.png")
    monkeypatch.chdir(tmp_path)
    found = examples(page)
    assert page.name == "README.md" or len(found) >= 6
    for words in found:
        few = ["--samples", "8"] if words[0] == "eval" else []
        assert main([*words, *few]) == 0, words
