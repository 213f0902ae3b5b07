"""The first questions to a GPU: their order, what runs without one, and going on after a stop."""

import dataclasses
import json
import os
import sys

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)

import setok_kernels as sk
from helpers import bench_fakes as fakes
from setok_bench import gpu_parts, results, run, runner, suites
from setok_bench.gpu_parts import PARTS, Bench, Part, measure_part
from setok_bench.registry import Unavailable
from setok_bench.suites import Suite
from setok_bench.work import Shape

CPU = torch.device("cpu")
TINY = Bench(CPU, Shape(1, 37, 8, k=1, clusters=1, dtype=torch.float32), (1, 2))


def part_of(name):
    return next(part for part in PARTS if part.name == name)


def ask(name):
    part = part_of(name)
    # Rounds are as many as fit into the time; the tools get a time of their own.
    return measure_part(dataclasses.replace(part, run=lambda b, s: part.run(b, 1e-3)), TINY)


def test_the_questions_in_their_order():
    """The yardstick, what decides the tile size, what is right, then what takes how long."""
    names = "bmm l2 small_tests racecheck memcheck kernels ncu tiles scope forward all_tests"
    assert [part.name for part in PARTS] == names.split()
    assert suites.GPU.parts == PARTS and suites.GPU.resumes


def test_all_of_it_fits_into_ten_minutes():
    assert suites.GPU.budget < 600
    # The last of them, which may be as long as all before, only if time is left.
    assert sum(part.seconds for part in PARTS) <= suites.GPU.budget


@pytest.fixture
def quick(monkeypatch):
    """The forward pass by the reference: the interpreter takes a second for each."""

    def forward(case, **changes):
        x = case.tokens()
        return lambda: sk.cluster_tokens(x, case.config, backend="reference")

    monkeypatch.setattr(gpu_parts, "_forward", forward)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bmm", {"bmm_37_s", "bmm_48_s"}),
        ("l2", {"bytes_per_s", "buffer_bytes"}),
        ("forward", {f"{n}_{b}_s" for n in ("eager", "graph", "bmm") for b in (1, 2)}),
    ],
)
def test_what_needs_no_tool_runs_on_any_device(name, values, quick):
    found = ask(name)
    assert found["status"] == "done", found["reason"]
    assert set(found["values"]) == values
    assert all(value > 0 for value in found["values"].values())


@pytest.mark.parametrize("name", ["kernels", "scope"])
def test_a_profiler_without_a_device_says_so(name, quick):
    found = measure_part(part_of(name), TINY)
    assert found["status"] == "unavailable" and not found["values"]


@pytest.mark.parametrize(
    ("name", "tool"),
    [("racecheck", "compute-sanitizer"), ("memcheck", "compute-sanitizer"), ("ncu", "ncu")],
)
def test_a_tool_that_is_not_there_is_named(name, tool, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = measure_part(part_of(name), TINY)
    assert found["status"] == "unavailable" and found["reason"].startswith(tool)


def install(folder, name, text):
    tool = folder / name
    tool.write_text(f"#!{sys.executable}\n{text}")
    tool.chmod(0o755)


# Runs the rest of its command line, as the real one does.
SANITIZER = """
import subprocess, sys
command = sys.argv[1:]
print("tool", command[command.index("--tool") + 1])
sys.exit(subprocess.call(command[command.index("all") + 1:]))
"""


@pytest.mark.parametrize(("right", "status"), [(True, "done"), (False, "failed")])
def test_the_tests_run_under_the_tool(right, status, tmp_path, monkeypatch):
    install(tmp_path, "compute-sanitizer", SANITIZER)
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import os, pytest\n"
        "@pytest.mark.gpu\n"
        "def test_small_thing():\n"
        f"    assert {right} and os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] == '1'\n"
        "@pytest.mark.gpu\n"
        "def test_large_thing():\n"
        "    assert False\n"
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu_parts, "TESTS", tests)
    found = measure_part(part_of("racecheck"), TINY)
    assert found["status"] == status, found["reason"]
    if right:
        assert "1 passed" in found["values"]["said"]
    else:
        assert "test_small_thing" in found["reason"]


def test_a_tool_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    install(tmp_path, "compute-sanitizer", "import time\ntime.sleep(60)")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = measure_part(dataclasses.replace(part_of("memcheck"), seconds=0.2), TINY)
    assert found["status"] == "failed" and "timed out" in found["reason"]
    assert found["seconds"] < 30


NCU = """==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","1","select_fwd_kernel","gpu__time_duration.sum","nsecond","17,000"
"0","1","select_fwd_kernel","launch__registers_per_thread","register/thread","45"
"1","1","select_fwd_kernel","gpu__time_duration.sum","nsecond","3,000"
"1","1","select_fwd_kernel","launch__registers_per_thread","register/thread","45"
"""


def test_counters_are_read_from_what_ncu_prints(tmp_path, monkeypatch):
    install(tmp_path, "ncu", f"print({NCU!r})")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = measure_part(part_of("ncu"), TINY)
    assert found["values"]["kernels"] == {
        "select_fwd": {
            "gpu__time_duration.sum nsecond": 20_000,
            "launch__registers_per_thread register/thread": 45,
        }
    }


def test_counters_that_may_not_be_read(tmp_path, monkeypatch):
    install(tmp_path, "ncu", "print('==ERROR== ERR_NVGPUCTRPERM')\nraise SystemExit(1)")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = measure_part(part_of("ncu"), TINY)
    assert found["status"] == "unavailable" and "may not read" in found["reason"]


