"""Cutting a log to the checkpoint removes only later lines."""

import errno
import json
import os

import pytest

from setokim.training.logs import kept_length, open_log, sync_log, write_line

NULS = b"\0" * 40


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (None, ""),
        ("", ""),
        ('{"step": 1}\n{"step": 2}\n{"step": 4}\n', '{"step": 1}\n{"step": 2}\n'),
        ('{"step": 1}\n{"step": 2', '{"step": 1}\n'),
        ('{"step": 3}\n{"step": 4}\n', '{"step": 3}\n'),
        ('{"step": 4}\n', ""),
        # Zeros after a power cut.
        ('{"step": 3}\n\0\0\0\n{"step": 5}\n', '{"step": 3}\n'),
        ('{"step": 3}\n{"step": 4}\n\0\0\0', '{"step": 3}\n'),
    ],
)
def test_logs_are_cut_to_the_checkpoint(tmp_path, text, left):
    path = tmp_path / "log.jsonl"
    if text is not None:
        path.write_text(text)
    with open_log(path, 3) as file:
        file.write(b"next\n")
    assert path.read_text() == left + "next\n"


@pytest.mark.parametrize(
    "line",
    [NULS, b"\xff\xfe", b"{", b"[3]", b"{}", b'{"step": "2"}', b'{"step": true}', b"[" * 100_000],
    ids=lambda line: repr(line[:9]),
)
@pytest.mark.parametrize("gapless", [False, True])
def test_a_damaged_line_before_the_checkpoint_is_named_and_no_line_is_cut(tmp_path, line, gapless):
    path = tmp_path / "log.jsonl"
    content = b'{"step": 1}\n' + line + b'\n{"step": 3}\n{"step": 4}\n'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}:2: expected a JSON object with a step") as e:
        open_log(path, 3, gapless)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 300
    assert path.read_bytes() == content


def test_a_log_with_a_line_for_each_step_must_reach_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    expected = "expected lines up to step 3 of the checkpoint, got"
    for content, message in (
        ('{"step": 1}\n{"step": 2}\n{"step": 4}\n', f"{path}: {expected} step 2 as the last"),
        ('{"step": 1}\n{"step": 2}\n\0\0', f"{path}:3: {expected} a damaged line"),
        ("garbage\n", f"{path}:1: {expected} a damaged line"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"^{message}; move the file away"):
            kept_length(path, 3, gapless=True)
        assert path.read_text() == content
    # A checkpoint that was copied from another folder has no earlier lines.
    for content in ("", '{"step": 4}\n'):
        path.write_text(content)
        assert kept_length(path, 3, gapless=True) == 0
    path.write_text('{"step": 3}\n{"st')
    assert kept_length(path, 3, gapless=True) == len('{"step": 3}\n')


def test_lines_are_written_at_once_and_synced_on_request(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "log.jsonl"
    with open_log(path, 0) as file:
        write_line(file, {"step": 1, "loss": 0.5})
        assert json.loads(path.read_text()) == {"step": 1, "loss": 0.5} and synced == []
        sync_log(file)
        assert synced == [file.fileno()]
        with pytest.raises(ValueError, match="JSON compliant"):
            write_line(file, {"step": 2, "loss": float("nan")})


def test_a_full_disk_is_named_with_its_file():
    with pytest.raises(OSError) as raised, open("/dev/full", "ab", buffering=0) as file:
        write_line(file, {"step": 1})
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "/dev/full")
    assert "'/dev/full'" in str(raised.value)
