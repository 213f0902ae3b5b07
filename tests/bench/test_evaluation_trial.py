"""docs/evaluation.md has the numbers of the committed trial."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def result(name):
    return json.loads((ROOT / "bench" / "results" / f"evaluation-{name}.json").read_text())


def test_the_page_has_the_measured_rates():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    runs = result("trial")["runs"]
    assert [run["processes"] for run in runs] == [1, 2, 4]
    for run in runs:
        speed = run["throughput"]
        cells = f"{speed['answers_per_second']:.0f} | {speed['seconds']:.1f} s"
        assert f"| {run['processes']} | {cells} | {run['seconds']:.1f} s |" in page
        assert run["equal"]
    assert f"{runs[0]['throughput']['answers']} answers" in page


def test_all_killed_runs_ended_with_the_same_bytes():
    kills = [kill for trial in result("kills") for kill in trial["kills"]]
    assert sum(kill["killed"] for kill in kills) >= 10
    assert all(kill["equal"] for kill in kills)
