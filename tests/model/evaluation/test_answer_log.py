"""Log of answers on disk: complete, of one run, and unchanged when read again."""

import errno
import json
import os

import numpy as np
import pytest
from PIL import Image

from setokim.data import ShapesTasks
from setokim.data.conversations import message
from setokim.evaluation import prompting
from setokim.evaluation.answer_log import AnswerLog, AnswerLogError, to_json
from setokim.evaluation.prompting import Prompt, Response

# Line separators of Python's splitlines, or of any other reader.
ENDS = "a\nb\rc\x0bd\x0ce\x1cf\x1dg\x1eh\x85i\u2028j\u2029k"


def question(number=0, turn=0, text="what?", **facts):
    return Prompt("vqa", number, turn, "a.json", facts, (message("user", text),))


def test_answers_come_back_from_the_file(tmp_path):
    sample = next(s for s in (ShapesTasks(0)[i] for i in range(50)) if s.task == "segment")
    (prompt, *_) = prompting.prompts_of(3, sample)
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    log = AnswerLog(tmp_path, {"model": "a"})
    log.add([Response(prompt, "é \n", image, prompt.target.copy())])
    log.add_broken(7, "a.json: x", "cut")
    log.add_broken(7, "a.json: x", "cut")
    again = AnswerLog(tmp_path, {"model": "a"})
    (row,) = again.rows
    assert prompt in again and row.text == "é \n" and row.prompt.facts == prompt.facts
    assert row.image.tobytes() == image.tobytes()
    assert np.array_equal(row.mask, prompt.target)
    assert np.array_equal(row.prompt.target, prompt.target)
    assert again.broken == {7: "a.json: x: cut"}
    with pytest.raises(ValueError, match=r"got others of model; use another folder$"):
        AnswerLog(tmp_path, {"model": "b"})
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write('{"part": "vqa"}\n')
    with pytest.raises(ValueError, match=r"predictions\.jsonl:3: expected an answer, got "):
        AnswerLog(tmp_path, {"model": "a"})


def test_texts_of_all_kinds_take_a_line_each(tmp_path):
    odd = f"{ENDS} \ud800 x \udfff é 日本 \x00"
    log = AnswerLog(tmp_path, {"split": odd})
    log.add([Response(question(0, text=odd, answers=[odd], more={odd: 1}), odd)])
    log.add([Response(question(1), "plain")])
    log.add_broken(2, f"b.json: {odd}", odd)
    data = (tmp_path / "predictions.jsonl").read_bytes()
    # Also by readers with other line separators.
    assert len(data.decode("utf-8").splitlines()) == data.count(b"\n") == 3
    assert "日本".encode() in data
    again = AnswerLog(tmp_path, {"split": odd})
    assert [row.text for row in again.rows] == [odd, "plain"]
    assert again.rows[0].prompt.facts == {"answers": [odd], "more": {odd: 1}}
    assert again.broken == {2: f"b.json: {odd}: {odd}"} and again.recall(question(0, text=odd))


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    odd = ENDS.replace("\n", "")
    AnswerLog(tmp_path, {}).add([Response(question(0, text=odd), odd)])
    path = tmp_path / "predictions.jsonl"
    # Without escapes, as another program may write it.
    line = json.dumps(json.loads(path.read_bytes()), ensure_ascii=False)
    assert "\u2028" in line and "\x85" in line
    path.write_bytes(line.encode("utf-8") + b"\n")
    (row,) = AnswerLog(tmp_path, {}).rows
    assert row.text == odd


def test_json_of_all_characters_is_utf_8_and_comes_back():
    # Lone surrogates, in an order without pairs.
    text = "".join(map(chr, range(0x3000))) + "\ud7ff\udc00\udbffx\udfff\U0001f600"
    for value in (text, {text: [text]}):
        assert json.loads(to_json(value).encode("utf-8")) == value
        assert len(to_json(value).splitlines()) == 1


def test_each_turn_is_a_question_of_its_own(tmp_path):
    log = AnswerLog(tmp_path, {})
    log.add([Response(question(3, turn=0), "a")])
    for one in (log, AnswerLog(tmp_path, {})):
        assert question(3, turn=0) in one and question(3, turn=1) not in one
        assert question(4, turn=0) not in one
    log.add([Response(question(3, turn=1), "b")])
    again = AnswerLog(tmp_path, {})
    assert [(row.prompt.turn, row.text) for row in again.rows] == [(0, "a"), (1, "b")]


