"""Metrics of GQA, against numbers by hand and a loop over all questions."""

import random

import pytest

from helpers.published import gqa, rewrite
from setokim.data import BrokenSampleError
from setokim.data.readers import READERS
from setokim.evaluation.gqa import gqa_metrics
from setokim.evaluation.prompting import Prompt, Response


def row(number, said, answer, structural="query", semantic="attr", **facts):
    types = {"structural": structural, "semantic": semantic, "detailed": "colorQuery"}
    own = {"question_id": number, "answers": [answer], "types": types} | facts
    return Response(Prompt("vqa", 0, 0, "", own, ()), said)


def test_kinds_of_questions():
    rows = [
        row("1", "Red.", "red"),
        row("2", "blue", "red", semantic="obj"),
        row("3", "yes", "yes", "verify", "obj"),
        row("4", "left", "left", "choose", "rel"),
        row("5", "no", "yes", "logical", "obj"),
    ]
    assert gqa_metrics(rows) == pytest.approx(
        {
            "accuracy": 60,
            "open": 50,
            "binary": 200 / 3,
            "accuracy/query": 50,
            "accuracy/verify": 100,
            "accuracy/choose": 100,
            "accuracy/logical": 0,
            "accuracy/attr": 100,
            "accuracy/obj": 100 / 3,
            "accuracy/rel": 100,
        }
    )


def test_only_balanced_questions_count():
    rows = [
        row("1", "red", "red", balanced=True, entailed=["1", "2", "3"], group="color"),
        row("2", "blue", "red", balanced=False, entailed=["1"], group="color"),
        row("3", "red", "red", balanced=False, entailed=[], group=None),
    ]
    found = gqa_metrics(rows)
    assert found["accuracy"] == found["open"] == 100
    # Of two entailed questions one is right; the question itself does not count.
    assert found["consistency"] == 50 and found["distribution"] == 0


def test_consistency_needs_the_answers_to_all_entailed_questions():
    rows = [row("1", "red", "red", entailed=["2"]), row("2", "no", "yes", entailed=["9"])]
    # Nothing is asked of what a wrong answer entails.
    assert gqa_metrics(rows)["consistency"] == 0
    assert "consistency" not in gqa_metrics(rows[:1])
    assert "consistency" not in gqa_metrics([*rows, row("3", "a", "b")])
    alone = [row("1", "red", "red", entailed=["1"])]
    assert "consistency" not in gqa_metrics(alone)


def test_possible_answers():
    choices = {"valid": ["red", "blue"], "plausible": ["red"]}
    common = {"structural": "query", "semantic": "attr", "detailed": "twoCommon"}
    rows = [
        row("1", "Blue.", "red", **choices),
        row("2", "red", "red", **choices),
        row("3", "tree", "red", **choices),
        row("4", "shape", "color", **choices | {"types": common}),
        row("5", "red", "color", **choices | {"types": common}),
    ]
    found = gqa_metrics(rows)
    assert found["validity"] == pytest.approx(60) and found["plausibility"] == pytest.approx(40)


def test_distribution():
    rows = [
        # Three "red" where two are true, and no "blue" of one: 1 / 2 + 1.
        row("1", "red", "red", group="color"),
        row("2", "red", "red", group="color"),
        row("3", "red", "blue", group="color"),
        # An answer that is never true counts by its absence alone.
        row("4", "tree", "oak", group="plant"),
    ]
    assert gqa_metrics(rows)["distribution"] == pytest.approx((3 * 1.5 + 1 * 1) / 4 / 100)


@pytest.mark.parametrize("seed", range(3))
def test_a_loop_over_all_questions(seed):
    """The definitions of the official evaluation, one question at a time."""
    generator = random.Random(seed)
    answers, numbers = ["yes", "no", "red", "tree"], [f"{i}" for i in range(300)]
    pick = generator.choice
    rows = [
        row(
            number,
            pick(answers),
            pick(answers),
            pick(["query", "verify", "choose"]),
            pick(["attr", "obj"]),
            balanced=generator.random() < 0.6,
            group=pick([None, "a", "b"]),
            entailed=generator.sample(numbers, generator.randrange(4)),
            valid=generator.sample(answers, 2),
            plausible=generator.sample(answers, 1),
        )
        for number in numbers
    ]
    asked = {one.prompt.facts["question_id"]: one for one in rows}
    right = {n: one.text == one.prompt.facts["answers"][0] for n, one in asked.items()}
    kept = [one for one in rows if one.prompt.facts["balanced"]]
    consistent, statistic, size = [], 0.0, 0
    for one in kept:
        others = [n for n in one.prompt.facts["entailed"] if n != one.prompt.facts["question_id"]]
        if right[one.prompt.facts["question_id"]] and others:
            consistent.append(sum(right[n] for n in others) / len(others))
    for group in "ab":
        own = [one for one in kept if one.prompt.facts["group"] == group]
        score = 0.0
        for answer in {one.prompt.facts["answers"][0] for one in own}:
            true = sum(one.prompt.facts["answers"][0] == answer for one in own)
            score += (sum(one.text == answer for one in own) - true) ** 2 / true
        statistic, size = statistic + score * len(own), size + len(own)
    found = gqa_metrics(rows)
    assert found["consistency"] == pytest.approx(100 * sum(consistent) / len(consistent))
    assert found["distribution"] == pytest.approx(statistic / size / 100)
    valid = [one.text in one.prompt.facts["valid"] for one in kept]
    assert found["validity"] == pytest.approx(100 * sum(valid) / len(valid))


def test_fields_of_the_official_files(tmp_path):
    gqa(tmp_path)
    path = tmp_path / "testdev_balanced_questions.json"
    kinds = {"structural": "verify", "semantic": "obj", "detailed": "existC"}
    fields = {"isBalanced": True, "types": kinds, "groups": {"global": None, "local": "x"}}
    rewrite(path, lambda v: [one.update(fields, entailed=["01"]) for one in v.values()])
    choices = tmp_path / "eval" / "testdev_choices.json"
    choices.parent.mkdir()
    choices.write_text('{"01": {"valid": ["yes", "no"], "plausible": ["yes"]}, "02": {}}')
    dataset = READERS["gqa"](tmp_path)
    assert dataset[0].facts == {
        **{"question_id": "01", "question": "is it?", "answers": ["yes"]},
        **{"balanced": True, "types": kinds, "group": None, "entailed": ["01"]},
        **{"valid": ["yes", "no"], "plausible": ["yes"]},
    }
    for index, reason in ((1, "valid: expected list, got None"), (2, "no choices for question 03")):
        with pytest.raises(BrokenSampleError, match=reason):
            dataset[index]
    choices.unlink()
    assert "valid" not in READERS["gqa"](tmp_path)[2].facts
    changes = {
        "types: expected dict, got 3": {"types": 3},
        "semantic: expected str, got None": {"types": {"structural": "query"}},
        "groups: expected a text or null, got 4": {"groups": {"global": 4}},
        r"entailed: expected texts, got \[1\]": {"entailed": [1]},
    }
    for reason, change in changes.items():
        rewrite(path, lambda v, change=change: v["01"].update(fields | {"entailed": []} | change))
        with pytest.raises(BrokenSampleError, match=reason):
            READERS["gqa"](tmp_path)[0]
