"""Ours to the format of another program and back gives the same answers and metrics."""

import csv

import pytest

from helpers.prediction_files import (
    MASKS,
    TEXTS,
    data_of,
    open_benchmark,
    questions_of,
    responses_to,
)
from setokim.data.rle import encode_rle
from setokim.evaluation.answer_log import FILE, AnswerLog
from setokim.evaluation.predictions.formats import EXPORTS, read_predictions, write_predictions
from setokim.evaluation.prompting import Response
from setokim.evaluation.scoring import score

SUFFIXES = {"vlmevalkit": (".tsv", ".xlsx")}


@pytest.mark.usefixtures("no_meteor")
@pytest.mark.parametrize("name", TEXTS)
def test_texts(name, tmp_path):
    data = data_of(name, tmp_path / "data")
    benchmark, questions = open_benchmark(name, data)[0], questions_of(name, data)
    rows = responses_to(questions)
    expected = benchmark.metrics(rows) if benchmark.metrics else {}
    files = [(one, suffix) for one in EXPORTS for suffix in SUFFIXES.get(one, (".jsonl",))]
    assert len(files) == 5
    for format, suffix in files:
        path = tmp_path / f"{format}{suffix}"
        if suffix == ".xlsx":
            pytest.importorskip("openpyxl")
        write_predictions(path, format, rows)
        found, predictions = read_predictions(path)
        assert found == format
        assert [one.text for one in predictions] == [row.text for row in rows]
        matched, metrics = score(benchmark, questions, predictions)
        assert [row.prompt for row in matched.rows] == questions.prompts
        counts = {"samples": len(rows), "broken": 0, "missing": 0, "unknown": 0, "duplicates": 0}
        assert metrics == {**expected, **counts}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name, tmp_path):
    if name != "reasonseg":
        pytest.importorskip("pycocotools")
    data = data_of(name, tmp_path / "data")
    benchmark, questions = open_benchmark(name, data)[0], questions_of(name, data)
    rows = [
        Response(prompt, "[SEG]", None, prompt.target if index else ~prompt.target)
        for index, prompt in enumerate(questions.prompts)
    ]
    write_predictions(tmp_path / "a.jsonl", "setok", rows)
    _, predictions = read_predictions(tmp_path / "a.jsonl")
    matched, metrics = score(benchmark, questions, predictions)
    for row, one in zip(rows, matched.rows, strict=True):
        assert encode_rle(one.mask) == encode_rle(row.mask)
    assert benchmark.metrics(rows).items() <= metrics.items()
    with pytest.raises(ValueError, match="expected a text, got an image or mask"):
        write_predictions(tmp_path / "b.jsonl", "llava", rows)


def test_a_log_of_an_evaluation(tmp_path):
    """The log itself, with samples that could not be read."""
    questions = questions_of("gqa", data_of("gqa", tmp_path / "data"))
    log = AnswerLog(tmp_path / "out", {})
    log.add_broken(1, "a.json", "no image")
    log.add(responses_to(questions)[:1])
    format, predictions = read_predictions(tmp_path / "out" / FILE)
    assert format == "setok" and [one.text for one in predictions] == ["yes"]


def test_unusable_names_and_texts(tmp_path):
    rows = responses_to(questions_of("gqa", data_of("gqa", tmp_path / "data")))
    for format, path, reason in (
        ("plain", "a.json", "format: expected one of setok, llava, lmms-eval, vlmevalkit, got"),
        ("vlmevalkit", "a.csv", "a.csv: expected a name with .tsv or .xlsx, got '.csv'"),
    ):
        with pytest.raises(ValueError, match=reason):
            write_predictions(tmp_path / path, format, rows)
    failed = [Response(rows[0].prompt, "Failed to obtain answer via API.")]
    with pytest.raises(ValueError, match="expected an answer, got VLMEvalKit's 'Failed"):
        write_predictions(tmp_path / "a.tsv", "vlmevalkit", failed)
    pytest.importorskip("openpyxl")
    long = [Response(rows[0].prompt, "a" * 32_768)]
    with pytest.raises(ValueError, match="prediction: expected at most 32767 characters in a cell"):
        write_predictions(tmp_path / "a.xlsx", "vlmevalkit", long)
    assert not list(tmp_path.glob("*.*"))


@pytest.mark.parametrize("suffix", [".tsv", ".xlsx"])
def test_pandas_reads_our_tables(suffix, tmp_path):
    """VLMEvalKit reads and writes its files by pandas."""
    pandas = pytest.importorskip("pandas")
    rows = responses_to(questions_of("mme", data_of("mme", tmp_path / "data")))
    path, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    if suffix == ".xlsx":
        pytest.importorskip("openpyxl")
    write_predictions(path, "vlmevalkit", rows)
    options = {"keep_default_na": False}
    if suffix == ".tsv":
        table = pandas.read_csv(path, sep="\t", **options)
        table.to_csv(again, sep="\t", index=False, encoding="utf-8", quoting=csv.QUOTE_ALL)
    else:
        table = pandas.read_excel(path, **options)
        table.to_excel(again, index=False)
    assert list(table["prediction"]) == [row.text for row in rows]
    assert list(table["index"]) == [row.prompt.number for row in rows]
    assert set(table["category"]) <= {"OCR", "existence"}
    first, second = (read_predictions(one)[1] for one in (path, again))
    assert [(one.text, one.ids) for one in first] == [(one.text, one.ids) for one in second]


def test_what_vlmevalkit_compares_with(tmp_path):
    """Its own evaluation reads our tables: capitalised answers, and lists as Python writes them."""
    rows = {}
    for name in ("pope-random", "mme", "mm-vet", "coco-captions"):
        questions = questions_of(name, data_of(name, tmp_path / name))
        path = tmp_path / f"{name}.tsv"
        write_predictions(path, "vlmevalkit", responses_to(questions))
        with path.open(encoding="utf-8", newline="") as file:
            rows[name] = list(csv.DictReader(file, delimiter="\t"))[1]
        rows[name].pop("prediction")
    assert rows == {
        "pope-random": {
            "index": "1",
            "question_id": "2",
            "image_path": "COCO_val2014_000000000002.jpg",
            "category": "random",
            "question": "Is it?",
            "answer": "No",
        },
        "mme": {
            "index": "1",
            "image_path": "OCR/2",
            "category": "OCR",
            "question": "Is it not?",
            "answer": "No",
        },
        "mm-vet": {
            "index": "2",
            "question_id": "v1_2",
            "category": "rec",
            "question": "what?",
            "answer": "a dog<OR>a cat",
        },
        "coco-captions": {
            "index": "1",
            "image_id": "2",
            "question": "",
            "answer": "['caption 1', 'caption 4']",
        },
    }