def test_an_answer_is_scored_by_the_current_facts(tmp_path):
    AnswerLog(tmp_path, {}).add([Response(question(answers=["b"]), "a")])
    log = AnswerLog(tmp_path, {})
    assert log.recall(question(answers=["a"])) and log.rows[0].prompt.facts == {"answers": ["a"]}
    assert not log.recall(question(1))
    with pytest.raises(AnswerLogError, match=r"'what\?', got 'who\?'; use another folder$"):
        log.recall(question(text="who?"))


def test_images_of_questions_are_not_kept_in_memory(tmp_path):
    log = AnswerLog(tmp_path, {})
    shown = Prompt("vqa", 0, 0, "", {}, (message("user", Image.new("RGB", (4, 4)), "what?"),))
    log.add([Response(shown, "a")])
    assert log.rows[0].prompt.messages == () and log.recall(shown)
    assert log.rows[0].prompt.messages == ()


def test_an_answer_is_on_the_disk_when_add_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync

    def noted(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((path, os.fstat(descriptor).st_size))
        fsync(descriptor)

    log = AnswerLog(tmp_path, {})
    monkeypatch.setattr(os, "fsync", noted)
    log.add([Response(question(), "a", Image.new("RGB", (4, 4)))])
    paths = [path for path, _ in synced]
    path = tmp_path / "predictions.jsonl"
    # The image and its name, then the line with that name, then the name of the log.
    assert paths.index(str(tmp_path / "pictures")) < paths.index(str(path))
    assert synced[-2:] == [(str(path), path.stat().st_size), (str(tmp_path), synced[-1][1])]
    assert os.listdir(tmp_path / "pictures") == ["vqa-00000000-0.png"]
    synced.clear()
    log.add_broken(1, "a", "b")
    assert synced == [(str(path), path.stat().st_size)]


def test_a_full_disk_keeps_earlier_answers(tmp_path, monkeypatch):
    log = AnswerLog(tmp_path, {})
    log.add([Response(question(), "a")])

    def full(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        log.add([Response(question(1), "b", Image.new("RGB", (4, 4)))])
    assert os.listdir(tmp_path / "pictures") == []
    (row,) = AnswerLog(tmp_path, {}).rows
    assert row.text == "a"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("\x00\x00", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", r"got \[\]$"),
        ("7", "got 7$"),
        ('{"part": "vqa"}', "got no 'said'"),
        ("[" * 100_000, "nested too deep"),
        ('{"said": 1, "asked": "", "facts": {}}', "said: expected str, got 1"),
        ('{"broken": "x", "source": "a", "number": {}}', "unhashable"),
        (b"\xff", "can't decode byte 0xff"),
        (None, r"a second answer to question \('vqa', 0, 0\)"),
    ],
)
def test_a_line_that_is_not_an_answer(line, reason, tmp_path):
    AnswerLog(tmp_path, {}).add([Response(question(), "a")])
    path = tmp_path / "predictions.jsonl"
    first = path.read_bytes()
    line = first[:-1] if line is None else line.encode() if isinstance(line, str) else line
    path.write_bytes(first + line + b"\n" + first)
    with pytest.raises(AnswerLogError, match=rf"predictions\.jsonl:2: expected an .*{reason}"):
        AnswerLog(tmp_path, {})
    # An unfinished line is removed, and the file is valid again.
    path.write_bytes(first + line)
    assert len(AnswerLog(tmp_path, {}).rows) == 1 and path.read_bytes() == first


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"run\.json:1:1: expected JSON, got Expecting value; use another folder$"),
        ("[1]", r"run\.json: expected an object, got \[1\]$"),
        ("\x00", "expected JSON"),
        ("[" * 100_000, "nested too deep"),
        (None, r"expected .*run\.json with .*, got predictions\.jsonl alone"),
    ],
)
def test_unreadable_settings_of_a_run(text, reason, tmp_path):
    AnswerLog(tmp_path, {}).add([Response(question(), "a")])
    if text is None:
        (tmp_path / "run.json").unlink()
    else:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(AnswerLogError, match=reason):
        AnswerLog(tmp_path, {})
