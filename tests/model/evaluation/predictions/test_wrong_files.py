"""A wrong, damaged or incomplete file is named, and never gets a score."""

import json
import random

import pytest

from helpers.prediction_files import (
    data_of,
    open_benchmark,
    questions_of,
    responses_to,
    write_lines,
    write_tsv,
)
from setokim.evaluation.predictions.formats import read_predictions, write_predictions
from setokim.evaluation.predictions.prediction import PredictionError
from setokim.evaluation.predictions.submissions import write_submission
from setokim.evaluation.scoring import score

VQA = [{"question_id": 10 * i, "answer": "b"} for i in (1, 2, 3)]


@pytest.fixture
def scored(tmp_path):
    """Return the result of scoring rows of a file."""

    def of(name, rows, **options):
        data = tmp_path / name
        if not data.exists():
            data_of(name, data)
        path = rows if hasattr(rows, "exists") else write_lines(tmp_path / "a.jsonl", rows)
        benchmark, questions = open_benchmark(name, data)[0], questions_of(name, data)
        return score(benchmark, questions, read_predictions(path)[1], **options)

    return of


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"a: expected JSON, or a table|a: expected at least one prediction, got none"),
        (b"\n \n", "expected"),
        (b"[]", "a: expected at least one prediction, got none"),
        (b"{}", "a: expected at least one prediction, got none"),
        (b"[1]", r"a: \[0\]: expected an object, got 1"),
        (b'{"a": 1}', "a: expected answers by id, got other values"),
        (b'{"a": "x", "a": "y"}', "a: expected each id once, got 'a' twice"),
        (b'{"question_id": 1, "answer": "b"}\n{"quest', "a:2: expected JSON, got"),
        (b'{"question_id": 1, "answer": "b"}\n[1]\n', r"a:2: expected an object, got \[1\]"),
        (b'[{"question_id": 1, "answer": "b"}', "a:1:35: expected JSON, got"),
        (b"\xff\xfe\x00", "a: expected UTF-8 or a workbook, got"),
        (b"PK\x03\x04 damaged", "a: expected a workbook, got BadZipFile"),
        (b"\x89PNG", "a: expected UTF-8"),
        (b"hello", "a: expected JSON, or a table whose first row names its columns, got 'hello'"),
        (b'"index"\t"prediction"\n"1"\t"a\n', "a: expected tab-separated values, got"),
        (b"index\tprediction\n1\n", "a: row 2: expected 2 cells, got 1"),
        (b"index\tindex\n1\t2\n", "a: expected JSON, or a table"),
        (b"question\tanswer\n1\t2\n", "a: row 2: expected the fields of a format, setok, llava"),
        (b'{"id": 1, "score": 2}', "a:1: expected the fields of a format"),
        (b'{"id": 1, "answer": true}', "a:1: answer: expected a text, got True"),
        (b'{"id": 1, "answer": null}', "a:1: answer: expected a text, got None"),
        (b'{"id": 1.5, "answer": "a"}', "a:1: id: expected an id, got 1.5"),
        (b'{"id": "", "answer": "a"}', "a:1: id: expected an id, got ''"),
        (b'{"id": true, "answer": "a"}', "a:1: id: expected an id, got True"),
        (
            b'{"id": 1, "answer": "a"}\n{"id": 2}\n',
            "a:2: expected a row of format plain, got the fields 'id'",
        ),
        (
            b'{"doc_id": 1, "filtered_resps": ["a"], "index": 1, "prediction": "b"}',
            "a:1: expected rows of one format, got lmms-eval and vlmevalkit; see --format",
        ),
        (
            b'{"part": "vqa", "number": "0", "turn": 0, "asked": "", "said": "", "facts": {}}',
            "a:1: number: expected int, got '0'",
        ),
        (
            b'{"part": [], "number": 0, "turn": 0, "asked": "", "said": "", "facts": {}}',
            r"a:1: part: expected str, got \[\]",
        ),
        (
            b'{"part": "", "number": 0, "turn": 0, "asked": "", "said": "", "facts": {}, '
            b'"picture": "../a.png"}',
            r"a:1: picture: expected a file in .*, got '../a.png'",
        ),
        (
            b'{"part": "", "number": 0, "turn": 0, "asked": "", "said": "", "facts": {}, '
            b'"mask": {"size": 1}}',
            "a:1: mask: expected run lengths, got",
        ),
        (b'{"number": 0, "source": "a", "broken": "b"}', "a: expected at least one prediction"),
    ],
)
def test_damaged_and_unknown_files(content, reason, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(PredictionError, match=reason):
        read_predictions(path)


def test_a_truncated_workbook(tmp_path):
    pytest.importorskip("openpyxl")
    rows = responses_to(questions_of("gqa", data_of("gqa", tmp_path / "data")))
    path = tmp_path / "a.xlsx"
    write_predictions(path, "vlmevalkit", rows)
    whole = path.read_bytes()
    for length in range(4, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(PredictionError, match="expected a workbook, got"):
            read_predictions(path)
    for position in range(4, len(whole), 61):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        try:
            found = [one.text for one in read_predictions(path)[1]]
        except PredictionError:
            continue
        # Bytes that hold nothing, such as times.
        assert found == [row.text for row in rows]


def test_a_format_by_name(tmp_path):
    rows = [{"doc_id": 0, "filtered_resps": ["a"], "index": 1, "prediction": "b"}]
    path = write_lines(tmp_path / "a", rows)
    for format, text in (("lmms-eval", "a"), ("vlmevalkit", "b")):
        found, [one] = read_predictions(path, format)
        assert (found, one.text) == (format, text)
    with pytest.raises(PredictionError, match="a:1: expected a row of format llava, got the fie"):
        read_predictions(path, "llava")
    with pytest.raises(PredictionError, match=r"format: expected one of setok, .* got 'csv'"):
        read_predictions(path, "csv")
    with pytest.raises(PredictionError, match="field: expected a file of format plain, got lmms"):
        read_predictions(path, "lmms-eval", field="a")


def test_missing_answers(scored):
    with pytest.raises(
        PredictionError, match=r"1 of 3 have no prediction, such as .*questions"
    ) as e:
        scored("vqav2", VQA[:2])
    assert str(e.value).endswith("; --allow-missing goes on all the same")
    matched, metrics = scored("vqav2", VQA[:2], allow_missing=True)
    assert (metrics["samples"], metrics["missing"]) == (2, 1) and metrics[
        "accuracy"
    ] == pytest.approx(75)
    assert [prompt.number for prompt in matched.missing] == [2]


def test_unknown_answers(scored):
    rows = [*VQA, {"question_id": 99, "answer": "b"}, {"question_id": 99, "answer": "c"}]
    with pytest.raises(PredictionError, match=r"1 of 4 for no question, such as 99 in .*a.jsonl:4"):
        scored("vqav2", rows)
    _, metrics = scored("vqav2", rows, allow_unknown=True)
    assert (metrics["unknown"], metrics["duplicates"], metrics["missing"]) == (1, 1, 0)


def test_no_answer_is_known(scored):
    rows = [{"question_id": 5 + i, "answer": "b"} for i in range(3)]
    expected = r"expected question_id of the data set, such as '10', got '5' in .*a.jsonl:1"
    with pytest.raises(PredictionError, match=expected):
        scored("vqav2", rows, allow_missing=True, allow_unknown=True)


def test_rows_that_repeat_or_contradict(scored):
    _, metrics = scored("vqav2", [*VQA, VQA[1] | {"question_id": "20"}, VQA[1]])
    assert metrics["duplicates"] == 2 and metrics["samples"] == 3
    with pytest.raises(PredictionError) as caught:
        scored("vqav2", [*VQA, VQA[1] | {"answer": "B"}])
    said = str(caught.value)
    assert "a.jsonl:4: expected the answer of " in said and "a.jsonl:2 to the same" in said
    assert said.endswith("'b', got 'B'")


def test_masks_that_contradict(scored, tmp_path):
    pytest.importorskip("pycocotools")
    questions = questions_of("refcoco+", data_of("refcoco+", tmp_path / "refcoco+"))
    rows = responses_to(questions, [""])
    path = tmp_path / "a.jsonl"
    write_predictions(path, "setok", rows)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    masked = [line | {"mask": line["target"]} for line in lines]
    assert scored("refcoco+", [*masked, *masked])[1]["duplicates"] == len(lines)
    for others in (lines, [line | {"mask": masked[-1]["mask"]} for line in masked]):
        with pytest.raises(PredictionError, match="to the same question"):
            scored("refcoco+", [*masked, *others])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"asked": "where?"}, "a.jsonl:2: expected the question of .*, 'what 2"),
        ({"facts": {"question_id": 10}}, "a.jsonl:2: expected the question of "),
    ],
)
def test_a_log_of_other_data(change, reason, scored, tmp_path):
    questions = questions_of("vqav2", data_of("vqav2", tmp_path / "vqav2"))
    write_predictions(tmp_path / "a", "setok", responses_to(questions))
    lines = [json.loads(line) for line in (tmp_path / "a").read_text().split("\n")[:-1]]
    assert scored("vqav2", lines)[1]["samples"] == 3
    lines[1] |= change
    with pytest.raises(PredictionError, match=reason):
        scored("vqav2", lines)


