"""Random models in place of the embedded one, and runs whose model can be released."""

from pathlib import Path

import pytest
import yaml

from helpers.tiny_setokim import build
from setokim.utils.pretrained import EMBEDDED

WORLD = {"kind": "shapes-tasks", "size": 32, "seed": 0, "options": {"objects": [1, 3], "turns": 2}}
HELD_OUT = {**WORLD, "seed": 1, "samples": 120}
GENERATION = {"max_new_tokens": 6, "sampling_steps": 2, "image_temperature": 0.0}


def write_model(folder: Path, **fields) -> Path:
    """Write a random model with its own options of generation and held-out data."""
    model, processor = build(**fields)
    model.generation_config = model.generation_config.replace(
        image_temperature=0.0, sampling_steps=2, max_new_tokens=6
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    values = {"held_out": {**HELD_OUT, "samples": 9}, "generation": GENERATION}
    (folder / "held_out.yaml").write_text(yaml.safe_dump(values))
    return folder


def stage3_file(folder: Path) -> Path:
    """Write the settings of a run of stage 3 of two steps, and the model that it starts from."""
    model, processor = build(code_dim=4)
    model.save_pretrained(folder / "start")
    processor.save_pretrained(folder / "start")
    values = {
        **{"stage": 3, "steps": 2, "batch_size": 4, "accumulation": 1, "precision": "no"},
        **{"start": str(folder / "start"), "train": ["llm"], "data": WORLD, "held_out": HELD_OUT},
        **{"optimizer": {"warmup": 1}, "generation": GENERATION, "ema": 0.0, "workers": 0},
        "every": {"log": 0, "checkpoint": 1, "evaluation": 0, "pictures": 0},
    }
    path = folder / "stage3.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def embedded(tmp_path_factory, monkeypatch):
    """Return the folder of a random model that stands for the embedded one."""
    folder = write_model(tmp_path_factory.mktemp("embedded"))
    monkeypatch.setitem(EMBEDDED, "small-world", folder)
    return folder
