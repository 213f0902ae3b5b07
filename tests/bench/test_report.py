"""Tables, plots and documentation of results."""

import copy

import pytest

from helpers import bench_fakes as fakes
from setok_bench import goals, kernel_tables, plots, report, roofline, tables
from setok_bench.machine import H200
from setok_bench.results import load_result
from setok_bench.timing import paired_ratio

CPU_RESULTS = {s: r for s, r in report.committed_results().items() if r["suite"] == "cpu"}


@pytest.fixture(scope="module")
def result():
    return next(iter(CPU_RESULTS.values()))


def test_the_documentation_is_that_of_the_committed_results():
    """`python bench/report.py --docs` changes nothing."""
    for path, text in report.documentation(report.committed_results()).items():
        assert path.read_text() == text, f"{path.name} is not what bench/report.py --docs makes"


def block(path):
    """Text between the markers of a file."""
    text = path.read_text()
    return text[text.index(report.BEGIN) : text.index(report.END)]


def test_the_readme_quotes_one_measured_time_with_its_conditions():
    quoted = " ".join(block(report.README).split())
    assert CPU_RESULTS
    for result in CPU_RESULTS.values():
        rows = [r for r in result["rows"] if (r["op"], r["group"]) == ("cluster_tokens", "main")]
        times = rows[0]["contenders"]
        assert tables.duration(times["cpp"]["p50_s"]) in quoted
        for above, below in (("cpp", "bmm"), ("reference", "cpp")):
            ratio = paired_ratio(times[above]["samples_s"], times[below]["samples_s"])
            assert f"{ratio:.2f}" in quoted
        device = result["device"]
        conditions = (device["name"], f"{device['threads']} threads", result["versions"]["torch"])
        for condition in (*conditions, result["commit"][:10], result["time"][:10]):
            assert condition in quoted
    assert quoted.count("**Measured**") == len(CPU_RESULTS)


def test_the_status_page_lists_each_goal():
    lines = block(report.STATUS).splitlines()
    expected = [line for r in CPU_RESULTS.values() for line in tables.goal_table(r).lines]
    assert any(line[3] == "MISSED" for line in expected)
    for line in expected:
        assert f"| {' | '.join(line)} |" in lines


def test_a_result_without_clustering_has_no_headline():
    assert report.headline({"rows": []}) == ""


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
    for names, shape in kernel_tables.TABLED:
        for name in names:
            prefix = f"{name}: " if len(names) > 1 else ""
            for kernel in roofline.find_case(shape, counts, name)["kernels"]:
                assert f"| {prefix}{kernel} |" in section
    total = roofline.total(roofline.forward(kernel_tables.LARGE, H200, counts))
    assert f"| 64x729x1152, bfloat16 | {total * 1e6:.1f} |" in section
    assert "Commit 71c21cff5b;" in section and counts["commit"][:10] in section


def test_the_sums_of_the_passes_by_hand():
    now, before = roofline.load_counts(), kernel_tables.committed_before()
    table = kernel_tables.sums_table(now, before, H200)
    lines = {line[0]: line[1:] for line in table.lines}
    long = kernel_tables.LONG[0]
    expected = [
        roofline.total(roofline.streaming(long, H200, c)) for c in (before["streaming"], now)
    ]
    cells = lines[f"streaming, {long}, us"]
    assert [float(cell) for cell in cells[:2]] == pytest.approx(
        [s * 1e6 for s in expected], abs=0.1
    )
    assert cells[2].startswith("extrapolated from")
    large = kernel_tables.LARGE
    ahead, back = (
        sum(p.expected for p in f(large, H200, now)) for f in (roofline.forward, roofline.backward)
    )
    ratio = lines[f"forward and backward over forward, {large}"][1]
    assert float(ratio) == pytest.approx(1 + back / ahead, abs=0.01)
    assert f"{float(ratio):.1f}" in report.kernel_summary()


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


@pytest.mark.parametrize("name", ["README", "STATUS"])
def test_a_page_without_markers_is_an_error(name, tmp_path, monkeypatch):
    page = tmp_path / "PAGE.md"
    page.write_text("nothing")
    monkeypatch.setattr(report, name, page)
    with pytest.raises(ValueError, match=r"PAGE.md: expected '<!-- from bench/results: begin"):
        report.documentation({})
