import sys

import pytest
import torch
from torch import nn
from torch.utils.data._utils.pin_memory import pin_memory

from helpers.tiny_stage1 import TINY, losses_of, tiny_settings
from setokim.data import Reading, Sample
from setokim.training import latest_checkpoint, load_checkpoint
from setokim.training import trainer as trainer_module
from setokim.training.base_settings import OptimizerSettings
from setokim.training.settings import InstructSettings
from setokim.training.stage import Stage, StageOutput, to_device
from setokim.training.stage1.collator import Stage1Collator
from setokim.training.stage1.stage import Stage1
from setokim.training.stages import build_stage
from setokim.training.trainer import Trainer
from setokim.vlm.region_names import RegionNames


class Line(Stage):
    """Stage that fits one number of each sample, with a visual and a frozen part."""

    def __init__(self, settings=None, *contents):
        super().__init__()
        self.text = nn.Linear(2, 1)
        self.visual = nn.Linear(2, 1)
        self.frozen = nn.Linear(2, 1).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(()))
        self.prepared = 0
        self.modes = []

    def forward(self, batch):
        assert self.training and batch["names"] == [f"shapes {i}" for i in batch["numbers"]]
        x = batch["x"] - self.mean
        loss = (self.text(x) + self.visual(x) + self.frozen(x)).square().mean()
        return StageOutput({"line": loss})

    def collator(self):
        return collate

    def prepare(self, dataset):
        self.prepared += 1
        assert isinstance(dataset[0], Sample)
        self.mean.fill_(len(dataset))

    def visual_parts(self):
        return [self.visual]

    def evaluate(self, collate, held_out, batch_size):
        assert not self.training and isinstance(held_out[0], Sample)
        return {"mean": self.mean.item(), "nothing": None, "size": batch_size}

    def write_samples(self, collate, held_out, path):
        assert not self.training
        path.parent.mkdir(exist_ok=True)
        path.write_text("sheet")

    def export(self, folder):
        assert not self.training
        (folder / "model.txt").write_text(str(self.mean.item()))


def collate(samples):
    numbers = [sample.image.size[0] for sample in samples]
    x = torch.tensor([[1.0, number] for number in numbers])
    return {"x": x, "numbers": numbers, "names": [f"shapes {i}" for i in numbers]}


@pytest.fixture
def build(tmp_path, threads, monkeypatch):
    """Function that builds a trainer of `Line` with an output folder of a name."""
    threads(1)
    monkeypatch.setattr(trainer_module, "build_stage", Line)

    def make(out, *overrides, resume=False):
        overrides = ("losses.adversarial=0", "data.samples=7", *overrides)
        return Trainer(tiny_settings(tmp_path, *overrides), tmp_path / out, resume)

    return make


def names_of(stage, groups):
    names = {id(p): name for name, p in stage.named_parameters()}
    return [({names[id(p)] for p in g["params"]}, g["lr"], g["weight_decay"]) for g in groups]


def test_groups_have_their_rates():
    stage = Line()
    one = names_of(stage, stage.parameter_groups(OptimizerSettings(lr=0.1, weight_decay=0.2)))
    assert one == [
        ({"text.weight", "visual.weight"}, 0.1, 0.2),
        ({"text.bias", "visual.bias"}, 0.1, 0.0),
    ]
    settings = OptimizerSettings(lr=0.1, weight_decay=0.2, visual_lr=0.01)
    assert names_of(stage, stage.parameter_groups(settings)) == [
        ({"text.weight"}, 0.1, 0.2),
        ({"visual.weight"}, 0.01, 0.2),
        ({"text.bias"}, 0.1, 0.0),
        ({"visual.bias"}, 0.01, 0.0),
    ]
    stage.text.requires_grad_(False)
    assert [rate for _, rate, _ in names_of(stage, stage.parameter_groups(settings))] == [0.01] * 2
    stage.visual.requires_grad_(False)
    with pytest.raises(ValueError, match="module: expected at least one parameter with gradient"):
        stage.parameter_groups(settings)


