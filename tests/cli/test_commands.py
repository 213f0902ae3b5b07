"""Commands by entry points, in a fixed order, with any set of installed packages."""

import importlib.metadata
import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from setok_cli import commands
from setok_cli.main import build_parser, main


def entry(name, value, origin="other-package"):
    found = EntryPoint(name, value, commands.GROUP)
    # As importlib.metadata does for the entry points of a distribution.
    vars(found)["dist"] = SimpleNamespace(name=origin)
    return found


@pytest.fixture
def registered(monkeypatch):
    """Return a function that replaces the registered entry points."""

    def register(*entries):
        monkeypatch.setattr(commands, "entry_points", lambda group: list(entries))
        monkeypatch.setattr(commands, "distributions", lambda name: [])

    return register


def names_of(parser):
    [subparsers] = [one for one in parser._actions if one.dest == "command"]
    return list(subparsers.choices)


def ours():
    return importlib.metadata.entry_points(group=commands.GROUP)


def test_each_command_is_registered_or_its_own():
    names = {one.name for one in ours()}
    assert names.isdisjoint(commands._OWN) and names | set(commands._OWN) == set(commands.ORDER)
    for one in ours():
        assert callable(one.load()) and one.value.startswith(("setokim.cli.", "setok_bench.cli:"))


def test_commands_of_other_packages_follow_by_name(registered, capsys, monkeypatch):
    def greet(parsers):
        parsers.add_parser("greet").set_defaults(run=lambda _: print("hello") or 0)

    names = ["wave", "bow", "nod", "call", "dance", "yell"]
    adders = {name: lambda parsers, name=name: parsers.add_parser(name) for name in names}
    monkeypatch.setitem(sys.modules, "some_plugin", SimpleNamespace(greet=greet, **adders))
    more = [entry(name, f"some_plugin:{name}") for name in [*names, "greet"]]
    registered(*more, *ours())
    order = ["bow", "call", "dance", "greet", "nod", "wave", "yell"]
    assert names_of(build_parser()) == [*commands.ORDER, *order]
    assert main(["greet"]) == 0
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.parametrize("first", [True, False])
def test_a_name_of_this_package_is_not_taken(registered, capsys, first):
    foreign = entry("train", "json:loads")
    registered(*([foreign, *ours()] if first else [*ours(), foreign]))
    assert names_of(build_parser()) == list(commands.ORDER)
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    printed = capsys.readouterr()
    assert "--config FILE" in printed.out
    assert "setok: ignores 'train' of other-package\n" in printed.err


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module:add_parser", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("setokim.cli.train:no_such_name", "AttributeError: module 'setokim.cli.train' has no"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--help"], ["--config", "a", "b=1"]], ids=str)
def test_a_command_that_cannot_be_imported(registered, capsys, value, reason, arguments):
    registered(entry("train", value, "setok-kernels"))
    assert main(["train", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"setok train: cannot be imported: {reason}")
    # An installation into the same environment.
    assert "; pip install --force-reinstall --no-deps " in line
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "train unusable in this installation, as `setok train` explains" in said


def test_metadata_that_is_older_than_the_code(registered, capsys):
    """As in an editable installation that predates the entry points."""
    registered()
    assert names_of(build_parser()) == list(commands.ORDER)
    assert main(["plan", "--gpus", "8"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("setok plan: is not registered: the metadata of the installed package")
    assert "pip install --force-reinstall --no-deps" in line
    assert main(["doctor"]) == 0


def test_older_metadata_in_the_current_folder_hides_nothing(tmp_path):
    """A build leaves a folder *.egg-info in the checkout, which comes before the installation."""
    folder = tmp_path / "setok_kernels.egg-info"
    folder.mkdir()
    (folder / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: setok-kernels\nVersion: 0.0.1\n")
    code = "from setok_cli.main import main; main(['plan', '--help'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage: setok plan" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, "pip install --force-reinstall --no-deps some-package"),
        (
            {"url": "file:///home/me/a%20clone", "dir_info": {"editable": True}},
            "pip install --force-reinstall --no-deps -e file:///home/me/a%20clone",
        ),
        (
            {"url": "https://host/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install --force-reinstall --no-deps git+https://host/r.git@abc",
        ),
    ],
    ids=["index", "editable", "repository"],
)
def test_the_remedy_names_the_origin_of_the_package(monkeypatch, origin, expected):
    text = None if origin is None else json.dumps(origin)
    found = SimpleNamespace(read_text=lambda name: text)
    monkeypatch.setattr(commands, "distribution", lambda name: found)
    assert commands._remedy("some-package") == expected


def test_without_metadata_there_is_still_a_remedy():
    assert commands._remedy("no-such-package") == "install no-such-package"


def python(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_setok_cli_imports_nothing_above_it():
    code = (
        "import importlib, pkgutil, sys, setok_cli\n"
        "for module in pkgutil.iter_modules(setok_cli.__path__):\n"
        "    importlib.import_module(f'setok_cli.{module.name}')\n"
        "print(*sys.modules)"
    )
    loaded = {name.partition(".")[0] for name in python(code).stdout.split()}
    assert "setok_cli" in loaded and not {"setokim", "setok_bench", "setok_kernels"} & loaded


def test_python_m_setok_kernels_is_the_same_command():
    command = [sys.executable, "-m", "setok_kernels"]
    runs = [
        subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        for words in (["--help"], ["plan", "--gpus", "8"])
    ]
    assert [run.returncode for run in runs] == [0, 2]
    same = python("from setok_cli.main import main; main(['--help'])")
    assert runs[0].stdout == same.stdout and "usage: setok " in same.stdout
    assert "setok plan: error: the following arguments are required: --config" in runs[1].stderr
