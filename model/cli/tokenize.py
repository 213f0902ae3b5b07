"""`setok tokenize`: a corpus of images in, shards of visual tokens out."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError, missing_package
from setok_cli.options import (
    add_config_options,
    add_trust_option,
    grid_size,
    positive_count,
    read_config,
)
from setok_cli.output import add_json_option, print_json, print_to_stderr

if TYPE_CHECKING:
    from setokim.corpus.run import Progress
    from setokim.corpus.settings import CorpusSettings, RunSettings

_ENGINES = ("local", "ray")
_FORMATS = ("parquet", "webdataset")
_DTYPES = ("bf16", "fp16", "fp32")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "tokenize",
        help="turn a corpus of images into shards of visual tokens",
        description="Writes a shard of tokens for each part of the source, a manifest with "
        "checksums, broken.jsonl and metrics.jsonl. A run that was killed resumes with the same "
        "command. `data: {kind: tokens, path: DIR}` trains from the folder. docs/tokens.md has "
        "the files, docs/scale.md what a corpus costs.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder of images, tar archives or parquet files; name, glob or URL of such files, "
        "also with braces as in webdataset, 'https://host/{000..127}.tar'; hub:NAME or a saved "
        "folder of a Hugging Face data set; or the YAML file of a run or a data set",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of shards")
    _add_tokenizer_options(parser)
    stored = parser.add_argument_group("what is stored")
    stored.add_argument(
        "--what",
        type=lambda text: tuple(text.split(",")),
        default=("tokens",),
        metavar="LIST",
        help="of each image, separated by commas: tokens, labels (of each patch), masks (soft), "
        "features (of the encoder); default: tokens",
    )
    stored.add_argument("--dtype", choices=_DTYPES, default="bf16", help="default: %(default)s")
    stored.add_argument(
        "--format", choices=_FORMATS, default="parquet", help="default: %(default)s"
    )
    _add_source_options(parser)
    _add_run_options(parser)
    add_json_option(parser)
    add_config_options(parser)
    parser.set_defaults(run=run)


def _add_tokenizer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tokenizer")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--model",
        metavar="DIR",
        help="folder of a SeTok or SeTokim model, or small-world, the embedded one",
    )
    which.add_argument(
        "--encoder",
        metavar="NAME|PATH",
        help="patch-statistics, or a vision model of Hugging Face, whose features are clustered "
        "by the options below and merged",
    )
    group.add_argument(
        "--grid", type=grid_size, metavar="HxW", help="with --encoder: rows and columns of patches"
    )
    group.add_argument(
        "--merge",
        choices=("hard", "soft"),
        default="hard",
        help="with --encoder: mean of a cluster's patches, or weighted by its mask (default: hard)",
    )
    add_trust_option(group)


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("source")
    group.add_argument(
        "--shard-size",
        type=positive_count,
        default=1000,
        metavar="COUNT",
        help="samples of a shard; a tar archive always makes one (default: %(default)s)",
    )
    group.add_argument(
        "--samples",
        type=positive_count,
        metavar="COUNT",
        help="first samples of the data set of a YAML file",
    )
    group.add_argument(
        "--section",
        choices=("data", "held_out"),
        default="data",
        help="data set of a run's YAML file (default: %(default)s)",
    )
    group.add_argument("--split", default="train", help="of a hub data set (default: %(default)s)")
    for name in ("image", "caption"):
        group.add_argument(
            f"--{name}-column", metavar="NAME", help="column in parquet files and hub data sets"
        )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--engine",
        choices=_ENGINES,
        default="local",
        help="processes on this machine, or actors of Ray Data (default: %(default)s)",
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="cluster to join, such as auto; without it --engine ray starts one here",
    )
    group.add_argument(
        "--workers",
        type=positive_count,
        metavar="COUNT",
        help="processes (default: one for each GPU, or core without any)",
    )
    group.add_argument(
        "--decoders",
        type=int,
        metavar="COUNT",
        help="threads of each process that decode images (default: the cores left by a GPU's "
        "process; 0 on a CPU)",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device of the tokenizer (default: CUDA where there is one)",
    )
    group.add_argument(
        "--batch-size",
        type=positive_count,
        default=32,
        metavar="COUNT",
        help="images tokenized together (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="number format of the tokenizer; bf16 is autocast (default: %(default)s)",
    )
    group.add_argument(
        "--max-failures",
        default="1%",
        metavar="COUNT|PERCENT",
        help="broken images allowed, such as 100 or 5%%; more end the run (default: 1%%)",
    )
    group.add_argument(
        "--verify",
        action="store_true",
        help="compare the checksums of finished shards first, and make damaged ones again",
    )


def run(arguments: argparse.Namespace) -> int:
    """Tokenize a corpus; return 1 if a part of the source could not be read, else 0.

    Raises:
        UsageError: an argument does not fit, or too many images are broken.
    """
    try:
        from setokim.corpus.run import TooManyFailuresError, tokenize_corpus
        from setokim.utils.file_names import printable_name
    except ImportError as error:
        raise missing_package(error, "cli,model,tokenize") from error
    with _progress() as show, print_to_stderr(arguments.json):
        try:
            progress = tokenize_corpus(*_settings(arguments), show)
        except ImportError as error:
            raise missing_package(error, "tokenize") from error
        except (TooManyFailuresError, ValueError) as error:
            raise UsageError(str(error)) from error
    out = printable_name(arguments.out)
    if arguments.json:
        print_json(_document(progress, out))
    else:
        _print_summary(progress, out)
    return 1 if progress.failed else 0


def _settings(arguments: argparse.Namespace) -> tuple[CorpusSettings, RunSettings]:
    from setokim.corpus.settings import (
        CorpusSettings,
        FailureLimit,
        RunSettings,
        SourceSettings,
        TokenizerSettings,
    )
    from setokim.data.tokens.layout import KINDS, Layout

    if arguments.model is not None and arguments.grid is not None:
        raise UsageError("--grid: expected none with --model, which has its own, got one")
    try:
        limit = FailureLimit.parse(arguments.max_failures)
    except ValueError as error:
        raise UsageError(f"--max-failures: {error}") from error
    if arguments.ray_address is not None and arguments.engine != "ray":
        raise UsageError(f"--ray-address: expected --engine ray, got {arguments.engine}")
    if arguments.decoders is not None and arguments.decoders < 0:
        raise UsageError(f"--decoders: expected at least 0, got {arguments.decoders}")
    what = arguments.what
    ordered = tuple(name for name in KINDS if name in what)
    corpus = CorpusSettings(
        SourceSettings(
            tuple(arguments.sources),
            arguments.shard_size,
            arguments.samples,
            arguments.image_column,
            arguments.caption_column,
            arguments.split,
            arguments.section,
        ),
        TokenizerSettings(
            arguments.model,
            arguments.encoder,
            arguments.grid,
            read_config(arguments),
            arguments.merge,
            arguments.trust_remote_code,
        ),
        # Unknown names last, where they are refused.
        Layout((*ordered, *(name for name in what if name not in KINDS)), arguments.dtype),
        arguments.format,
        arguments.batch_size,
        arguments.precision,
    )
    run_settings = RunSettings(
        arguments.out,
        arguments.engine,
        arguments.workers,
        arguments.decoders,
        arguments.device,
        limit,
        arguments.ray_address,
        arguments.verify,
    )
    return corpus, run_settings


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows the progress in the terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("Tokenizing"), BarColumn(), TextColumn("{task.fields[text]}")
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, text="starting")

        def show(progress: Progress) -> None:
            bar.update(task, total=progress.parts, completed=progress.done, text=_text(progress))
            bar.refresh()

        yield show


def _text(progress: Progress) -> str:
    parts = [f"{progress.done}/{progress.parts} shards", f"{progress.images:,} images"]
    if progress.new_parts:
        images, tokens = progress.new_images, progress.new_tokens
        seconds = max(progress.seconds, 1e-9)
        parts += [f"{images / seconds:,.1f} images/s", f"{tokens / seconds:,.0f} tokens/s"]
        parts.append(f"{progress.remaining_seconds:,.0f} s left")
    if progress.broken:
        parts.append(f"{progress.broken} broken")
    if progress.failed:
        parts.append(f"{len(progress.failed)} parts failed")
    return " · ".join(parts)


def _document(progress: Progress, out: str) -> dict[str, Any]:
    import dataclasses

    values = dataclasses.asdict(progress)
    values["failed"] = [{"part": n, "reason": text} for n, text in progress.failed.items()]
    return values | {"out": out}


def _print_summary(progress: Progress, out: str) -> None:
    import sys

    for number, reason in sorted(progress.failed.items()):
        print(f"setok tokenize: part {number}: {reason}", file=sys.stderr)
    per_image = progress.tokens / progress.images if progress.images else 0.0
    print(
        f"{progress.done} of {progress.parts} shards in {out}: {progress.images:,} images, "
        f"{progress.tokens:,} tokens ({per_image:.1f} an image), {progress.broken} broken"
    )
    if progress.failed:
        print("The same command tries the failed parts again.")
