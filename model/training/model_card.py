"""Model card of a released model: the template `model/pretrained/model_card.md`, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml

from setokim.training.stage2.settings import InstructSettings

_TEMPLATE = Path(__file__).parents[1] / "pretrained" / "model_card.md"
# Metrics of the card's table, with their descriptions; figures.json has all others.
_ROWS = {
    "vqa_accuracy": "questions answered exactly",
    "vqa_chance": "best constant answer to each kind of question",
    "vqa_language_only": "the same questions without the image",
    "caption_accuracy": "attributes in captions",
    "locate_accuracy": "attributes and positions in descriptions of all positions",
    "generation_accuracy": "attributes and positions in generated images",
    "edit_success": "edits made as asked, with the rest unchanged",
    "ciou": "segmentation, cumulative IoU",
    "giou": "segmentation, mean IoU",
    "text_accuracy": "sums in words",
}
_TAGS = ["vision-language", "semantic-tokens", "setok", "image-generation", "image-editing"]


def model_card(name: str, figures: Mapping[str, Any], settings: InstructSettings) -> str:
    """Return the text of the card, with the front matter of the Hugging Face hub.

    Args:
        name: name of the model.
        figures: content of figures.json, see `setokim.training.release.release`.
        settings: settings of the last stage.
    """
    run, first, options = figures["run"], figures["first"], settings.data.options
    least, most = options.get("objects", (2, 8))
    values = {
        "name": name,
        "front_matter": yaml.safe_dump(_front_matter(name, run), sort_keys=False).strip(),
        "table": "\n".join(_table(run, first)),
        "parameters": f"{figures['parameters'] / 1e6:.2g}",
        "megabytes": f"{figures['bytes'] / 1e6:.2g}",
        "size": settings.held_out.size,
        "objects": f"{least} to {most}",
        "held_out": settings.generation.samples or settings.held_out.samples,
        "seeds": f"{settings.data.seed} and {settings.held_out.seed}",
        "first": first["samples"],
        "steps": settings.steps,
        "batch": settings.batch_size * settings.accumulation,
        "optimizer": settings.optimizer.kind,
        "rate": f"{settings.optimizer.lr:g}",
        "seed": settings.seed,
        "hours": f"{run.get('seconds', 0) / 3600:.2g}",
        "commit": str(run.get("commit") or "unknown")[:10],
        **{key: getattr(settings.generation, key) for key in ("guidance", "sampling_steps")},
        "image_temperature": f"{settings.generation.image_temperature:g}",
        "versions": ", ".join(f"{key} {value}" for key, value in figures["versions"].items()),
    }
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def _table(run: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    return [
        f"| {text} (`{key}`) | {_show(run.get(key))} | {_show(first.get(key))} |"
        for key, text in _ROWS.items()
        if key in run or key in first
    ]


def _show(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _front_matter(name: str, run: Mapping[str, Any]) -> dict[str, Any]:
    metrics = [
        {"type": key, "name": text, "value": round(run[key], 4)}
        for key, text in _ROWS.items()
        if isinstance(run.get(key), float)
    ]
    result = {
        "task": {"type": "image-text-to-text"},
        "dataset": {"type": "shapes-world", "name": "ShapesWorld, held out"},
        "metrics": metrics,
    }
    return {
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "setok_kernels",
        "pipeline_tag": "image-text-to-text",
        "tags": _TAGS,
        "model-index": [{"name": name, "results": [result]}],
    }
