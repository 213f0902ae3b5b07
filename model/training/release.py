"""Makes the folder of a model to publish from a run: bfloat16 weights, figures and model card."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from safetensors.torch import load_file, save

from setokim.data import Dataset
from setokim.data.settings import DataSettings
from setokim.evaluation.benchmarks import HELD_OUT
from setokim.evaluation.fingerprint import versions
from setokim.evaluation.settings import GenerationSettings
from setokim.training.checkpoint import latest_checkpoint, open_checkpoint
from setokim.training.model_card import model_card
from setokim.training.stage2.evaluation import evaluate
from setokim.training.stage2.settings import InstructSettings
from setokim.utils.files import replacing_folder
from setokim.utils.parsing import from_plain, read_yaml, to_plain
from setokim.utils.pretrained import load_whole
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

FIGURES = "figures.json"
SCENE = "scene.png"
CARD = "README.md"
# Max size of the weights in bytes: they lie in the repository.
MAX_BYTES = 10_000_000
# Number of held-out conversations of the figures that a test repeats.
SAMPLES = 100
_WEIGHTS = "model.safetensors"
_HEADER = (
    "# Held-out data and options of generation of the figures, generated from a random seed.\n"
    "# setok eval --benchmark shapes-world --out scores\n"
)


@dataclass(frozen=True)
class FinishedRun:
    """The last stage of a run that has taken all its steps.

    Attributes:
        folder: folder of the model that the run wrote after its last checkpoint.
        settings: settings in that checkpoint.
        metrics: metrics of the model on the held-out data, with steps, seed, seconds and commit.
    """

    folder: Path
    settings: InstructSettings
    metrics: dict[str, Any]

    @classmethod
    def read(cls, stage: Path) -> FinishedRun:
        """Read the folder of a stage.

        Raises:
            ValueError: the run has not finished, its last checkpoint is damaged or of another
                stage, or its model needs files that are not in it.
        """
        checkpoint = latest_checkpoint(stage)
        if checkpoint is None:
            raise ValueError(f"run: expected a run with a checkpoint, got none in {stage}")
        settings = _settings(checkpoint)
        try:
            metrics = json.loads((stage / "metrics.json").read_text(encoding="utf-8"))
            steps = metrics["steps"]
        except (OSError, ValueError, KeyError, TypeError):
            steps = None
        step = int(checkpoint.name.rpartition("-")[2])
        if not (steps == step == settings.steps and (stage / "model").is_dir()):
            raise ValueError(
                f"run: expected a finished run of {settings.steps} steps, got {stage} with "
                f"{checkpoint.name} and metrics of step {steps}; `setok train --resume` finishes it"
            )
        return cls(stage / "model", settings, metrics)


def release(run: Path, out: Path) -> dict[str, Any]:
    """Write the folder of a model from the last stage of a run.

    The folder has the weights in bfloat16, configuration, tokenizer and image processor;
    `generation_config.json` with the options of the run; `held_out.yaml` with its held-out data;
    `figures.json`; an example scene; and the model card. It replaces an earlier folder as a whole
    once it is complete.

    Args:
        run: folder of a run with its last stage in `stage3`.
        out: folder to write; absent, empty, or of an earlier release.

    Returns:
        The content of `figures.json`: `run`, the metrics of the run, and `first`, those of the
        released weights in float32 on the first `SAMPLES` held-out conversations.

    Raises:
        ValueError: the run has not finished, its model or data do not fit, the weights are larger
            than `MAX_BYTES`, or `out` has other files.
        OSError: a file cannot be read or written.
    """
    finished = FinishedRun.read(run / "stage3")
    _check_out(out)
    with replacing_folder(out) as folder:
        parameters = _write_model(finished, folder)
        _write_held_out(finished.settings, folder)
        figures = {
            "run": finished.metrics,
            "first": {"samples": SAMPLES, **measure(folder, SAMPLES)},
            "parameters": parameters,
            "bytes": (folder / _WEIGHTS).stat().st_size,
            "versions": versions(),
        }
        _write_json(folder / FIGURES, figures)
        example(finished.settings.held_out.build()).save(folder / SCENE)
        card = model_card(out.name.replace("_", "-"), figures, finished.settings)
        (folder / CARD).write_text(card, encoding="utf-8")
    return figures


def measure(folder: Path, samples: int) -> dict[str, float | None]:
    """Compute the metrics of a released model on its first held-out conversations, in float32.

    Args:
        folder: folder of the model with its `held_out.yaml`.
        samples: number of conversations, from the first on.

    Returns:
        Metrics of `setokim.training.stage2.evaluation.evaluate`, without random numbers as long as
        the options of generation have an `image_temperature` of 0.
    """
    values = read_yaml(folder / HELD_OUT)
    held_out = from_plain(DataSettings, values["held_out"], "held_out.")
    generation = from_plain(GenerationSettings, values["generation"], "generation.")
    data = dataclasses.replace(held_out, samples=samples).build()
    generation = dataclasses.replace(generation, samples=None)
    model = load_whole(SetokimModel, folder).float().eval()
    return evaluate(model, SetokimProcessor.from_pretrained(folder), data, generation)


def example(data: Dataset) -> Image.Image:
    """Return the first image that the user shows in conversations.

    Raises:
        ValueError: no conversation has one.
    """
    for index in range(len(data)):
        for part in data[index].messages[0]["content"]:
            if part["type"] == "image":
                return part["image"]
    raise ValueError("held_out: expected a conversation about an image, got none")


def _settings(checkpoint: Path) -> InstructSettings:
    """Return the settings in a checkpoint, those that the model can do without its run."""
    _, state = open_checkpoint(checkpoint)
    values = state.get("settings")
    try:
        settings = from_plain(InstructSettings, values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"run: expected a run of stage 3, got {checkpoint}: {error}") from error
    if settings.imports:
        # Whoever loads the model has no such modules.
        raise ValueError(f"imports: expected none of a model to release, got {settings.imports}")
    held_out = settings.held_out
    if held_out.kind != "shapes-tasks" or held_out.samples is None or held_out.samples < SAMPLES:
        expected = f"at least {SAMPLES} samples of shapes-tasks, which anyone can generate"
        got = f"{held_out.samples} of {held_out.kind}"
        raise ValueError(f"held_out: expected {expected}, got {got}")
    return settings


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {out}")
    if out.is_dir() and any(out.iterdir()) and not (out / FIGURES).is_file():
        expected = f"a new folder, or one of an earlier release with {FIGURES}"
        raise ValueError(f"out: expected {expected}, got {out} with other files")


def _write_model(finished: FinishedRun, folder: Path) -> int:
    """Write weights, configuration and processor; return the number of parameters."""
    model = load_whole(SetokimModel, finished.folder).float()
    processor = SetokimProcessor.from_pretrained(finished.folder)
    if model.config.lora is not None:
        model = model.merge_lora()
    # The head that compares tokens with texts is trained and used in stage 1 only.
    model.setok.to_concept = None
    model.config.setok = {**model.config.setok, "concept_dim": None}
    model.generation_config = finished.settings.generation.defaults()
    # In float32, so that config.json asks for it: bfloat16 is slow on CPUs.
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = load_file(folder / _WEIGHTS)
    stored = {name: t.bfloat16() if t.is_floating_point() else t for name, t in weights.items()}
    # A new file, since safetensors writes files that only their owner can read.
    (folder / _WEIGHTS).unlink()
    (folder / _WEIGHTS).write_bytes(save(stored, {"format": "pt"}))
    size = (folder / _WEIGHTS).stat().st_size
    if size > MAX_BYTES:
        raise ValueError(
            f"run: expected weights of at most {MAX_BYTES / 1e6:g} MB in bfloat16, got "
            f"{size / 1e6:.3g} MB from {finished.folder}"
        )
    return sum(parameter.numel() for parameter in model.parameters())


def _write_held_out(settings: InstructSettings, folder: Path) -> None:
    values = {"held_out": to_plain(settings.held_out), "generation": to_plain(settings.generation)}
    text = _HEADER + yaml.safe_dump(values, sort_keys=False)
    (folder / HELD_OUT).write_text(text, encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")
