import dataclasses
import json
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from setokim.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from setokim.training.shards import Shards, StoredTensor, row_range, rows_of

WHOLE = torch.arange(21).reshape(7, 3)
PARTS = {0: (0, 3), 1: (3, 6), 2: (6, 7)}


@pytest.fixture
def gloo():
    """Process group of this process only."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def save_in_three(folder, errors=None, **options):
    """Write a checkpoint of step 4 in three threads, which stand for processes; collect errors."""
    barrier, gathered = threading.Barrier(3), {}
    expects_errors, errors = errors is not None, {} if errors is None else errors

    def gather_of(process):
        def gather(value):
            gathered[process] = value
            barrier.wait()
            values = [gathered[i] for i in range(3)]
            barrier.wait()
            return values

        return gather

    def save(process):
        start, stop = PARTS[process]
        tensors = {"sharded": WHOLE[start:stop]}
        if process == 0:
            tensors |= {"scalar": torch.tensor(2.5), "plain": torch.ones(2)}
        shards = Shards(process, 3, {"sharded": (start, 7)}, gather_of(process))
        try:
            save_checkpoint(folder, 4, tensors, {"step": 4}, shards=shards, **options)
        except (OSError, ValueError) as error:
            # If one fails, all fail.
            errors[process] = error
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=save, args=(process,)) for process in PARTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expects_errors or not errors, errors
    return folder / "checkpoint-00000004"


def test_each_process_writes_its_rows_and_any_can_be_read(tmp_path):
    path = save_in_three(tmp_path)
    names = [f"tensors-{i:05d}-of-00003.safetensors" for i in range(3)]
    assert sorted(p.name for p in path.iterdir()) == ["SHA256SUMS", "state.json", *names]
    for (start, stop), name in zip(PARTS.values(), names, strict=True):
        with safe_open(path / name, "pt") as file:
            assert torch.equal(file.get_tensor("sharded"), WHOLE[start:stop])
            assert json.loads(file.metadata()["rows"]) == {"sharded": [start, 7]}
            assert ("scalar" in file.keys()) == (start == 0)  # noqa: SIM118, not a dict
    tensors, state = load_checkpoint(path)
    assert state == {"step": 4} and tensors.keys() == {"sharded", "scalar", "plain"}
    assert torch.equal(tensors["sharded"], WHOLE) and tensors["scalar"] == 2.5
    stored, _ = open_checkpoint(path)
    assert len(stored) == 3 and stored.shape("sharded") == (7, 3) and stored.shape("scalar") == ()
    for start in range(8):
        for stop in range(start, 8):
            assert torch.equal(stored.rows("sharded", start, stop), WHOLE[start:stop]), (
                start,
                stop,
            )
    assert torch.equal(stored.rows("plain", 1, 2), torch.ones(1))
    assert stored.rows("plain", 1, 1).shape == (0,)


def test_one_file_is_read_likewise(tmp_path):
    stored, _ = open_checkpoint(save_checkpoint(tmp_path, 1, {"x": WHOLE}, {}))
    assert torch.equal(stored.rows("x", 2, 5), WHOLE[2:5])
    assert stored.rows("x", 7, 7).shape == (0, 3) and torch.equal(stored["x"], WHOLE)


@pytest.mark.parametrize("gone", range(3))
def test_a_checkpoint_without_a_file_is_incomplete(tmp_path, gone):
    older = save_checkpoint(tmp_path, 3, {"x": WHOLE}, {})
    path = save_in_three(tmp_path)
    assert latest_checkpoint(tmp_path) == path
    file = path / f"tensors-{gone:05d}-of-00003.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert latest_checkpoint(tmp_path) == older
    file.unlink()
    assert latest_checkpoint(tmp_path) == older
    with pytest.raises(ValueError, match="path: expected a complete checkpoint, got "):
        load_checkpoint(path)
    file.write_bytes(content)
    assert latest_checkpoint(tmp_path) == path


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_each_process_verifies_a_part_of_the_files(tmp_path, processes):
    path = save_in_three(tmp_path)
    for name in ("state.json", *(f"tensors-{i:05d}-of-00003.safetensors" for i in range(3))):
        content = (path / name).read_bytes()
        # Only the checksum shows this damage.
        damaged = content.replace(b"4", b"5") if name == "state.json" else content[:-1] + b"\xff"
        (path / name).write_bytes(damaged)
        found = []
        for process in range(processes):
            try:
                assert verify_checkpoint(path, process, processes)
            except ValueError as error:
                found.append(str(error))
        assert len(found) == 1 and f"{name}: expected the checksum" in found[0]
        (path / name).write_bytes(content)


@pytest.mark.parametrize("broken", range(3))
def test_if_one_process_fails_all_fail(tmp_path, broken, monkeypatch):
    older = save_checkpoint(tmp_path, 3, {"x": WHOLE}, {})

    def write(tensors, file, metadata):
        if f"-{broken:05d}-of" in file.name:
            raise OSError(28, "No space left on device")
        save_file(tensors, file, metadata)

    monkeypatch.setattr("setokim.training.checkpoint.save_file", write)
    errors = {}
    save_in_three(tmp_path, errors=errors)
    name = f"tensors-{broken:05d}-of-00003.safetensors"
    assert sorted(errors) == [0, 1, 2] and isinstance(errors[broken], OSError)
    for process, error in errors.items():
        assert str(error).startswith(f"process {broken}: " if process != broken else "[Errno 28]")
        assert name in str(error)
    assert list(tmp_path.iterdir()) == [older]


def test_missing_rows_are_found(tmp_path):
    shards = Shards(0, 1, {"x": (0, 9)})
    path = save_checkpoint(tmp_path, 1, {"x": WHOLE}, {}, shards=shards)
    with pytest.raises(ValueError, match="expected 9 rows of x, got 7"):
        load_checkpoint(path)


def test_older_checkpoints_are_removed(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"x": WHOLE}, {}, keep=9)
    (tmp_path / ".unfinished-4").mkdir()
    save_in_three(tmp_path, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-00000003", "checkpoint-00000004"]


@pytest.mark.parametrize("length", [0, 1, 2, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_row_ranges_match_chunk(length, processes):
    chunks = torch.arange(length).chunk(processes) if length else ()
    for process in range(processes):
        start, stop = row_range(length, process, processes)
        chunk = chunks[process] if process < len(chunks) else torch.arange(0)
        assert torch.arange(length)[start:stop].tolist() == chunk.tolist()


def test_sharded_tensors_read_their_rows(tmp_path, gloo):
    stored, _ = open_checkpoint(save_in_three(tmp_path))
    like = distribute_tensor(torch.zeros(7, 3), gloo, [Shard(0)])
    assert rows_of(like) == (0, 7)
    found = StoredTensor(stored, "sharded").read(like)
    assert found.placements == like.placements and torch.equal(found.to_local(), WHOLE)
    # A scalar, such as an optimizer's number of steps, is read whole.
    assert StoredTensor(stored, "scalar").read(like).item() == 2.5
    assert torch.equal(StoredTensor(stored, "sharded").read(torch.zeros(7, 3)), WHOLE)
    with pytest.raises(ValueError, match="x: expected a tensor sharded by rows, got "):
        rows_of(distribute_tensor(torch.zeros(7, 3), gloo, [Replicate()]))


def test_names_of_files():
    shards = Shards(1, 12)
    assert shards.file == "tensors-00001-of-00012.safetensors" and shards.metadata is None
    assert dataclasses.replace(shards, process=0, processes=1).file == "tensors.safetensors"
