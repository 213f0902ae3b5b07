"""Files in the layouts that other programs write, as far as their sources show them."""

import json

import pytest

from helpers.prediction_files import (
    data_of,
    questions_of,
    write_lines,
    write_tsv,
    write_xlsx,
)
from setokim.evaluation.predictions.formats import read_predictions
from setokim.evaluation.predictions.matching import match
from setokim.evaluation.predictions.samples import Samples

SHORT = "Answer the question using a single word or phrase."


def texts_of(matched):
    return [row.text for row in matched.rows]


@pytest.fixture
def matched(tmp_path):
    """Return the match of rows in a file with the samples of a benchmark."""

    def of(name, rows, expected, path="a.jsonl", write=write_lines, **options):
        questions = questions_of(name, data_of(name, tmp_path / name))
        format, found = read_predictions(write(tmp_path / path, rows), **options)
        assert format == expected
        return match(found, Samples(questions.prompts))

    return of


def write_whole(path, value):
    path.write_text("\ufeff" + json.dumps(value, indent=1), encoding="utf-8")
    return path


def llava(number, prompt, text):
    tail = {"answer_id": "kZ3", "model_id": "llava-v1.5-7b", "metadata": {}}
    return {"question_id": number, "prompt": prompt, "text": text, **tail}


def lmms(number, text, question, **fields):
    row = {"doc_id": number, "target": fields.pop("target", "yes"), "filtered_resps": [text]}
    hashes = {"doc_hash": "0f", "prompt_hash": "1f", "target_hash": "2f"}
    return row | hashes | fields | {"input": question}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Uploads of VQA; numbers as text, and one a number.
        ("vqav2", [{"question_id": f"{10 * i}", "answer": f"{i}"} for i in (1, 2, 3)]),
        ("okvqa", [{"question_id": 10 * i, "answer": i} for i in (1, 2, 3)]),
        ("gqa", [{"questionId": f"0{i}", "prediction": f"{i}"} for i in (1, 2, 3)]),
        # Ids that a program has read as numbers.
        ("gqa", [{"id": i, "text": f"{i}"} for i in (1, 2, 3)]),
        ("mm-vet", {f"v1_{i}": f"{i}" for i in (1, 2, 3)}),
        ("aokvqa", {f"q{i}": {"direct_answer": f"{i}"} for i in (1, 2, 3)}),
        ("aokvqa-choice", {f"q{i}": {"multiple_choice": f"{i}"} for i in (1, 2, 3)}),
        # Results of COCO's captions, and names of files in place of numbers.
        ("coco-captions", [{"image_id": i, "caption": f"{i}"} for i in (1, 2, 3)]),
        (
            "coco-captions",
            [{"image": f"val2014/COCO_val2014_{i:012d}.jpg", "caption": f"{i}"} for i in (1, 2, 3)],
        ),
        (
            "flickr30k",
            [{"image_id": f"{i}", "caption": f"{j}"} for j, i in enumerate((0, 1, 3), 1)],
        ),
        (
            "mme",
            [
                {"question_id": f"{task}/{name}", "question": asked, "answer": f"{i}"}
                for i, (task, name, asked) in enumerate(
                    [
                        ("OCR", "2.png", "Is it?"),
                        ("OCR", "0002.png", "Is it not?"),
                        ("existence", "1.jpg", "Is it? Please answer yes or no."),
                    ],
                    1,
                )
            ],
        ),
    ],
)
@pytest.mark.parametrize("in_lines", [False, True])
def test_plain_files(name, value, in_lines, matched):
    if in_lines and isinstance(value, dict):
        value = [
            {"id": key} | (one if isinstance(one, dict) else {"answer": one})
            for key, one in value.items()
        ]
    write = write_lines if in_lines else write_whole
    found = matched(name, value, "plain", write=write)
    assert texts_of(found) == ["1", "2", "3"]
    assert not found.unknown and found.duplicates == found.others == 0


