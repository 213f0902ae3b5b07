"""Completion in a shell, as requested by the scripts of argcomplete."""

import os
import subprocess
import sys

import pytest

from setok_cli.main import main

PROGRAM = "from setok_cli.main import main; import sys; sys.exit(main())"


def complete(line, tmp_path, code=PROGRAM):
    """Return the completions of a line in a shell."""
    answers = tmp_path / "answers"
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return run, answers.read_text().split("\n") if answers.exists() else []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("setok seg", ["segment "]),
        ("setok cluster --back", ["--backend "]),
        ("setok cluster --backend ref", ["reference "]),
        ("setok completion f", ["fish "]),
    ],
)
def test_commands_options_and_choices(tmp_path, line, expected):
    pytest.importorskip("argcomplete")
    run, found = complete(line, tmp_path)
    assert (run.returncode, run.stdout, found) == (0, "", expected), run.stderr


def test_no_command_runs_where_argcomplete_is_missing(tmp_path):
    blocked = f"import sys; sys.modules['argcomplete'] = None\n{PROGRAM}"
    run, found = complete("setok doctor", tmp_path, blocked)
    assert run.returncode == 1 and found == [] and run.stdout == ""
    assert 'setok: needs argcomplete: pip install "setok-kernels[completion]"' in run.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell, capsys):
    pytest.importorskip("argcomplete")
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert "_ARGCOMPLETE" in said and "setok" in said
    assert ("complete --command setok" in said) == (shell == "fish")


def test_the_script_needs_argcomplete(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert main(["completion", "bash"]) == 2
    said = 'setok completion: needs argcomplete: pip install "setok-kernels[completion]"\n'
    assert capsys.readouterr().err == said
