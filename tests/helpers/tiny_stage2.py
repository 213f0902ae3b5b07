"""Tiny settings of stage 2."""

from pathlib import Path

import yaml

WORLD = {"kind": "shapes-tasks", "size": 32, "seed": 0, "options": {"objects": [1, 3], "turns": 2}}


def stage2_values(setok: Path) -> dict:
    """Return the settings of a run of stage 2 as nested plain values.

    Args:
        setok: folder of the model of stage 1.
    """
    return {
        "stage": 2,
        "steps": 3,
        "batch_size": 6,
        "accumulation": 1,
        "precision": "no",
        "setok": str(setok),
        "llm": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "model": {"head_width": 16, "head_layers": 1, "segmentation_width": 8},
        "train": ["llm"],
        "data": WORLD,
        "held_out": {**WORLD, "seed": 1, "samples": 24},
        "optimizer": {"lr": 1.0e-3, "visual_lr": 2.0e-3, "warmup": 1},
        "generation": {"max_new_tokens": 6, "sampling_steps": 2},
        "every": {"log": 0, "checkpoint": 0, "evaluation": 0, "pictures": 0},
        "ema": 0.0,
        "workers": 0,
    }


def write_settings(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path
