"""`setok eval`: figures of a model on a benchmark."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError, missing_package
from setok_cli.options import add_trust_option
from setokim.cli._speaking import load_model

if TYPE_CHECKING:
    from setokim.data import Dataset
    from setokim.evaluation.benchmarks import Benchmark
    from setokim.evaluation.image_networks import PictureNetworks
    from setokim.training.stage2.settings import GenerationSettings

_OPTIONS = {
    "max_new_tokens": 64,
    "guidance": 1.0,
    "sampling_steps": 25,
    "image_temperature": 1.0,
}
# Has descriptions of two kinds.
_DESCRIBED = "magicbrush"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `setok`."""
    parser = commands.add_parser(
        "eval",
        help="score a model on a benchmark",
        description="Asks the model all questions of a benchmark and writes predictions.jsonl, "
        "metrics.json and, where a server takes one, submission.json. A run that was killed goes "
        "on where it was. The folders that each benchmark expects are in docs/data.md.",
    )
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--benchmark", metavar="NAME", help="see docs/data.md")
    chosen.add_argument(
        "--all", action="store_true", help="every benchmark that DIR of --data has a folder for"
    )
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="DIR",
        help="the benchmark's folder; with --all, one with a folder NAME for each. For "
        "shapes-world the YAML file of a run, whose held-out conversations are asked",
    )
    parser.add_argument(
        "--model", required=True, type=Path, metavar="DIR", help="what `setok train` wrote"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where results go")
    parser.add_argument("--split", metavar="NAME", help="in place of the benchmark's own")
    parser.add_argument(
        "--samples", type=int, metavar="COUNT", help="of the data set, from its beginning"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="go on when more than 1 %% of the samples cannot be read",
    )
    parser.add_argument(
        "--descriptions",
        choices=("local", "global"),
        help="MagicBrush's texts that CLIP-T compares with (default: local, as published)",
    )
    parser.add_argument(
        "--device", default="cpu", help="where the model runs (default: %(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="COUNT", help="longest answer (default: 64)"
    )
    parser.add_argument(
        "--guidance", type=float, metavar="NUMBER", help="of drawn pictures (default: 1)"
    )
    parser.add_argument(
        "--sampling-steps", type=int, metavar="COUNT", help="of the diffusion (default: 25)"
    )
    parser.add_argument(
        "--image-temperature",
        type=float,
        metavar="NUMBER",
        help="of the noise that pictures begin as; 0 draws the typical one (default: 1)",
    )
    add_trust_option(parser)
    networks = parser.add_argument_group(
        "networks that judge drawn and edited pictures, from files of your own",
        "Figures whose network is not given are left out. They can be given once all is drawn: "
        "the same command again draws nothing twice.",
    )
    networks.add_argument(
        "--clip", type=Path, metavar="DIR", help="CLIP of transformers: CLIP-I and CLIP-T"
    )
    networks.add_argument("--dino", type=Path, metavar="DIR", help="a ViT of transformers: DINO")
    networks.add_argument(
        "--inception", type=Path, metavar="FILE", help="TorchScript, as for StyleGAN: FID"
    )
    networks.add_argument(
        "--lpips", type=Path, metavar="FILE", help="safetensors of VGG16 and LPIPS: LPIPS"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Scores; returns 0, or 1 when some of several benchmarks failed.

    Raises:
        UsageError: it cannot be done as asked.
    """
    try:
        from setokim.evaluation.benchmarks import BENCHMARKS
        from setokim.evaluation.fingerprint import fingerprint, versions
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    names = [arguments.benchmark]
    if arguments.all:
        names = [name for name in BENCHMARKS if (arguments.data / name).exists()]
        if not names:
            raise UsageError(
                f"--data: expected folders of benchmarks, got none in {arguments.data}"
            )
    elif arguments.benchmark not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise UsageError(f"--benchmark: expected one of {known}, got {arguments.benchmark!r}")
    if arguments.descriptions is not None and _DESCRIBED not in names:
        got = ", ".join(names)
        raise UsageError(f"--descriptions: expected the benchmark {_DESCRIBED}, got {got}")
    model, processor = load_model(arguments.model, arguments.device, arguments.trust_remote_code)
    networks = _networks(arguments)
    with _usage_errors("--model", OSError):
        identity = {
            "model": str(arguments.model.resolve()),
            "weights": fingerprint(arguments.model),
            "versions": versions(),
        }
    found, failed = {}, False
    for name in names:
        try:
            found[name] = _score(name, model, processor, identity, networks, arguments)
        except UsageError as error:
            if not arguments.all:
                raise
            # The others take hours of their own.
            failed = True
            print(f"setok eval: {error}", file=sys.stderr)
    for name, figures in found.items():
        for figure, value in figures.items():
            print(f"{name:<18} {figure:<32} {value:.4g}")
    if found:
        print(f"Predictions and figures are in {arguments.out}")
    return int(failed)


def _score(
    name: str,
    model: Any,
    processor: Any,
    identity: dict[str, Any],
    networks: PictureNetworks,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    from setokim.data import TooManyBrokenError
    from setokim.evaluation.answer_log import AnswerLog, AnswerLogError
    from setokim.evaluation.benchmarks import BENCHMARKS
    from setokim.evaluation.run import ScoringError, run_benchmark
    from setokim.utils.folder_lock import FolderInUseError, locked

    benchmark = BENCHMARKS[name]
    data = arguments.data / name if arguments.all else arguments.data
    folder = arguments.out / name if arguments.all else arguments.out
    with _usage_errors(name, OSError, ValueError, TypeError, RecursionError):
        split = arguments.split or benchmark.split
        dataset = _open(name, benchmark, data, split, arguments)
        settings = _settings(benchmark.generation(data), arguments)
    run = {
        "benchmark": name,
        "data": str(data.resolve()),
        "split": split,
        **identity,
        **dataclasses.asdict(settings),
    }
    number = len(dataset) if settings.samples is None else min(settings.samples, len(dataset))
    with contextlib.ExitStack() as stack:
        kinds = (OSError, AnswerLogError, FolderInUseError, ScoringError)
        stack.enter_context(_usage_errors(name, *kinds))
        stack.enter_context(locked(folder, "--out"))
        log = AnswerLog(folder, run)
        with (
            _usage_errors(name, TooManyBrokenError, hint="; --allow-missing goes on all the same"),
            _bar(name, number) as show,
        ):
            figures = run_benchmark(
                benchmark,
                dataset,
                model,
                processor,
                settings,
                log,
                folder,
                show,
                networks,
                arguments.allow_missing,
            )
    if figures["broken"]:
        first = next(iter(log.broken.values()), "smaller than the grid of patches")
        text = f"{figures['broken']} of {number} samples could not be judged, the first: {first}"
        print(f"setok eval: {name}: {text}", file=sys.stderr)
    return figures


def _open(
    name: str, benchmark: Benchmark, data: Path, split: str | None, arguments: argparse.Namespace
) -> Dataset:
    options = {} if split is None else {"split": split}
    if name == _DESCRIBED and arguments.descriptions is not None:
        options["descriptions"] = arguments.descriptions
    dataset = benchmark.open(data, **options)
    if not len(dataset):
        raise ValueError(f"expected at least one sample in {data}, got none")
    return dataset


@contextlib.contextmanager
def _usage_errors(name: str, *kinds: type[Exception], hint: str = "") -> Iterator[None]:
    """Errors of these kinds in one line, and packages that are not installed."""
    try:
        yield
    except ImportError as error:
        raise missing_package(error, "eval") from error
    except kinds as error:
        raise UsageError(f"{name}: {error}{hint}") from error


def _networks(arguments: argparse.Namespace) -> PictureNetworks:
    from setokim.evaluation.image_networks import PictureNetworks

    names = ("clip", "dino", "inception", "lpips")
    paths = {name: getattr(arguments, name) for name in names}
    try:
        return PictureNetworks.load(**paths, device=arguments.device)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def _settings(own: dict[str, Any], arguments: argparse.Namespace) -> GenerationSettings:
    """Those of the command line, else the benchmark's, else the defaults."""
    from setokim.training.stage2.settings import GenerationSettings

    given = {name: getattr(arguments, name) for name in (*_OPTIONS, "samples")}
    given = {name: value for name, value in given.items() if value is not None}
    return GenerationSettings(**_OPTIONS | own | given)


@contextlib.contextmanager
def _bar(name: str, number: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; yields a function to call with the number of samples read."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=number)
        yield lambda done: bar.update(task, completed=done)
