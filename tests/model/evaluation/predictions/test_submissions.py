"""Uploads for servers, and what their official scripts read of them."""

import json

import pytest

from helpers.prediction_files import data_of, open_benchmark, questions_of, responses_to
from setokim.evaluation.predictions.formats import read_predictions
from setokim.evaluation.predictions.submissions import write_submission
from setokim.evaluation.prompting import Response
from setokim.evaluation.scoring import score, with_missing

SAID = ["Yes.", "No, é\tb\nc", ""]


@pytest.fixture
def written(tmp_path):
    """Write the submission of a benchmark; return its path, benchmark, questions and rows."""

    def of(name, said=SAID):
        data = data_of(name, tmp_path / name)
        benchmark, questions = open_benchmark(name, data)[0], questions_of(name, data)
        rows = responses_to(questions, said)
        write_submission(tmp_path / "out", benchmark, rows)
        return tmp_path / "out", benchmark, questions, rows

    return of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "vqav2",
            [
                {"question_id": 10, "answer": "Yes."},
                {"question_id": 20, "answer": "No, é\tb\nc"},
                {"question_id": 30, "answer": ""},
            ],
        ),
        ("okvqa", [{"question_id": 10 * i, "answer": text} for i, text in enumerate(SAID, 1)]),
        (
            "gqa",
            [
                {"questionId": "01", "prediction": "yes"},
                {"questionId": "02", "prediction": "no, é\tb\nc"},
                {"questionId": "03", "prediction": ""},
            ],
        ),
        (
            "aokvqa",
            {
                "q1": {"direct_answer": "yes"},
                "q2": {"direct_answer": "no, é\tb\nc"},
                "q3": {"direct_answer": ""},
            },
        ),
        ("aokvqa-choice", {f"q{i}": {"multiple_choice": text} for i, text in enumerate(SAID, 1)}),
        ("mm-vet", {f"v1_{i}": text for i, text in enumerate(SAID, 1)}),
        ("coco-captions", [{"image_id": i, "caption": text} for i, text in enumerate(SAID, 1)]),
        (
            "flickr30k",
            [
                {"image_id": f"{i}.jpg", "caption": text}
                for i, text in zip((0, 1, 3), SAID, strict=True)
            ],
        ),
    ],
)
def test_json(name, expected, written):
    path = written(name)[0]
    assert json.loads(path.read_text(encoding="utf-8")) == expected


@pytest.mark.usefixtures("no_meteor")
@pytest.mark.parametrize("name", ["vqav2", "gqa", "aokvqa", "aokvqa-choice", "coco-captions"])
def test_an_upload_is_scored_as_its_answers(name, written):
    path, benchmark, questions, rows = written(name, ["b", "a dog.", "Two"])
    format, found = read_predictions(path)
    assert format == "plain"
    expected = score(benchmark, questions, found)[1]
    assert benchmark.metrics(rows).items() <= expected.items()


def test_pope(written):
    path, *_ = written("pope-random")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    # The official script reads "answer", in the order of its file of labels.
    assert [line["answer"] for line in lines] == SAID
    assert lines[0] == {"question_id": 1, "question": "Is it?", "answer": "Yes."}
    assert read_predictions(path)[0] == "plain"


def test_mme(written):
    folder, *_ = written("mme")
    tables = {
        path.stem: [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        for path in folder.iterdir()
    }
    # The official script wants four columns, and both questions of an image in a row.
    assert tables == {
        "OCR": [["2", "Is it?", "Yes", "Yes."], ["2", "Is it not?", "No", "No, é b c"]],
        "existence": [["1", "Is it?", "Yes", ""], ["1", "Is it not?", "No", "Yes."]],
    }


def test_missing_answers_are_empty(tmp_path):
    data = data_of("vqav2", tmp_path / "data")
    benchmark, questions = open_benchmark("vqav2", data)[0], questions_of("vqav2", data)
    rows = with_missing(questions, [Response(questions.prompts[1], "b")])
    write_submission(tmp_path / "out", benchmark, rows)
    found = json.loads((tmp_path / "out").read_text())
    assert [(one["question_id"], one["answer"]) for one in found] == [(10, ""), (20, "b"), (30, "")]


def test_benchmarks_without_a_file(tmp_path):
    data = data_of("reasonseg", tmp_path / "data")
    benchmark, questions = open_benchmark("reasonseg", data)[0], questions_of("reasonseg", data)
    with pytest.raises(ValueError, match="submission: expected a benchmark of answers, captions"):
        write_submission(tmp_path / "out", benchmark, responses_to(questions))
    assert not (tmp_path / "out").exists()
