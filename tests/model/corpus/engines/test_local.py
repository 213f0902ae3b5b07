"""Parts in processes of one machine: each once, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from helpers.processes import alive, wait_until
from helpers.scripted_parts import (
    OddError,
    ScriptedFactory,
    ScriptedPart,
    ThreadsFactory,
    driver_text,
    files_of,
)
from setokim.corpus.engines import EngineOptions, PartFailure, find_engine
from setokim.corpus.engines.local import run_parts

TESTS = Path(__file__).parents[3]
TWO = EngineOptions(workers=2)


def test_all_parts_once_in_two_processes(tmp_path):
    factory = ScriptedFactory(tmp_path)
    parts = [ScriptedPart(f"part-{index}", seconds=0.05) for index in range(12)]
    outcomes = list(run_parts(factory, parts, TWO))
    assert sorted(part.name for part, _ in outcomes) == sorted(part.name for part in parts)
    assert all(report["name"] == part.name for part, report in outcomes)
    assert factory.files() == files_of(parts)
    processes = {report["process"] for _, report in outcomes}
    assert processes == {pid for pid, _ in factory.lines("built")}
    assert len(processes) == 2 and os.getpid() not in processes
    assert not any(alive(pid) for pid in processes)


def test_parts_come_in_the_order_of_completion(tmp_path):
    parts = [ScriptedPart("slow", seconds=1.5), ScriptedPart("fast"), ScriptedPart("next")]
    names = [part.name for part, _ in run_parts(ScriptedFactory(tmp_path), parts, TWO)]
    assert names == ["fast", "next", "slow"]


def test_no_part_needs_no_process(tmp_path):
    factory = ScriptedFactory(tmp_path)
    assert list(run_parts(factory, [], TWO)) == []
    assert factory.lines("built") == []


def test_parts_are_taken_when_a_process_is_free(tmp_path):
    taken = []

    def parts():
        for index in range(100):
            taken.append(index)
            yield ScriptedPart(f"part-{index}")

    with closing(run_parts(ScriptedFactory(tmp_path), parts(), TWO)) as outcomes:
        for number in range(1, 11):
            next(outcomes)
            # At most one more a process, and those that have ended together with this one.
            assert len(taken) <= number + 2 * TWO.workers
    assert len(taken) < 16


def test_parts_may_wait_for_the_outcomes_of_others(tmp_path):
    """The iterator ends for the time that a part is unfinished, here one that is killed."""

    class InTurns:
        given = finished = 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.given == 5 or self.given > self.finished:
                raise StopIteration
            self.given += 1
            return ScriptedPart(f"part-{self.given}", kills=2 * (self.given == 2))

    parts, factory = InTurns(), ScriptedFactory(tmp_path)
    names = []
    for part, _ in run_parts(factory, parts, TWO):
        names.append(part.name)
        parts.finished += 1
    assert names == [f"part-{number}" for number in range(1, 6)]
    assert len(factory.lines("begun")) == 5 + 2


def test_threads_and_devices(tmp_path):
    options = EngineOptions(workers=2, devices=("cuda:0", "cuda:1"), threads=1)
    parts = [ScriptedPart(str(index)) for index in range(2)]
    reports = [report for _, report in run_parts(ThreadsFactory(), parts, options)]
    assert {report["device"] for report in reports} == {"cuda:0", "cuda:1"}
    assert {report["threads"] for report in reports} == {1}


def test_a_killed_part_is_repeated_in_a_new_process(tmp_path):
    factory = ScriptedFactory(tmp_path)
    parts = [ScriptedPart(f"part-{index}", kills=2 * (index == 1)) for index in range(6)]
    outcomes = list(run_parts(factory, parts, TWO))
    assert [part.name for part, _ in outcomes][-1] == "part-1"
    assert not any(isinstance(report, PartFailure) for _, report in outcomes)
    assert factory.files() == files_of(parts)
    begun = [name for _, name in factory.lines("begun")]
    assert begun.count("part-1") == 3 and len(begun) == 6 + 2


def test_a_poisonous_part_fails_alone(tmp_path):
    factory = ScriptedFactory(tmp_path)
    parts = [ScriptedPart(f"part-{index}", kills=99 * (index == 0)) for index in range(6)]
    outcomes = dict((part.name, found) for part, found in run_parts(factory, parts, TWO))
    failure = outcomes.pop("part-0")
    assert failure == PartFailure("the worker process was ended by SIGKILL in each of 3 attempts")
    assert sorted(outcomes) == [part.name for part in parts[1:]]
    assert factory.files() == files_of(parts[1:])
    # Each neighbour was processed once.
    assert len(factory.lines("begun")) == 5 + 3


def test_a_killed_process_whose_child_lives_on_is_noticed(tmp_path):
    start = time.monotonic()
    parts = [ScriptedPart("a", kills=1, forks=8)]
    ((_, report),) = run_parts(ScriptedFactory(tmp_path), parts, EngineOptions(workers=1))
    assert report["name"] == "a" and time.monotonic() - start < 7


def test_a_process_that_exits_counts_as_killed(tmp_path):
    options = EngineOptions(workers=1, attempts=1)
    ((_, failure),) = run_parts(ScriptedFactory(tmp_path), [ScriptedPart("a", ends=7)], options)
    assert failure.reason == "the worker process ended with exit code 7 in each of 1 attempts"


def test_a_process_killed_while_it_builds_its_worker(tmp_path):
    factory = ScriptedFactory(tmp_path, kills=2)
    parts = [ScriptedPart("a"), ScriptedPart("b")]
    outcomes = list(run_parts(factory, parts, EngineOptions(workers=1)))
    # No part is to blame.
    assert sorted(part.name for part, _ in outcomes) == ["a", "b"]
    assert factory.files() == files_of(parts)


def test_processes_that_never_build_their_worker_end_the_run(tmp_path):
    factory = ScriptedFactory(tmp_path, kills=99)
    outcomes = run_parts(factory, [ScriptedPart(str(i)) for i in range(9)], TWO)
    with pytest.raises(RuntimeError, match=r"was ended by SIGKILL, 3 times in succession"):
        list(outcomes)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("value", ValueError, r"^sizes: expected 3, got 4$"),
        ("full", OSError, r"No space left on device: 'shard.parquet'"),
        ("end", EOFError, r"^the tar ends early$"),
        ("odd", RuntimeError, r"^OddError: this and that$"),
    ],
)
def test_an_error_of_the_worker_ends_the_run(tmp_path, error, kind, message):
    factory = ScriptedFactory(tmp_path)
    parts = [ScriptedPart("slow", seconds=60), ScriptedPart("bad", error=error)]
    start = time.monotonic()
    with pytest.raises(kind, match=message) as caught:
        list(run_parts(factory, [*parts, ScriptedPart("never")], TWO))
    assert time.monotonic() - start < 20
    assert getattr(caught.value, "errno", None) == (28 if error == "full" else None)
    assert "scripted_parts.py" in str(caught.value.__cause__)
    assert OddError.__name__ not in str(kind)
    assert not any(alive(pid) for pid, _ in factory.lines("built"))
    assert "never" not in [name for _, name in factory.lines("begun")]


def test_parts_that_ended_before_an_error_are_reported(tmp_path):
    ended = [ScriptedPart("bad", seconds=0.3, error="value"), ScriptedPart("good", seconds=0.3)]
    parts = [ScriptedPart("first"), *ended]
    factory = ScriptedFactory(tmp_path)
    outcomes = run_parts(factory, parts, EngineOptions(workers=3))
    assert next(outcomes)[0].name == "first"
    # Both answer before the caller asks for the next outcome.
    wait_until(lambda: factory.lines("raised") and "good.shard" in factory.files())
    time.sleep(1)
    assert next(outcomes)[0].name == "good"
    with pytest.raises(ValueError, match="sizes"):
        next(outcomes)


def test_closing_the_generator_ends_the_processes(tmp_path):
    factory = ScriptedFactory(tmp_path)
    parts = [ScriptedPart("fast"), ScriptedPart("slow", seconds=60)]
    with closing(run_parts(factory, parts, TWO)) as outcomes:
        next(outcomes)
        wait_until(lambda: len(factory.lines("begun")) == 2)
    assert not any(alive(pid) for pid, _ in factory.lines("built"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_leaves_no_process(tmp_path, number):
    factory = ScriptedFactory(tmp_path)
    driver = subprocess.Popen(
        [sys.executable, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        start_new_session=True,
    )
    driver.stdin.write(driver_text("local", tmp_path))
    driver.stdin.close()
    try:
        wait_until(lambda: len(factory.lines("begun")) == 3)
        processes = {pid for pid, _ in factory.lines("built")}
        assert len(processes) == 2 and all(alive(pid) for pid in processes)
        # As the terminal does: to the whole group.
        os.killpg(driver.pid, number)
        output, errors = driver.stdout.read(), driver.stderr.read()
        driver.wait(10)
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
        driver.stderr.close()
    assert output == "fast\n"
    # One traceback, that of the driver.
    assert errors.count("Traceback") == (number == signal.SIGINT)
    wait_until(lambda: not any(alive(pid) for pid in processes), seconds=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"workers": 1, "threads": 0}, "threads: expected at least 1, got 0"),
        ({"workers": 1, "attempts": 0}, "attempts: expected at least 1, got 0"),
        ({"workers": 1, "devices": ()}, r"devices: expected devices of one kind, got \(\)"),
        ({"workers": 1, "devices": ("cpu", "cuda:0")}, "devices: expected devices of one kind"),
    ],
)
def test_options_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        EngineOptions(**arguments)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (EngineOptions(workers=5), 5),
        (EngineOptions(), 6),
        (EngineOptions(threads=4), 1),
        (EngineOptions(threads=99), 1),
        (EngineOptions(devices=("cuda:0", "cuda:1", "cuda:2")), 3),
    ],
)
def test_by_default_a_process_for_each_gpu_or_core(monkeypatch, options, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert options.local_workers == expected


def test_engines_are_found_by_name():
    assert find_engine("local") is run_parts
    with pytest.raises(ValueError, match="engine: expected one of local, ray, got 'spark'"):
        find_engine("spark")
