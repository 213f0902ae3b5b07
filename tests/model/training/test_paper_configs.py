"""The paper's YAML files, a step of each stage after the other, on small files of its data sets."""

import dataclasses
import io
import json
import math
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

import setokim
from helpers.published import PUBLISHED, chats, data_of, slimpajama
from setok_cli.main import main
from setokim import SetokimModel, SetokimProcessor, SetokModel, SetokProcessor
from setokim.data import build, build_dataset
from setokim.training.settings import load_settings
from setokim.training.trainer import Trainer
from setokim.vlm.word_tokenizer import build_word_tokenizer

pytest.importorskip("pyarrow")
pytest.importorskip("pycocotools")

CONFIGS = Path(setokim.__file__).parent / "configs"
STAGES = (1, "codes", 2, 3)
# Stages that train on images and texts, not on conversations.
OF_IMAGES = (1, "codes")
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"hidden_size": 16, "intermediate_size": 24, "image_size": 32, "patch_size": 8, **LAYERS}
TEXT = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 16, **LAYERS}
# Overrides of all stages: batch, steps with their warm-up, workers, precision, sample counts.
SMALL = {
    "batch_size": 8,
    "steps": 1,
    "optimizer.warmup": 1,
    "workers": 0,
    "precision": "no",
    "held_out.samples": 24,
}
# Overrides of each stage: dimensions, and names of encoder and language model.
DIMENSIONS = {
    1: {
        "discriminator.warmup": 1,
        "model.width": 16,
        "model.heads": 2,
        "model.token_dim": 24,
        "model.outline_dim": 8,
        "model.decoder_width": 16,
        "model.decoder_layers": 1,
        "model.decoder_grid": [4, 4],
        "model.decoder_patch_size": 8,
        "model.concept_dim": 8,
        "model.cluster.max_clusters": 4,
        "discriminator_width": 4,
    },
    "codes": {
        "code_dim": 4,
        "code_width": 8,
        "fit.images": 8,
        "fit.steps": 2,
        "fit.batch_size": 8,
    },
    2: {
        "llm": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "model.head_width": 16,
        "model.head_layers": 1,
        "model.segmentation_width": 8,
        "model.recall_width": 8,
        "generation.max_new_tokens": 2,
        "generation.sampling_steps": 2,
    },
    # ReasonSeg, which has the smallest weight, first occurs in sample 146.
    3: {"batch_size": 20, "generation.max_new_tokens": 2, "generation.sampling_steps": 2},
}
ALLAVA = "allava_laion/ALLaVA-{}-LAION-4V.json"
# Splits of the fixtures and further names for copies of them.
SPLITS = {
    "openimages": [("validation", "train")],
    "coco-captions": [("val2017", "train2014")],
    "vqav2": [("val2014", "train2014")],
    "okvqa": [("val2014", "train2014")],
    "gqa": [("testdev_balanced", "train_balanced"), ("testdev_balanced", "val_balanced")],
    "aokvqa": [("aokvqa_v1p0_val", "aokvqa_v1p0_train"), ("val2017", "train2017")],
    "magicbrush": [("test-", "dev-")],
}