def test_the_cosine_multiplies_each_rate(build, monkeypatch):
    settings = OptimizerSettings(visual_lr=0.01)
    groups = Line.parameter_groups
    monkeypatch.setattr(
        Line, "parameter_groups", lambda self, _: groups(self, OptimizerSettings(visual_lr=0.01))
    )
    trainer = build("out", "every.checkpoint=2")
    rates, step = [], trainer.optimizer.step

    def recording():
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        step()

    trainer.optimizer.step = recording
    trainer.train()
    # Two steps up, then half a cosine down over two.
    for factor, found in zip((0.5, 1, 1, 0.5), rates, strict=True):
        assert found == pytest.approx([settings.lr * factor, 0.01 * factor] * 2)
    # Rates from a checkpoint do not replace those of the settings.
    resumed = build("out", "every.checkpoint=2", resume=True)
    assert resumed._rates == pytest.approx([settings.lr, 0.01] * 2)


def test_the_trainer_uses_the_methods_of_a_stage(tmp_path, build):
    trainer = build("out", "every.checkpoint=2", "every.pictures=4", "every.evaluation=2")
    stage = trainer.unwrapped
    assert stage.prepared == 1 and stage.mean == 7 and trainer._others == {}
    # Frozen parameters have no average.
    trained = {"text.weight", "text.bias", "visual.weight", "visual.bias"}
    assert trainer.ema.averages.keys() == trained
    metrics = trainer.train()
    assert (metrics["mean"], metrics["nothing"], metrics["size"]) == (7.0, None, 4)
    assert set(losses_of(tmp_path / "out")[0]) == {"step", "line", "loss", "gradient_norm"}
    assert (tmp_path / "out" / "pictures" / "step-00000004.png").read_text() == "sheet"
    assert (tmp_path / "out" / "model" / "model.txt").read_text() == "7.0"
    tensors, _ = load_checkpoint(latest_checkpoint(tmp_path / "out"))
    assert {n for n in tensors if n.startswith("ema.average")} == {
        f"ema.average.{name}" for name in trained
    }
    # A resumed run restores the fitted statistics from its checkpoint.
    resumed = build("out", "every.checkpoint=2", resume=True).unwrapped
    assert resumed.prepared == 0 and resumed.mean == 7


def test_stages_by_number(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path)
    stage = build_stage(settings)
    assert type(stage) is Stage1 and stage.setok.config.width == TINY["model"]["width"]
    assert isinstance(stage.collator(), Stage1Collator)
    built = []
    module = type("module", (), {"Instruct": lambda *given: built.append(given[0])})
    monkeypatch.setitem(sys.modules, "setokim.training.stage2.stage", module)
    for number in (2, 3):
        settings = InstructSettings(stage=number, start="folder")
        build_stage(settings)
        assert built.pop() is settings


def test_batches_with_regions_are_pinned_and_copied(monkeypatch):
    regions = RegionNames(torch.zeros(1, 2, 2).long(), torch.zeros(1, 3, 1).long())
    batch = {"x": torch.ones(2), "regions": regions, "texts": ["a"], "images": [None], "n": 3}
    pinned = []

    def pin(tensor, *_):
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    reading = Reading((1,), ())
    found, same = pin_memory((batch, reading))
    assert same is reading and list(map(id, pinned)) == [
        id(one) for one in (batch["x"], regions.labels, regions.words)
    ]
    assert isinstance(found["regions"], RegionNames)
    assert (found["texts"], found["images"], found["n"]) == (["a"], [None], 3)
    asked = []
    to = torch.Tensor.to

    def recording(tensor, *arguments, **options):
        asked.append(options)
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", recording)
    moved = to_device(found, torch.device("meta"))
    assert asked == [{"non_blocking": True}] * 3
    assert moved["regions"].words.device.type == moved["regions"].labels.device.type == "meta"


def test_plain_values_stay():
    batch = {"x": torch.ones(2), "texts": ["a"], "n": 3}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"].device.type == "meta" and (moved["texts"], moved["n"]) == (["a"], 3)