def test_one_line_is_a_record_or_a_mapping(matched):
    found = matched("vqav2", [{"question_id": 20, "answer": "b"}], "plain")
    assert texts_of(found) == ["b"] and len(found.missing) == 2
    assert texts_of(matched("mm-vet", [{"v1_2": "b"}], "plain")) == ["b"]


def test_two_answers_in_a_plain_file(matched):
    rows = [{"id": f"q{i}", "direct_answer": "a", "multiple_choice": "b"} for i in (1, 2, 3)]
    with pytest.raises(ValueError, match=r"a.jsonl:1: expected one field of .*, got direct_answer"):
        matched("aokvqa", rows, "plain")
    found = matched("aokvqa", rows, "plain", field="multiple_choice")
    assert texts_of(found) == ["b"] * 3
    rows = [{"id": f"q{i}", "said": "a"} for i in (1, 2, 3)]
    found = matched("aokvqa", rows, "plain", format="plain", field="said")
    assert texts_of(found) == ["a"] * 3


def test_llava_answers(matched, tmp_path):
    asked = [llava(10 * i, f"what {i}?\n{SHORT}", f"{i}é") for i in (3, 1, 2)]
    assert texts_of(matched("vqav2", asked, "llava")) == ["1é", "2é", "3é"]
    # MM-Vet without the begin of its ids.
    rows = [llava(i, "what?", "") for i in (1, 2, 3)]
    assert texts_of(matched("mm-vet", rows, "llava")) == [""] * 3
    # MME in LLaVA's prompts; the two questions of an image have one id.
    rows = [
        llava("existence/1.jpg", f"Is it not?\n{SHORT}", "b"),
        llava("existence/1.jpg", f"Is it?\n{SHORT}", "a"),
        llava("OCR/2.png", f"Is it?\n{SHORT}", "c"),
        llava("OCR/2.png", f"Is it not?\n{SHORT}", "d"),
    ]
    assert texts_of(matched("mme", rows, "llava")) == ["c", "d", "a", "b"]


def test_llava_numbers_pope_anew(matched, tmp_path):
    names = [f"COCO_val2014_{i:012d}.jpg" for i in (1, 2, 3)]
    asked, rows = [], []
    for category in ("adversarial", "random"):
        for name in names:
            number = len(rows)
            text = f"{'Is it' if category == 'random' else 'Was it'}?\n{SHORT}"
            asked.append({"question_id": number, "image": name, "text": text, "category": category})
            rows.append(llava(number, text, f"{category} {number}"))
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", asked)
    # Ids 1 and 2 are in the data, but for other questions.
    with pytest.raises(ValueError, match=r"a.jsonl:2: expected the question of question_id '1'"):
        matched("pope-random", rows, "llava")
    found = matched("pope-random", rows, "llava", questions=questions)
    assert texts_of(found) == ["random 3", "random 4", "random 5"]
    assert (found.kind, found.others) == ("image", 3)
    rows[0]["prompt"] = "Is it what?"
    with pytest.raises(ValueError, match=r"a.jsonl:1: expected the prompt of question 0"):
        matched("pope-random", rows, "llava", questions=questions)
    rows[0] = llava(9, "", "no")
    with pytest.raises(ValueError, match=r"a.jsonl:1: expected a question of --questions, got 9"):
        matched("pope-random", rows, "llava", questions=questions)
    with pytest.raises(ValueError, match=r"questions: expected a file of format llava, got plain"):
        matched("pope-random", [{"id": 1, "answer": "no"}], "plain", questions=questions)


