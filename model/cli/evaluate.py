"""`setok eval`: metrics of a model on benchmarks."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.device import usable_device
from setok_cli.errors import UsageError, missing_package
from setok_cli.options import positive_count
from setok_cli.output import add_json_option, print_json, print_to_stderr
from setokim.cli._inference import (
    add_generation_options,
    add_model_option,
    given_options,
    is_tokenizer,
    load_model,
    load_tokenizer,
    model_folder,
)
from setokim.cli._processes import answer_of, run_in_processes, throughput
from setokim.cli._subsets import add_subset_options

if TYPE_CHECKING:
    from setokim.data import Dataset
    from setokim.evaluation.benchmarks import Benchmark
    from setokim.evaluation.image_networks import ImageNetworks
    from setokim.evaluation.ranks import Ranks
    from setokim.vlm.generation_config import SetokimGenerationConfig

# Defaults that replace those of SetokimGenerationConfig.
_DEFAULTS = {"max_new_tokens": 64}
# Options that run.json always has; others are in it only if they differ from the default.
_ALWAYS_KEPT = ("max_new_tokens", "guidance", "sampling_steps", "image_temperature")
# Benchmarks with two kinds of descriptions.
_DESCRIBED = ("magicbrush", "magicbrush-multi-turn")
# Benchmarks whose answers may be lemmatized.
_LEMMATIZED = ("okvqa", "vqav2", "aokvqa")
# Benchmark with an external judge.
_JUDGED = "mm-vet"
# Benchmark that needs the texts of a dual encoder.
_ZERO_SHOT = "imagenet-zero-shot"
# Benchmark whose data a model may bring along.
_GENERATED = "shapes-world"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "eval",
        help="score a model on a benchmark",
        description="Asks the model all questions of a benchmark and writes predictions.jsonl, "
        "metrics.json and, where a server takes one, submission.json. A run that was killed "
        "resumes. docs/data.md has the files of each benchmark.",
    )
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--benchmark", metavar="NAME", help="see docs/data.md")
    chosen.add_argument(
        "--all", action="store_true", help="all benchmarks with a folder in DIR of --data"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the benchmark; with --all, a folder with one folder NAME for each. For "
        "shapes-world the YAML file of a run, for its held-out conversations (default: the file "
        "held_out.yaml of the model, if it has one, as the embedded model has)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of results")
    add_subset_options(parser)
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="go on when more than 1 %% of the samples cannot be read",
    )
    parser.add_argument(
        "--descriptions",
        choices=("local", "global"),
        help="texts of MagicBrush that CLIP-T compares with (default: local, as published)",
    )
    parser.add_argument(
        "--workers",
        type=positive_count,
        default=1,
        metavar="COUNT",
        help="number of processes that answer; with --device cuda, on the GPUs in turns. Answers "
        "and metrics are those of one process. torchrun is an alternative, also on several "
        "machines (default: %(default)s)",
    )
    parser.add_argument(
        "--lemmatize",
        action="store_true",
        help="also score the lemmas of the answers, as BLIP-2 does (okvqa, vqav2, aokvqa)",
    )
    judge = parser.add_argument_group(
        "judge of mm-vet",
        "An OpenAI-compatible server; the variable OPENAI_API_KEY has its key. Scores are kept in "
        "judgements.jsonl of the folder of results, so that the same command resumes.",
    )
    judge.add_argument("--judge-url", metavar="URL", help="such as http://localhost:8000/v1")
    judge.add_argument("--judge-model", metavar="NAME", help="model of the server")
    judge.add_argument(
        "--judge-prompt",
        type=Path,
        metavar="FILE",
        help="instruction and examples, such as the official ones (default: our own)",
    )
    add_json_option(parser)
    add_model_option(parser)
    add_generation_options(parser, _DEFAULTS)
    networks = parser.add_argument_group(
        "networks that score generated, edited and reconstructed images, from local files",
        "Metrics without their network are left out. The same command with a network adds its "
        "metrics; no image is generated twice.",
    )
    networks.add_argument(
        "--clip", type=Path, metavar="DIR", help="CLIP of transformers: CLIP-I and CLIP-T"
    )
    networks.add_argument("--dino", type=Path, metavar="DIR", help="a ViT of transformers: DINO")
    networks.add_argument(
        "--inception", type=Path, metavar="FILE", help="TorchScript, as for StyleGAN: FID, rFID"
    )
    networks.add_argument(
        "--lpips", type=Path, metavar="FILE", help="safetensors of VGG16 and LPIPS: LPIPS"
    )
    networks.add_argument(
        "--text-encoder",
        type=Path,
        metavar="DIR",
        help="SigLIP of transformers whose vision tower is the encoder of the tokenizer: "
        "imagenet-zero-shot",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Score a model; return 1 if one of several benchmarks failed, else 0.

    Raises:
        UsageError: an argument does not fit, or a package is not installed.
    """
    try:
        return run_in_processes(_run, arguments)
    except ImportError as error:
        raise missing_package(error, "cli,model") from error


