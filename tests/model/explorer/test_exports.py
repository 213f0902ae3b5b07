import ast
import io
import shlex
import subprocess
from contextlib import redirect_stdout

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import setok_kernels
from helpers.cluster_files import read, two_halves
from helpers.tiny_stage1 import TINY, write_setok
from setok_cli.main import build_parser, main
from setok_kernels import ClusterConfig
from setokim import SetokConfig, SetokModel, build_encoder, load_image
from setokim.explorer.exports import command, python_code, yaml_text
from setokim.explorer.reconstruction import Reconstruction
from setokim.training.settings import load_settings
from setokim.visualization.functions import DPCConfig, GreedyConfig, cluster

ENCODER = "patch-statistics"
GRID = (6, 8)
# Of floats some that decimal text with few digits does not hold.
CHANGED = ClusterConfig(
    k=3,
    max_clusters=7,
    kernel="laplacian",
    bandwidth=0.1 + 0.2,
    beta=-1e-05,
    temperature=1e20,
    offset=-1 / 3,
    alpha="kernel",
    distance_scale=2 / 3,
    score_norm=None,
    distinct_seeds=False,
    stop_residual=0.1,
    min_mass=0.7,
    include_self=True,
)
CONFIGS = [
    ClusterConfig(),
    ClusterConfig(bandwidth=0.35),
    ClusterConfig.paper(),
    ClusterConfig.paper(max_clusters=9, k=2),
    CHANGED,
    DPCConfig(),
    DPCConfig(num_clusters=None, threshold=1 / 3, k=7, min_clusters=2, order="index"),
    GreedyConfig(),
    GreedyConfig(0.1 + 0.2),
]
SOFT = [config for config in CONFIGS if isinstance(config, ClusterConfig)]
NAMES = ["halves.png", 'it\'s a "pair".png', "-k.png", "a\nb\\\t$(x) `y`.png", "é\u00a0#.png"]


@pytest.fixture
def picture(tmp_path, request):
    path = tmp_path / getattr(request, "param", "halves.png")
    two_halves().save(path)
    return path


def run(code):
    """Names of a script after its end, and what it has printed."""
    names, printed = {}, io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "<export>", "exec"), names)
    return names, printed.getvalue()


def words(line, folder):
    """Arguments that bash gives to setok."""
    script = f"setok() {{ printf '%s\\0' \"$@\"; }}\n{line}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, check=True, cwd=folder)
    assert result.stderr == b""
    return result.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_script_makes_the_same_clusters(picture, config, backend):
    code = python_code(config, ENCODER, picture, backend, grid=GRID)
    names, printed = run(code)
    with torch.inference_mode():
        features = build_encoder(ENCODER, GRID)([load_image(picture)])
        expected = cluster(features, config, backend)
    assert torch.equal(names["clusters"].labels, expected.labels)
    assert torch.equal(names["clusters"].centres, expected.centres)
    assert names.get("config", config) == config
    assert printed == f"{int(expected.counts[0])} tokens\n"
    assert all(len(line) <= 100 for line in code.splitlines() if "load_image(" not in line)
    assert ("reference" in code) == (backend == "reference")


@pytest.mark.parametrize("picture", NAMES, indirect=True)
def test_any_file_name_is_quoted_for_python(picture):
    names, _ = run(python_code(GreedyConfig(), ENCODER, str(picture)))
    assert names["clusters"].grid == (27, 27)
    assert names["image"].size == (64, 48)


