import math
import random

import pytest

from setokim.evaluation.cider import cider

TWO = {"a": ["red dog runs fast"], "b": ["blue cat sits down"]}


def score_of(caption, references=TWO, name="a"):
    captions = {key: "" for key in references} | {name: caption}
    return cider(captions, references)[1][name]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Red dog runs fast.", 10.0),
        ("green bird flies off", 0.0),
        ("", 0.0),
        # Two of four words, one of three pairs; two pairs fewer.
        ("red dog", 10 * math.exp(-4 / 72) * (0.5**0.5 + (1 / 3) ** 0.5) / 4),
        # A word that occurs four times, but once in the reference, counts once.
        ("dog dog dog dog", 10 / 8 / 4),
        # All words, no pair in order.
        ("fast runs dog red", 10 / 4),
    ],
)
def test_one_reference_by_hand(caption, expected):
    assert score_of(caption) == pytest.approx(expected)


def test_references_are_averaged():
    references = {"a": ["red dog runs fast", "big green bird flies"], "b": ["blue cat sits down"]}
    assert score_of("red dog runs fast", references) == pytest.approx(5.0)


def test_words_of_all_images_have_no_weight():
    references = {"a": ["red dog"], "b": ["red cat"]}
    # "red" has no weight, "dog" and "red dog" have; there are no longer n-grams.
    assert score_of("dog", references) == pytest.approx(10 * math.exp(-1 / 72) * 1 / 4)
    assert score_of("red", references) == 0
    assert score_of("red dog", references) == pytest.approx(10 * 2 / 4)


def test_one_image_has_no_weights():
    assert cider({"a": "red dog runs fast"}, {"a": ["red dog runs fast"]}) == (0.0, {"a": 0.0})


def test_the_mean_is_over_images():
    mean, scores = cider({"a": "red dog runs fast", "b": "nothing"}, TWO)
    assert scores == pytest.approx({"a": 10.0, "b": 0.0}) and mean == pytest.approx(5.0)


WORDS = ["a", "red", "dog", "cat", "runs", "sits", "on", "the", "grass", "tree"]


@pytest.mark.parametrize("seed", range(5))
def test_as_pycocoevalcap(seed):
    theirs = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    generator = random.Random(seed)

    def text():
        return " ".join(generator.choices(WORDS, k=generator.randrange(1, 12)))

    names = [str(number) for number in range(8)]
    references = {name: [text() for _ in range(generator.randrange(1, 6))] for name in names}
    captions = {name: text() for name in names}
    captions["0"], captions["1"] = references["0"][0], ""
    mean, scores = cider(captions, references)
    expected, each = theirs.compute_score(references, {n: [captions[n]] for n in names})
    assert mean == pytest.approx(expected, rel=1e-9)
    # In the order of sorted names.
    assert list(scores.values()) == pytest.approx(each.tolist(), rel=1e-9)


def test_words_are_those_of_the_official_tokenizer():
    # It cuts "cannot", and leaves brackets and the sign of dollars.
    references = {"a": ["a dog cannot run (fast) for $5"], "b": ["blue cat sits down"]}
    whole = "A dog can not run -LRB- fast -RRB- for $ 5."
    assert score_of(whole, references) == pytest.approx(10.0)
    assert score_of("A dog cannot run fast for 5.", references) < 9


def test_errors():
    with pytest.raises(ValueError, match=r"^captions: expected .*got a difference of \['b'\]$"):
        cider({"a": "red"}, TWO)
    with pytest.raises(ValueError, match=r"^captions: expected at least one, got none$"):
        cider({}, {})
    with pytest.raises(ValueError, match=r"^references: expected at least one for 'a', got none$"):
        cider({"a": "red"}, {"a": []})