def _run(arguments: argparse.Namespace, ranks: Ranks | None) -> int:
    try:
        from setokim.evaluation.benchmarks import BENCHMARKS
        from setokim.evaluation.fingerprint import fingerprint, versions
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    names = [arguments.benchmark]
    if arguments.data is None and (arguments.all or arguments.benchmark in BENCHMARKS):
        arguments.data = _own_data(arguments)
    if arguments.all:
        names = [name for name in BENCHMARKS if (arguments.data / name).exists()]
        if not names:
            raise UsageError(
                f"--data: expected folders of benchmarks, got none in {arguments.data}"
            )
    elif arguments.benchmark not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise UsageError(f"--benchmark: expected one of {known}, got {arguments.benchmark!r}")
    if arguments.descriptions is not None and not set(_DESCRIBED) & set(names):
        got = ", ".join(names)
        raise UsageError(f"--descriptions: expected the benchmark {_DESCRIBED[0]}, got {got}")
    if arguments.lemmatize and not set(_LEMMATIZED) & set(names):
        expected, got = ", ".join(_LEMMATIZED), ", ".join(names)
        raise UsageError(f"--lemmatize: expected one of the benchmarks {expected}, got {got}")
    _check_judge(arguments, names)
    source = model_folder(arguments)
    # With workers, this process only forms batches and scores.
    device = "cpu" if arguments.workers > 1 else arguments.device
    if all(BENCHMARKS[name].tokenizer is not None for name in names) and is_tokenizer(source):
        parts = load_tokenizer(source, device), None
    else:
        parts = load_model(source, device, arguments.trust_remote_code)
    networks = _networks(arguments)
    with _usage_errors("--model", OSError):
        identity = {
            "model": str(source.resolve()),
            "weights": fingerprint(source),
            "versions": versions(),
        }
    scored = {name: {} for name in ("metrics", "figures", "throughput")}
    failed = []
    for name in names:
        try:
            with print_to_stderr(arguments.json):
                own = _score(name, *parts, source, identity, networks, arguments, ranks)
            for key, value in own.items():
                scored[key][name] = value
        except UsageError as error:
            if not arguments.all:
                raise
            # The other benchmarks take hours, and still run.
            failed.append(name)
            print(f"setok eval: {error}", file=sys.stderr)
    if arguments.json:
        print_json(scored | {"failed": failed, "out": str(arguments.out)})
        return int(bool(failed))
    for name, report in scored["figures"].items():
        _print(name, scored["metrics"][name], report)
    if scored["metrics"]:
        print(f"Predictions and metrics are in {arguments.out}")
    return int(bool(failed))


def _check_judge(arguments: argparse.Namespace, names: list[str]) -> None:
    given = (arguments.judge_url, arguments.judge_model)
    if (None in given) != (given == (None, None)):
        raise UsageError("--judge-url: expected with --judge-model, got one of both")
    if arguments.judge_prompt is not None and None in given:
        raise UsageError("--judge-prompt: expected with --judge-url, got it alone")
    if None not in given and _JUDGED not in names:
        raise UsageError(f"--judge-url: expected the benchmark {_JUDGED}, got {', '.join(names)}")


