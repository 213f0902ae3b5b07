"""Files in which servers and the official scripts of benchmarks take answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setokim.evaluation.benchmarks import Benchmark
from setokim.evaluation.predictions.prediction import PredictionError
from setokim.evaluation.predictions.samples import question_of
from setokim.evaluation.predictions.tables import check_encodable
from setokim.evaluation.prompting import Response
from setokim.utils.files import filling, write_file
from setokim.utils.json_text import to_json


def write_submission(path: str | Path, benchmark: Benchmark, rows: Sequence[Response]) -> None:
    """Write the upload of a benchmark.

    VQAv2, OK-VQA, A-OKVQA, GQA and MM-Vet have one JSON file, as in submission.json of `setok
    eval`. Captions are a JSON list of COCO's results. POPE has a line of JSON for each question, in
    the order of its file, and MME a folder with a text file for each subtask.

    Args:
        path: file to write; for MME a folder.
        benchmark: benchmark of the responses.
        rows: responses in the order of the data set, one for each of its questions.

    Raises:
        OSError: the path cannot be written.
        PredictionError: the benchmark has no such files.
    """
    path = Path(path)
    facts = rows[0].prompt.facts
    if benchmark.submission is not None:
        _write(path, benchmark.submission(rows))
    elif "label" in facts and "task" in facts:
        _write_mme(path, rows)
    elif "label" in facts:
        write_file(path, "".join(to_json(line) + "\n" for line in _pope(rows)))
    elif rows[0].prompt.part == "caption" and "image_id" in facts:
        _write(path, [{"image_id": r.prompt.facts["image_id"], "caption": r.text} for r in rows])
    else:
        expected = "a benchmark of answers, captions or yes-or-no questions"
        raise PredictionError(f"submission: expected {expected}, got another")


def _write(path: Path, value: Any) -> None:
    write_file(path, to_json(value, indent=2) + "\n")


def _pope(rows: Sequence[Response]) -> list[dict[str, Any]]:
    return [
        {
            "question_id": row.prompt.facts["question_id"],
            "question": question_of(row.prompt),
            "answer": row.text,
        }
        for row in rows
    ]


def _write_mme(folder: Path, rows: Sequence[Response]) -> None:
    """Write the four columns of each subtask: image, question, right answer and answer."""
    tasks: dict[str, list[str]] = {}
    for row in rows:
        check_encodable(row.text, row.prompt.source)
        facts = row.prompt.facts
        columns = (facts["image"], row.prompt.text, facts["label"], row.text)
        # Tabs and ends of lines separate columns and rows.
        line = "\t".join(" ".join(column.split()) for column in columns)
        tasks.setdefault(facts["task"], []).append(f"{line}\n")
    with filling(folder) as beside:
        for task, lines in tasks.items():
            (beside / f"{task}.txt").write_text("".join(lines), encoding="utf-8")
