"""The table of docs/scale.md about trials of `setok tokenize` on two cores."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from setok_bench.tables import Table

RESULTS = Path(__file__).resolve().parent / "results"
STEPS = ("read", "decode", "encode", "write")
_CORES = 2


def read_trial(name: str) -> dict[str, Any]:
    """Return a committed result of `bench/corpus_trial.py`."""
    return json.loads((RESULTS / f"corpus-{name}.json").read_text(encoding="utf-8"))


def measured_table() -> Table:
    """What a trial measured: rates against the steps alone, memory, Ray, and kills."""
    trial, kills = read_trial("trial"), read_trial("kills")
    runs, parts = trial["runs"], trial["parts"]
    local, ray = runs["local"], runs["ray"]
    image = 1 / local["images_per_second"]
    work, slowest = sum(parts[step] for step in STEPS), max(parts[step] for step in STEPS)
    steps = ", ".join(f"{step} {1e3 * parts[step]:.2f}" for step in STEPS)
    found = Counter(kill["kind"] for kill in kills["kills"] if kill["killed"])
    hit = [kill for kill in kills["kills"] if kill["killed"]]
    equal = sum(kill["equal"] for kill in kills["kills"])
    return Table(
        "measured",
        ("measured", "result"),
        [
            ("images, those broken, shards", _corpus(trial)),
            ("one step alone, ms an image on one core", steps),
            ("the run, ms an image", f"{1e3 * image:.2f} ({1 / image:.0f} images/s)"),
            ("the run / its steps on two cores", f"{image / (work / _CORES):.2f}"),
            ("the run / its slowest step on one core", f"{image / slowest:.2f}"),
            ("max memory of a process / that of the first shards", f"{local['memory_growth']:.3f}"),
            ("start to end, local", f"{local['seconds']:.0f} s"),
            ("start to end, Ray", f"{ray['seconds']:.0f} s"),
            ("images/s, Ray / local", f"{_rate(ray) / _rate(local):.2f}"),
            ("files of both engines", "equal" if runs["equal"] else "DIFFERENT"),
            ("kills", ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))),
            ("reruns until the end", str(sum(kill["reruns"] for kill in hit))),
            ("folders equal to the undisturbed run", f"{equal} of {len(kills['kills'])}"),
        ],
        (_conditions(trial, kills),),
    )


def _rate(run: dict[str, Any]) -> float:
    return run["images_per_second"]


def _corpus(trial: dict[str, Any]) -> str:
    settings, runs = trial["settings"], trial["runs"]
    assert runs["images"] == runs["expected_images"] and runs["broken_as_expected"]
    return f"{settings['images']:,}, {settings['broken']}, {settings['shards']}"


def _conditions(trial: dict[str, Any], kills: dict[str, Any]) -> str:
    grids = trial["settings"]["grid"], kills["settings"]["grid"]
    return (
        f"{trial['device']['name']}, two processes of one thread; patch-statistics encoder with "
        f"{grids[0]} patches (kills: {grids[1]}); JPEG, PNG and WebP of 96 to 256 pixels; commits "
        f"{trial['commit'][:10]} and {kills['commit'][:10]}. Rates include the start of the "
        "workers."
    )