def test_llava_questions_of_one_set(matched, tmp_path):
    """Their numbers are those of the data."""
    asked = [
        {"question_id": 10 * i, "image": f"{i}.jpg", "text": f"what {i}?\n{SHORT}"}
        for i in (1, 2, 3)
    ]
    questions = write_lines(tmp_path / "llava_vqav2.jsonl", asked)
    rows = [llava(10 * i, f"what {i}?\n{SHORT}", f"{i}") for i in (1, 2, 3)]
    assert texts_of(matched("vqav2", rows, "llava", questions=questions)) == ["1", "2", "3"]
    write_lines(questions, [*asked, asked[0] | {"text": "where?"}])
    with pytest.raises(ValueError, match=r"jsonl:4: expected each question once, got 10 twice"):
        matched("vqav2", rows, "llava", questions=questions)


def test_lmms_eval_samples(matched):
    # VQA: the metrics keep the id; the position is of lmms-eval's own order.
    rows = [
        lmms(3 - i, f"{i}", f"what {i}?\n{SHORT}", submission={"question_id": 10 * i, "answer": ""})
        for i in (3, 2, 1)
    ]
    assert texts_of(matched("vqav2", rows, "lmms-eval")) == ["1", "2", "3"]
    # GQA: no id, so the position counts, under the question and its answer.
    rows = [lmms(i, f"{i}", f"is it?\n{SHORT}", exact_match=1.0) for i in range(3)]
    found = matched("gqa", rows, "lmms-eval")
    assert (texts_of(found), found.kind) == (["0", "1", "2"], "position")
    # Captions: the running "id" of the metrics is none of the data.
    rows = [
        lmms(i, f"{i}", "Provide a caption.", coco_CIDEr={"image_id": 3 - i, "id": 1})
        for i in range(3)
    ]
    assert texts_of(matched("coco-captions", rows, "lmms-eval")) == ["2", "1", "0"]
    # POPE with its document, all subsets in one file.
    rows = [
        lmms(
            3 * number + i,
            f"{category} {i}",
            f"Is it?\n{SHORT}",
            doc={
                "id": f"{3 * number + i}",
                "question_id": f"{i + 1}",
                "question": "Is it?",
                "category": category,
            },
            target="no" if i == 1 else "yes",
        )
        for number, category in enumerate(("popular", "random"))
        for i in range(3)
    ]
    found = matched("pope-random", rows, "lmms-eval")
    assert texts_of(found) == ["random 0", "random 1", "random 2"] and found.others == 3
    # All subsets in one file that does not name them: their questions have the same ids.
    rows = [
        lmms(
            3 * number + i,
            "no",
            f"{'Is it' if number == 1 or i == 0 else 'Was it'}?\n{SHORT}",
            target="no" if i == 1 else "yes",
            pope_accuracy={"question_id": f"{i + 1}", "score": 1.0, "prediction": "no"},
        )
        for number in range(3)
        for i in range(3)
    ]
    found = matched("pope-random", rows, "lmms-eval")
    # A question that the subsets share has one answer.
    assert (texts_of(found), found.others, found.duplicates) == (["no"] * 3, 4, 2)
    with pytest.raises(ValueError, match="expected the question of question_id '2'"):
        matched("pope-random", rows[:3], "lmms-eval")
    # MME: the metrics keep image and subtask.
    rows = [
        lmms(
            i,
            f"{i}",
            f"{question}\n{SHORT}",
            mme_perception_score={"question_id": f"{task}", "category": task.split("/")[0]},
            target=label,
        )
        for i, (task, question, label) in enumerate(
            [
                ("OCR/2.png", "Is it?", "Yes"),
                ("OCR/2.png", "Is it not?", "No"),
                ("existence/1.jpg", "Is it?", "Yes"),
                ("existence/1.jpg", "Is it not?", "No"),
            ]
        )
    ]
    assert texts_of(matched("mme", rows, "lmms-eval")) == ["0", "1", "2", "3"]


