import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from setokim.training import checkpoint
from setokim.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
    verify_checkpoint,
)
from setokim.training.nested import flatten_state, unflatten_state


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save(folder, step, **options):
    return save_checkpoint(folder, step, {"x": torch.full((3,), step)}, {"step": step}, **options)


def test_saved_tensors_and_state_are_restored(tmp_path):
    square = torch.arange(16.0).reshape(4, 4)
    tensors = {
        "whole": square,
        "row": square[1],
        "transposed": square.T,
        "expanded": torch.tensor(2.0).expand(3),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 3),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    state = {
        "step": 3,
        "lr": 0.1,
        "best": float("inf"),
        "names": ["a", None],
        "nested": {"b": True},
    }
    path = save_checkpoint(tmp_path / "run", 3, tensors, state)
    assert path == tmp_path / "run" / "checkpoint-00000003"
    assert names(path) == ["SHA256SUMS", "state.json", "tensors.safetensors"]
    loaded, loaded_state = load_checkpoint(path)
    assert loaded.keys() == tensors.keys() and loaded_state == state
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_the_newest_are_kept(tmp_path):
    for step in (1, 20, 3, 100_000_000):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["checkpoint-00000020", "checkpoint-100000000"]
    assert latest_checkpoint(tmp_path).name == "checkpoint-100000000"
    # A run that has returned to an earlier step keeps its newest checkpoint.
    save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["checkpoint-00000004"]


def test_a_step_saved_again_is_replaced(tmp_path):
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"y": torch.zeros(1)}, {})
    assert names(tmp_path) == ["checkpoint-00000005"]
    assert list(load_checkpoint(latest_checkpoint(tmp_path))[0]) == ["y"]


def test_latest_ignores_incomplete_checkpoints(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None
    good = save(tmp_path, 1)
    (tmp_path / "checkpoint-00000009").mkdir()
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / ".unfinished-7").mkdir()
    for step in (3, 4, 5):
        save(tmp_path, step, keep=9)
    (tmp_path / "checkpoint-00000003" / "state.json").unlink()
    (tmp_path / "checkpoint-00000004" / "state.json").write_text('{"step":')
    tensors = tmp_path / "checkpoint-00000005" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert latest_checkpoint(tmp_path) == good
    for step in (3, 4, 5, 9):
        with pytest.raises(ValueError, match="path: expected a complete checkpoint, got "):
            load_checkpoint(tmp_path / f"checkpoint-{step:08d}")


class Killed(BaseException):
    pass


def test_death_at_any_call_leaves_the_latest_or_the_next(tmp_path, monkeypatch):
    """Count the calls that write to the disk and die before the n-th, for every n."""
    calls = [
        (checkpoint, "save_file"),
        (checkpoint.Path, "write_text"),
        (checkpoint.Path, "mkdir"),
        (checkpoint.Path, "rename"),
        (checkpoint.shutil, "rmtree"),
        (os, "fsync"),
    ]
    left = 0

    def dying(original):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return original(*args, **kwargs)

        return call

    for deaths in range(1, 100):
        folder = tmp_path / str(deaths)
        save(folder, 1, keep=2)
        save(folder, 2, keep=2)
        left = deaths
        with monkeypatch.context() as patched:
            for owner, name in calls:
                patched.setattr(owner, name, dying(getattr(owner, name)))
            try:
                save(folder, 3, keep=2)
            except Killed:
                died = True
            else:
                died = False
        tensors, state = load_checkpoint(latest_checkpoint(folder))
        assert state["step"] in (2, 3) and tensors["x"].tolist() == [state["step"]] * 3
        if not died:
            break
        save(folder, 4, keep=2)
        assert not list(folder.glob(".*")) and latest_checkpoint(folder).name.endswith("4")
    # Two mkdir, three writes and syncs each ...: the loop has not ended early.
    assert 9 < deaths < 30


