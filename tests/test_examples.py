"""The scripts of examples/: short, introduced by one line, and their output is as promised."""

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.fixture
def output(monkeypatch, capsys):
    """Runs a script with arguments; what it prints."""

    def run(name: str, *arguments: str) -> str:
        file = FOLDER / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(file), *arguments])
        runpy.run_path(str(file), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_each_script_is_run_here():
    tests = Path(__file__).read_text(encoding="utf-8")
    assert len(SCRIPTS) >= 4
    for script in SCRIPTS:
        assert f'output("{script.stem}"' in tests, script.name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_short_and_says_in_one_line_what_it_shows(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring and "\n" not in docstring and docstring.endswith(".")
    assert "assert " not in text, "what is shown is printed"


def test_ragged_tokens_into_a_language_model(output):
    lines = output("ragged_tokens_into_a_language_model", "--patches", "64").splitlines()
    counts = [int(re.search(r"64 patches -> (\d+) tokens", line)[1]) for line in lines[:2]]
    assert 1 < counts[0] < counts[1] < 64
    # Twelve of text beside those of the larger image.
    assert f"reads {max(counts) + 12} tokens" in lines[2]
    assert float(lines[3].split()[-1]) > 0


def test_chat_univi_drop_in(output):
    text = output("chat_univi_drop_in", "--patches", "40", "--clusters", "8", "4")
    assert "40 tokens -> 8: (2, 8, 128)" in text and "8 tokens -> 4: (2, 4, 128)" in text
    assert "five calls give 1 result" in text
    assert "NaN in the merged tokens with padding: False" in text


def test_learn_the_hyperparameters(output):
    text = output("learn_the_hyperparameters", "--steps", "60")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", text)]
    assert losses[-1] < losses[0] / 2
    before, after = re.search(r"grouped right: ([\d.]+)% -> ([\d.]+)%", text).groups()
    assert float(before) < 70 and float(after) > 90
    for name in ("bandwidth", "beta", "temperature", "offset"):
        first, last = re.search(rf"{name} +([-\d.]+) -> ([-\d.]+)", text).groups()
        assert first != last, name


def test_judge_your_backend(output):
    right, wrong = output("judge_your_backend", "--tokens", "60").splitlines()
    assert right.startswith("torch.float32: every decision is optimal")
    assert re.match(r"torch.bfloat16: image \d: ", wrong)


def test_reduce_visual_tokens(output):
    text = output("reduce_visual_tokens", "--rate", "0.2")
    whole, reduced, restored = re.findall(r"answer (\[.*\])", text)
    assert whole == restored != reduced
    before, after = map(int, re.search(r"visual tokens: (\d+) -> (\d+)", text).groups())
    # The tokens that no cluster claims become one more.
    assert before == 100 and 1 < after <= 21
    assert float(re.search(r"norm (\S+)", text)[1]) > 0
