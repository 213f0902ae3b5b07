"""`setok score`: metrics of answers that are in a file."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError, missing_package
from setok_cli.output import add_json_option, print_json, print_to_stderr
from setokim.cli._subsets import add_subset_options

if TYPE_CHECKING:
    from setokim.evaluation.benchmarks import Benchmark
    from setokim.evaluation.figures import Figures
    from setokim.evaluation.predictions.matching import Matched


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "score",
        help="score answers in a file",
        description="Scores answers of any program by the rules of `setok eval`, without a model, "
        "and writes answers in the files of servers and other programs. docs/scoring.md has the "
        "formats.",
    )
    parser.add_argument("--benchmark", required=True, metavar="NAME", help="see docs/data.md")
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="folder of the benchmark"
    )
    parser.add_argument(
        "--predictions", required=True, type=Path, metavar="FILE", help="file of answers"
    )
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="setok, plain, llava, lmms-eval or vlmevalkit (default: by the content)",
    )
    parser.add_argument(
        "--field", metavar="NAME", help="field of the answers in a plain file with several"
    )
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="LLaVA's question file of its answers file, for POPE, which LLaVA numbers anew",
    )
    add_subset_options(parser)
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="go on when more than 1 %% of the questions have no answer",
    )
    parser.add_argument(
        "--allow-unknown",
        action="store_true",
        help="go on when more than 1 %% of the answers are to no question of the data",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of predictions.jsonl and metrics.json"
    )
    parser.add_argument(
        "--submission",
        type=Path,
        metavar="FILE",
        help="write the file that the server or official script takes; a folder for MME",
    )
    parser.add_argument(
        "--export",
        nargs=2,
        metavar=("FORMAT", "FILE"),
        help="write the answers as setok, llava, lmms-eval or vlmevalkit (.tsv or .xlsx)",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Score a file of answers and write what is asked for.

    Raises:
        UsageError: an argument or a file does not fit, or a package is not installed.
    """
    try:
        from setokim.evaluation.benchmarks import BENCHMARKS
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    if arguments.benchmark not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise UsageError(f"--benchmark: expected one of {known}, got {arguments.benchmark!r}")
    benchmark = BENCHMARKS[arguments.benchmark]
    _check(benchmark, arguments)
    with print_to_stderr(arguments.json):
        document = _score(benchmark, arguments)
    if arguments.json:
        print_json(document)
        return 0
    for metric, value in document["metrics"].items():
        text = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{arguments.benchmark:<18} {metric:<32} {text}")
    return 0


def _check(benchmark: Benchmark, arguments: argparse.Namespace) -> None:
    if benchmark.image_metrics is not None or benchmark.tokenizer is not None:
        expected = "a benchmark of texts or masks"
        raise UsageError(f"--benchmark: expected {expected}, got {arguments.benchmark!r}")
    if benchmark.metrics is None and arguments.submission is None and arguments.export is None:
        expected = f"--submission or --export, since a judge scores {arguments.benchmark}"
        raise UsageError(f"{arguments.benchmark}: expected {expected}, got neither")
    if arguments.samples is not None and arguments.samples < 1:
        raise UsageError(f"--samples: expected at least 1, got {arguments.samples}")


def _score(benchmark: Benchmark, arguments: argparse.Namespace) -> dict[str, Any]:
    from setokim.evaluation.predictions.formats import (
        check_export,
        read_predictions,
        write_predictions,
    )
    from setokim.evaluation.predictions.submissions import write_submission
    from setokim.evaluation.scoring import read_questions, score, with_missing

    name, split = arguments.benchmark, arguments.split or benchmark.split
    with _usage_errors(name):
        if arguments.export is not None:
            # Before anything is written.
            check_export(arguments.export[1], arguments.export[0])
        format, predictions = read_predictions(
            arguments.predictions, arguments.format, arguments.field, arguments.questions
        )
        dataset = benchmark.open(arguments.data, **({} if split is None else {"split": split}))
        if not len(dataset):
            raise ValueError(f"expected at least one sample in {arguments.data}, got none")
        questions = read_questions(benchmark, dataset, arguments.samples)
        matched, metrics = score(
            benchmark, questions, predictions, arguments.allow_missing, arguments.allow_unknown
        )
        is_scored = benchmark.has_answers(matched.rows)
        if not is_scored and arguments.submission is None and arguments.export is None:
            raise ValueError(f"expected a split with public answers, got {split!r}")
        if arguments.submission is not None:
            rows = with_missing(questions, matched.rows)
            write_submission(arguments.submission, benchmark, rows)
        if arguments.export is not None:
            write_predictions(arguments.export[1], arguments.export[0], matched.rows)
        if arguments.out is not None:
            _write(arguments, split, format, matched, metrics)
    _report(name, questions.broken, matched)
    return {
        "metrics": metrics,
        "format": format,
        "matched_by": matched.kind,
        "other_subsets": matched.others,
        "out": None if arguments.out is None else str(arguments.out),
    }


def _write(
    arguments: argparse.Namespace,
    split: str | None,
    format: str,
    matched: Matched,
    metrics: Figures,
) -> None:
    from setokim.evaluation.answer_log import AnswerLog
    from setokim.evaluation.figure_files import Scored, write_figures
    from setokim.evaluation.fingerprint import versions
    from setokim.utils.checksums import checksum
    from setokim.utils.folder_lock import locked

    run = {
        "benchmark": arguments.benchmark,
        "data": str(arguments.data.resolve()),
        "split": split,
        "samples": arguments.samples,
        "predictions": str(arguments.predictions.resolve()),
        "sha256": checksum(arguments.predictions),
        "format": format,
        "versions": versions(),
    }
    with locked(arguments.out, "--out"):
        log = AnswerLog(arguments.out, run)
        log.add([row for row in matched.rows if row.prompt not in log])
        counts = (int(metrics[name]) for name in ("samples", "missing", "broken"))
        write_figures(arguments.out, metrics, Scored(arguments.benchmark, split, *counts))


def _report(name: str, broken: list[str], matched: Matched) -> None:
    """Name on stderr what did not count."""
    from setokim.evaluation.scoring import describe_missing, describe_unknown

    found = (
        (len(matched.missing), "questions have no answer", describe_missing(matched)),
        (len(matched.unknown), "answers are to no question", describe_unknown(matched)),
        (len(broken), "samples could not be read", broken[:1]),
        (matched.duplicates, "rows repeat an earlier one", []),
        (matched.others, "rows are of other subsets", []),
    )
    for number, text, first in found:
        if number:
            named = f", such as {', '.join(first)}" if first else ""
            print(f"setok score: {name}: {number} {text}{named}", file=sys.stderr)


@contextlib.contextmanager
def _usage_errors(name: str) -> Iterator[None]:
    """Turn errors of files and missing packages into `UsageError`."""
    try:
        yield
    except ImportError as error:
        raise missing_package(error, "score") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{name}: {error}") from error
