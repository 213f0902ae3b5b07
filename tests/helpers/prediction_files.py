"""Answers to the small benchmarks of `published`, and files as other programs write them."""

import csv
import io
import json

from helpers.published import PUBLISHED
from setokim.evaluation.benchmarks import BENCHMARKS
from setokim.evaluation.prompting import Response
from setokim.evaluation.scoring import read_questions

# Benchmark to the data set whose files it reads.
FOLDERS = {"aokvqa-choice": "aokvqa", "pope-random": "pope"}
# Benchmarks of texts.
TEXTS = ("vqav2", "okvqa", "aokvqa", "aokvqa-choice", "gqa", "flickr30k", "coco-captions")
TEXTS += ("pope-random", "mme", "mm-vet")
MASKS = ("refcoco+", "refcocog", "reasonseg")
# What a model may say: right, empty, in other alphabets, with the separators of files, a formula.
SAID = ["yes", "", "Nein – 不\u2028, é", '=1+1\t"b"\nNo.', " a dog and a cat. ", "_x0041_ b\x0b"]


def data_of(name, folder):
    """Write the files of a benchmark; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    PUBLISHED[FOLDERS.get(name, name)][0](folder)
    return folder


def open_benchmark(name, folder):
    """Return a benchmark and the data set in a folder."""
    benchmark = BENCHMARKS[name]
    split = {} if benchmark.split is None else {"split": benchmark.split}
    return benchmark, benchmark.open(folder, **split)


def questions_of(name, folder):
    return read_questions(*open_benchmark(name, folder))


def responses_to(questions, said=SAID):
    return [
        Response(prompt, said[index % len(said)]) for index, prompt in enumerate(questions.prompts)
    ]


def write_lines(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def write_tsv(path, rows):
    """Write a table as pandas does for VLMEvalKit."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, "excel-tab", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([list(rows[0]), *(row.values() for row in rows)])
    path.write_bytes(stream.getvalue().encode())
    return path


def write_xlsx(path, rows):
    import openpyxl

    book = openpyxl.Workbook()
    for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
        book.active.append(row)
    book.save(path)
    return path