def test_responses_of_lmms_eval(matched):
    """The raw ones count where no filter has run; lists are nested less in newer versions."""
    rows = [lmms(i, [["a"], "b", "c"][i], "is it?") for i in range(3)]
    rows[1]["filtered_resps"] = "b"
    rows[2] = {k: v for k, v in rows[2].items() if k != "filtered_resps"} | {"resps": [["c"]]}
    assert texts_of(matched("gqa", rows, "lmms-eval")) == ["a", "b", "c"]
    rows[1]["filtered_resps"] = ["b", "c"]
    with pytest.raises(
        ValueError, match=r"a.jsonl:2: filtered_resps: expected one response, got 2"
    ):
        matched("gqa", rows, "lmms-eval")
    rows[1] = lmms("1", "b", "is it?")
    with pytest.raises(ValueError, match=r"a.jsonl:2: doc_id: expected an int, got '1'"):
        matched("gqa", rows, "lmms-eval")


def vlm(index, question, prediction, **fields):
    return {"index": index, "question": question, **fields, "prediction": prediction}


@pytest.mark.parametrize("write", [write_tsv, write_xlsx])
def test_vlmevalkit_results(write, matched):
    if write is write_xlsx:
        pytest.importorskip("openpyxl")
    path = f"a.{write.__name__[-3:]}"
    # MM-Vet: its index is the number in the id.
    rows = [vlm(i, "what?", f"{i}\n\t=é", answer="a dog<OR>a cat") for i in (2, 1, 3)]
    found = matched("mm-vet", rows, "vlmevalkit", path, write)
    assert (texts_of(found), found.kind) == ([f"{i}\n\t=é" for i in (1, 2, 3)], "index")
    # MME: file and subtask, and a prediction that the workbook has as a number.
    rows = [
        vlm(i, f"{question} Please answer yes or no.", i, category=task, image_path=name)
        for i, (task, name, question) in enumerate(
            [
                ("existence", "existence/1.jpg", "Is it not?"),
                ("existence", "existence/1.jpg", "Is it?"),
                ("OCR", "OCR/2.png", "Is it?"),
                ("OCR", "OCR/2.png", "Is it not?"),
            ]
        )
    ]
    found = matched("mme", rows, "vlmevalkit", path, write)
    assert (texts_of(found), found.kind) == (["2", "3", "1", "0"], "image")
    # POPE: one row for a question of several subsets; the position is of the whole file.
    rows = [
        vlm(i, "Is it?", f"{i}", answer=label, category=category, image_path=f"{i}.jpg")
        for i, label, category in (
            (1, "Yes", "adversarial,random"),
            (7, "No", "popular"),
            (2, "No", "random"),
            (3, "Yes", "popular,random"),
        )
    ]
    found = matched("pope-random", rows, "vlmevalkit", path, write)
    assert (texts_of(found), found.others) == (["1", "2", "3"], 1)
    # GQA without an id: the position, under each question and its answer.
    rows = [vlm(100 + i, "is it?", "", answer="yes") for i in range(3)]
    found = matched("gqa", rows, "vlmevalkit", path, write)
    assert (texts_of(found), found.kind) == (["", "", ""], "position")
    # From 0 on: two of them look like ids, and all questions are the same.
    rows = [vlm(i, "is it?", f"{i}", answer="yes") for i in range(3)]
    found = matched("gqa", rows, "vlmevalkit", path, write)
    assert (texts_of(found), found.kind) == (["0", "1", "2"], "position")
    if write is write_tsv:
        # As JSON, in which an empty cell is NaN.
        rows = [row | {"image_path": float("nan")} for row in rows]
        found = matched("gqa", rows, "vlmevalkit", "a.json", write_whole)
        assert texts_of(found) == ["0", "1", "2"]
    # What VLMEvalKit could not get is no answer.
    rows = [vlm(i, "what?", f"{i}", answer="a dog<OR>a cat") for i in (1, 2, 3)]
    rows[1]["prediction"] = "Failed to obtain answer via API."
    found = matched("mm-vet", rows, "vlmevalkit", path, write)
    assert texts_of(found) == ["1", "3"] and len(found.missing) == 1
