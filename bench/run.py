"""Run a suite of benchmarks, print its tables and write its result.

    python bench/run.py                                        # the quick suite
    python bench/run.py --suite cpu --peer-root clones --out bench_out/cpu.json
    python bench/run.py --only cluster_tokens --shapes 4x1024x768 --dtype bfloat16
    python bench/run.py --plan bench/results/*.json

The exit code is 1 if one of our backends gave a wrong result. The suite `gpu` resumes an earlier
run into the same file if code, versions and device are the same.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from setok_bench import tables
from setok_bench.options import add_options
from setok_bench.plan import plan_document, print_plan
from setok_bench.results import checker, load_result, to_json, validate
from setok_bench.runner import Settings, failures, run_suite
from setok_bench.suites import get_suite, select
from setok_cli.output import print_json, print_to_stderr


def run(arguments: argparse.Namespace) -> int:
    """Execute a parsed command line.

    Raises:
        ValueError: an option does not fit; the message has its name.
        OSError: a file cannot be read or written.
        MissingExtraError: a package is not installed.
    """
    # Fixed width, so that tables in a file or a pipe do not wrap.
    console, errors = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = 140
    if arguments.plan is not None:
        results = [load_result(path) for path in arguments.plan]
        if arguments.json:
            print_json(plan_document(results))
        else:
            print_plan(results, console)
        return 0
    checker()
    device = _device(arguments.device)
    suite = select(
        get_suite(arguments.suite, device),
        tuple(arguments.only),
        tuple(arguments.shapes),
        getattr(torch, arguments.dtype) if arguments.dtype else None,
    )
    if arguments.seconds is not None:
        suite = replace(suite, seconds=arguments.seconds)
    before = None
    if arguments.out:
        # Fail before minutes of measurements that could not be written.
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        if suite.resumes and arguments.out.exists() and arguments.out.stat().st_size:
            before = load_result(arguments.out)
        arguments.out.touch()

    def keep(result: dict) -> None:
        if arguments.out:
            # Replace atomically: the process may be stopped at any time.
            part = arguments.out.with_name(f"{arguments.out.name}.part")
            part.write_text(to_json(result))
            part.replace(arguments.out)

    settings = Settings(device, suite.seconds, arguments.rounds, peer_root=arguments.peer_root)
    result = _run_with_progress(arguments.suite, suite, settings, errors, before, keep)
    # Write before validation, because the measurements took minutes.
    keep(result)
    validate(result)
    if arguments.json:
        print_json(result)
    else:
        _print(result, console)
    if arguments.out:
        with print_to_stderr(arguments.json):
            print(f"written to {arguments.out}")
    wrong = failures(result)
    for line in wrong:
        errors.print(f"wrong result: {line}", style="red", markup=False)
    return 1 if wrong else 0


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    arguments = parser.parse_args()
    try:
        return run(arguments)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _device(name: str) -> torch.device:
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected an available device, got {name!r} without CUDA")
    return device


def _run_with_progress(name, suite, settings: Settings, console: Console, before, keep) -> dict:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("measuring the peak rates of the device", total=None)

        def show(title: str, done: int, of: int) -> None:
            bar.update(task, description=title, completed=done, total=of)

        return run_suite(name, suite, settings, show, before, keep)


def _print(result: dict, console: Console) -> None:
    console.print(tables.conditions(result), markup=False, highlight=False)
    for table in tables.all_tables(result):
        rich_table = Table(*table.header, title=table.title, title_justify="left", box=box.SIMPLE)
        for line in table.lines:
            rich_table.add_row(*line)
        console.print(rich_table)
        for note in table.notes:
            console.print(f"  {note}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
