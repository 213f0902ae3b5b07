"""predictions.jsonl holds any text of a model, a line each."""

import numpy as np
import pytest

from setokim.evaluation.answer_log import FILE, AnswerLog
from setokim.evaluation.prompting import Prompt, Response

SAID = ["a\u2028b", "c\u2029d", "e\x85f", "g\x0b\x0c\x1ch", "two\nlines\r\n", "\\ud800", ""]


def answers():
    target = np.zeros((3, 2), bool)
    return [
        Response(
            Prompt("", number, 0, f"a.json:{number}", {"n": number}, (), target), text, None, None
        )
        for number, text in enumerate(SAID)
    ]


def test_answers_come_back_unchanged(tmp_path):
    log = AnswerLog(tmp_path, {"model": "a"})
    log.add(answers())
    log.add_broken(9, "b\u2028.json", "no\x85 JSON")
    again = AnswerLog(tmp_path, {"model": "a"})
    assert [row.text for row in again.rows] == SAID
    assert again.broken == {9: "b\u2028.json: no\x85 JSON"}


def test_masks_that_claim_to_be_huge(tmp_path):
    AnswerLog(tmp_path, {}).add(answers()[:1])
    path = tmp_path / FILE
    text = path.read_text(encoding="utf-8")
    assert '"size": [3, 2]' in text
    path.write_text(text.replace('"size": [3, 2]', '"size": [100000, 100000]'), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"jsonl:1: expected an answer, got size: expected at most"
    ):
        AnswerLog(tmp_path, {})
    path.write_text("[" * 10**5 + "\n")
    with pytest.raises(ValueError, match=r"jsonl:1: expected an answer, got .* nested too deep$"):
        AnswerLog(tmp_path, {})