def _judged(benchmark: Benchmark, folder: Path, arguments: argparse.Namespace) -> Benchmark:
    """Return MM-Vet with the metrics of the judge.

    Raises:
        OSError, ValueError: the prompt or the cache cannot be read, or the URL does not fit.
    """
    from setokim.evaluation.benchmarks import mm_vet_scores
    from setokim.evaluation.judge import CACHE, PROMPT, Judge

    path = arguments.judge_prompt
    prompt = PROMPT if path is None else path.read_text(encoding="utf-8").rstrip("\n")
    judge = Judge(arguments.judge_url, arguments.judge_model, folder / CACHE, prompt)
    return dataclasses.replace(benchmark, metrics=lambda rows: mm_vet_scores(rows, judge))


def _own_data(arguments: argparse.Namespace) -> Path:
    """Return what stands for `--data` without the option: the held-out data of the model.

    Raises:
        UsageError: the benchmark has files of its own, or the model has no such data.
    """
    from setokim.evaluation.benchmarks import HELD_OUT

    if arguments.all:
        raise UsageError("--data: expected a folder with one folder for each benchmark, got none")
    if arguments.benchmark != _GENERATED:
        expected = f"the folder of the benchmark {arguments.benchmark}"
        raise UsageError(f"--data: expected {expected}, got none")
    path = model_folder(arguments) / HELD_OUT
    if not path.is_file():
        expected = f"the YAML file of a run, since the model has no {path}"
        raise UsageError(f"--data: expected {expected}, got none")
    return path


def _score(
    name: str,
    model: Any,
    processor: Any,
    source: Path,
    identity: dict[str, Any],
    networks: ImageNetworks,
    arguments: argparse.Namespace,
    ranks: Ranks | None,
) -> dict[str, Any]:
    """Score a benchmark; return `metrics`, `figures` (the file) and, with answers, `throughput`."""
    from setokim.data import TooManyBrokenError
    from setokim.data.records import read_json
    from setokim.evaluation.answer_log import AnswerLog, AnswerLogError
    from setokim.evaluation.answering import AnsweringError
    from setokim.evaluation.benchmarks import BENCHMARKS
    from setokim.evaluation.figure_files import FIGURES
    from setokim.evaluation.lemmas import with_lemmas
    from setokim.evaluation.meteor import missing_meteor
    from setokim.evaluation.run import ScoringError, run_benchmark
    from setokim.evaluation.zero_shot import fitting_encoder
    from setokim.utils.folder_lock import FolderInUseError, locked
    from setokim.vlm.generation_config import SetokimGenerationConfig

    benchmark = BENCHMARKS[name]
    if arguments.lemmatize and name in _LEMMATIZED:
        benchmark = dataclasses.replace(benchmark, metrics=with_lemmas(benchmark.metrics))
    data = arguments.data / name if arguments.all else arguments.data
    folder = arguments.out / name if arguments.all else arguments.out
    with _usage_errors(name, OSError, ValueError, TypeError, RecursionError):
        split = arguments.split or benchmark.split
        dataset = _open(name, benchmark, data, split, arguments)
        # A tokenizer generates nothing.
        defaults = SetokimGenerationConfig() if processor is None else model.generation_config
        samples, config = _config(benchmark.generation(data), arguments, defaults)
    run = {
        "benchmark": name,
        "data": str(data.resolve()),
        "split": split,
        **identity,
        **_kept(samples, config),
    }
    number = len(dataset) if samples is None else min(samples, len(dataset))
    if benchmark.tokenizer is not None:
        model.to(usable_device(arguments.device))
    if name == _ZERO_SHOT:
        with _usage_errors(name, ValueError):
            fitting_encoder(getattr(model, "setok", model), networks)
    timed = answer_of(model, processor, source, config, arguments, ranks)
    with contextlib.ExitStack() as stack:
        kinds = (OSError, AnswerLogError, AnsweringError, FolderInUseError, ScoringError)
        stack.enter_context(_usage_errors(name, *kinds))
        stack.enter_context(locked(folder, "--out"))
        if arguments.judge_url is not None and name == _JUDGED:
            with _usage_errors(name, ValueError):
                benchmark = _judged(benchmark, folder, arguments)
        log = AnswerLog(folder, run)
        with (
            _usage_errors(name, TooManyBrokenError, hint="; --allow-missing goes on all the same"),
            _bar(name, number) as show,
        ):
            metrics = run_benchmark(
                benchmark,
                dataset,
                model,
                processor,
                config,
                log,
                folder,
                show,
                networks,
                timed,
                arguments.allow_missing,
                samples,
                name,
                split,
            )
    if metrics["broken"]:
        first = next(iter(log.broken.values()), "smaller than the grid of patches")
        text = f"{metrics['broken']} of {number} samples could not be judged, the first: {first}"
        print(f"setok eval: {name}: {text}", file=sys.stderr)
    if "cider" in metrics and "meteor" not in metrics:
        print(f"setok eval: {name}: no METEOR: {missing_meteor()}", file=sys.stderr)
    found = {"metrics": metrics, "figures": read_json(folder / FIGURES)}
    if timed.answers:
        speed = found["throughput"] = throughput(timed, arguments)
        print(
            f"setok eval: {name}: {timed.answers} answers in {timed.seconds:.1f} s, "
            f"{speed['answers_per_second']:.3g} a second, processes: {speed['processes']}",
            file=sys.stderr,
        )
    return found


