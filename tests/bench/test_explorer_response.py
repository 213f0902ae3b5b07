"""The response times of the explorer in the documentation are those of the committed result."""

import json
from pathlib import Path
from statistics import median

from setok_bench.explorer_response import MOVES, SLIDERS, table

ROOT = Path(__file__).parents[2]
RESULT = json.loads((ROOT / "bench/results/explorer-response.json").read_text(encoding="utf-8"))


def test_the_page_has_the_table_of_the_result():
    assert table(RESULT) in (ROOT / "docs/explore.md").read_text(encoding="utf-8")


def test_every_slider_was_moved_and_answered_within_the_goal():
    measured = {(case["slider"], case["settings"]): case["ms"] for case in RESULT["cases"]}
    assert measured.keys() == {(slider, number) for slider in SLIDERS for number in (1, 2)}
    for samples in measured.values():
        assert len(samples) == MOVES and median(samples) < 150
