import json
import re
import shutil

import pytest
import torch
from PIL import Image

from helpers.tiny_llava import TOKENS, build, write_llava
from helpers.tiny_setokim import picture
from helpers.tiny_speaker import complaints
from setok_cli.main import main
from setokim.data.conversations import message
from setokim.evaluation.existing_models import ExistingModel

QUESTION = "what shape is the red object?"
ASKED = ("--question", QUESTION)
NEW = 5
# Keys and values of two layers of 32 channels in float32.
BYTES_PER_TOKEN = 2 * 2 * 32 * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llava")
    write_llava(path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("images") / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return paths


@pytest.fixture
def compress(folder, images, capsys):
    """Return a function that runs the command on the first image and gives its document."""

    def run(*options, shown=images[:1]):
        arguments = ["compress", folder, *shown, *ASKED, "--max-new-tokens", NEW, "--rounds", 2]
        assert main([str(word) for word in (*arguments, "--json", *options)]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def refusal(capsys, *arguments):
    """Return the one line of a command that cannot run."""
    code = main(["compress", *map(str, arguments)])
    lines = complaints(capsys.readouterr().err)
    assert code == 2 and len(lines) == 1, lines
    return lines[0].removeprefix("setok compress: ")


def test_costs_and_answers_of_both_sides(compress, folder, images):
    found = compress("--rate", 0.25, "--exact")
    kept, all_, reduced = TOKENS // 4, found["all"], found["reduced"]
    assert (all_["visual_tokens"], reduced["visual_tokens"]) == (TOKENS, kept)
    text = all_["prompt_tokens"] - TOKENS
    assert text > 8 and reduced["prompt_tokens"] == text + kept
    for side in (all_, reduced):
        assert side["cache_bytes"] == side["prompt_tokens"] * BYTES_PER_TOKEN
        assert side["new_tokens"] == NEW and side["answer"]
        for name in ("prefill", "answer"):
            samples = side[f"{name}_samples_s"]
            assert len(samples) == 2 and min(samples) <= side[f"{name}_s"] <= max(samples)
    # The answer with all tokens is that of the model itself.
    model = ExistingModel.load(folder)
    inputs = model.inputs([[message("user", picture(0), QUESTION)]])
    ids = model.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert all_["answer"] == model.decode(ids[:, inputs["input_ids"].shape[1] :])[0]
    assert found["options"] == {
        "rate": 0.25,
        "exact": True,
        "features": "encoder",
        "merge": "hard",
        "positions": "compact",
    }


def test_the_reduced_answer_is_that_of_reduce_visual_tokens(compress, folder):
    from setok_kernels import ClusterConfig
    from setok_kernels.integrations.transformers import reduce_visual_tokens

    chosen = {"num_clusters": 7, "features": "projected", "merge": "soft", "positions": "original"}
    words = [word for n, v in chosen.items() for word in (f"--{n.replace('_', '-')}", v)]
    found = compress(*words, "--bandwidth", 0.4)
    model = ExistingModel.load(folder)
    handle = reduce_visual_tokens(model.model, ClusterConfig(bandwidth=0.4), **chosen)
    inputs = model.inputs([[message("user", picture(0), QUESTION)]])
    ids = model.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert found["reduced"]["answer"] == model.decode(ids[:, inputs["input_ids"].shape[1] :])[0]
    # The tokens that no cluster claims become one more.
    assert found["reduced"]["visual_tokens"] == handle.counts[0][1] <= 8
    assert found["config"]["bandwidth"] == 0.4


def test_several_images_and_as_many_clusters_as_tokens(compress, images):
    found = compress("--rate", 1, "--exact", shown=images)
    # One cluster per token is the model itself.
    for name in ("visual_tokens", "prompt_tokens", "cache_bytes", "answer"):
        assert found["all"][name] == found["reduced"][name], name
    assert found["all"]["visual_tokens"] == 2 * TOKENS


def test_the_table(folder, images, capsys):
    arguments = ["compress", str(folder), str(images[0]), *ASKED, "--max-new-tokens", "3"]
    assert main([*arguments, "--rounds", "1", "--exact"]) == 0
    printed = capsys.readouterr().out
    rows = {
        cells[0]: cells[1:]
        for cells in (re.split(r"\s*│\s*", line.strip("│ ")) for line in printed.splitlines())
        if len(cells) == 4
    }
    # A quarter without an option.
    assert rows["visual tokens"] == ["36", "9", "4.00"]
    assert rows["tokens of the answer"] == ["3", "3", "1.00"]
    assert rows["prefill"][0].endswith("ms") and rows["KV cache after the prefill"][0].endswith("B")
    assert "\nall tokens: " in printed and "\nreduced: " in printed


def test_a_prompt_without_a_chat_template():
    model, processor = build(template=None)
    existing = ExistingModel(model, processor)
    inputs = existing.inputs([[message("user", picture(0), picture(1), QUESTION)]])
    assert existing.count_visual(inputs) == 2 * TOKENS
    assert existing.decode(inputs["input_ids"]) == [QUESTION]
    assert existing.inputs([[message("user", "what is it?")]]).keys() == {
        "input_ids",
        "attention_mask",
    }
    processor.image_token = None
    with pytest.raises(ValueError, match=r"^processor: expected a chat template or an image_token"):
        existing.inputs([[message("user", picture(0), "what is it?")]])


def test_a_batch_answers_as_its_prompts_alone():
    existing = ExistingModel(*build())
    prompts = [
        [message("user", picture(0), "what is it?")],
        [message("user", picture(1), picture(2), QUESTION)],
        [message("user", picture(3), "what shape is the red object? yes or no?")],
    ]
    together = existing.generate(existing.inputs(prompts), NEW)
    for row, prompt in zip(together.ids, prompts, strict=True):
        alone = existing.generate(existing.inputs([prompt]), NEW)
        assert torch.equal(row, alone.ids[0])


def test_what_cannot_be_loaded(folder, images, tmp_path, capsys):
    image = images[0]
    empty = tmp_path / "no" / "such"
    said = refusal(capsys, empty, image, *ASKED)
    assert said.startswith(f"MODEL_DIR: cannot load {empty}: expected the folder of a model with")
    missing = tmp_path / "missing.png"
    assert refusal(capsys, folder, missing, *ASKED).startswith(f"IMAGE: cannot read {missing}: ")
    said = refusal(capsys, folder, image, *ASKED, "--bandwidth", "0")
    assert said == "bandwidth: expected more than 0, got 0.0"
    # A language model that sees nothing.
    other = tmp_path / "llama"
    model, processor = build()
    model.model.language_model.save_pretrained(other)
    processor.save_pretrained(other)
    capsys.readouterr()
    said = refusal(capsys, other, image, *ASKED)
    assert said.endswith("expected a model that reads images and text, got one of type 'llama'")
    # Weights of which one file is cut off.
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = refusal(capsys, broken, image, *ASKED)
    assert "expected whole weights, got a damaged file" in said
    # Code in the folder is never run.
    coded = tmp_path / "coded"
    coded.mkdir()
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "mine.py").write_text("raise SystemExit('ran')")
    said = refusal(capsys, coded, image, *ASKED)
    assert said.endswith("it brings Python code of its own, which `setok compress` does not run")


def test_a_processor_that_needs_torchvision(folder, images, tmp_path, capsys):
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        pytest.skip("torchvision is installed")
    other = tmp_path / "video"
    shutil.copytree(folder, other)
    file = other / "processor_config.json"
    parts = json.loads(file.read_text())
    parts["processor_class"] = "Qwen2_5_VLProcessor"
    parts["video_processor"] = {"video_processor_type": "Qwen2VLVideoProcessor"}
    file.write_text(json.dumps(parts))
    said = refusal(capsys, other, images[0], *ASKED)
    assert "its processor needs torchvision, in the build that matches torch" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "0"], "--rate: expected a number above 0 and at most 1, got '0'"),
        (["--rate", "nan"], "--rate: expected a number above 0 and at most 1, got 'nan'"),
        (["--rate", "x"], "--rate: expected a number above 0 and at most 1, got 'x'"),
        (["--rate", "1", "--num-clusters", "3"], "not allowed with argument --rate"),
        (["--num-clusters", "0"], "--num-clusters: expected a number of at least 1, got '0'"),
        (["--max-clusters", "3"], "unrecognized arguments: --max-clusters 3"),
        (["--features", "pixels"], "--features: invalid choice: 'pixels'"),
    ],
)
def test_options_that_do_not_fit(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compress", "m", "i.png", *ASKED, *arguments])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_a_family_that_is_not_registered(images, tmp_path, capsys, monkeypatch, folder):
    from setok_kernels.integrations.transformers import registry

    monkeypatch.setattr(registry, "_FAMILIES", {})
    said = refusal(capsys, folder, images[0], *ASKED)
    assert "register_family" in said and "'llava'" in said


def test_defaults_are_those_of_reduce_visual_tokens():
    import inspect

    from setok_cli.main import build_parser
    from setok_kernels.integrations.transformers import reduce_visual_tokens
    from setokim.cli.compress import reduction_options

    arguments = build_parser().parse_args(["compress", "m", "i.png", *ASKED])
    usual = inspect.signature(reduce_visual_tokens).parameters
    for name, value in reduction_options(arguments).items():
        assert value == (0.25 if name == "rate" else usual[name].default), name


def test_images_are_upright_rgb(folder, images, tmp_path):
    grey = tmp_path / "grey.png"
    Image.new("L", (30, 20)).save(grey)
    arguments = ["compress", str(folder), str(grey), *ASKED, "--max-new-tokens", "1"]
    assert main([*arguments, "--rounds", "1"]) == 0
