import dataclasses
import inspect
from pathlib import Path

import pytest
import yaml

import setokim
from helpers.tiny_stage1 import TINY
from setokim import SetokConfig
from setokim.training.settings import (
    DataSettings,
    EverySettings,
    InstructSettings,
    LossSettings,
    OptimizerSettings,
    Settings,
    Stage1Settings,
    load_settings,
)
from setokim.training.stage2.settings import (
    GenerationSettings,
    InstructLossSettings,
    LoraSettings,
)
from setokim.vlm.configuration_setokim import SetokimConfig

CONFIGS = sorted(Path(setokim.__file__).parent.joinpath("configs").glob("*.yaml"))


@pytest.fixture
def load(tmp_path):
    """Function that loads settings from the text of a YAML file."""

    def read(text, *overrides):
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return load_settings(path, overrides)

    return read


def test_an_empty_file_has_the_defaults(load):
    assert load("") == load("# nothing\n") == load("{}") == Stage1Settings()


def test_values_and_overrides(load):
    text = """
        steps: 50
        precision: "no"
        model: {width: 8, grid: [2, 3]}
        data: {kind: folder, path: images, options: {captions: false}}
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
    assert settings == Stage1Settings(
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


def test_numbers_that_yaml_reads_as_text(load):
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
        ("stage: 4", "^stage: expected 1, codes, 2 or 3, got 4$"),
        ("stage: two", "^stage: expected 1, codes, 2 or 3, got 'two'$"),
        ("stage: [1]", r"^stage: expected 1, codes, 2 or 3, got \[1\]$"),
        (
            "parallel: fsdp\noptimizer: {kind: muon}",
            r"^optimizer\.kind: expected adamw with parallel fsdp, got 'muon'$",
        ),
        ("parallel: tp", "^parallel: expected ddp or fsdp, got 'tp'$"),
        (
            "parallel: fsdp",
            r"^parallel: expected ddp with losses\.adversarial above 0, got fsdp$",
        ),
        (
            "optimizer: {visual_lr: 1e-4}",
            r"^optimizer\.visual_lr: expected none in stage 1, got 0\.0001$",
        ),
        ("lora: {rank: 4}", "^lora: expected one of accumulation, .*, got 'lora'$"),
        ("steps: 0", "^steps: expected at least 1, got 0$"),
        ("batch_size: 0", "^batch_size: expected at least 1, got 0$"),
        ("accumulation: -1", "^accumulation: expected at least 1, got -1$"),
        ("keep: 0", "^keep: expected at least 1, got 0$"),
        ("seed: -1", "^seed: expected at least 0, got -1$"),
        ("workers: -1", "^workers: expected at least 0, got -1$"),
        ("prefetch: 0", "^prefetch: expected at least 1, got 0$"),
        ("prefetch: 1.5", r"^prefetch: expected int, got 1\.5$"),
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
            r"^losses\.adversarial_start: expected 0 without another loss of the images, got 5$",
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [detokenizer]", r"^losses\.reconstruction: expected more than 0 to train the det"),
        (
            "losses: {reconstruction: 1}",
            r"^losses\.reconstruction: expected 0 without training the .* 1\.0$",
        ),
        (
            "train: [heads]",
            "^train: expected parts among llm, tokenizer, detokenizer, got 'heads'$",
        ),
    ],
)
def test_trained_parts_fit_the_losses(load, text, message):
    with pytest.raises(ValueError, match=message):
        load(f"stage: 2\nstart: folder\noptimizer: {{warmup: 1}}\n{text}")


def test_instruct_settings(load):
    text = """
        stage: 3
        start: runs/stage2/model
        lora: {rank: 8, targets: [q_proj, v_proj]}
        train: [llm, tokenizer]
        losses: {mask: 0, reconstruction: 0.5}
        optimizer: {lr: 1e-4, visual_lr: 1e-5}
        parallel: fsdp
    """
    settings = load(text, "generation.samples=12", "condition_dropout=0", "model.head_width=64")
    assert settings == InstructSettings(
        stage=3,
        start="runs/stage2/model",
        model={"head_width": 64},
        lora=LoraSettings(8, targets=("q_proj", "v_proj")),
        train=("llm", "tokenizer"),
        losses=InstructLossSettings(mask=0.0, reconstruction=0.5),
        optimizer=OptimizerSettings(1e-4, visual_lr=1e-5),
        parallel="fsdp",
        generation=GenerationSettings(samples=12),
        condition_dropout=0.0,
    )
    again = load(yaml.safe_dump(settings.to_dict()))
    assert again == settings and again.to_dict() == settings.to_dict()
    assert load("stage: 2\nllm: name\nsetok: folder").llm == "name"
    tiny = load("stage: 2\nllm: {model_type: llama}\nsetok: folder\nlora: null")
    assert tiny.llm == {"model_type": "llama"} and tiny.lora is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^llm: expected a value without start, got None$"),
        ("llm: name", "^setok: expected a value without start, got None$"),
        ("start: a\nllm: b", "^llm: expected None with start='a', got 'b'$"),
        ("start: a\nsetok: b", "^setok: expected None with start='a', got 'b'$"),
        ("llm: 3", "^llm: expected str or dict, got 3$"),
        ("start: a\ntext_encoder: b", "^text_encoder: expected one of accumulation, .*, got 'text"),
        (
            "start: a\nlosses: {l1: 1}",
            r"^losses\.l1: expected one of copy, diffusion, .*, got 'l1'$",
        ),
        ("start: a\nlosses: {text: -1}", r"^losses\.text: expected at least 0, got -1\.0$"),
        (
            "start: a\nlosses: {text: 0, diffusion: 0, mask: 0}",
            "^losses: expected at least one weight above 0, got none$",
        ),
        ("start: a\ntrain: llm", "^train: expected a list, got 'llm'$"),
        ("start: a\ntrain: [llm, 3]", "^train: expected str, got 3$"),
        ("start: a\ntrain: [eyes]", "^train: expected parts among llm, .*, got 'eyes'$"),
        ("start: a\nlora: {rank: 0}", r"^lora\.rank: expected at least 1, got 0$"),
        ("start: a\nlora: {alpha: 0}", r"^lora\.alpha: expected a number above 0, got 0\.0$"),
        ("start: a\nlora: {dropout: 1}", r"^lora\.dropout: expected a number in \[0, 1\), got 1"),
        ("start: a\nlora: {targets: []}", r"^lora\.targets: expected at least one name, got none$"),
        ("start: a\nlora: 3", "^lora: expected keys and values, got 3$"),
        ("start: a\ncondition_dropout: 2", r"^condition_dropout: expected a number in \[0, 1\]"),
        ("start: a\ndiffusion_repeats: 0", "^diffusion_repeats: expected at least 1, got 0$"),
        ("start: a\ndiffusion_noisiest: 5", "^diffusion_noisiest: expected 0 to 4, got 5$"),
        ("start: a\nkeep_tokens: -1", "^keep_tokens: expected at least 0, got -1$"),
        (
            "start: a\nkeep_tokens: 9\ntrain: [tokenizer]",
            "^keep_tokens: expected 0 with a trained tokenizer, got 9$",
        ),
        (
            "start: a\nkeep_tokens: 9\nparallel: fsdp",
            "^keep_tokens: expected 0 with fsdp, got 9$",
        ),
        ("start: a\nmax_length: 0", "^max_length: expected at least 1, got 0$"),
        (
            "start: a\ngeneration: {sampling_steps: 0}",
            r"^generation\.sampling_steps: expected at least 1, got 0$",
        ),
        (
            "start: a\ngeneration: {guidance: -1}",
            r"^generation\.guidance: expected at least 0, got -1\.0$",
        ),
        (
            "start: a\ngeneration: {image_temperature: -1}",
            r"^generation\.image_temperature: expected at least 0, got -1\.0$",
        ),
        ("start: a\nsteps: 5", r"^optimizer\.warmup: expected a number from 0 to steps=5, got "),
    ],
)
def test_errors_of_instruct_settings(load, text, message):
    with pytest.raises(ValueError, match=message):
        load(f"stage: 2\n{text}")


def test_classes_check_their_stage():
    with pytest.raises(ValueError, match=r"^stage: expected 1, got 2$"):
        Stage1Settings(stage=2)
    with pytest.raises(ValueError, match=r"^stage: expected 2 or 3, got 1$"):
        InstructSettings(stage=1, start="a")


def test_unused_settings_are_not_checked(load):
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
    for settings in (Stage1Settings(), changed):
        again = load(yaml.safe_dump(settings.to_dict()))
        assert again == settings and again.to_dict() == settings.to_dict()
    assert changed.to_dict()["optimizer"]["betas"] == [0.1, 0.2]


@pytest.mark.parametrize(
    "kind",
    [
        Settings,
        Stage1Settings,
        InstructSettings,
        DataSettings,
        OptimizerSettings,
        LossSettings,
        InstructLossSettings,
        LoraSettings,
        GenerationSettings,
        EverySettings,
    ],
)
def test_every_field_has_a_description(kind):
    texts = [inspect.getdoc(part) for part in kind.__mro__ if issubclass(part, Settings)]
    for field in dataclasses.fields(kind):
        named = f"\n    {field.name}: "
        assert any(named in text for text in texts or [inspect.getdoc(kind)]), named


def test_there_are_configurations():
    assert {"stage1_paper.yaml", "stage1_tiny.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_load(path):
    settings = load_settings(path)
    assert path.read_text().startswith(f"# setok train --config model/configs/{path.name} ")
    assert settings.held_out.samples and settings.held_out != settings.data
    if settings.stage == "codes":
        return
    config_class = SetokConfig if settings.stage == 1 else SetokimConfig
    known = set(inspect.signature(config_class).parameters) - {"kwargs"}
    assert settings.model.keys() <= known
    if settings.stage == 1:
        # With the name of a model, the encoder's own fields come from the hub.
        config = SetokConfig(**settings.model | {"encoder": "patch-statistics"})
        assert config.width == settings.model["width"]
    else:
        SetokimConfig(**settings.model)


def test_the_paper_in_numbers():
    settings = load_settings(next(path for path in CONFIGS if path.stem == "stage1_paper"))
    assert (settings.batch_size, settings.accumulation, settings.precision) == (16, 8, "bf16")
    assert settings.optimizer == OptimizerSettings(5e-4, 0.05, (0.9, 0.95), 10_000)
    weights = dataclasses.replace(settings.losses, perceptual_network="", adversarial_start=0)
    assert weights == LossSettings(1, 1, 1, "", 0.5, 0, 1)
