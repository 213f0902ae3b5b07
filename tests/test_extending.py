"""Training runs with every file of docs/extending.md."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml

from helpers import registries
from helpers.tiny_setokim import FIELDS, LLM
from helpers.tiny_stage1 import TINY, losses_of, write_setok
from setokim import SetokModel
from setokim.training.settings import load_settings
from setokim.training.trainer import Trainer

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
YAMLS = {
    values["imports"][0]: values
    for values in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
}


@pytest.fixture(autouse=True)
def _forget():
    with registries.restored():
        yield


def merged(base, own):
    both = dict(base)
    for key, value in own.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        both[key] = merged(base[key], value) if nested else value
    return both


def train(folder, name, base):
    """Train two steps with a file of the page and its settings; return the trainer."""
    assert YAMLS[name]["imports"] == [name]
    (folder / name).write_text(FILES[name], encoding="utf-8")
    (folder / "run.yaml").write_text(yaml.safe_dump(merged(base, YAMLS[name])), encoding="utf-8")
    short = ("steps=2", "optimizer.warmup=1", "discriminator.warmup=1")
    settings = load_settings(folder / "run.yaml", short[: 3 if "llm" not in base else 2])
    trainer = Trainer(settings, folder / "out")
    trainer.train()
    lines = losses_of(folder / "out")
    assert len(lines) == 2 and all(math.isfinite(v) for line in lines for v in line.values())
    return trainer


def test_the_page_has_each_kind_with_its_settings():
    assert (
        set(FILES)
        == set(YAMLS)
        == {
            "z_loss.py",
            "short_tokens.py",
            "mean_colours.py",
            "discs.py",
            "stripes.py",
        }
    )


def test_a_loss_of_the_language_model(tmp_path):
    base = {
        **{key: TINY[key] for key in ("accumulation", "precision", "every", "workers", "ema")},
        "stage": 2,
        "batch_size": 2,
        "llm": LLM,
        "setok": str(write_setok(tmp_path / "setok")),
        "model": FIELDS,
        "train": ["llm"],
        "optimizer": {"lr": 1e-3},
        "max_length": 256,
        "data": {"kind": "shapes-tasks", "size": 32},
        "held_out": {"kind": "shapes-tasks", "size": 32, "samples": 1},
        "generation": {"max_new_tokens": 2, "sampling_steps": 1},
    }
    train(tmp_path, "z_loss.py", base)
    line = losses_of(tmp_path / "out")[0]
    # About log(V) squared for an untrained model, times the weight of the settings.
    assert 1e-4 < line["z"] < 1e-1
    parts = [line[name] for name in ("text", "diffusion", "mask", "z")]
    assert line["loss"] == pytest.approx(sum(parts))


def test_a_loss_of_stage_1(tmp_path):
    train(tmp_path, "short_tokens.py", TINY)
    line = losses_of(tmp_path / "out")[0]
    assert line["short"] > 0
    others = ("pixel", "perceptual", "contrastive", "adversarial")
    assert line["loss"] == pytest.approx(sum(line[name] for name in (*others, "short")))


def test_an_encoder(tmp_path):
    trainer = train(tmp_path, "mean_colours.py", TINY)
    encoder = trainer.unwrapped.setok.encoder
    assert type(encoder).__name__ == "MeanColours"
    image = torch.zeros(1, 3, 24, 24)
    image[:, 0, :4, 4:8] = 1
    expected = torch.zeros(1, 6, 6, 3)
    expected[0, 0, 1, 0] = 1
    assert torch.equal(encoder(image), expected)
    again = SetokModel.from_pretrained(tmp_path / "out" / "model")
    assert again.tokenize(image).tokens.shape[0] == 1


def test_a_data_set(tmp_path):
    trainer = train(tmp_path, "discs.py", TINY)
    sample, _ = trainer.dataset[3]
    assert sample.concepts == ("red disc",) and sample.image.size == (32, 32)
    assert sample.masks.sum() == (torch.tensor(sample.masks) == 1).sum() > 80
    with pytest.raises(ValueError, match=r"kind: expected one of .*, discs, .*, got 'dots'"):
        load_settings(tmp_path / "run.yaml", ["data.kind=dots"]).data.build()


def test_a_token_grouping(tmp_path):
    trainer = train(tmp_path, "stripes.py", TINY)
    visual = trainer.unwrapped.setok.tokenize(torch.rand(2, 3, 24, 24))
    rows = [0] * 12 + [1] * 12 + [2] * 12
    assert visual.labels.tolist() == [rows, rows] and visual.occupied.all()
    assert SetokModel.from_pretrained(tmp_path / "out" / "model").config.tokens == "stripes"


@pytest.mark.parametrize(
    ("imports", "reason"),
    [
        ("[nowhere.py]", r"got 'nowhere\.py': FileNotFoundError"),
        ("[no_such_module]", "got 'no_such_module': ModuleNotFoundError"),
        ("name.py", r"expected a list of modules, got 'name\.py'"),
        ("[broken.py]", r"got 'broken\.py': ZeroDivisionError"),
    ],
)
def test_imports_that_fail_are_named(tmp_path, imports, reason):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "run.yaml").write_text(f"imports: {imports}\n")
    with pytest.raises(ValueError, match=f"^imports: .*{reason}"):
        load_settings(tmp_path / "run.yaml")


@pytest.mark.parametrize("stage", ["stage: 1", "stage: 2\nllm: a\nsetok: b"])
def test_extra_losses_must_be_registered(tmp_path, stage):
    (tmp_path / "run.yaml").write_text(f"{stage}\nlosses: {{extra: {{mystery: 1.0}}}}\n")
    with pytest.raises(ValueError, match=r"losses\.extra: expected .* \(none\), got mystery"):
        load_settings(tmp_path / "run.yaml")