def rename(root, old, new):
    """Rename the files and folders whose names contain `old`, the innermost first."""
    for path in sorted(root.rglob(f"*{old}*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.replace(old, new)))


def write_tar(path):
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as archive:
        for number in range(3):
            members = {"jpg": data_of(number, "JPEG"), "txt": f"a red dog, {number}".encode()}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with data/ in the layout of the YAML files, and a small SigLIP."""
    world = tmp_path_factory.mktemp("paper")
    data = world / "data"
    for name in (
        *("openimages", "coco-captions", "llava-665k", "vqav2", "okvqa", "aokvqa", "gqa"),
        *("instructpix2pix", "magicbrush", "refcoco+", "refcocog"),
    ):
        make = PUBLISHED[name][0]
        (data / name).mkdir(parents=True)
        for old, new in SPLITS.get(name, []):
            make(data / name)
            rename(data / name, old, new)
        make(data / name)
    for split in ("train", "val"):
        (data / "reasonseg" / split).mkdir(parents=True)
        PUBLISHED["reasonseg"][0](data / "reasonseg" / split)
    for split in ("train", "validation"):
        (data / "slimpajama" / split).mkdir(parents=True)
        slimpajama(data / "slimpajama" / split)
    for kind in ("Caption", "Instruct"):
        chats(data / "allava", ALLAVA.format(kind))
    PUBLISHED["imagenet-folder"][0](data / "imagenet-folder" / "train")
    names = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
    (data / "imagenet-folder" / "LOC_synset_mapping.txt").write_text(names)
    write_tar(data / "laion-aesthetics" / "00000.tar")
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(["dog", "tree", "old"])
    text = TEXT | {"vocab_size": len(tokenizer)}
    siglip = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    transformers.SiglipModel(siglip).save_pretrained(world / "siglip")
    tokenizer.save_pretrained(world / "siglip")
    return world


def config(stage):
    return CONFIGS / f"{folder_of(stage)}_paper.yaml"


def folder_of(stage):
    """Return the stem of a stage's YAML file and folder."""
    return stage if stage == "codes" else f"stage{stage}"


def overrides(stage, world):
    """Return the values that replace those of a YAML file, by dotted key."""
    changed = SMALL | DIMENSIONS[stage]
    if stage == 1:
        changed |= dict.fromkeys(("model.encoder", "text_encoder"), str(world / "siglip"))
    if stage == "codes":
        changed |= {"start": str(world / "stage1" / "model")}
    if stage == 2:
        changed |= {"setok": str(world / "codes" / "model")}
    if stage == 3:
        changed |= {"start": str(world / "stage2" / "model")}
    return changed


def settings_of(stage, world):
    """Return the settings of a YAML file with small dimensions and paths below another folder."""
    lines = [f"{key}={json.dumps(value)}" for key, value in overrides(stage, world).items()]
    settings = load_settings(config(stage), lines)
    moved = {name: below(getattr(settings, name), world) for name in ("data", "held_out")}
    return dataclasses.replace(settings, **moved)


def below(data, world):
    """Move all paths of data settings that begin with data/ below a folder."""

    def move(value):
        if isinstance(value, dict):
            return {key: move(one) for key, one in value.items()}
        return f"{world}/{value}" if isinstance(value, str) and value.startswith("data/") else value

    return dataclasses.replace(data, path=move(data.path), options=move(data.options))


def flat(value, where=""):
    """Return the values of nested settings by dotted key."""
    if isinstance(value, dict) and value:
        return {
            key: one
            for name, inner in value.items()
            for key, one in flat(inner, f"{where}.{name}" if where else name).items()
        }
    return {where: value}


class Counted:
    """Data set that records each reading of a sample."""

    def __init__(self, name, dataset, read):
        self._name, self._dataset, self._read = name, dataset, read

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        sample = self._dataset[index]
        self._read.append(self._name)
        return sample


@pytest.fixture(scope="module")
def runs(world):
    """Runs of the stages in sequence: settings, metrics, parts read, folder."""
    found = {}
    for stage in STAGES:
        with pytest.MonkeyPatch.context() as patch:
            read, mixture = [], build.Mixture

            def counted(datasets, weights, seed, read=read, mixture=mixture):
                spies = {k: Counted((seed, k), one, read) for k, one in datasets.items()}
                return mixture(spies, weights, seed)

            patch.setattr(build, "Mixture", counted)
            settings = settings_of(stage, world)
            out = world / folder_of(stage)
            trainer = Trainer(settings, out)
            # Only readings by the training itself count.
            read.clear()
            metrics = trainer.train()
        found[stage] = (settings, metrics, list(read), out)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_other_values_of_the_file_are_unchanged(world, stage):
    original = flat(load_settings(config(stage)).to_dict())
    changed = flat(settings_of(stage, world).to_dict())
    differing = {
        key
        for key in original.keys() | changed.keys()
        if original.get(key) != changed.get(key) and not key.endswith(".path")
    }
    small = set(flat(overrides(stage, world))) | set(overrides(stage, world))
    names = {key for key in differing if key.endswith(".options.names")}
    assert differing - names <= small
    # Paths are the same below another folder.
    for key in names | {key for key in original if key.endswith(".path")}:
        if original[key] is not None:
            assert changed[key] == f"{world}/{original[key]}"
    for name in ("weight", "kind", "parts", "losses", "train", "lr", "ema", "pairs", "split"):
        assert not [key for key in small if name in key.split(".")]


@pytest.mark.parametrize("stage", STAGES)
def test_data_sets_are_the_papers(stage):
    settings = load_settings(config(stage))
    found = {part["kind"] for part in settings.data.options["parts"].values()}
    expected = {
        **{key: {"folder", "openimages"} for key in OF_IMAGES},
        2: {"imagenet-folder", "shards", "coco-captions", "allava", "slimpajama"},
        3: {
            *("llava-665k", "allava", "vqav2", "gqa", "okvqa", "aokvqa", "shards"),
            *("instructpix2pix", "magicbrush", "refcoco+", "refcocog", "reasonseg"),
        },
    }
    assert found == expected[stage]
    # The held-out data is another split of real data.
    held_out = settings.held_out
    parts = held_out.options.get("parts", {"": {"kind": held_out.kind, **held_out.options}})
    assert held_out.samples == 2048 and not {p["kind"] for p in parts.values()} & {"shapes-tasks"}
    trained = settings.data.options["parts"].values()
    splits = [(p["kind"], p.get("path"), p.get("options", {}).get("split")) for p in trained]
    for part in parts.values():
        own = (part["kind"], part.get("path"), part.get("options", {}).get("split"))
        assert own not in splits


@pytest.mark.parametrize("stage", STAGES)
def test_every_data_set_is_read(runs, stage):
    settings, _, read, _ = runs[stage]
    mixtures = [data for data in (settings.data, settings.held_out) if data.kind == "mixture"]
    # Of images and texts one data set is held out.
    assert len(mixtures) == (1 if stage in OF_IMAGES else 2)
    assert set(read) == {(data.seed, name) for data in mixtures for name in data.options["parts"]}


@pytest.mark.parametrize("stage", STAGES)
def test_each_part_gives_a_batch_alone(runs, stage, tmp_path):
    settings, *_ = runs[stage]
    collate = Trainer(settings, tmp_path).collate
    for data in (settings.data, settings.held_out):
        whole = {"kind": data.kind, "path": data.path, "options": data.options}
        for part in data.options.get("parts", {"": whole}).values():
            fields = {key: value for key, value in part.items() if key != "weight"}
            dataset = build_dataset(**fields.pop("options", {}), **fields)
            batch = collate([dataset[0]])
            name = "pixels" if stage in OF_IMAGES else "input_ids"
            assert len(batch[name]) >= 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_has_finite_losses_and_metrics(runs, stage):
    _, metrics, _, out = runs[stage]
    (line,) = (out / "losses.jsonl").read_text().splitlines()
    losses = json.loads(line)
    expected = {
        1: {"pixel", "perceptual", "contrastive"},
        "codes": {"pixel", "token", "kl"},
        2: {"text", "diffusion", "mask"},
        3: {"text", "diffusion", "mask", "copy", "names"},
    }
    assert expected[stage] <= losses.keys()
    assert all(math.isfinite(value) for value in losses.values())
    # Each loss has samples in every stage, except that stage 2 has no masks.
    # No token of the few small images need lie in a named region.
    zero = {name for name, value in losses.items() if value == 0} - {"step", "names"}
    assert zero == ({"mask"} if stage == 2 else set())
    assert json.loads((out / "metrics.json").read_text()) == metrics
    if stage == 1:
        assert metrics["psnr"] > 0 and metrics["recall_at_1_chance"] == pytest.approx(1 / 3)
        return
    if stage == "codes":
        assert metrics["psnr"] > 0 and metrics["code_psnr"] > 0
        return
    tasks = {2: {"caption", "generate", "text"}, 3: {"vqa", "generate", "edit", "segment"}}
    names = {"text_loss", *(f"{task}_text_loss" for task in tasks[stage])}
    assert {name for name in metrics if name.endswith("loss")} == names
    assert all(metrics[name] > 0 for name in names)
    # Real data has no metrics of ShapesWorld.
    assert metrics.keys() - names == {"seconds", "steps", "seed", "commit"}


@pytest.mark.parametrize("stage", STAGES)
def test_images_are_shown(runs, stage):
    *_, out = runs[stage]
    settings = load_settings(config(stage))
    assert settings.every.pictures > 0
    (sheet,) = (out / "pictures").glob("step-*.png")
    assert Image.open(sheet).size[0] > 32


@pytest.mark.parametrize("stage", STAGES)
def test_the_model_folder_loads(runs, stage):
    *_, out = runs[stage]
    stage_1, others = (SetokModel, SetokProcessor), (SetokimModel, SetokimProcessor)
    kinds = stage_1 if stage in OF_IMAGES else others
    model, processor = (kind.from_pretrained(out / "model") for kind in kinds)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert processor is not None


@pytest.mark.parametrize(
    ("stage", "gone", "message"),
    [
        (1, "openimages", r"parts['openimages']: root: expected a folder, got '{}'"),
        (2, "laion-aesthetics", r"parts['laion']: paths: expected files, got '{}/*.tar'"),
        (2, "slimpajama/validation", r"parts['slimpajama']: root: expected a folder, got '{}'"),
        (3, "gqa", r"parts['gqa']: root: expected a folder, got '{}'"),
        (3, "reasonseg/val", r"parts['reasonseg']: root: expected a folder, got '{}'"),
    ],
)
def test_the_first_data_set_that_is_missing_is_named(
    runs, world, tmp_path, monkeypatch, capsys, stage, gone, message
):
    shutil.copytree(world / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / gone)
    monkeypatch.chdir(tmp_path)
    lines = [f"{key}={json.dumps(value)}" for key, value in overrides(stage, world).items()]
    arguments = ["train", "--config", str(config(stage)), "--out", "out", *lines]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"setok train: {message.format(f'data/{gone}')}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_data_set_is_named_before_a_model_is_loaded(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--config", str(config(stage)), "--out", "out", 'precision="no"']
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    name, part = next(iter(load_settings(config(stage)).data.options["parts"].items()))
    expected = f"root: expected a folder, got {part['path']!r}"
    assert line == f"setok train: parts[{name!r}]: {expected}"
