"""Only what is right is timed; results say what happened and fit their schema."""

import copy
import dataclasses
import json

import pytest
import torch

from helpers import bench_fakes as fakes
from setok_bench import results, runner, suites
from setok_bench.registry import Case, Entry, Implementation, Job
from setok_bench.runner import Settings, failures, measure_row, run_suite
from setok_bench.suites import LargestJob, MemoryJob, Suite
from setok_bench.work import Shape, product

TINY = Shape(2, 48, 8, k=3, clusters=6, dtype=torch.float32)


def with_implementation(implementation):
    made = fakes.entry(ours=0.001, bmm=0.001)
    return dataclasses.replace(made, implementations=(*made.implementations, implementation))


def test_durations_units_and_throughput():
    found = fakes.row(fakes.entry(ours=0.004, bmm=0.002))
    ours, work = found["contenders"]["ours"], found["work"]
    assert ours["p50_s"] == pytest.approx(0.004, rel=0.05)
    assert found["contenders"]["bmm"]["p50_s"] == pytest.approx(0.002, rel=0.05)
    assert ours["images_per_s"] == pytest.approx(2 / ours["p50_s"])
    assert ours["tokens_per_s"] == pytest.approx(32 / ours["p50_s"])
    # 2 x 16 x 4 features and 2 x 16 x 16 products of 4 bytes, at 1e9 bytes and flops per second.
    assert work["bytes"] == 512 + 2048 and work["flops"] == 2 * 2 * 16 * 16 * 4
    assert work["floor_s"] == ours["floor_s"] == pytest.approx(4096e-9)


@pytest.mark.parametrize(
    ("implementation", "status", "reason"),
    [
        (
            Implementation("other", lambda case: fakes.spin(0.0), fakes.wrong, "ours"),
            "failed",
            "seed 3",
        ),
        (Implementation("other", fakes.crash, fakes.right, "ours"), "failed", "out of memory"),
        (
            Implementation("other", fakes.cannot, fakes.right, "ours"),
            "unavailable",
            "needs a package",
        ),
    ],
)
def test_what_is_wrong_or_missing_is_said_and_not_timed(implementation, status, reason):
    found = fakes.row(with_implementation(implementation))
    other = found["contenders"]["other"]
    assert other["status"] == status and reason in other["reason"]
    assert "\n" not in other["reason"]
    assert "samples_s" not in other
    assert len(found["contenders"]["ours"]["samples_s"]) == 21
    failed = failures({"rows": [found]})
    assert len(failed) == (status == "failed")


def test_a_peer_that_fails_does_not_fail_the_run():
    found = fakes.row(
        with_implementation(Implementation("other", fakes.crash, fakes.right, "peer"))
    )
    assert found["contenders"]["other"]["status"] == "failed"
    assert failures({"rows": [found]}) == []


def test_implementations_for_other_devices_are_left_out():
    made = with_implementation(Implementation("gpu", fakes.crash, fakes.right, devices=("cuda",)))
    assert "gpu" not in fakes.row(made)["contenders"]


def test_long_images_are_checked_at_another_length(monkeypatch):
    seen = []

    def make(case):
        seen.append(case.shape)
        return lambda: case.shape

    def check(case, result):
        assert result == case.shape

    monkeypatch.setattr("setok_bench.checks.CHECK_TOKENS", 10)
    made = Entry("op", product, (Implementation("ours", make, check, "ours"),))
    measure_row(Job(made, (fakes.SHAPE,)), fakes.SHAPE, fakes.SETTINGS, fakes.RATES)
    assert [(s.images, s.tokens) for s in seen] == [(2, 16), (1, 10)]


# Each has tests of its own.
WITH_MODELS = ("encode", "prefill", "merger", "vlm_prefill", "vlm_answer")

# Every operation of ours at a small shape, with the checks that a benchmark makes.
OURS = [
    (name, implementation)
    for name, entry in suites.ENTRIES.items()
    for implementation in entry.implementations
    if "cpu" in implementation.devices and name not in WITH_MODELS
    if implementation.name not in ("compiled_reference", "tcformer", "chatunivi", "setok", "divt")
]


@pytest.mark.parametrize(("op", "implementation"), OURS, ids=[f"{op}-{c.name}" for op, c in OURS])
def test_the_real_implementations_pass_their_checks(op, implementation):
    case = Case(TINY, torch.device("cpu"))
    implementation.check(case, implementation.make(case)())


def damage(value):
    """The same result with something small wrong in it."""
    if isinstance(value, tuple):  # of the backward pass
        out, (first, *others) = value
        return out, (first * 1.01, *others)
    if isinstance(value, torch.Tensor):
        spoilt = value.clone()
        spoilt.flatten()[:9] += 1
        return spoilt
    labels = value.labels.clone()
    labels[-1, -1] = (labels[-1, -1] + 1) % 2
    return dataclasses.replace(value, labels=labels)


@pytest.mark.parametrize(
    ("op", "implementation"),
    [(op, c) for op, c in OURS if c.role != "yardstick"],
    ids=[f"{op}-{c.name}" for op, c in OURS if c.role != "yardstick"],
)
def test_the_checks_catch_a_small_error(op, implementation):
    case = Case(TINY, torch.device("cpu"))
    with pytest.raises(AssertionError):
        implementation.check(case, damage(implementation.make(case)()))


@pytest.mark.parametrize("entry", [suites.ENTRIES[n] for n in ("encode", "prefill", "merger")])
def test_the_pipeline_runs_at_a_small_shape(entry, monkeypatch):
    pytest.importorskip("transformers")
    from setok_bench import pipeline

    small = pipeline.Size("tiny", 2, 2, 24)
    monkeypatch.setitem(pipeline.ENCODERS, 16, small)
    monkeypatch.setitem(pipeline.LANGUAGE_MODELS, 16, small)
    shape = Shape(2, 49, 16, k=3, clusters=6, dtype=torch.float32)
    found = measure_row(Job(entry, (shape,)), shape, fakes.SETTINGS, fakes.RATES)
    assert {c["status"] for c in found["contenders"].values()} == {"timed"}


