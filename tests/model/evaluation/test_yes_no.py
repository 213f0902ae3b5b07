import dataclasses

import pytest

from setokim.evaluation.yes_no import (
    MME_COGNITION,
    MME_PERCEPTION,
    MmeRecord,
    mme_answer,
    mme_scores,
    pope_answer,
    pope_scores,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No, there is none.", "no"),
        ("Yes. There is no dog.", "yes"),
        ("There is not a dog", "no"),
        ("There is nothing", "yes"),
        ("NO", "yes"),
        ("", "yes"),
        ("no.", "no"),
    ],
)
def test_answers_of_pope(text, expected):
    assert pope_answer(text) == expected


def test_scores_of_pope_by_hand():
    answers = ["Yes", "yes", "yes", "no", "No, none", "no"]
    labels = ["yes", "yes", "no", "yes", "no", "no"]
    assert pope_scores(answers, labels) == pytest.approx(
        {"accuracy": 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 3 / 6}
    )
    assert pope_scores(["yes"] * 4, ["yes", "no", "no", "no"]) == pytest.approx(
        {"accuracy": 0.25, "precision": 0.25, "recall": 1.0, "f1": 0.4, "yes_ratio": 1.0}
    )
    assert pope_scores(["yes", "no"], ["yes", "no"])["f1"] == 1
    assert pope_scores(["no", "no"], ["yes", "no"]) == pytest.approx(
        {"accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}
    )
    assert pope_scores(["no"], ["no"])["accuracy"] == 1
    # An empty answer is a yes.
    assert pope_scores([""], ["yes"])["recall"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("NO.", "no"),
        ("Yes, it is not", "yes"),
        ("I know", "other"),
        ("a no", "no"),
        ("Not at all", "no"),
        ("", "other"),
        ("The answer is yes", "other"),
    ],
)
def test_answers_of_mme(text, expected):
    assert mme_answer(text) == expected


def records(task, *pairs):
    return [
        MmeRecord(task, f"{number}.jpg", label, answer)
        for number, pair in enumerate(pairs)
        for label, answer in zip(("Yes", "No"), pair, strict=True)
    ]


def test_scores_of_mme_by_hand():
    found = mme_scores(
        records("existence", ("yes", "no"), ("yes", "yes"), ("no", "yes"), ("yes", "no"))
        + records("code_reasoning", ("yes", "no"), ("other", "no"))
    )
    # 5 of 8 right, 2 of 4 images; 3 of 4 right, 1 of 2 images.
    assert found == pytest.approx(
        {
            "perception": 62.5 + 50,
            "cognition": 75 + 50,
            "total": 237.5,
            "existence": 112.5,
            "existence/acc": 62.5,
            "existence/acc_plus": 50,
            "code_reasoning": 125,
            "code_reasoning/acc": 75,
            "code_reasoning/acc_plus": 50,
            "left_out": 0,
        }
    )
    best = [r for task in MME_PERCEPTION + MME_COGNITION for r in records(task, ("Yes", "No"))]
    found = mme_scores(best)
    assert (found["perception"], found["cognition"], found["total"]) == (2000, 800, 2800)
    assert mme_scores(records("OCR", ("", "")))["total"] == 0
    # Always yes: half of the questions, no image.
    assert mme_scores(records("scene", ("yes", "yes")))["total"] == 50
    assert mme_scores([]) == {"left_out": 0}


def test_records_without_an_mme_score_are_left_out():
    whole = records("existence", ("yes", "no"), ("yes", "yes")) + records("OCR", ("yes", "no"))
    expected = mme_scores(whole)
    # One question of an image, three of another one, and a folder that is no subtask.
    half, stray = records("existence", ("no", "yes"))[:1], records("eval_tool", ("yes", "no"))
    half = [dataclasses.replace(one, image="half.jpg") for one in half]
    three = [dataclasses.replace(half[0], image="three.jpg")] * 3
    assert mme_scores(half + stray + whole + three) == expected | {"left_out": 6}
    # Without a whole image there is no score, rather than one of 0.
    assert mme_scores(half + stray) == {"left_out": 3}


def test_errors():
    with pytest.raises(ValueError, match=r"^labels: expected 2, one for each answer, got 1$"):
        pope_scores(["yes", "no"], ["yes"])
    with pytest.raises(ValueError, match=r"^labels: expected at least one, got none$"):
        pope_scores([], [])
    with pytest.raises(ValueError, match=r"^labels: expected yes or no, got 'maybe'$"):
        pope_scores(["yes"], ["maybe"])
    with pytest.raises(ValueError, match=r"^label: expected yes or no, got 'maybe'$"):
        mme_scores([MmeRecord("OCR", "a", "maybe", "yes")])