def lmms(number, question="is it?", target="yes"):
    return {"doc_id": number, "target": target, "filtered_resps": ["yes"], "input": question}


def test_positions_need_the_question(scored):
    assert scored("gqa", [lmms(i) for i in range(3)])[1]["accuracy"] == 100
    for rows, reason in (
        ([lmms(0), lmms(1, "is it not?")], "a.jsonl:2: expected the question of position 1, 'is"),
        ([lmms(0), lmms(1, target="no")], "a.jsonl:2: expected 'yes', the right answer in .*: 02"),
        ([lmms(0), lmms(1, "")], "a.jsonl:2: expected the question beside position 1, which"),
    ):
        with pytest.raises(PredictionError, match=reason):
            scored("gqa", rows, allow_missing=True)
    # Captions have one prompt for all images.
    with pytest.raises(PredictionError, match="expected the question beside position 0"):
        scored("coco-captions", [lmms(i, "describe the picture.") for i in range(3)])


def test_an_index_needs_the_question(scored, tmp_path):
    rows = [{"index": i, "question": "what?", "prediction": "a"} for i in (1, 2, 3)]
    path = write_tsv(tmp_path / "a.tsv", rows)
    benchmark = "vqav2"
    with pytest.raises(PredictionError, match="expected index of the data set, such as '10'"):
        scored(benchmark, path)