def test_the_script_is_short():
    assert python_code(ClusterConfig(bandwidth=0.35), ENCODER, "a.png") == (
        "import torch\n"
        "\n"
        "from setok_kernels import ClusterConfig, cluster_tokens\n"
        "from setokim import build_encoder, load_image\n"
        "\n"
        "encoder = build_encoder('patch-statistics')\n"
        "config = ClusterConfig(bandwidth=0.35)\n"
        "image = load_image('a.png')\n"
        "with torch.inference_mode():\n"
        "    features = encoder([image])  # (1, H, W, D)\n"
        "    clusters = cluster_tokens(features, config)\n"
        'print(int(clusters.counts[0]), "tokens")\n'
    )
    assert "= ClusterConfig.paper(k=4)\n" in python_code(ClusterConfig.paper(k=4), ENCODER, "a")
    # The preset's own bandwidth follows the number of clusters.
    paper = ClusterConfig.paper(max_clusters=9)
    assert "= ClusterConfig.paper(max_clusters=9)\n" in python_code(paper, ENCODER, "a.png")
    assert "dpc_knn(features, num_clusters=64)" in python_code(DPCConfig(), ENCODER, "a.png")


def test_photographs_need_no_file(tmp_path, monkeypatch, capfd):
    pytest.importorskip("skimage")
    names, printed = run(python_code(ClusterConfig(), ENCODER, "camera", photograph=True))
    assert names["image"].mode == "RGB" and printed.endswith("tokens\n")
    first, second = command(ClusterConfig(), ENCODER, "camera", photograph=True).splitlines()
    assert second == "setok cluster camera.png --out clusters"
    monkeypatch.chdir(tmp_path)
    program, option, code = shlex.split(first)
    assert (program, option) == ("python", "-c")
    run(code)
    assert load_image(tmp_path / "camera.png").tobytes() == names["image"].tobytes()
    for function in (python_code, command):
        with pytest.raises(ValueError, match=r"image: expected the name of a photograph .*'a\(\)'"):
            function(ClusterConfig(), ENCODER, "a()", photograph=True)


@pytest.mark.parametrize("config", SOFT)
def test_the_script_makes_the_tokens_of_a_model(picture, tmp_path, config):
    folder = write_setok(tmp_path / "it's a model")
    names, printed = run(python_code(config, ENCODER, picture, model=str(folder)))
    model = SetokModel.from_pretrained(folder)
    with torch.inference_mode():
        features = model.encoder([load_image(picture)])
    expected = Reconstruction(model).tokenize(features, config).pack()
    assert torch.equal(names["packed"].tokens, expected.tokens)
    assert printed == f"{len(expected.tokens)} tokens\n"
    code = python_code(config, ENCODER, picture, "reference", model=str(folder))
    assert run(code)[0]["clustering"].backend == "reference"


def test_other_functions_cluster_the_features_of_a_models_encoder(picture, tmp_path):
    folder = write_setok(tmp_path / "model")
    names, _ = run(python_code(DPCConfig(num_clusters=3), ENCODER, picture, model=str(folder)))
    with torch.inference_mode():
        features = SetokModel.from_pretrained(folder).encoder([load_image(picture)])
    expected = setok_kernels.dpc_knn(features, num_clusters=3)
    assert torch.equal(names["clusters"].labels, expected.labels)


def test_a_whole_model_is_loaded_for_its_tokenizer():
    code = python_code(ClusterConfig(), ENCODER, "a.png", model="folder", whole=True)
    assert "model = SetokimModel.from_pretrained('folder').setok.eval()" in code


def test_a_model_has_no_command():
    line = command(ClusterConfig(), ENCODER, "a.png", model="x\nrm -r y")
    assert line.startswith("# setok cluster has no option for a model") and line.count("\n") == 1


