"""The gate: it catches a slowdown of a fifth, and nothing else sets it off."""

import copy
import json
import random
import sys

import pytest

from helpers import bench_fakes as fakes
from setok_bench import compare

DEVICE = {"device": {"name": "a machine"}}


def result(*rows):
    return {**DEVICE, "rows": list(rows)}


@pytest.fixture(scope="module")
def before():
    return result(fakes.row(fakes.entry(ours=0.002, bmm=0.002)))


def test_a_planted_slowdown_is_caught(before):
    after = result(fakes.row(fakes.entry(ours=0.0024, bmm=0.002)))
    (change,), problems = compare.compare(before, after)
    assert change.regressed and not problems
    assert change.ratio == pytest.approx(1.2, abs=0.05)


def test_ten_runs_without_one_do_not_fire(before):
    for _ in range(10):
        after = result(fakes.row(fakes.entry(ours=0.002, bmm=0.002)))
        changes, problems = compare.compare(before, after)
        assert not problems and not any(change.regressed for change in changes)


def noisy(seed, scale=1.0, spread=0.05, clock=1.0):
    """A row whose samples vary, on a machine that runs at `clock` of its speed."""
    draw = random.Random(seed)
    made = fakes.row(fakes.entry(ours=1e-5, bmm=1e-5))
    for name, factor in (("ours", scale), ("bmm", 1.0)):
        samples = [factor * draw.lognormvariate(0, spread) / clock for _ in range(31)]
        made["contenders"][name]["samples_s"] = samples
    return made


def test_noisy_samples_over_many_runs():
    """Twenty pairs with noise of 5 %: none fires without a slowdown, all with one of a fifth."""
    for seed in range(20):
        old = result(noisy(seed))
        (same,), _ = compare.compare(old, result(noisy(seed + 100)))
        (slower,), _ = compare.compare(old, result(noisy(seed + 200, scale=1.2)))
        assert not same.regressed and slower.regressed


def test_a_slower_clock_is_no_regression():
    (change,), _ = compare.compare(result(noisy(1)), result(noisy(2, clock=0.5)))
    assert not change.regressed


def test_very_noisy_samples_do_not_fire():
    (change,), _ = compare.compare(
        result(noisy(3, spread=1.0)), result(noisy(4, scale=1.15, spread=1.0))
    )
    assert change.noise > 0.15 and not change.regressed


def test_faster_is_fine(before):
    after = result(fakes.row(fakes.entry(ours=0.001, bmm=0.002)))
    (change,), _ = compare.compare(before, after)
    assert not change.regressed and change.ratio == pytest.approx(0.5, abs=0.05)


def test_what_is_gone_or_wrong_now_is_a_problem(before):
    gone, wrong = copy.deepcopy(before), copy.deepcopy(before)
    gone["rows"] = []
    assert "not in the new result" in compare.compare(before, gone)[1][0]
    wrong["rows"][0]["contenders"]["ours"] |= {"status": "failed", "reason": "seed 3"}
    assert "failed, seed 3" in compare.compare(before, wrong)[1][0]


def test_another_machine_is_refused(before):
    other = copy.deepcopy(before)
    other["device"]["name"] = "another"
    with pytest.raises(ValueError, match="NEW: expected a result of 'a machine', got one of 'ano"):
        compare.compare(before, other)


def test_nothing_in_common_is_refused(before):
    empty = result()
    with pytest.raises(ValueError, match="NEW: expected some row of OLD"):
        compare.compare(empty, before)


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
    return compare.main()


def test_exit_codes(before, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("setok_bench.results.validate", lambda result: None)
    slow = result(fakes.row(fakes.entry(ours=0.0024, bmm=0.002)))
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(before))
    new.write_text(json.dumps(slow))
    assert run_main(monkeypatch, old, old) == 0
    assert run_main(monkeypatch, old, new) == 1
    assert "REGRESSED" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, old, tmp_path / "none.json")
    assert stop.value.code == 2