def _print(name: str, metrics: dict[str, float], report: dict[str, Any]) -> None:
    """Print metrics with their intervals, and those left out."""
    for metric, value in metrics.items():
        ends = report["figures"][metric]["interval"]
        shown = "" if ends is None else f"[{ends[0]:.4g}, {ends[1]:.4g}]"
        print(f"{name:<18} {metric:<32} {value:<10.4g} {shown}".rstrip())
    for metric, reason in report["left_out"].items():
        print(f"{name:<18} {metric:<32} left out: {reason}")


def _open(
    name: str, benchmark: Benchmark, data: Path, split: str | None, arguments: argparse.Namespace
) -> Dataset:
    options = {} if split is None else {"split": split}
    if name in _DESCRIBED and arguments.descriptions is not None:
        options["descriptions"] = arguments.descriptions
    dataset = benchmark.open(data, **options)
    if not len(dataset):
        raise ValueError(f"expected at least one sample in {data}, got none")
    return dataset


@contextlib.contextmanager
def _usage_errors(name: str, *kinds: type[Exception], hint: str = "") -> Iterator[None]:
    """Turn errors of these kinds, and missing packages, into `UsageError`."""
    try:
        yield
    except ImportError as error:
        raise missing_package(error, "eval") from error
    except kinds as error:
        raise UsageError(f"{name}: {error}{hint}") from error


def _networks(arguments: argparse.Namespace) -> ImageNetworks:
    from setokim.evaluation.image_networks import ImageNetworks

    names = ("clip", "dino", "inception", "lpips", "text_encoder")
    paths = {name: getattr(arguments, name) for name in names}
    try:
        return ImageNetworks.load(**paths, device=arguments.device)
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('text_encoder', 'text-encoder', 1)}") from error


def _config(
    own: dict[str, Any], arguments: argparse.Namespace, defaults: SetokimGenerationConfig
) -> tuple[int | None, SetokimGenerationConfig]:
    """Return the number of samples and the options of generation.

    Args:
        own: values of the benchmark, which those of the command line replace.
        arguments: command line.
        defaults: options of the model, which those of the benchmark replace.

    Raises:
        TypeError, ValueError: a value does not fit.
    """
    options = _DEFAULTS | own | given_options(arguments)
    samples = options.pop("samples", None)
    if arguments.samples is not None:
        samples = arguments.samples
    if samples is not None and samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    return samples, defaults.replace(**options)


def _kept(samples: int | None, config: SetokimGenerationConfig) -> dict[str, Any]:
    """Return the settings that the answers depend on, with the same keys as in older folders."""
    usual = type(config)().options
    kept = {
        name: value
        for name, value in config.options.items()
        if name in _ALWAYS_KEPT or value != usual[name]
    }
    return {"samples": samples, **kept}


@contextlib.contextmanager
def _bar(name: str, number: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr; yield a function that takes the number of samples read."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=number)
        yield lambda done: bar.update(task, completed=done)
