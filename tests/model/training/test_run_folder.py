"""The checkpoint that a run resumes from, and the lock of its folder."""

import json
import os
import shutil
import signal

import pytest
from safetensors.torch import load_file, save_file

from helpers.tiny_stage1 import (
    assert_same_run,
    losses_of,
    run_in_processes,
    start_in_processes,
    tiny_settings,
    wait_for,
)
from setokim.training import latest_checkpoint
from setokim.training.trainer import Trainer
from setokim.utils.folder_lock import FolderInUseError, locked

SETTINGS = ("steps=6", "every.checkpoint=2", "every.evaluation=3", "keep=9")


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a run with three checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_in_processes(folder, folder / "out", *SETTINGS)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture
def out(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "out")


@pytest.fixture
def build(tmp_path, out):
    def make(*overrides, resume=True, folder=out):
        return Trainer(tiny_settings(tmp_path, *SETTINGS, *overrides), folder, resume)

    return make


def flip(path, position=-1):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def contents(folder):
    """Return the contents of all files but the locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: path.read_bytes() for path in files if not path.name.startswith(".lock")}


def test_damaged_checkpoints_are_named_and_an_older_one_is_resumed(whole, out, build, capsys):
    flip(out / "checkpoint-00000006" / "tensors.safetensors")
    (out / "checkpoint-00000004" / "state.json").write_text("{}")
    trainer = build()
    assert trainer.step == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "resuming from" in line]
    six, four = (out / f"checkpoint-0000000{i}" for i in (6, 4))
    for part in (f"got {six}: tensors.safetensors: ", f"got {four}: state.json: "):
        assert f"path: expected a complete checkpoint, {part}expected the checksum" in line
    assert line.endswith(f"; resuming from {out / 'checkpoint-00000002'}")
    trainer.train()
    assert_same_run(whole, out)


def test_when_all_are_damaged_no_run_starts_and_no_log_is_cut(out, build):
    for step in (2, 4, 6):
        flip(out / f"checkpoint-0000000{step}" / "tensors.safetensors")
    before = contents(out)
    with pytest.raises(ValueError, match=r"^out: expected a folder with a whole checkpoint") as e:
        build()
    assert all(f"checkpoint-0000000{step}: tensors" in str(e.value) for step in (2, 4, 6))
    assert contents(out) == before
    # A new run must not overwrite the remains either.
    with pytest.raises(ValueError, match=r"^out: expected a folder without checkpoints, got "):
        build(resume=False)
    assert contents(out) == before


def test_a_checkpoint_of_an_earlier_version_is_resumed_and_named(whole, out, build, capsys):
    for step in (2, 4, 6):
        (out / f"checkpoint-0000000{step}" / "SHA256SUMS").unlink()
    assert build().step == 6
    last = out / "checkpoint-00000006"
    assert f"{last}: no checksums, as an earlier version wrote it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {},
        lambda state: [],
        lambda state: state | {"settings": []},
        lambda state: {"settings": state["settings"]},
        lambda state: state | {"structure": None},
        lambda state: state | {"structure": {"dict": [["modules", 3]]}},
        lambda state: state | {"structure": {"dict": 3}},
        lambda state: state | {"structure": {"tensor": "none"}},
    ],
    ids=["{}", "[]", "settings", "no structure", "null", "modules", "dict", "tensor"],
)
def test_a_state_of_other_types_is_named(out, build, change):
    """Without checksums such a state is not found earlier."""
    for step in (2, 4):
        shutil.rmtree(out / f"checkpoint-0000000{step}")
    last = out / "checkpoint-00000006"
    (last / "SHA256SUMS").unlink()
    state = last / "state.json"
    state.write_text(json.dumps(change(json.loads(state.read_text()))))
    before = contents(out)
    with pytest.raises(ValueError, match=str(last)) as raised:
        build()
    assert len(str(raised.value).splitlines()) == 1
    assert contents(out) == before


def test_weights_of_another_model_are_named(out, build):
    last = out / "checkpoint-00000006"
    (last / "SHA256SUMS").unlink()
    tensors = load_file(last / "tensors.safetensors")
    name = next(
        n for n in tensors if n.startswith("modules.stage.setok.") and tensors[n].dim() == 2
    )
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, last / "tensors.safetensors")
    with pytest.raises(ValueError, match=f"^{last}: expected the state of a run with these") as e:
        build()
    assert "size mismatch" in str(e.value) and len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["losses.jsonl", "evaluations.jsonl"])
def test_damaged_logs_are_named_before_anything_is_cut(out, build, name):
    lines = (out / name).read_bytes().splitlines(True)
    (out / name).write_bytes(b"\0" * 30 + b"\n" + b"".join(lines[1:]))
    before = contents(out)
    with pytest.raises(ValueError, match=f"^{out / name}:1: expected a JSON object with a step"):
        build()
    assert contents(out) == before


def test_zeros_after_the_checkpoint_are_cut_off(whole, out, build):
    for step in (4, 6):
        shutil.rmtree(out / f"checkpoint-0000000{step}")
    content = (out / "losses.jsonl").read_bytes().splitlines(True)
    (out / "losses.jsonl").write_bytes(b"".join(content[:2]) + b"\0" * 99)
    build().train()
    assert_same_run(whole, out)


def test_files_that_another_run_has_written_in_the_meantime_are_kept(whole, tmp_path, build):
    folder = tmp_path / "fresh"
    trainer = build(resume=False, folder=folder)
    shutil.copytree(whole, folder)
    before = contents(folder)
    with pytest.raises(FolderInUseError, match=r"^out: expected the same checkpoints as at"):
        trainer.train()
    assert contents(folder) == before


def test_a_folder_in_use_is_neither_read_nor_written(out, build, tmp_path):
    with locked(out):
        before = contents(out)
        with pytest.raises(FolderInUseError, match=f"got {out}, held by process {os.getpid()} on "):
            build()
        assert contents(out) == before
    fresh = build(resume=False, folder=tmp_path / "fresh")
    with locked(tmp_path / "fresh"), pytest.raises(FolderInUseError, match="held by process"):
        fresh.train()
    assert not (tmp_path / "fresh" / "losses.jsonl").exists()


def test_an_interrupted_export_leaves_no_partial_model_and_is_repeated(out, build):
    shutil.rmtree(out / "model")
    (out / "metrics.json").unlink()
    trainer = build()
    export = type(trainer.unwrapped).export

    def interrupted(stage, folder):
        export(stage, folder)
        raise KeyboardInterrupt(signal.SIGTERM)

    type(trainer.unwrapped).export = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    finally:
        type(trainer.unwrapped).export = export
    assert not (out / "model").exists() and not list(out.glob(".unfinished*"))
    with locked(out):
        pass
    build().train()
    assert (out / "model" / "model.safetensors").exists() and (out / "metrics.json").exists()


@pytest.mark.slow
def test_a_second_run_is_refused_in_all_of_its_processes(tmp_path):
    process = start_in_processes(tmp_path, tmp_path / "out", *SETTINGS, wait_at=1)
    try:
        wait_for(tmp_path / "waiting-0", process)
        second = tmp_path / "second"
        second.mkdir()
        done = run_in_processes(second, tmp_path / "out", *SETTINGS, world=2)
        assert done.returncode != 0
        assert done.stderr.count("FolderInUseError: out: expected a folder that no process") == 1
        assert f"held by process {process.pid} on " in done.stderr
        assert done.stderr.count("OtherRankError: process 0: out: expected a folder") == 1
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert [line["step"] for line in losses_of(tmp_path / "out")] == [1]
    assert latest_checkpoint(tmp_path / "out").name == "checkpoint-00000001"
