"""`setok cluster --function`: the other clustering functions and their options."""

import argparse
import dataclasses
import inspect

import numpy as np
import pytest

import setok_kernels as sk
from helpers.cluster_files import GRID, read, two_halves
from setok_cli.main import main
from setok_kernels import config
from setokim import PatchStatisticsEncoder
from setokim.cli import _functions
from setokim.visualization.functions import CONFIGS, DPCConfig, GreedyConfig


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "halves.png"
    two_halves().save(path)
    return path


def run(picture, out, *options):
    return main(["cluster", str(picture), "--out", str(out), *GRID, *options])


def test_the_options_are_the_fields():
    assert tuple(CONFIGS) == _functions.FUNCTIONS
    for name, kind in CONFIGS.items():
        fields = {field.name for field in dataclasses.fields(kind)}
        assert set(_functions.FIELDS[name]) - {"preset"} == fields, name
    assert config.ORDERS == _functions.ORDERS and config.CAPS == _functions.CAPS


def test_help_shows_the_defaults():
    parser = argparse.ArgumentParser()
    _functions.add_function_options(parser)
    said = " ".join(parser.format_help().split())
    for field in dataclasses.fields(DPCConfig):
        shown = "none" if field.default is None else field.default
        assert (f"(default: {shown})" if field.name == "k" else f"(dpc_knn: {shown})") in said
    assert f"(threshold_greedy: {GreedyConfig.threshold})" in said


def test_the_options_are_those_of_the_public_functions():
    parameters = inspect.signature(sk.dpc_knn).parameters
    assert {field.name for field in dataclasses.fields(DPCConfig)} <= set(parameters)
    assert parameters["k"].default == DPCConfig.k


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--function", "dpc_knn"], DPCConfig()),
        (["--function", "threshold_greedy"], GreedyConfig()),
        (["--function", "threshold_greedy", "--threshold", "0.5"], GreedyConfig(0.5)),
        (
            [
                *("--function", "dpc_knn", "--num-clusters", "none", "--threshold", "0.1"),
                *("--k", "3", "--min-clusters", "2", "--order", "index", "--cap", "eccentricity"),
            ],
            DPCConfig(None, 0.1, 3, 2, "index", "eccentricity"),
        ),
        (["--function", "cluster_tokens", "--k", "3"], sk.ClusterConfig(k=3)),
    ],
    ids=["dpc", "greedy", "greedy-changed", "dpc-changed", "soft"],
)
def test_options_of_a_function_reach_it(picture, tmp_path, options, expected):
    assert run(picture, tmp_path, *options) == 0
    record = read(tmp_path / "halves.clusters.json")
    assert (record["function"], record["config"]) == (options[1], expected.to_dict())
    if options[1] == "cluster_tokens":
        return
    x = PatchStatisticsEncoder((6, 8))([two_halves()])
    out = getattr(sk, options[1])(x, **expected.to_dict())
    assert record["tokens"] == int(out.counts[0])
    assert record["labels"] == out.labels.reshape(6, 8).tolist()
    assert record["residual"] == {"label": record["tokens"], "mass": 0.0, "patches": 0}
    assert [one["patches"] for one in record["clusters"]] == np.bincount(out.labels[0]).tolist()


@pytest.mark.parametrize(
    ("function", "option", "owners"),
    [
        ("dpc_knn", ["--bandwidth", "0.5"], "cluster_tokens"),
        ("dpc_knn", ["--no-distinct-seeds"], "cluster_tokens"),
        ("dpc_knn", ["--preset", "default"], "cluster_tokens"),
        ("threshold_greedy", ["--max-clusters", "64"], "cluster_tokens"),
        ("threshold_greedy", ["--k", "8"], "cluster_tokens and dpc_knn"),
        ("threshold_greedy", ["--num-clusters", "none"], "dpc_knn"),
        ("cluster_tokens", ["--threshold", "0.8"], "dpc_knn and threshold_greedy"),
        ("cluster_tokens", ["--cap", "diameter"], "dpc_knn"),
    ],
)
def test_an_option_of_another_function(picture, tmp_path, capsys, function, option, owners):
    """Also one with the value of its default."""
    out = tmp_path / "out"
    assert run(picture, out, "--function", function, *option) == 2
    name = option[0].replace("--no-", "--")
    said = f"{name}: expected an option of {function}, got one of {owners}"
    assert said in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-clusters", "none"], "num_clusters: expected a number, or else a rate or a"),
        (["--num-clusters", "0"], "num_clusters: expected at least 1, got 0"),
        (["--k", "0"], "k: expected at least 1, got 0"),
        (["--threshold", "nan"], "threshold: expected a finite number, got nan"),
    ],
)
def test_values_out_of_range(picture, tmp_path, capsys, options, message):
    assert run(picture, tmp_path / "out", "--function", "dpc_knn", *options) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-clusters", "few"], "expected a number or none, got 'few'"),
        (["--order", "size"], "invalid choice: 'size'"),
        (["--function", "kmeans"], "invalid choice: 'kmeans'"),
    ],
)
def test_values_that_cannot_be_read(picture, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        run(picture, tmp_path / "out", *options)
    assert message in capsys.readouterr().err


def test_only_setok_cluster_has_them(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["tokenize", "in", "--out", "out", "--encoder", "x", "--function", "dpc_knn"])
    assert "unrecognized arguments: --function" in capsys.readouterr().err


GIB = 2**30
# Of 300 x 300 patches, and eight images: features, and masks of each function.
PATCHES = 300 * 300 * 8


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["--max-clusters", "5000"], 2 * 5001),
        (["--function", "dpc_knn", "--num-clusters", "5000"], 5001),
        (["--function", "dpc_knn", "--num-clusters", "none", "--threshold", "9"], 90_001),
        (["--function", "threshold_greedy"], 90_001),
    ],
    ids=["soft", "dpc", "dpc-unbounded", "greedy"],
)
def test_masks_that_do_not_fit_into_memory(tmp_path, capsys, monkeypatch, options, rows):
    for name in "abcdefgh":
        two_halves().save(tmp_path / f"{name}.png")
    needed = PATCHES * 4 * (21 + rows)
    command = ["cluster", str(tmp_path), "--out", str(tmp_path / "out"), "--grid", "300x300"]
    free = []
    monkeypatch.setattr("setokim.utils.host_memory.free_memory", lambda: free[-1])
    # Before any work: one byte more and it would begin.
    free.append(needed - 1)
    assert main([*command, *options]) == 2
    said = capsys.readouterr().err
    assert f"at least {needed / GIB:,.1f} GiB; --batch-size is 8" in said
    assert not (tmp_path / "out").exists()
    free.append(needed)
    monkeypatch.setattr("setokim.cli.cluster._process", lambda *_: [])
    assert main([*command, *options]) == 0
