"""BLEU, ROUGE-L and METEOR of captions, against numbers by hand and pycocoevalcap."""

import math
import random
import shutil

import pytest

from setokim.evaluation import meteor as meteor_module
from setokim.evaluation.bleu import bleu, bleu_counts
from setokim.evaluation.caption_metrics import caption_metrics
from setokim.evaluation.meteor import meteor, missing_meteor
from setokim.evaluation.prompting import Prompt, Response
from setokim.evaluation.rouge import rouge_l

# METEOR 1.5 by its program alone, called with the words of three captions.
GOLDEN = 25.80639840613446
WORDS = ["a", "red", "dog", "cat", "runs", "sits", "on", "the", "grass", "tree"]


def texts(seed, images=50):
    """Captions and references of random words; one caption is right, one is empty."""
    generator = random.Random(seed)

    def text():
        return " ".join(generator.choices(WORDS, k=generator.randrange(1, 14)))

    names = [str(number) for number in range(images)]
    references = {name: [text() for _ in range(generator.randrange(1, 6))] for name in names}
    captions = {name: text() for name in names}
    captions["0"], captions["1"] = references["0"][0], ""
    return captions, references


@pytest.mark.parametrize(
    ("caption", "references", "expected"),
    [
        ("a red dog runs", ["a red dog runs"], [1, 1, 1, 1]),
        # Three of four words, two of three pairs, one of two triples.
        ("a red dog sits", ["a red dog runs"], [3 / 4, (1 / 2) ** 0.5, (1 / 4) ** (1 / 3), 0]),
        # "a" counts twice, as in the second reference.
        ("a a a", ["a dog", "a a cat on it"], [2 / 3, (2 / 3 / 2) ** 0.5, 0, 0]),
        # Of equally close references the shorter counts; no triples count as 1e-6.
        ("red dog", ["red dog runs", "red"], [1, 1, 1e-2, 1e-3]),
        ("red dog", ["red dog runs on"], [math.exp(-1) * x for x in (1, 1, 1e-2, 1e-3)]),
        ("tree", ["red dog"], [0, 0, 0, 0]),
        ("", ["red dog"], [0, 0, 0, 0]),
    ],
)
def test_bleu_by_hand(caption, references, expected):
    found = bleu(bleu_counts({"a": caption}, {"a": references}))
    assert found == pytest.approx(expected, abs=2e-4)


def test_bleu_is_over_all_captions():
    captions = {"a": "a red dog runs", "b": "tree"}
    references = {"a": ["a red dog runs"], "b": ["cat"]}
    assert bleu(bleu_counts(captions, references))[:2] == pytest.approx([4 / 5, (4 / 5) ** 0.5])


@pytest.mark.parametrize(
    ("caption", "references", "expected"),
    [
        ("A red dog runs.", ["a red dog runs"], 1),
        ("a dog", ["a red dog runs"], 2.44 * 1 * 0.5 / (0.5 + 1.44 * 1)),
        # Order counts: of "runs dog" one word is common.
        ("runs dog", ["dog runs"], 0.5),
        # Precision from the first reference, recall from the second.
        ("a red dog", ["a red dog on the tree", "dog"], 1),
        ("tree", ["dog"], 0),
        ("", ["dog"], 0),
    ],
)
def test_rouge_by_hand(caption, references, expected):
    mean, scores = rouge_l({"a": caption}, {"a": references})
    assert mean == scores["a"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_bleu_and_rouge_as_pycocoevalcap(seed):
    theirs = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    captions, references = texts(seed)
    given = references, {name: [text] for name, text in captions.items()}
    expected, _ = theirs.compute_score(*given, verbose=0)
    assert bleu(bleu_counts(captions, references)) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    mean, scores = rouge_l(captions, references)
    expected, each = rouge.compute_score(*given)
    assert mean == pytest.approx(expected, rel=1e-12)
    assert list(scores.values()) == pytest.approx(each.tolist(), rel=1e-12)


@pytest.mark.skipif(missing_meteor() is not None, reason=str(missing_meteor()))
def test_all_metrics_with_meteor():
    facts = {"a": ["a red dog"], "b": ["two cats sit", "cats"], "c": ["a tree"]}
    said = {"a": "A dog!", "b": "Cats sit.", "c": ""}
    rows = [
        Response(Prompt("caption", 0, 0, "", {"image_id": name, "answers": facts[name]}, ()), text)
        for name, text in said.items()
    ]
    found = caption_metrics(rows)
    names = ["cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor"]
    assert list(found) == names and found["bleu_1"] > 1
    assert found["meteor"] == pytest.approx(GOLDEN, abs=1e-9)
    figure = found.details["meteor"]
    assert figure.definition.startswith("METEOR 1.5") and not figure.ratios and figure.reason


def test_without_java_there_is_no_meteor(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    reason = "METEOR needs Java, and there is no java on the PATH"
    assert missing_meteor() == reason
    with pytest.raises(RuntimeError, match=f"^{reason}$"):
        meteor({"a": "dog"}, {"a": ["dog"]})
    row = Response(Prompt("caption", 0, 0, "", {"image_id": 1, "answers": ["dog"]}, ()), "dog")
    assert "meteor" not in caption_metrics([row]) and "rouge_l" in caption_metrics([row])
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/java")
    monkeypatch.setattr(meteor_module.importlib.util, "find_spec", lambda name: None)
    assert missing_meteor() == "METEOR needs pycocoevalcap: pip install pycocoevalcap"


@pytest.mark.parametrize(
    ("ending", "reason"),
    [("exit 1", "no answer"), ("echo memory >&2; exit 3", "memory"), ("read line", "no answer")],
)
def test_a_program_that_fails_is_named(ending, reason, monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap.meteor.meteor")
    program = tmp_path / "java"
    program.write_text(f"#!/bin/sh\n{ending}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RuntimeError, match=f"^METEOR's program in Java failed: {reason}$"):
        meteor({"a": "dog"}, {"a": ["dog"]})


@pytest.mark.parametrize("metric", [bleu_counts, rouge_l, meteor])
def test_errors(metric):
    with pytest.raises(ValueError, match=r"^captions: expected .*got a difference of \['b'\]$"):
        metric({"a": "red"}, {"a": ["red"], "b": ["blue"]})
    with pytest.raises(ValueError, match=r"^captions: expected at least one, got none$"):
        metric({}, {})
    with pytest.raises(ValueError, match=r"^references: expected at least one for 'a', got none$"):
        metric({"a": "red"}, {"a": []})
