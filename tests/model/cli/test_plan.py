import json
from pathlib import Path

import pytest

import setokim
from helpers.tiny_stage1 import tiny_file
from setok_cli.main import main
from setokim.training.settings import load_settings

CONFIGS = Path(setokim.__file__).parent / "configs"
SHAPES = ["--llm", "vicuna-7b", "--setok", "paper"]


def plan(*arguments, config="stage2_paper.yaml", gpus=("8", "64")):
    return main(["plan", "--config", str(CONFIGS / config), "--gpus", *gpus, *arguments])


def table(text):
    """Return the rows by section: parameters and GiB."""
    sections = text.split("\n\n")
    return [
        {line[:14].strip(): line[14:].split() for line in section.splitlines()[1:]}
        for section in sections
    ]


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        # 7,529,014,506 weights of 4 bytes, an eighth and a 64th of them.
        ("stage2_paper.yaml", ["3.51", "0.44"]),
        # Pointer and name heads are fields of the model of stage II, which is not there.
        ("stage3_paper.yaml", ["3.49", "0.44"]),
    ],
)
def test_the_runs_of_the_paper(capsys, config, weights):
    assert plan(*SHAPES, config=config) == 0
    printed = capsys.readouterr().out
    assert "GiB per GPU             8 GPUs         64 GPUs\n" in printed
    assert "fsdp, precision bf16, batches of 16 x 2048 tokens, 8 for a step" in printed
    parameters, memory = table(printed)
    assert parameters["llm"] == ["6,738,415,616"] * 2
    assert parameters["detokenizer"][1] == "0"
    for column in (0, 1):
        counts = [int(row[column].replace(",", "")) for row in parameters.values()]
        assert sum(counts[:-1]) == counts[-1]
        names = ["weights", "gradients", "moments", "averages", "gathered", "activations"]
        sizes = [float(memory[name][column]) for name in names]
        assert sum(sizes) == pytest.approx(float(memory["all"][column]), abs=0.04)
    assert memory["weights"] == weights


def test_the_same_as_json(capsys):
    assert plan(*SHAPES) == 0
    parameters, memory = table(capsys.readouterr().out)
    assert plan(*SHAPES, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["llm"] == 6_738_415_616
    assert found["trained_parameters"]["detokenizer"] == 0
    assert sum(found["parameters"].values()) == int(parameters["all"][0].replace(",", ""))
    assert [one["gpus"] for one in found["memory"]] == [8, 64]
    for column, one in enumerate(found["memory"]):
        assert one["total"] == sum(one["bytes"].values())
        shown = {name: f"{size / 2**30:.2f}" for name, size in one["bytes"].items()}
        assert shown == {name: memory[name][column] for name in shown}
    assert found["settings"] == {
        "parallel": "fsdp",
        "precision": "bf16",
        "batch_size": 16,
        "max_length": 2048,
        "accumulation": 8,
    }


def test_settings_in_place_of_the_files(capsys):
    assert plan(*SHAPES, "--set", "parallel=ddp", "accumulation=1", gpus=["1"]) == 0
    printed = capsys.readouterr().out
    assert "GiB per GPU              1 GPU\n" in printed
    assert "ddp, precision bf16, batches of 16 x 2048 tokens, 1 for a step" in printed
    assert table(printed)[1]["weights"] == ["28.05"]


def test_table_9():
    two, three = (load_settings(CONFIGS / f"stage{stage}_paper.yaml", []) for stage in (2, 3))
    assert (two.stage, two.llm, two.max_length) == (2, "lmsys/vicuna-7b-v1.5", 2048)
    assert three.stage == 3
    found = [
        (s.optimizer.lr, s.optimizer.visual_lr, s.optimizer.weight_decay) for s in (two, three)
    ]
    assert found == [(5e-5, 1e-4, 0.1), (5e-5, 2e-4, 0.01)]
    assert [s.optimizer.warmup for s in (two, three)] == [2000, 5000]
    for settings in (two, three):
        assert (settings.batch_size, settings.accumulation) == (16, 8)
        assert (settings.precision, settings.parallel) == ("bf16", "fsdp")
        assert settings.activation_checkpointing
        assert settings.data.kind == settings.held_out.kind == "mixture"


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ("stage2_paper.yaml", ["--setok", "paper"], "llm: expected a folder with a config.json"),
        ("stage2_paper.yaml", ["--llm", "vicuna-7b"], "--setok paper takes a built-in shape"),
        ("stage3_paper.yaml", [], "start: expected a folder with a config.json"),
        ("stage3_paper.yaml", SHAPES[:2], "--llm: expected together with --setok"),
        ("stage2_paper.yaml", [*SHAPES, "--set", "stepz=1"], "stepz: expected one of"),
        ("none.yaml", SHAPES, "none.yaml"),
    ],
)
def test_missing_arguments_are_named(tmp_path, monkeypatch, capsys, config, arguments, message):
    # The folders of the settings are relative.
    monkeypatch.chdir(tmp_path)
    assert plan(*arguments, config=config) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("setok plan: ")
    assert message in printed


def test_stage_1_has_no_plan(tmp_path, capsys):
    assert main(["plan", "--config", str(tiny_file(tmp_path)), "--gpus", "1"]) == 2
    assert "stage: expected 2 or 3" in capsys.readouterr().err


def test_no_gpu(capsys):
    assert plan(*SHAPES, gpus=["0"]) == 2
    assert "gpus: expected" in capsys.readouterr().err