SAVE_UNTIL_KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from setokim.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
torch.set_num_threads(1)
folder, kills, last = Path(sys.argv[1]), 0, 0
for trial in range(6):
    child = os.fork()
    if child == 0:
        while True:
            last += 1
            x = torch.full((200_000,), last)
            save_checkpoint(folder, last, {"x": x, "y": x + 1}, {"step": last}, keep=2)
    target = last + 2
    while not (path := latest_checkpoint(folder)) or int(path.name[-8:]) < target:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    time.sleep(0.0021 * trial)
    os.kill(child, signal.SIGKILL)
    kills += os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    tensors, state = load_checkpoint(latest_checkpoint(folder))
    assert state["step"] >= target
    assert (tensors["x"] == state["step"]).all() and (tensors["y"] == state["step"] + 1).all()
    last = state["step"]
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_kill_9_in_the_middle_of_saves(tmp_path):
    command = [sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "6"


def test_flatten_and_back_is_exact():
    shared = torch.arange(3)
    state = {
        "numbers": [1, 2.5, True, None, "text", float("-inf")],
        3: {(1, "a"): shared, "again": shared.view(3)},
        "a.b": torch.zeros(()),
        "a": {"b": torch.ones((), dtype=torch.float64)},
        "empty": [[], (), {}],
        "pair": (0.9, (torch.tensor([1], dtype=torch.int8),)),
        None: 0,
        "tensor": {"tensor": "not a name"},
    }
    tensors, structure = flatten_state(state)
    assert sorted(tensors) == ["3.(1, 'a')", "a.b", "a.b_", "pair.1.0"]
    back = unflatten_state(tensors, json.loads(json.dumps(structure)))

    assert list(back) == list(state)
    assert back["numbers"] == state["numbers"] and back["numbers"][2] is True
    assert back["empty"] == state["empty"] and back["tensor"] == state["tensor"]
    assert back[3][1, "a"] is back[3]["again"] and torch.equal(back[3]["again"], shared)
    assert back["a.b"].shape == () and back["a.b"] == 0
    assert back["a"]["b"].dtype == torch.float64 and back["a"]["b"] == 1
    assert isinstance(back["pair"], tuple) and isinstance(back["pair"][1], tuple)
    assert back["pair"][0] == 0.9 and back["pair"][1][0].dtype == torch.int8


def make_run():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    return model, optimizer, scheduler


def train(run, steps):
    model, optimizer, scheduler = run
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
        scheduler.step()


def test_a_resumed_run_continues_bit_for_bit(tmp_path):
    torch.manual_seed(1)
    run = make_run()
    train(run, 3)
    tensors, structure = flatten_state({"parts": [part.state_dict() for part in run]})
    tensors |= {f"rng.{name}": state for name, state in rng_state().items()}
    path = save_checkpoint(tmp_path, 3, tensors, {"structure": structure})
    train(run, 4)
    torch.manual_seed(2)

    tensors, state = load_checkpoint(path)
    resumed = make_run()
    parts = unflatten_state(tensors, state["structure"])["parts"]
    for part, loaded in zip(resumed, parts, strict=True):
        part.load_state_dict(loaded)
    set_rng_state({name[4:]: t for name, t in tensors.items() if name.startswith("rng.")})
    train(resumed, 4)

    assert resumed[2].get_last_lr() == run[2].get_last_lr()
    for a, b in zip(run[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(run[1].state.values(), resumed[1].state.values(), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_rng_state_repeats_the_samples():
    state = rng_state()
    sampled = torch.rand(3)
    set_rng_state(state)
    assert torch.equal(torch.rand(3), sampled)
    with pytest.raises(ValueError, match=r"states: expected those of \['cpu'.*\], got \['mps'\]"):
        set_rng_state({"mps": state["cpu"]})


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="step: expected at least 0, got -1"):
        save(tmp_path, -1)
    with pytest.raises(ValueError, match="keep: expected at least 1, got 0"):
        save(tmp_path, 1, keep=0)
    with pytest.raises(
        TypeError, match=r"state\['a'\]\[0\]: expected keys that are strings, got 1"
    ):
        save_checkpoint(tmp_path, 1, {}, {"a": [{1: 2}]})
    with pytest.raises(TypeError, match=r"state\['a'\]: expected a dict, .* or None, got tuple"):
        save_checkpoint(tmp_path, 1, {}, {"a": (1, 2)})
    assert names(tmp_path) == []
    with pytest.raises(TypeError, match=r"state: expected tensors, .*, got set at a\.0"):
        flatten_state({"a": [{1}]})
    with pytest.raises(TypeError, match="state: expected no tensors as keys, got one at a"):
        flatten_state({"a": {torch.ones(1): 1}})
    with pytest.raises(ValueError, match="tensors: expected a tensor named 'a', got none"):
        unflatten_state({}, {"tensor": "a"})
    with pytest.raises(
        ValueError, match=r"structure: expected that of flatten_state, got keys \['b'"
    ):
        unflatten_state({}, {"b": 1})


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "SHA256SUMS"])
def test_a_flipped_bit_is_found_at_any_position(tmp_path, name):
    path = save(tmp_path, 1)
    assert verify_checkpoint(path)
    content = (path / name).read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        (path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match="path: expected a complete checkpoint, got "):
            load_checkpoint(path)
    (path / name).write_bytes(content)
    assert load_checkpoint(path)[1] == {"step": 1}


def test_the_file_that_differs_is_named(tmp_path):
    path = save(tmp_path, 1)
    file = path / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    message = f"got {path}: tensors.safetensors: expected the checksum [0-9a-f]{{64}}, got "
    with pytest.raises(ValueError, match=message):
        verify_checkpoint(path)
    # The length is right, so only reading finds the damage.
    assert latest_checkpoint(tmp_path) == path


def test_checksums_are_those_of_the_usual_command(tmp_path):
    path = save(tmp_path, 1)
    lines = (path / "SHA256SUMS").read_text().splitlines()
    expected = [
        f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}"
        for name in ("state.json", "tensors.safetensors")
    ]
    assert lines == expected


