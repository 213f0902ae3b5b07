import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import setok_kernels as sk
from helpers.cluster_files import GRID, listing, read, two_halves
from helpers.drawn_clusters import clusters_by_hand
from setok_cli.main import main
from setokim.cli import cluster
from setokim.cli.names import result_names
from setokim.visualization.image_clusters import Method, cluster_batch

EVERY_FIELD_CHANGED = sk.ClusterConfig(
    k=3,
    max_clusters=7,
    kernel="laplacian",
    bandwidth=0.4,
    beta=0.2,
    temperature=0.3,
    offset=0.1,
    alpha="kernel",
    distance_scale="dim",
    score_norm=None,
    distinct_seeds=False,
    stop_residual=0.1,
    min_mass=0.5,
    include_self=True,
)


def as_options(config):
    options = []
    for name, value in config.to_dict().items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            options += [f"--{flag}", "none" if value is None else str(value)]
    return options


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "halves.png"
    two_halves().save(path)
    return path


def test_a_png_and_a_json_per_image(picture, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert main(["cluster", str(picture), "--out", str(out), *GRID]) == 0
    assert listing(out) == ["halves.clusters.json", "halves.clusters.png"]

    record = read(out / "halves.clusters.json")
    text = (out / "halves.clusters.json").read_text()
    assert f"    {record['labels'][0]},\n" in text, "one line per row of patches"
    labels = np.array(record["labels"])
    assert labels.shape == (6, 8) and record["grid"] == [6, 8]
    assert (record["width"], record["height"]) == (64, 48)
    assert len(record["clusters"]) == record["tokens"]
    assert record["distinct_labels"] == len(np.unique(labels))
    masses = [c["mass"] for c in record["clusters"]] + [record["residual"]["mass"]]
    assert sum(masses) == pytest.approx(48, rel=1e-5)
    patches = [c["patches"] for c in record["clusters"]] + [record["residual"]["patches"]]
    assert patches == np.bincount(labels.ravel(), minlength=record["tokens"] + 1).tolist()
    assert record["config"] == sk.ClusterConfig().to_dict()
    assert record["versions"]["torch"] == torch.__version__
    assert record["encoder"] == "patch-statistics"
    # The two colours share no cluster, and a seed lies in the middle of its patch.
    assert not set(labels[:, :2].ravel()) & set(labels[:, -2:].ravel())
    first = record["clusters"][0]
    assert first["x"] == (first["column"] + 0.5) * 8 and first["y"] == (first["row"] + 0.5) * 8

    with Image.open(out / "halves.clusters.png") as figure:
        assert figure.width > 1280 and figure.height > 480
    printed = capsys.readouterr().out
    assert "halves" in printed and str(out) in printed


def test_the_summary_as_json(picture, tmp_path, capsys):
    out, broken = tmp_path / "out", tmp_path / "broken.png"
    broken.write_text("no image")
    files = [str(picture), str(broken)]
    assert main(["cluster", *files, "--out", str(out), *GRID, "--json"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    [row] = found["images"]
    record = read(out / "halves.clusters.json")
    assert (row["image"], row["tokens"]) == ("halves", record["tokens"])
    assert row["labels"] == record["distinct_labels"]
    assert row["residual"] == pytest.approx(record["residual"]["mass"] / 48)
    assert row["encode_ms"] > 0 and row["cluster_ms"] > 0
    [unreadable] = found["unreadable"]
    assert f"cannot read {broken}" in unreadable and unreadable in printed.err
    assert found["out"] == str(out)


def test_the_json_is_the_result_of_the_public_function(picture, tmp_path):
    main(["cluster", str(picture), "--out", str(tmp_path), *GRID])
    record = read(tmp_path / "halves.clusters.json")
    from setokim import PatchStatisticsEncoder

    out = sk.cluster_tokens(PatchStatisticsEncoder((6, 8))([two_halves()]))
    assert record["labels"] == out.labels.reshape(6, 8).tolist()
    assert record["tokens"] == int(out.counts[0])
    seeds = [c["row"] * 8 + c["column"] for c in record["clusters"]]
    assert seeds == out.decisions.seeds[0, : len(seeds)].tolist()


def test_equal_input_gives_equal_files(picture, tmp_path):
    for name in ("one", "two"):
        main(["cluster", str(picture), "--out", str(tmp_path / name), *GRID])
    for file in ("halves.clusters.json", "halves.clusters.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("batch_size", ["1", "2", "8"])
def test_a_folder_of_unequal_images(tmp_path, batch_size):
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "deeper").mkdir(parents=True)
    two_halves(30, 90).save(source / "tall.jpg")
    two_halves(200, 20).convert("L").save(source / "wide.png")
    two_halves(2, 2).convert("RGBA").save(source / "tiny.webp")
    two_halves().save(source / "deeper" / "hidden.png")
    command = ["cluster", str(source), "--out", str(out), *GRID, "--batch-size", batch_size]

    assert main(command) == 0
    assert sorted(p.stem for p in out.glob("*.png")) == [
        "tall.clusters",
        "tiny.clusters",
        "wide.clusters",
    ]
    assert main([*command, "--recursive"]) == 0
    assert (out / "hidden.clusters.json").exists()


def test_results_are_not_taken_for_images(picture, tmp_path):
    for _ in range(2):
        assert main(["cluster", str(tmp_path), "--out", str(tmp_path), *GRID]) == 0
    assert listing(tmp_path) == ["halves.clusters.json", "halves.clusters.png", "halves.png"]
    assert Image.open(picture).size == (64, 48)


def test_equal_stems_do_not_overwrite_each_other(tmp_path):
    files = []
    for i, name in enumerate(("a/cat.png", "b/cat.png", "b/cat.jpg", "c/Cat.png")):
        files.append(tmp_path / name)
        files[-1].parent.mkdir(exist_ok=True)
        two_halves(10 + i, 10).save(files[-1])
    out = tmp_path / "out"
    assert main(["cluster", *map(str, files), "--out", str(out), *GRID]) == 0
    names = ["cat", "cat-2", "cat-3", "Cat-4"]
    assert [read(out / f"{n}.clusters.json")["width"] for n in names] == [10, 11, 12, 13]


def test_names_given_to_repeats_do_not_meet_real_names(tmp_path):
    files = [tmp_path / n for n in ("a/x.png", "b/x.png", "x-2.png", "c/x.png")]
    assert result_names(files) == ["x", "x-2", "x-2-2", "x-3"]


def test_unreadable_files_are_named_and_the_others_still_run(picture, tmp_path, capsys):
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.jpg"
    broken.write_bytes(b"\x89PNG but no more")
    out = tmp_path / "out"
    command = ["cluster", str(broken), str(missing), str(picture), "--out", str(out), *GRID]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"cannot read {broken}" in said and f"cannot read {missing}" in said
    assert (out / "halves.clusters.png").exists()
    assert main(["cluster", str(broken), "--out", str(out)]) == 1


def test_no_images_at_all(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    assert main(["cluster", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"no images found in {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], sk.ClusterConfig()),
        (["--preset", "paper"], sk.ClusterConfig.paper()),
        (
            ["--preset", "paper", "--max-clusters", "5"],
            sk.ClusterConfig.paper(max_clusters=5),
        ),
        (as_options(EVERY_FIELD_CHANGED), EVERY_FIELD_CHANGED),
        (["--distance-scale", "2.5", "--score-norm", "max"], sk.ClusterConfig(distance_scale=2.5)),
    ],
    ids=["default", "paper", "paper-overridden", "every-field", "number"],
)
def test_every_field_of_the_configuration_is_an_option(picture, tmp_path, options, expected):
    assert main(["cluster", str(picture), "--out", str(tmp_path), *GRID, *options]) == 0
    assert read(tmp_path / "halves.clusters.json")["config"] == expected.to_dict()


def test_every_field_is_changed():
    """By the case of that name above."""
    default, changed = sk.ClusterConfig().to_dict(), EVERY_FIELD_CHANGED.to_dict()
    assert [name for name in default if default[name] == changed[name]] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "27"], "expected ROWSxCOLUMNS such as 27x27, got '27'"),
        (["--grid", "0x3"], "expected ROWSxCOLUMNS"),
        (["--batch-size", "0"], "expected a number of at least 1, got '0'"),
        (["--score-norm", "min"], "expected max or none, got 'min'"),
        (["--distance-scale", "big"], "expected variance, dim or a number, got 'big'"),
        (["--kernel", "cosine"], "invalid choice: 'cosine'"),
        (["--backend", "gpu"], "invalid choice: 'gpu'"),
        (["--k", "many"], "invalid int value: 'many'"),
    ],
)
def test_options_that_cannot_be_read(picture, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        main(["cluster", str(picture), "--out", str(tmp_path), *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "0"], "k: expected at least 1, got 0"),
        (["--bandwidth", "-1"], "bandwidth: expected more than 0"),
        (["--preset", "paper", "--max-clusters", "0"], "max_clusters: expected at least 1"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--encoder", "_no model_"], "expected 'patch-statistics', a folder with a config.json"),
    ],
)
def test_options_that_cannot_be_used(picture, tmp_path, capsys, options, message):
    out = tmp_path / "out"
    assert main(["cluster", str(picture), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_reason_of_an_unusable_backend_is_shown(picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    unable = [name for name, reason in sk.backends().items() if reason is not None]
    if not unable:
        pytest.skip("every backend runs here")
    command = ["cluster", str(picture), "--out", str(tmp_path / "out"), "--backend", unable[0]]
    assert main(command) == 2
    assert f"backend='{unable[0]}' cannot run" in capsys.readouterr().err


def test_an_explicit_backend_is_recorded(picture, tmp_path):
    main(["cluster", str(picture), "--out", str(tmp_path), *GRID, "--backend", "reference"])
    assert read(tmp_path / "halves.clusters.json")["backend"] == "reference"


def test_out_is_a_file(picture, capsys):
    assert main(["cluster", str(picture), "--out", str(picture)]) == 2
    assert f"cannot make the folder {picture} or write into it" in capsys.readouterr().err


def test_a_result_that_cannot_be_written(picture, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["cluster", str(picture), "--out", str(out), *GRID]
    assert main(command) == 0
    (out / "halves.clusters.png").unlink()
    (out / "halves.clusters.png").mkdir()
    assert main(command) == 2
    assert f"cannot write the results of {picture}" in capsys.readouterr().err
    assert listing(out) == ["halves.clusters.json", "halves.clusters.png"], "nothing unfinished"


@pytest.mark.parametrize("module", ["PIL", "rich"])
def test_missing_extras(picture, tmp_path, capsys, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["cluster", str(picture), "--out", str(tmp_path)]) == 2
    assert f'needs {module}: pip install "setok-kernels[cli]"' in capsys.readouterr().err


def test_missing_transformers(picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["cluster", str(picture), "--out", str(tmp_path), "--encoder", "some/model"]) == 2
    said = capsys.readouterr().err
    assert 'needs transformers: pip install "setok-kernels[cli,model]"' in said


def test_a_hugging_face_model_in_a_folder(picture, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path / "model")
    command = ["cluster", str(picture), "--out", str(tmp_path), "--encoder"]
    assert main([*command, str(tmp_path / "model"), "--grid", "3x5"]) == 0
    record = read(tmp_path / "halves.clusters.json")
    assert np.array(record["labels"]).shape == (3, 5)
    assert record["encoder"].endswith("model")


def test_an_empty_batch():
    assert cluster_batch([], Method(None, "patch-statistics", sk.ClusterConfig())) == []


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["cluster", "--help"])
    said = capsys.readouterr().out
    assert "--no-distinct-seeds" in said and "(default preset: yes)" in said


def test_a_single_token_in_the_table():
    row = cluster.summarise(clusters_by_hand([[0]], [(0, 0)]))
    assert (row["image"], row["tokens"], row["labels"]) == ("drawn", 1, 1)
