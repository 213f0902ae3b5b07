"""Parts in a Ray cluster of three nodes on this machine: each once, whatever is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.processes import alive, children, marked, parent, title, wait_until
from helpers.scripted_parts import (
    ScriptedFactory,
    ScriptedPart,
    ThreadsFactory,
    driver_text,
    files_of,
)
from setok_kernels.extras import MissingExtraError
from setokim.corpus.engines import EngineOptions, PartFailure, find_engine, local

TESTS = Path(__file__).parents[3]
DEFAULTS = EngineOptions()


def test_without_ray_the_error_has_the_command(monkeypatch):
    monkeypatch.delitem(sys.modules, "setokim.corpus.engines.ray_data", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'needs ray: pip install "setok-kernels\[ray\]"'):
        find_engine("ray")


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    find_engine("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Nodes inherit it, and their actors find the helpers.
        patch.setenv("PYTHONPATH", str(TESTS))
        small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        head = small | {
            "include_dashboard": False,
            # A lost node is noticed in seconds.
            "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 3},
        }
        found = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                found.add_node(**small)
            yield found
        finally:
            found.shutdown()


@pytest.fixture
def run(cluster):
    """Run parts in the cluster."""

    def start(factory, parts, workers=3):
        options = EngineOptions(workers=workers, ray_address=cluster.address)
        return find_engine("ray")(factory, parts, options)

    return start


@pytest.mark.slow
def test_parts_that_kill_their_actors(run, tmp_path, capfd):
    factory = ScriptedFactory(tmp_path / "ray")
    factory.folder.mkdir()
    kills = {1: 1, 3: 99}
    parts = [ScriptedPart(f"part-{i}", kills=kills.get(i, 0)) for i in range(12)]
    terminated = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number))
    try:
        outcomes = []
        for outcome in run(factory, parts):
            if not outcomes:
                os.kill(os.getpid(), signal.SIGTERM)
            outcomes.append(outcome)
    finally:
        signal.signal(signal.SIGTERM, before)
    # Commands make an interrupt of it; the handler of Ray would exit.
    assert terminated == [signal.SIGTERM]
    # Nothing of Ray among the results of a command.
    assert capfd.readouterr().out == ""
    assert sorted(part.name for part, _ in outcomes) == sorted(part.name for part in parts)
    failed = [part.name for part, report in outcomes if isinstance(report, PartFailure)]
    assert failed == ["part-3"]
    assert dict(outcomes)[parts[3]].reason == "the actor was lost in each of 3 attempts"
    assert all(report["name"] == part.name for part, report in outcomes if part is not parts[3])
    begun = [name for _, name in factory.lines("begun")]
    assert begun.count("part-1") == 2 and begun.count("part-3") == 3
    assert len(begun) == 10 + 2 + 3

    other = ScriptedFactory(tmp_path / "local")
    other.folder.mkdir()
    list(local.run_parts(other, parts, EngineOptions(workers=2)))
    assert other.files() == factory.files() == files_of([*parts[:3], *parts[4:]])


@pytest.mark.slow
def test_an_error_of_the_worker_ends_the_run(run, tmp_path):
    factory = ScriptedFactory(tmp_path)
    parts = [ScriptedPart("slow", seconds=60), ScriptedPart("full", error="full")]
    start = time.monotonic()
    with pytest.raises(OSError, match=r"No space left on device: 'shard.parquet'") as caught:
        list(run(factory, [*parts, *(ScriptedPart(f"a-{i}", seconds=60) for i in range(3))]))
    assert caught.value.errno == 28
    assert time.monotonic() - start < 40
    assert "scripted_parts.py" in str(caught.value.__cause__)
    # The job has ended, so its actors do: a rerun does not meet them.
    wait_until(lambda: not any(alive(pid) for pid, _ in factory.lines("built")))


@pytest.mark.slow
def test_a_connection_of_this_process_is_used_and_kept(cluster):
    import ray

    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        # As many actors as the cluster has cores, with the threads of local processes. On a busy
        # machine one of them may start too late for any part.
        parts = [ScriptedPart(str(index)) for index in range(9)]
        reports = [report for _, report in find_engine("ray")(ThreadsFactory(), parts, DEFAULTS)]
        assert len(reports) == 9
        assert len({report.pop("process") for report in reports}) in (2, 3)
        assert all(report == {"threads": 1, "device": "cpu"} for report in reports)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_parts_of_one_name_are_refused(tmp_path):
    pytest.importorskip("ray")
    parts = [ScriptedPart("a"), ScriptedPart("a")]
    with pytest.raises(ValueError, match="parts: expected different names, got 'a' twice"):
        list(find_engine("ray")(ScriptedFactory(tmp_path), parts, DEFAULTS))


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("ray://host", ValueError, "ray_address: expected auto or HOST:PORT, got 'ray://host'"),
        ("here", ValueError, "ray_address: expected auto or HOST:PORT, got 'here'"),
        ("127.0.0.1:1", ConnectionError, "expected the address of a Ray cluster, got 127.0.0.1:1"),
        ("127.0.0.1:99999", ConnectionError, "got 127.0.0.1:99999: "),
    ],
)
def test_a_wrong_address_is_refused_at_once(tmp_path, address, kind, message):
    pytest.importorskip("ray")
    options = EngineOptions(ray_address=address)
    with pytest.raises(kind, match=message):
        list(find_engine("ray")(ScriptedFactory(tmp_path), [ScriptedPart("a")], options))


@pytest.mark.slow
def test_two_of_three_nodes_are_lost(cluster, run, tmp_path):
    # Last of those with the cluster, as it leaves one node.
    factory = ScriptedFactory(tmp_path)
    parts = [ScriptedPart(f"part-{index}", seconds=0.5) for index in range(14)]
    names, doomed = [], set()
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]

    def on_node(index):
        """Actors on a node: their parent is its raylet."""
        built = [pid for pid, _ in factory.lines("built")]
        return {pid for pid in built if alive(pid) and parent(pid) == raylets[index]}

    for part, report in run(factory, parts):
        names.append((part.name, report["name"]))
        if len(names) == 2:
            # The actor that counts is restarted.
            [counter] = [pid for pid in children(raylets[0]) if "_Attempts" in title(pid)]
            os.kill(counter, signal.SIGKILL)
        if len(names) == 4:
            doomed |= on_node(1)
            os.kill(raylets[1], signal.SIGKILL)
        if len(names) == 8:
            doomed |= on_node(2)
            cluster.remove_node(cluster.list_all_nodes()[2], allow_graceful=False)
    assert sorted(names) == sorted((part.name, part.name) for part in parts)
    assert factory.files() == files_of(parts)
    assert len(doomed) == 2
    # The processes of a lost node write no longer than it takes them to notice.
    wait_until(lambda: not any(alive(pid) for pid in doomed))
    # At most one part an actor was repeated.
    assert len(parts) <= len(factory.lines("begun")) <= len(parts) + 2


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_of_its_own_instance(tmp_path):
    pytest.importorskip("ray")
    factory, mark = ScriptedFactory(tmp_path), f"SETOK_TEST={tmp_path}"
    driver = subprocess.Popen(
        [sys.executable, "-c", driver_text("ray", tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS), "SETOK_TEST": str(tmp_path)},
    )
    try:
        wait_until(lambda: len(factory.lines("begun")) == 3, seconds=60)
        # The driver, two actors, and those of Ray itself.
        assert len(marked(mark)) > 4
    finally:
        driver.kill()
        output = driver.communicate()[0]
        try:
            actors = {pid for pid, _ in factory.lines("built")}
            wait_until(lambda: not any(alive(pid) for pid in actors))
        finally:
            # Ray's agents outlive the driver, and write nothing of ours.
            for pid in marked(mark):
                os.kill(pid, signal.SIGKILL)
    assert output == "fast\n"
    assert set(factory.files()) == {"fast.shard"}
