"""Tables, pictures and the documentation made of results."""

import copy

import pytest

from helpers import bench_fakes as fakes
from setok_bench import goals, kernel_tables, plots, report, roofline, tables
from setok_bench.machine import H200
from setok_bench.results import load_result

CPU_RESULTS = {s: r for s, r in report.committed_results().items() if r["suite"] == "cpu"}


@pytest.fixture(scope="module")
def result():
    return next(iter(CPU_RESULTS.values()))


def test_the_documentation_is_that_of_the_committed_results():
    """`python bench/report.py --docs` changes nothing."""
    for path, text in report.documentation(report.committed_results()).items():
        assert path.read_text() == text, f"{path.name} is not what bench/report.py --docs makes"


def test_every_figure_of_the_readme_stands_in_a_committed_result():
    text = report.README.read_text()
    section = text[text.index(report.BEGIN) : text.index(report.END)]
    for name, found in CPU_RESULTS.items():
        row = next(r for r in found["rows"] if r["op"] == "cluster_tokens")
        cpp = row["contenders"]["cpp"]
        assert tables.duration(cpp["p50_s"]) in section, name
        assert found["commit"][:10] in section, name


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.5, "1.5 s"), (0.00412, "4.12 ms"), (0.1234, "123 ms"), (8.12e-4, "812 us"), (3e-6, "3 us")],
)
def test_durations(seconds, text):
    assert tables.duration(seconds) == text


def test_a_row_says_what_failed():
    found = fakes.row(fakes.entry(ours=0.002, bmm=0.001))
    found["contenders"]["peer"] = {"role": "peer", "status": "failed", "reason": "wrong label"}
    table = tables.row_table({"rows": [found]}, "spin", "main")
    assert [line[1] for line in table.lines] == ["ours", "bmm"]
    assert float(table.lines[0][4]) == pytest.approx(2, abs=0.1)
    assert table.lines[1][4] == "–"
    assert table.notes == ("peer: failed, wrong label",)
    markdown = table.markdown().splitlines()
    assert markdown[1].count("---") == len(table.header) and "wrong label" in markdown[-1]


def test_parts_by_hand():
    parts = [
        {"name": "bmm", "status": "done", "reason": None, "values": {"bmm_729_s": 1e-4}},
        {"name": "ncu", "status": "unavailable", "reason": "ncu is not there", "values": {}},
        {
            "name": "kernels",
            "status": "done",
            "reason": None,
            "values": {"kernels": {"select": {"measured_s": 2e-5, "expected_s": None}}},
        },
        {"name": "l2", "status": "done", "reason": None, "values": {"bytes_per_s": 5.5e12}},
    ]
    assert tables.parts_table({"parts": parts}).lines == [
        ("bmm", "bmm_729", "100 us"),
        ("ncu", "unavailable", "ncu is not there"),
        ("kernels", "kernels select measured", "20 us"),
        ("kernels", "kernels select expected_s", "None"),
        ("l2", "bytes_per_s", "5.5e+12"),
    ]
    assert tables.parts_table({}).lines == []


def test_the_counts_of_the_kernels_stand_in_the_documentation():
    counts = roofline.load_counts()
    section = report.kernel_section()
    for name in roofline.find_case(kernel_tables.LARGE, counts)["kernels"]:
        assert f"| {name} |" in section and f"| 64 x {name} |" in section
    total = roofline.total(roofline.forward(kernel_tables.LARGE, H200, counts))
    assert f"| 64x729x1152, bfloat16 | {total * 1e6:.1f} |" in section
    assert "Commit 71c21cff5b;" in section and counts["commit"][:10] in section


def test_goals_by_hand(result):
    named = {goal.text: goal for goal in goals.GOALS}
    forward = named["forward / bmm, B = 1"]
    spoilt = copy.deepcopy(result)
    row = spoilt["rows"][0]
    row["contenders"]["cpp"]["samples_s"] = [3.0, 4.0, 6.0]
    row["contenders"]["bmm"]["samples_s"] = [2.0, 4.0, 2.0]
    assert forward.value(spoilt) == 1.5 and not forward.met(1.5) and forward.met(1.0)
    row["contenders"]["cpp"] = {"role": "ours", "status": "failed", "reason": "wrong"}
    assert forward.value(spoilt) is None


def test_goals_have_a_value_in_a_full_result(result):
    cpu = [goal for goal in goals.GOALS if goal.device == "cpu"]
    assert cpu and all(goal.value(result) is not None for goal in cpu)
    lines = tables.goal_table(result).lines
    assert len(lines) == len(cpu) and {line[3] for line in lines} <= {"met", "MISSED"}


def test_savings_by_hand():
    def entry(op, images, **seconds):
        implementations = {
            name: {"role": "ours", "status": "timed", "p50_s": s} for name, s in seconds.items()
        }
        shape = {"images": images, "tokens": 729, "features": 384}
        return {"op": op, "group": "main", "shape": shape, "contenders": implementations}

    encode = entry("encode", 8, encoder=8.0, encoder_and_clusters=8.8)
    prefill = entry("prefill", 1, all_patches=10.0, most_clusters=2.0)
    (line,) = tables.saving_table({"rows": [encode, prefill]}).lines
    # (1 + 10) seconds an image before, 1.1 + 2 after.
    assert line[2:] == ("11 s", "3.1 s", "3.55")


def test_pictures_are_drawn(result, tmp_path):
    drawn = plots.draw(result, tmp_path, "x")
    assert [path.name for path in drawn] == ["x-growth.png", "x-floor.png", "x-peers.png"]
    assert all(path.stat().st_size > 10_000 for path in drawn)


def test_a_report_of_ones_own(result, tmp_path, monkeypatch):
    name = next(iter(CPU_RESULTS))
    file = report.RESULTS / f"{name}.json"
    monkeypatch.setattr("sys.argv", ["report.py", str(file), "--out", str(tmp_path)])
    assert report.main() == 0
    text = (tmp_path / f"{name}.md").read_text()
    assert tables.conditions(load_result(file)) in text
    assert f"![{name}-growth](pictures/{name}-growth.png)" in text


def test_a_readme_without_the_place_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    report.README.write_text("nothing")
    with pytest.raises(ValueError, match=r"README.md: expected '<!-- from bench/results: begin"):
        report.documentation({})