@pytest.fixture(scope="module")
def result():
    entry = suites.ENTRIES["cluster_tokens"].only(("cpp", "reference", "bmm"))
    tiny = Shape(1, 300, 16, dtype=torch.float32)
    suite = Suite(
        (
            Job(entry, (TINY,)),
            Job(entry, (TINY, dataclasses.replace(TINY, images=4)), "images"),
        ),
        seconds=0.05,
        dtype=torch.float32,
        memory=(MemoryJob("cluster_tokens", "cpp", tiny), MemoryJob("dpc_knn", "tcformer", tiny)),
        largest=(LargestJob("cpp", 16, 10**9, (128, 256)),),
    )
    done = []
    found = run_suite(
        "quick",
        suite,
        Settings(torch.device("cpu"), 0.05, rounds=5),
        lambda title, number, of: done.append((title, number, of)),
    )
    assert [number for _, number, _ in done] == list(range(6)) and done[0][2] == 6
    return found


def test_a_result_fits_its_schema(result, tmp_path):
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    assert results.load_result(file) == json.loads(json.dumps(result))
    assert len(result["rows"]) == 3 and len(result["memory"]) == 1
    # What could not be measured is named.
    assert result["left_out"] == [
        "memory of dpc_knn, tcformer 1x300x16: setok_bench.registry.Unavailable: --peer-root DIR: "
        "expected a folder with a clone of zengwang430521/TCFormer"
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.pop("commit"), "'commit' is a required property"),
        (lambda r: r.update(schema=2), "schema: 1 was expected"),
        (lambda r: r["rows"][0].pop("work"), "rows/0: 'work' is a required property"),
        (
            lambda r: r["rows"][0]["contenders"]["cpp"].pop("samples_s"),
            "rows/0/contenders/cpp",
        ),
        (lambda r: r["rates"].update(copy_bytes_per_s="fast"), "rates/copy_bytes_per_s"),
        (lambda r: r.update(new=1), "Additional properties"),
    ],
)
def test_a_malformed_result_is_refused(result, tmp_path, spoil, message):
    spoilt = copy.deepcopy(result)
    spoil(spoilt)
    file = tmp_path / "result.json"
    file.write_text(json.dumps(spoilt))
    with pytest.raises(ValueError, match=message) as error:
        results.load_result(file)
    assert str(file) in str(error.value)


def test_no_json_is_refused(tmp_path):
    file = tmp_path / "result.json"
    file.write_text("no")
    with pytest.raises(ValueError, match="expected JSON"):
        results.load_result(file)


def test_the_budget_leaves_out_and_says_so():
    suite = Suite((Job(fakes.entry(ours=0.001), (fakes.SHAPE,)),), 1.0, torch.float32, budget=0.0)
    found = run_suite("quick", suite, fakes.SETTINGS)
    assert found["rows"] == [] and found["left_out"] == ["spin 2x16x4"]
    results.validate(found)


def test_the_committed_results_fit_the_schema():
    from setok_bench.report import committed_results

    for name, found in committed_results().items():
        assert not failures(found), name
        assert found["commit"] and not found["uncommitted_changes"], name


class TestSelection:
    def test_only_and_shapes_and_dtype(self):
        suite = suites.get_suite("cpu", torch.device("cpu"))
        some = suites.select(suite, ("dpc_knn",), ("3x50x20",), torch.bfloat16)
        assert [job.entry.op for job in some.jobs] == ["dpc_knn"]
        (shape,) = some.jobs[0].shapes
        assert str(shape) == "3x50x20" and shape.dtype == torch.bfloat16
        assert some.memory == () and some.largest == ()

    def test_a_sweep_is_left_out_where_shapes_are_given(self):
        suite = suites.get_suite("cpu", torch.device("cpu"))
        groups = [job.group for job in suites.select(suite, shapes=("1x9x9",)).jobs]
        assert "tokens" not in groups and "main" in groups

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda cpu: suites.get_suite("gpu", cpu), "suite: 'gpu' is for a cuda device"),
            (lambda cpu: suites.get_suite("all", cpu), "suite: expected one of quick, cpu"),
            (
                lambda cpu: suites.select(suites.get_suite("quick", cpu), ("kmeans",)),
                "only: expected some of cluster_tokens.*got 'kmeans'",
            ),
            (
                lambda cpu: suites.ENTRIES["dpc_knn"].only(("mine",)),
                "implementation: expected one of cpp.*for dpc_knn, got 'mine'",
            ),
        ],
    )
    def test_errors(self, call, message):
        with pytest.raises(ValueError, match=message):
            call(torch.device("cpu"))


def test_every_suite_names_implementations_that_exist():
    for suite in (suites.QUICK, suites.CPU, suites.GPU):
        for job in suite.memory:
            suites.ENTRIES[job.op].only((job.implementation,))
        for job in suite.largest:
            suites.ENTRIES["cluster_tokens"].only((job.implementation,))


def test_no_two_rows_of_a_suite_are_the_same():
    for suite in (suites.QUICK, suites.CPU, suites.GPU):
        keys = [(job.entry.op, job.group, shape) for job in suite.jobs for shape in job.shapes]
        assert len(keys) == len(set(keys))


def test_the_schema_version_is_one():
    schema = json.loads(results.SCHEMA_FILE.read_text())
    assert schema["properties"]["schema"]["const"] == runner.SCHEMA