@pytest.mark.parametrize("change", [lambda lines: lines[:1], lambda lines: lines + lines[:1]])
def test_a_missing_or_duplicate_checksum_is_found(tmp_path, change):
    path = save(tmp_path, 1)
    sums = path / "SHA256SUMS"
    sums.write_text("".join(change(sums.read_text().splitlines(True))))
    with pytest.raises(ValueError, match=f"got {path}: SHA256SUMS: expected "):
        verify_checkpoint(path)


def test_a_checkpoint_of_an_earlier_version_has_no_checksums(tmp_path):
    path = save(tmp_path, 1)
    (path / "SHA256SUMS").unlink()
    assert verify_checkpoint(path) is False
    assert load_checkpoint(path)[1] == {"step": 1}


def test_files_are_synced_before_the_rename_and_the_rename_before_older_ones_go(
    tmp_path, monkeypatch
):
    save(tmp_path, 1)
    calls = []
    inodes = {}

    def fsync(descriptor):
        calls.append(inodes.get(os.fstat(descriptor).st_ino) or os.fstat(descriptor).st_ino)

    rename, remove = Path.rename, shutil.rmtree

    def renamed(path, target):
        if "checkpoint" in str(target.name) and target.name[0] != ".":
            inodes.update({p.stat().st_ino: p.name for p in path.iterdir()})
            inodes.update({path.stat().st_ino: "unfinished", tmp_path.stat().st_ino: "folder"})
            calls.append("name")
        return rename(path, target)

    def removed(path, **options):
        calls.append("older")
        remove(path, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    save(tmp_path, 2, keep=1)
    calls = [inodes.get(call, call) for call in calls]
    assert calls == [
        *("tensors.safetensors", "state.json", "SHA256SUMS", "unfinished"),
        *("name", "folder", "older"),
    ]


def test_a_full_disk_leaves_only_the_older_checkpoints(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: Path("/dev/full").write_bytes(b"x"))
    with pytest.raises(OSError, match=r"No space left on device: '.*/tensors\.safetensors'$"):
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["checkpoint-00000001"]
    with pytest.raises(OSError, match=r"tensors\.safetensors: out of space"):
        monkeypatch.setattr(checkpoint, "save_file", raising(SafetensorError("out of space")))
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["checkpoint-00000001"]


def raising(error):
    def call(*_):
        raise error

    return call


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".unfinished-7").mkdir()
    (tmp_path / ".unfinished-abc.json").write_text("{")
    (tmp_path / ".unfinished-link").symlink_to(tmp_path / ".unfinished-7")
    save(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-00000001"]
