import dataclasses
import inspect
from pathlib import Path

import pytest
import yaml
from tiny_stage1 import TINY

import setokim
from setokim import SetokConfig
from setokim.training.settings import (
    DataSettings,
    EverySettings,
    LossSettings,
    OptimizerSettings,
    Settings,
    load_settings,
)

CONFIGS = sorted(Path(setokim.__file__).parent.joinpath("configs").glob("*.yaml"))


@pytest.fixture
def load(tmp_path):
    """Loads settings from the text of a file."""

    def read(text, *overrides):
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return load_settings(path, overrides)

    return read


def test_an_empty_file_has_the_defaults(load):
    assert load("") == load("# nothing\n") == load("{}") == Settings()


def test_values_and_overrides(load):
    text = """
        steps: 50
        precision: "no"
        model: {width: 8, grid: [2, 3]}
        data: {kind: folder, path: pictures, options: {captions: false}}
        optimizer: {lr: 5e-4, weight_decay: 1, betas: [0, 0.5], warmup: 3}
        losses: {l1: 0, adversarial: 0}
        held_out: {samples: null}
        ema: 0
    """
    overrides = (
        "optimizer.lr=2e-3",
        "optimizer.clip=5",
        "every.log=7",
        "model.width=12",
        "model.cluster.k=3",
        "data.path=other=place",
        "losses.contrastive=",
        "held_out.seed=9",
    )
    with pytest.raises(ValueError, match=r"losses\.contrastive: expected float, got None"):
        load(text, *overrides)
    settings = load(text, *(o for o in overrides if o != "losses.contrastive="))
    assert settings == Settings(
        steps=50,
        precision="no",
        model={"width": 12, "grid": [2, 3], "cluster": {"k": 3}},
        data=DataSettings("folder", "other=place", options={"captions": False}),
        held_out=DataSettings(samples=None, seed=9),
        optimizer=OptimizerSettings(0.002, 1.0, (0.0, 0.5), 3, clip=5.0),
        losses=LossSettings(l1=0.0, adversarial=0.0),
        every=EverySettings(log=7),
        ema=0.0,
    )
    numbers = (settings.optimizer.lr, settings.optimizer.clip, settings.losses.l1, settings.ema)
    assert all(type(number) is float for number in numbers)
    assert all(type(beta) is float for beta in settings.optimizer.betas)


def test_numbers_that_yaml_takes_for_text(load):
    assert yaml.safe_load("5e-4") == "5e-4"
    settings = load("optimizer: {lr: 5e-4, betas: [9e-1, '0.99']}\nlosses: {l2: '3'}")
    assert settings.optimizer.lr == 0.0005 and settings.optimizer.betas == (0.9, 0.99)
    assert settings.losses.l2 == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 3", r"^step: expected one of accumulation, .*, workers, got 'step'$"),
        ("losses: {l3: 1}", r"^losses\.l3: expected one of adversarial, .*, got 'l3'$"),
        ("held_out: {sample: 1}", r"^held_out\.sample: expected one of kind, options, path, "),
        ("3: 4", "^3: expected one of .*, got 3$"),
        ("[1, 2]", r"settings\.yaml: expected keys and values, got \[1, 2\]"),
        ("a: [", r"settings\.yaml: expected YAML, got "),
        ("losses: 3", "^losses: expected keys and values, got 3$"),
        ("losses:", "^losses: expected keys and values, got None$"),
        ("model: 3", "^model: expected dict, got 3$"),
        ("steps: 1.5", r"^steps: expected int, got 1\.5$"),
        ("steps: 1e3", "^steps: expected int, got '1e3'$"),
        ("steps: true", "^steps: expected int, got True$"),
        ("steps: null", "^steps: expected int, got None$"),
        ("ema: true", "^ema: expected float, got True$"),
        ("ema: much", "^ema: expected float, got 'much'$"),
        ("precision: no", "^precision: expected str, got False$"),
        ("data: {path: 3}", r"^data\.path: expected str, got 3$"),
        ("data: {samples: many}", r"^data\.samples: expected int, got 'many'$"),
        ("data: {options: [1]}", r"^data\.options: expected dict, got \[1\]$"),
        ("optimizer: {betas: 0.9}", r"^optimizer\.betas: expected tuple, got 0\.9$"),
        ("optimizer: {betas: [0.9]}", r"^optimizer\.betas: expected 2 values, got \[0\.9\]$"),
        ("optimizer: {betas: [0.9, x]}", r"^optimizer\.betas: expected float, got 'x'$"),
        ("stage: 2", "^stage: expected 1, got 2$"),
        ("steps: 0", "^steps: expected at least 1, got 0$"),
        ("batch_size: 0", "^batch_size: expected at least 1, got 0$"),
        ("accumulation: -1", "^accumulation: expected at least 1, got -1$"),
        ("keep: 0", "^keep: expected at least 1, got 0$"),
        ("seed: -1", "^seed: expected at least 0, got -1$"),
        ("workers: -1", "^workers: expected at least 0, got -1$"),
        ("precision: fp16", "^precision: expected no or bf16, got 'fp16'$"),
        ("ema: 1", r"^ema: expected a number in \[0, 1\), got 1\.0$"),
        ("losses: {l2: -1}", r"^losses\.l2: expected at least 0, got -1\.0$"),
        ("losses: {adversarial_start: -1}", r"^losses\.adversarial_start: expected at least 0"),
        (
            "losses: {l1: 0, l2: 0, perceptual: 0, adversarial: 0, contrastive: 0}",
            "^losses: expected at least one weight above 0, got none$",
        ),
        (
            "losses: {l1: 0, l2: 0, perceptual: 0, adversarial_start: 5}",
            r"^losses\.adversarial_start: expected 0 with no other loss of the pictures, got 5$",
        ),
        (
            "steps: 5\nlosses: {adversarial: 0}",
            r"^optimizer\.warmup: expected a number from 0 to steps=5, got 10000$",
        ),
        (
            "steps: 5\noptimizer: {warmup: 5}\ndiscriminator: {warmup: 6}",
            r"^discriminator\.warmup: expected a number from 0 to steps=5, got 6$",
        ),
        ("optimizer: {warmup: -1}", r"^optimizer\.warmup: expected a number from 0 to .*, got -1$"),
    ],
)
def test_errors_name_the_setting(load, text, message):
    with pytest.raises(ValueError, match=message):
        load(text)


