"""Metrics of benchmarks against numbers by hand or by another implementation, five cases each."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from helpers.published import PUBLISHED, SIZE
from helpers.tiny_setokim import build
from setok_cli.main import main
from setokim.evaluation.benchmarks import BENCHMARKS, mm_vet_scores
from setokim.evaluation.metrics import best_overlap_iou
from setokim.evaluation.prompting import Prompt, Response


def rows_of(said, facts):
    return [
        Response(Prompt("vqa", i, 0, "", one, ()), text)
        for i, (text, one) in enumerate(zip(said, facts, strict=True))
    ]


@pytest.mark.parametrize(
    ("said", "answers", "expected"),
    [
        (["yes", "no"], ["yes", "yes"], 50.0),
        # A model answers in sentences; otherwise the match is exact.
        ([" Yes. "], ["yes"], 100.0),
        (["the dog"], ["dog"], 0.0),
        (["dogs"], ["dog"], 0.0),
        ([""], ["no"], 0.0),
        (["t-shirt", "2", "two"], ["t-shirt", "2", "2"], 200 / 3),
    ],
)
def test_gqa(said, answers, expected):
    rows = rows_of(said, [{"answers": [answer]} for answer in answers])
    assert BENCHMARKS["gqa"].metrics(rows)["accuracy"] == pytest.approx(expected)


def free_answers(same, difficult=False):
    return {
        "answers": ["a dog"] * same + ["cat"] * (10 - same),
        "choices": ["a dog", "cat", "tree"],
        "correct": 0,
        "difficult_direct_answer": difficult,
    }


@pytest.mark.parametrize(
    ("said", "same", "expected"),
    [
        ("a dog", 0, 0.0),
        ("a dog", 1, 100 / 3),
        ("a dog", 2, 200 / 3),
        ("A dog.", 3, 100.0),
        # No annotator is left out in turn, unlike in VQAv2.
        ("a dog", 10, 100.0),
        ("dog", 10, 0.0),
        ("", 0, 0.0),
    ],
)
def test_aokvqa(said, same, expected):
    found = BENCHMARKS["aokvqa"].metrics(rows_of([said], [free_answers(same)]))
    assert found == {"accuracy": pytest.approx(expected), "left_out": 0}


@pytest.mark.parametrize(
    ("said", "difficult", "expected"),
    [
        # The difficult question is wrong, right, and the only one.
        (["a dog", "tree"], [False, True], {"accuracy": 100.0, "left_out": 1}),
        (["tree", "a dog"], [False, True], {"accuracy": 0.0, "left_out": 1}),
        (["tree", "a dog"], [False, False], {"accuracy": 50.0, "left_out": 0}),
        (["a dog"], [True], {"left_out": 1}),
    ],
)
def test_difficult_questions_of_aokvqa_count_with_choices_alone(said, difficult, expected):
    facts = [free_answers(10, one) for one in difficult]
    assert BENCHMARKS["aokvqa"].metrics(rows_of(said, facts)) == pytest.approx(expected)
    assert BENCHMARKS["aokvqa-choice"].metrics(rows_of(said, facts)) == pytest.approx(
        {"accuracy": 100 * said.count("a dog") / len(said)}
    )


@pytest.mark.parametrize(
    ("said", "labels"),
    [
        ("yynn", "ynyn"),
        ("yyyy", "yynn"),
        ("nnnn", "yynn"),
        ("ynyny", "ynyny"),
        ("nyn", "yny"),
        ("y", "n"),
    ],
)
def test_pope_as_by_scikit_learn(said, labels):
    words = {"y": "yes", "n": "no"}
    facts = [{"label": words[letter]} for letter in labels]
    found = BENCHMARKS["pope-random"].metrics(rows_of([words[s] for s in said], facts))
    expected = precision_recall_fscore_support(
        list(labels), list(said), pos_label="y", average="binary", zero_division=0
    )
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected[:3])
    assert found["accuracy"] == np.mean([a == b for a, b in zip(said, labels, strict=True)])
    assert found["yes_ratio"] == said.count("y") / len(said)


@pytest.mark.parametrize(
    ("task", "said", "accuracy", "both"),
    [
        # Two questions per image; the first needs a yes.
        ("existence", ["yes", "no"], 100.0, 100.0),
        ("count", ["yes", "yes"], 50.0, 0.0),
        ("OCR", ["yes", "no", "no", "yes"], 50.0, 50.0),
        ("code_reasoning", ["Yes, it is", "No."], 100.0, 100.0),
        ("text_translation", ["it is", "", "yes", "no"], 50.0, 50.0),
        ("position", ["no", "yes", "yes", "yes"], 25.0, 0.0),
    ],
)
def test_mme(task, said, accuracy, both):
    facts = [
        {"task": task, "image": str(i // 2), "label": "no" if i % 2 else "yes"}
        for i in range(len(said))
    ]
    found = BENCHMARKS["mme"].metrics(rows_of(said, facts))
    assert (found[f"{task}/acc"], found[f"{task}/acc_plus"]) == (accuracy, both)
    kind = "cognition" if task in ("code_reasoning", "text_translation") else "perception"
    assert found[kind] == found["total"] == found[task] == accuracy + both


@pytest.mark.parametrize(
    ("scores", "capabilities", "expected"),
    [
        ([1.0], [["rec"]], {"total": 100.0, "rec": 100.0}),
        ([0.0], [["ocr", "math"]], {"total": 0.0, "ocr": 0.0, "math": 0.0}),
        ([1.0, 0.0], [["rec"], ["ocr"]], {"total": 50.0, "rec": 100.0, "ocr": 0.0}),
        ([0.3, 0.9], [["rec"], ["rec", "spat"]], {"total": 60.0, "rec": 60.0, "spat": 90.0}),
        ([0.0, 0.5, 1.0], [["know"]] * 3, {"total": 50.0, "know": 50.0}),
    ],
)
def test_mm_vet(scores, capabilities, expected):
    facts = [{"question": "", "answers": [""], "capabilities": one} for one in capabilities]
    judged = iter(scores)
    found = mm_vet_scores(rows_of([""] * len(scores), facts), lambda *texts: next(judged))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_masks_as_by_pycocotools(seed):
    coco = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(seed)
    masks = generator.random((2, 6, 9, 13)) < generator.choice([0.2, 0.6, 0.9], (2, 6, 1, 1))
    masks[0, 0] = masks[1, 0]
    masks[0, 1] = False
    rows = [
        Response(Prompt("segment", i, 0, "", {}, (), target), "", None, mask if i != 1 else None)
        for i, (mask, target) in enumerate(zip(*masks, strict=True))
    ]
    found = BENCHMARKS["refcocog"].metrics(rows)
    codes = [[coco.encode(np.asfortranarray(m.astype(np.uint8))) for m in side] for side in masks]
    ious = [coco.iou([a], [b], [0])[0, 0] for a, b in zip(*codes, strict=True)]
    both = [coco.area(coco.merge([a, b], intersect=True)) for a, b in zip(*codes, strict=True)]
    either = [coco.area(coco.merge([a, b])) for a, b in zip(*codes, strict=True)]
    assert found["giou"] == pytest.approx(np.mean(ious))
    assert found["ciou"] == pytest.approx(sum(both) / sum(either))
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        precision = np.mean([iou >= threshold for iou in ious])
        assert found[f"p_at_{round(100 * threshold)}"] == precision


@pytest.mark.parametrize(
    ("clusters", "objects", "expected"),
    [
        ("0011", "0011", 1.0),
        ("0000", "0011", 0.5),
        ("0123", "0011", 0.5),
        ("0111", "0011", 2 / 3),
        # The mean over objects, without the background.
        ("0011", "1122", 1.0),
        ("0001", "1122", (2 / 3 + 1 / 2) / 2),
    ],
)
def test_overlap_of_clusters_and_objects(clusters, objects, expected):
    labels, truth = (torch.tensor([[int(c) for c in text]]) for text in (clusters, objects))
    assert best_overlap_iou(labels, truth).item() == pytest.approx(expected)


def test_two_unreadable_files_of_reasonseg(tmp_path):
    data, model = tmp_path / "data", tmp_path / "model"
    data.mkdir()
    PUBLISHED["reasonseg"][0](data)
    # As in the published archive: another encoding, and a truncated file.
    (data / "1.json").write_bytes('{"text": ["é"]'.encode("cp1252"))
    (data / "2.json").write_text('{"text": ')
    for part in build():
        part.save_pretrained(model)
    command = ["eval", "--benchmark", "reasonseg", "--data", str(data), "--model", str(model)]
    out = tmp_path / "out"
    assert main([*command, "--out", str(out), "--max-new-tokens", "2", "--allow-missing"]) == 0
    metrics = (out / "metrics.json").read_text()
    assert '"samples": 1' in metrics and '"broken": 2' in metrics
    with Image.open(data / "3.jpg") as opened:
        assert opened.size == SIZE