@pytest.mark.parametrize("config", SOFT)
def test_a_run_takes_the_yaml(tmp_path, config):
    text = yaml_text(config)
    block = yaml.safe_load(text)
    assert list(block) == ["model"] and list(block["model"]) == ["cluster"]
    # In place of the block of a whole file.
    values = {**TINY, "model": {**TINY["model"], **block["model"]}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    settings = load_settings(path)
    assert SetokConfig(**settings.model).cluster_config() == config
    # As a file of its own.
    path.write_text(text)
    assert SetokConfig(**load_settings(path).model).cluster_config() == config


@pytest.mark.parametrize("config", [config for config in CONFIGS if config not in SOFT])
def test_the_yaml_of_other_functions_has_keyword_arguments(config):
    text = yaml_text(config)
    values = yaml.safe_load(text)
    assert list(values) == ["function", "options"]
    assert text.startswith(f"# Keyword arguments of setok_kernels.{values['function']}\n")
    x = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    found = getattr(setok_kernels, values["function"])(x, **values["options"])
    assert torch.equal(found.labels, cluster(x, config).labels)


@given(
    st.floats(0, exclude_min=True, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_floats_survive(bandwidth, offset):
    config = ClusterConfig(bandwidth=bandwidth, offset=offset)
    assert ClusterConfig(**yaml.safe_load(yaml_text(config))["model"]["cluster"]) == config
    code = python_code(config, ENCODER, "a.png")
    call = next(
        node.value for node in ast.parse(code).body if ast.unparse(node).startswith("config = ")
    )
    assert eval(ast.unparse(call), {"ClusterConfig": ClusterConfig}) == config
    arguments = build_parser().parse_args(shlex.split(command(config, ENCODER, "a.png"))[1:])
    given_fields = {n: getattr(arguments, n, None) for n in ("bandwidth", "offset")}
    assert ClusterConfig(**{n: v for n, v in given_fields.items() if v is not None}) == config


def run_command(line, folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    assert main(words(line, folder)) == 0
    (path,) = (folder / "clusters").glob("*.json")
    record = read(path)
    assert record["image"].removeprefix("./") == name
    return record


@pytest.mark.parametrize("config", SOFT)
def test_the_command_has_the_same_config(picture, tmp_path, monkeypatch, config):
    line = command(config, ENCODER, picture.name, grid=GRID)
    record = run_command(line, tmp_path, monkeypatch, picture.name)
    assert record["config"] == config.to_dict() and record["grid"] == list(GRID)
    assert record["function"] == "cluster_tokens"


@pytest.mark.parametrize("picture", NAMES, indirect=True)
def test_any_file_name_is_quoted_for_the_shell(picture, tmp_path, monkeypatch):
    line = command(ClusterConfig(), ENCODER, picture.name, grid=GRID)
    assert line.count("\n") == 1
    run_command(line, tmp_path, monkeypatch, picture.name)


def test_a_name_that_is_no_utf_8_is_quoted_for_the_shell(tmp_path):
    line = command(ClusterConfig(), "it's\n-m", "a\udcff b.png")
    assert line[:-1].isprintable() and line.endswith("\n")
    assert words(line, tmp_path)[1] == "a\udcff b.png"
    assert words(line, tmp_path)[-1] == "it's\n-m"
    assert words(command(ClusterConfig(), "-m", "a"), tmp_path)[-1] == "--encoder=-m"


def test_the_command_has_only_what_differs():
    assert (
        command(ClusterConfig(), ENCODER, "a b.png") == "setok cluster 'a b.png' --out clusters\n"
    )
    assert command(ClusterConfig.paper(k=4), "org/vit", "a.png", grid=(3, 4)) == (
        "setok cluster a.png --out clusters --encoder org/vit --grid 3x4 --preset paper --k 4\n"
    )
    assert command(DPCConfig(num_clusters=None, threshold=-0.5, k=7), ENCODER, "a.png") == (
        "setok cluster a.png --out clusters --function dpc_knn --num-clusters none "
        "--threshold=-0.5 --k 7\n"
    )
    assert command(GreedyConfig(), ENCODER, "a.png") == (
        "setok cluster a.png --out clusters --function threshold_greedy\n"
    )


@pytest.mark.parametrize("config", [config for config in CONFIGS if config not in SOFT])
def test_the_command_has_the_same_function(picture, tmp_path, monkeypatch, config):
    line = command(config, ENCODER, picture.name, grid=GRID)
    record = run_command(line, tmp_path, monkeypatch, picture.name)
    assert record["config"] == config.to_dict()
    assert f"--function {record['function']}" in line
