"""Processes that answer for `setok eval`: this one, those of `--workers`, or those of torchrun."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.device import usable_device
from setok_cli.errors import UsageError
from setokim.cli._inference import load_model, model_folder

if TYPE_CHECKING:
    from setokim.evaluation.answering import Timed
    from setokim.evaluation.ranks import Ranks
    from setokim.vlm.generation_config import SetokimGenerationConfig
    from setokim.vlm.modeling_setokim import SetokimModel
    from setokim.vlm.processing_setokim import SetokimProcessor


def run_in_processes(
    run: Callable[[argparse.Namespace, Ranks | None], int], arguments: argparse.Namespace
) -> int:
    """Run a command, on rank 0 alone if torchrun has started several processes.

    Args:
        run: the command, which takes the other ranks; None without any.
        arguments: command line; a device of "cuda" becomes the one of this rank.

    Returns:
        The exit code, on each rank that of rank 0.

    Raises:
        UsageError: an argument does not fit, or as `run`.
    """
    from setokim.evaluation.answering import answer_batch
    from setokim.evaluation.ranks import Ranks, is_launched, joined, serve
    from setokim.utils.distributed import rank

    if not is_launched():
        return run(arguments, None)
    if arguments.workers > 1:
        raise UsageError(f"--workers: expected 1 under torchrun, got {arguments.workers}")
    with joined() as index:
        if arguments.device == "cuda":
            arguments.device = f"cuda:{index}"
        if rank():
            source = model_folder(arguments)
            parts = load_model(source, arguments.device, arguments.trust_remote_code)
            return serve(partial(answer_batch, *parts))
        ranks, code = Ranks(), 2
        try:
            code = run(arguments, ranks)
        finally:
            ranks.end(code)
        return code


def answer_of(
    model: SetokimModel,
    processor: SetokimProcessor,
    source: Path,
    config: SetokimGenerationConfig,
    arguments: argparse.Namespace,
    ranks: Ranks | None,
) -> Timed:
    """Return the function that answers batches of a benchmark.

    Args:
        model: model of this process.
        processor: tokenizer and image processor of the model.
        source: folder of the model, from which other processes load it.
        config: options of generation.
        arguments: command line.
        ranks: ranks of torchrun; None without any.

    Raises:
        UsageError: the device cannot be used.
    """
    import torch

    from setokim.corpus.engines import EngineOptions
    from setokim.evaluation.answering import AnswererFactory, Timed, answer_batch, in_processes
    from setokim.evaluation.run import in_this_process

    if ranks is not None:
        return Timed(ranks.using(partial(answer_batch, model, processor), config))
    if arguments.workers == 1:
        return Timed(in_this_process(model, processor, config))
    usable_device(arguments.device)
    # The number of this process, in which the same answers would be rounded the same.
    threads = torch.get_num_threads()
    devices = (arguments.device,)
    if arguments.device == "cuda":
        devices = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    factory = AnswererFactory(source.resolve(), config, arguments.trust_remote_code, threads)
    options = EngineOptions(arguments.workers, devices, threads)
    return Timed(in_processes(factory, options))


def throughput(timed: Timed, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return answers, seconds, answers a second, and the number of processes."""
    from setokim.utils.distributed import world_size

    return {
        "answers": timed.answers,
        "seconds": timed.seconds,
        "answers_per_second": timed.answers / timed.seconds if timed.seconds else None,
        "processes": max(arguments.workers, world_size()),
    }
