"""`key=value` of train and plan, and the list of all keys."""

import re
from pathlib import Path

import pytest
from transformers import PretrainedConfig

import setokim
from helpers.tiny_stage1 import tiny_file
from setok_cli.main import build_parser, main
from setokim.cli._settings import describe_keys, overrides_of
from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.training.settings import InstructSettings, Stage1Settings, load_settings
from setokim.training.stage2.settings import LoraSettings
from setokim.vlm.configuration_setokim import SetokimConfig

CONFIGS = Path(setokim.__file__).parent / "configs"
REQUIRED = {"train": ["--out", "o"], "plan": ["--gpus", "8"]}


@pytest.mark.parametrize("command", REQUIRED)
@pytest.mark.parametrize(
    "words",
    [
        ["a=1", "b=2"],
        ["--set", "a=1", "b=2"],
        ["--set", "a=1", "--set", "b=2"],
        ["a=1", "--set", "b=2"],
    ],
    ids=" ".join,
)
def test_both_commands_take_overrides_in_both_forms(command, words):
    given = [command, "--config", "f", *words]
    arguments = build_parser().parse_args([*given, *REQUIRED[command]])
    assert overrides_of(arguments) == ["a=1", "b=2"]


def test_overrides_may_follow_the_numbers_of_gpus(capsys):
    config = ["plan", "--config", str(CONFIGS / "stage2_paper.yaml")]
    shapes = ["--llm", "vicuna-7b", "--setok", "paper"]
    printed = []
    for words in (["--gpus", "1", "accumulation=3"], ["accumulation=3", "--gpus", "1"]):
        assert main([*config, *words, *shapes]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "3 for a step" in printed[0]
    with pytest.raises(SystemExit, match="2"):
        main([*config, "--gpus", "many"])
    assert "argument --gpus: invalid int value: 'many'" in capsys.readouterr().err


def keys_of(lines):
    return [found[1] for line in lines if (found := re.match(r"  (\S+): ", line))]


def nested(values, prefix=""):
    """Return the names of all keys of settings, without those inside a dict."""
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict) and name not in ("model", "options"):
            yield from nested(value, f"{prefix}{name}.")


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        (Stage1Settings(), SetokConfig),
        (InstructSettings(start="folder", lora=LoraSettings()), SetokimConfig),
    ],
    ids=["stage 1", "stage 2"],
)
def test_every_key_is_listed_with_its_meaning(settings, config):
    lines = list(describe_keys(type(settings)))
    keys = keys_of(lines)
    assert len(keys) == len(set(keys))
    of_the_model = {key for key in keys if key.startswith("model.")}
    assert set(keys) - of_the_model == set(nested(settings.to_dict()))
    fields = config().to_dict().keys() - PretrainedConfig().to_dict().keys() - {"model_type"}
    fields -= {"setok", "llm", "lora", *(name for name in fields if name.endswith("_id"))}
    assert of_the_model == {f"model.{name}" for name in fields}
    # A line of text follows each key.
    for number, line in enumerate(lines):
        assert not re.match(r"  \S+: ", line) or lines[number + 1].startswith(" " * 6)


def test_types_and_defaults():
    lines = list(describe_keys(InstructSettings))
    for expected in (
        "  steps: int = 100000",
        "  llm: str or dict[str, Any] or null = null",
        "  lora: group or null = null",
        '  lora.targets: tuple[str, ...] = ["q_proj", "k_proj", "v_proj", "o_proj"]',
        "  data: group",
        "  data.samples: int or null = null",
        # Not the default of the class.
        "  held_out.samples: int or null = 256",
        '  model.prediction: str = "v_prediction"',
    ):
        assert expected in lines


@pytest.mark.parametrize("command", REQUIRED)
def test_the_list_needs_no_other_option(command, capsys):
    assert main([command, "--help-keys"]) == 0
    said = capsys.readouterr().out
    assert ("Keys of stage 1:\n" in said) == (command == "train")
    assert "Keys of stages 2 and 3:\n  stage: int = 2\n" in said
    # Without it, they are required.
    with pytest.raises(SystemExit, match="2"):
        main([command])
    wanted = f"{REQUIRED[command][0]}, --config"
    assert f"the following arguments are required: {wanted}" in capsys.readouterr().err


def test_the_list_shows_the_values_of_a_file(tmp_path, capsys):
    path = tiny_file(tmp_path)
    for words in (["--help-keys", "--config", str(path)], ["--config", str(path), "--help-keys"]):
        assert main(["train", *words, "optimizer.lr=0.25", "model.heads=2"]) == 0
        said = capsys.readouterr().out
        assert said.startswith("Keys of stage 1:\n")
        assert "  optimizer.lr: float = 0.0005  (here 0.25)\n" in said
        assert "  model.heads: int = 16  (here 2)\n" in said
        settings = load_settings(path)
        assert f"  batch_size: int = 16  (here {settings.batch_size})\n" in said
        assert "  optimizer.clip: float = 1.0\n" in said
    assert main(["train", "--help-keys", "--config", str(path), "stepz=1"]) == 2
    assert "setok train: stepz: expected one of" in capsys.readouterr().err
