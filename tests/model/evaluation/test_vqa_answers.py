import pytest

from setokim.evaluation.vqa_answers import choice_of, normalise_answer, soft_accuracy


# By the rules of the official evaluation, applied by hand.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog", "dog"),
        ("a cat and an owl", "cat and owl"),
        ("two", "2"),
        ("None", "0"),
        ("ten o'clock", "10 o'clock"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        # Only one apostrophe is restored.
        ("couldntve", "couldntve"),
        ("y'alld've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("she's", "she's"),
        ("yes.", "yes"),
        ("1.5 metres", "1.5 metres"),
        ("p.m.", "pm"),
        # A sign at the edge of a word goes, one within becomes a space.
        ("red, white", "red white"),
        ("red/white", "red white"),
        ("t-shirt", "t shirt"),
        ("- t-shirt", "tshirt"),
        # A number with a comma removes all signs.
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("yes!", "yes"),
        (" on\tthe\ntable ", "on table"),
        ("the", ""),
        ("", ""),
        ("it's", "it's"),
        ("3:30", "3:30"),
        ("." * 40, "." * 8),
    ],
)
def test_normal_form(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "given", "expected"),
    [
        # One of ten: without that one there is none, without each other one a third.
        ("red", ["red"] + ["blue"] * 9, 9 / 10 / 3),
        ("red", ["red"] * 2 + ["blue"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("red", ["red"] * 3 + ["blue"] * 7, (3 * 2 / 3 + 7) / 10),
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("The red.", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("2", ["two"] * 5 + ["2"] * 5, 1.0),
        ("", ["red"] * 5 + ["blue"] * 5, 0.0),
        # Articles alone are an empty answer, and so is an empty prediction.
        ("", ["the"] * 4 + ["blue"] * 6, 1.0),
        # All annotators agree: letter by letter.
        ("two", ["two"] * 10, 1.0),
        ("2", ["two"] * 10, 0.0),
        ("Yes", ["yes"] * 10, 0.0),
        (" yes\n", ["yes"] * 10, 1.0),
        ("red", ["red"], 0.0),
    ],
)
def test_soft_accuracy(answer, given, expected):
    assert soft_accuracy(answer, given) == pytest.approx(expected)
    assert soft_accuracy(answer, given[::-1]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a red ball", 1),
        ("Red ball.", 1),
        ("B", 1),
        ("b.", 1),
        ("(C) two", 2),
        ("C: it is two", 2),
        ("2", 2),
        ("A dog is here", None),
        ("E", None),
        ("", None),
        ("nothing", None),
    ],
)
def test_choices(answer, expected):
    assert choice_of(answer, ["the sky", "red ball", "two", "none"]) == expected


def test_equal_choices_are_not_distinguished():
    assert choice_of("same", ["same", "the same"]) is None


def test_errors():
    with pytest.raises(ValueError, match=r"^given: expected at least one answer, got none$"):
        soft_accuracy("red", [])
    with pytest.raises(ValueError, match=r"^choices: expected 1 to 26, got 0$"):
        choice_of("a", [])