def test_the_variants_of_the_tiles_leave_out_what_they_say():
    """Fresh buffers are NaN, so what is not stored shows."""
    from setok_bench import probes

    calls = probes.tile_variants(TINY.case().tokens(), TINY.case().config)
    kept = {name: call() for name, call in calls.items()}
    # 37 rows of 48 columns and of three groups; behind them the buffers end on 128 bytes.
    rows, least = slice(37 * 48), slice(37 * 3)
    written = {
        name: [not b.isnan().any().item() for b in (out.p_distance[rows], out.p_minima[least])]
        for name, out in kept.items()
    }
    assert written == {"whole": [True, True], "no_minima": [True, False], "product": [False, False]}
    assert kept["product"].p_distance.isnan().all() and kept["no_minima"].p_minima.isnan().all()
    torch.testing.assert_close(kept["whole"].p_distance[rows], kept["no_minima"].p_distance[rows])


def test_nothing_to_leave_out_is_an_error():
    from setok_bench import probes

    with pytest.raises(ValueError, match="tile variants: expected stores of minima"):
        probes.varied(probes, minima=False, rows=True)


def test_measured_times_stand_beside_the_expected_ones():
    found = gpu_parts.beside_the_model({"select_fwd": 1e-5, "new": 2e-5}, gpu_parts._LARGE)
    assert found["new"] == {"measured_s": 2e-5, "expected_s": None}
    assert any(row["expected_s"] and row["measured_s"] is None for row in found.values())


# The runner, with parts that only note that they ran.


@pytest.fixture
def ran(monkeypatch):
    monkeypatch.setattr(runner, "measure_rates", lambda device, dtype: fakes.RATES)
    return []


def suite_of(ran, *names, fails=(), **options):
    def question(name):
        def answer(bench, seconds):
            ran.append(name)
            if name in fails:
                raise Unavailable("no such tool")
            return {"value": len(ran)}

        return Part(name, "?", 1.0, answer)

    given = {"seconds": 1.0, "dtype": torch.float32, "resumes": True} | options
    return Suite((), parts=tuple(map(question, names)), **given)


def run_parts(suite, **options):
    return runner.run_suite("gpu", suite, fakes.SETTINGS, **options)


def test_after_each_part_the_result_is_kept(ran):
    seen = []
    keep = lambda result: seen.append(json.loads(json.dumps(result)))  # noqa: E731
    found = run_parts(suite_of(ran, "a", "b", "c", fails="b"), keep=keep)
    assert [[p["name"] for p in r["parts"]] for r in seen] == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert [p["status"] for p in found["parts"]] == ["done", "unavailable", "done"]
    for result in seen:
        results.validate(result)


def test_a_run_goes_on_where_one_stopped(ran):
    first = run_parts(suite_of(ran, "a", "b"))
    second = run_parts(suite_of(ran, "a", "b", "c"), before=first)
    assert ran == ["a", "b", "c"]
    assert [p["values"]["value"] for p in second["parts"]] == [1, 2, 3]
    assert second["seconds"] > first["seconds"]


@pytest.mark.parametrize(
    "change", [{"commit": "another"}, {"versions": {}}, {"settings": {}}, {"suite": "cpu"}]
)
def test_another_code_is_measured_again(ran, change):
    first = run_parts(suite_of(ran, "a"))
    run_parts(suite_of(ran, "a"), before=first | change)
    assert ran == ["a", "a"]


def test_a_part_that_does_not_fit_is_left_out(ran):
    found = run_parts(suite_of(ran, "a", "b", budget=0.5))
    assert ran == [] and found["left_out"] == ["a", "b"]
    later = run_parts(suite_of(ran, "a", "b"), before=found)
    assert ran == ["a", "b"] and later["left_out"] == []


def test_rows_are_taken_over_too(ran):
    from setok_bench.registry import Job

    job = Job(fakes.entry(ours=0.001), (fakes.SHAPE,))
    first = run_parts(dataclasses.replace(suite_of(ran, "a"), jobs=(job,)))
    again = run_parts(dataclasses.replace(suite_of(ran, "a"), jobs=(job,)), before=first)
    assert again["rows"] == first["rows"] and len(first["rows"]) == 1


def test_the_command_goes_on_in_its_file(ran, tmp_path, monkeypatch, capsys):
    """Stopped in the second part, and called again."""
    file = tmp_path / "gpu.json"
    fine = suite_of(ran, "a", "b", "c")

    def stop(bench, seconds):
        raise KeyboardInterrupt

    broken = dataclasses.replace(fine, parts=(fine.parts[0], Part("b", "?", 1.0, stop)))
    monkeypatch.setattr("sys.argv", ["run.py", "--suite", "gpu", "--out", str(file)])
    monkeypatch.setattr(run, "get_suite", lambda name, device: broken)
    with pytest.raises(KeyboardInterrupt):
        run.main()
    assert [p["name"] for p in results.load_result(file)["parts"]] == ["a"]
    monkeypatch.setattr(run, "get_suite", lambda name, device: fine)
    assert run.main() == 0
    assert ran == ["a", "b", "c"]
    assert [p["name"] for p in results.load_result(file)["parts"]] == ["a", "b", "c"]


def test_a_part_that_failed_fails_the_command(ran):
    def wrong(bench, seconds):
        raise AssertionError("a race")

    suite = dataclasses.replace(suite_of(ran), parts=(Part("racecheck", "?", 1.0, wrong),))
    assert runner.failures(run_parts(suite)) == ["racecheck: a race"]


def test_parts_can_be_asked_for_alone():
    some = suites.select(suites.GPU, ("bmm", "dpc_knn"))
    assert [part.name for part in some.parts] == ["bmm"]
    assert {job.entry.op for job in some.jobs} == {"dpc_knn"}
    assert suites.select(suites.GPU, shapes=("1x9x9",)).parts == ()