def test_two_questions_of_one_image(scored):
    rows = [{"question_id": "OCR/2", "answer": "yes"}, {"question_id": "OCR/2", "answer": "no"}]
    with pytest.raises(PredictionError, match="expected the question beside question_id 'OCR/2'"):
        scored("mme", rows, allow_missing=True)
    rows[0]["question"], rows[1]["question"] = "Is it?", "What is it?"
    with pytest.raises(PredictionError, match=r"a.jsonl:2: expected the question of"):
        scored("mme", rows, allow_missing=True)


def test_another_subset(scored):
    rows = [{"question_id": i, "answer": "yes", "category": "popular"} for i in (1, 2, 3)]
    with pytest.raises(PredictionError, match="category: expected random, got popular"):
        scored("pope-random", rows)


def test_rows_without_the_id_of_the_others(scored):
    rows = [{"question_id": 10, "answer": "b"}, {"image": "a.jpg", "answer": "b"}]
    with pytest.raises(PredictionError, match="expected an id as in the other rows, got none"):
        scored("vqav2", rows)


def test_unreadable_samples(scored, tmp_path):
    data = data_of("vqav2", tmp_path / "vqav2")
    path = data / "v2_OpenEnded_mscoco_val2014_questions.json"
    whole = json.loads(path.read_text())
    whole["questions"][1]["question"] = 5
    path.write_text(json.dumps(whole))
    with pytest.raises(PredictionError, match="1 of 3 have no prediction; --allow-missing"):
        scored("vqav2", [VQA[0], VQA[2]])
    _, metrics = scored("vqav2", [VQA[0], VQA[2]], allow_missing=True)
    assert (metrics["broken"], metrics["missing"], metrics["samples"]) == (1, 0, 2)
    for question in whole["questions"]:
        question["question"] = 5
    path.write_text(json.dumps(whole))
    with pytest.raises(PredictionError, match=r"data: expected a readable sample, got .*quest"):
        scored("vqav2", VQA)


def test_no_image_is_needed_for_texts(scored, tmp_path):
    data = data_of("vqav2", tmp_path / "vqav2")
    for path in data.rglob("*.jpg"):
        path.unlink()
    assert scored("vqav2", VQA)[1]["accuracy"] == pytest.approx(75)


@pytest.mark.parametrize(
    ("format", "suffix"),
    [("setok", ".jsonl"), ("llava", ".jsonl"), ("lmms-eval", ".jsonl"), ("vlmevalkit", ".tsv")],
)
def test_damage_anywhere(format, suffix, tmp_path):
    """Any byte may be lost or another, and the file may end anywhere."""
    data = data_of("mme", tmp_path / "data")
    benchmark, questions = open_benchmark("mme", data)[0], questions_of("mme", data)
    rows = responses_to(questions)
    path = tmp_path / f"a{suffix}"
    write_predictions(path, format, rows)
    whole = path.read_bytes()
    refused = 0
    generator = random.Random(0)
    for _ in range(300):
        position = generator.randrange(len(whole))
        damage = generator.choice([b"", b'"', b"\n", b"{", b"[", b"0", b"\xff", b"\t", b"\\"])
        kept = generator.choice([whole[position + 1 :], b""])
        path.write_bytes(whole[:position] + damage + kept)
        try:
            matched, _ = score(benchmark, questions, read_predictions(path)[1])
        except PredictionError as error:
            refused += 1
            assert str(error)
        else:
            # Damage within an answer, or in a field that identifies nothing.
            assert len(matched.rows) == len(rows)
            changed = [one.text != row.text for one, row in zip(matched.rows, rows, strict=True)]
            assert sum(changed) <= 1
    assert refused > 150


def test_texts_that_utf8_cannot_hold(tmp_path):
    data = data_of("mme", tmp_path / "data")
    benchmark, questions = open_benchmark("mme", data)[0], questions_of("mme", data)
    rows = responses_to(questions, ["\ud800 yes"])
    for format in ("setok", "llava", "lmms-eval"):
        write_predictions(tmp_path / "a.jsonl", format, rows)
        assert {one.text for one in read_predictions(tmp_path / "a.jsonl")[1]} == {"\ud800 yes"}
    for suffix in (".tsv", ".xlsx"):
        with pytest.raises(PredictionError, match=r"2.txt:1: expected a text in UTF-8, got"):
            write_predictions(tmp_path / f"a{suffix}", "vlmevalkit", rows)
    with pytest.raises(PredictionError, match=r"2.txt:1: expected a text in UTF-8, got"):
        write_submission(tmp_path / "out", benchmark, rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "data"]