def test_settings_that_nothing_uses_are_not_checked(load):
    assert load("steps: 5\noptimizer: {warmup: 5}\nlosses: {adversarial: 0}").steps == 5
    losses = "losses: {l1: 0, l2: 0, perceptual: 0, adversarial: 0, adversarial_start: 5}"
    assert load(losses).losses.contrastive == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "^override: expected key=value, got 'steps'$"),
        ("=3", "^override: expected key=value, got '=3'$"),
        ("steps.more=3", "^override: 'steps.more' goes through 'steps', which is no group$"),
        ("steps=[", r"^steps: expected YAML, got '\['$"),
        ("losses.l3=1", r"^losses\.l3: expected one of "),
        ("new.key=1", "^new: expected one of "),
    ],
)
def test_errors_of_overrides(load, override, message):
    with pytest.raises(ValueError, match=message):
        load("steps: 100000", override)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_settings(tmp_path / "none.yaml")


def test_settings_survive_yaml(load):
    changed = load(yaml.safe_dump(TINY), "optimizer.betas=[0.1, 0.2]", "data.options={length: 9}")
    for settings in (Settings(), changed):
        again = load(yaml.safe_dump(settings.to_dict()))
        assert again == settings and again.to_dict() == settings.to_dict()
    assert changed.to_dict()["optimizer"]["betas"] == [0.1, 0.2]


def test_every_field_is_explained():
    kinds = (Settings, DataSettings, OptimizerSettings, LossSettings, EverySettings)
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert f"\n    {field.name}: " in inspect.getdoc(kind)


def test_there_are_configurations():
    assert {"stage1_paper.yaml", "stage1_tiny.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_load(path):
    settings = load_settings(path)
    known = set(inspect.signature(SetokConfig).parameters) - {"kwargs"}
    assert settings.model.keys() <= known
    # With the name of a model, the encoder's own fields come from the hub.
    config = SetokConfig(**settings.model | {"encoder": "patch-statistics"})
    assert config.width == settings.model["width"]
    assert path.read_text().startswith(f"# setok train --config model/configs/{path.name} ")
    assert settings.held_out.samples and settings.held_out != settings.data


def test_the_paper_in_numbers():
    settings = load_settings(next(path for path in CONFIGS if path.stem == "stage1_paper"))
    assert (settings.batch_size, settings.accumulation, settings.precision) == (16, 8, "bf16")
    assert settings.optimizer == OptimizerSettings(5e-4, 0.05, (0.9, 0.95), 10_000)
    weights = dataclasses.replace(settings.losses, perceptual_network="", adversarial_start=0)
    assert weights == LossSettings(1, 1, 1, "", 0.5, 0, 1)
