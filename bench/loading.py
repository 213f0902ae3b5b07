"""Measure the throughput of data loading: decoding, resizing and tokenizing conversations.

    python bench/loading.py --workers 1 2 --out bench_out/loading.json

Photographs from scikit-image become JPEG files of 640 x 480, in the layout of LLaVA's
conversations. The first row is PIL alone, opening and resizing the files; the last column compares
with it. Each further row adds a step to the previous row. Worker processes have one thread each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from setok_bench.provenance import provenance
from setokim.data import Conversation, Guarded, GuardedCollator
from setokim.data.image_processing import load_image
from setokim.data.photographs import PHOTOGRAPHS, photograph
from setokim.data.readers.chats import Chats
from setokim.tokenizer.processing_setok import SetokProcessor
from setokim.vlm.processing_setokim import SetokimProcessor
from setokim.vlm.word_tokenizer import build_word_tokenizer

_SIZE = (640, 480)
# Input side of SigLIP-so400m-patch14-384.
_SIDE = 384
_BATCH = 16
_BASELINE = "PIL alone: decode, resize"
_TEXTS = ("what does the picture show?", "a thing that a camera saw.")


@dataclass(frozen=True)
class Rate:
    """Throughput of one step: its name, number of worker processes, images per second by round."""

    what: str
    workers: int
    rates: list[float]

    @property
    def median(self) -> float:
        """Median number of images per second."""
        return median(self.rates)


class Batches:
    """Collator of conversations into the model's pixels and token ids.

    Args:
        processor: tokenizer and image processor of the model.
    """

    def __init__(self, processor: SetokimProcessor):
        self._processor = processor

    def __call__(self, samples: Sequence[Conversation]) -> dict[str, torch.Tensor]:
        """Return the batch of some samples."""
        # A worker inherits the threads of its parent.
        torch.set_num_threads(1)
        return self._processor([sample.messages for sample in samples])


def write_conversations(folder: Path, number: int) -> Chats:
    """Write a data set of `number` photographs with a question about each.

    Args:
        folder: folder of the files.
        number: number of conversations; photographs repeat.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shots = [photograph(name).convert("RGB") for name in PHOTOGRAPHS]
    question, answer = _TEXTS
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    records = []
    for index in range(number):
        name = f"{index:06d}.jpg"
        shots[index % len(shots)].resize(_SIZE).save(folder / name, quality=90)
        records.append({"id": str(index), "image": name, "conversations": turns})
    (folder / "chats.json").write_text(json.dumps(records), encoding="utf-8")
    return Chats(folder, file="chats.json")


def measure(folder: Path, number: int, workers: Sequence[int], rounds: int) -> list[Rate]:
    """Measure the rates of decoding, of further steps, and of loading with worker processes.

    Args:
        folder: folder of the files.
        number: number of conversations in a round.
        workers: numbers of processes, each at least 1.
        rounds: number of measurements of each step, in turns.
    """
    dataset = write_conversations(folder, number)
    words = sorted({word.strip(".?") for text in _TEXTS for word in text.split()} | {".", "?"})
    pixels = SetokProcessor((_SIDE, _SIDE))
    collate = Batches(SetokimProcessor(build_word_tokenizer(words), pixels))
    paths = sorted(folder.glob("*.jpg"))

    def resize() -> None:
        for path in paths:
            with Image.open(path) as opened:
                opened.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)

    def decode() -> None:
        for path in paths:
            load_image(path)

    def preprocess() -> None:
        for path in paths:
            pixels(load_image(path))

    def load(processes: int) -> None:
        guarded = Guarded(dataset)
        loader = DataLoader(
            guarded, _BATCH, collate_fn=GuardedCollator(collate), num_workers=processes
        )
        seen = sum(len(batch["input_ids"]) for batch, _ in loader)
        assert seen == number

    jobs: dict[tuple[str, int], Callable[[], None]] = {
        (_BASELINE, 0): resize,
        ("decode", 0): decode,
        ("decode, resize, normalise", 0): preprocess,
        ("read a sample, all of it, batch", 0): lambda: load(0),
    }
    for processes in workers:
        jobs["read a sample, all of it, batch", processes] = lambda n=processes: load(n)
    found: dict[tuple[str, int], list[float]] = {key: [] for key in jobs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        decode()
        for _ in range(rounds):
            for key, job in jobs.items():
                start = time.perf_counter()
                job()
                found[key].append(number / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return [Rate(*key, rates) for key, rates in found.items()]


def ratio_to_baseline(rate: Rate, baseline: Rate) -> float:
    """Return the median ratio of a rate to the baseline's in the same round."""
    return median(one / base for one, base in zip(rate.rates, baseline.rates, strict=True))


def main() -> None:
    """Measure, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=256, help="conversations of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="COUNT")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a JSON file")
    arguments = parser.parse_args()
    if min(arguments.number, arguments.rounds, *arguments.workers) < 1:
        parser.error("--number, --rounds and --workers: expected at least 1")
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(Path(folder), arguments.number, arguments.workers, rounds=arguments.rounds)
    table = Table("what", "worker processes", "images per second (median)", "of PIL alone")
    ratios = [ratio_to_baseline(rate, rates[0]) for rate in rates]
    for rate, ratio in zip(rates, ratios, strict=True):
        table.add_row(rate.what, str(rate.workers), f"{rate.median:.0f}", f"{ratio:.2f}")
    Console().print(table)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        result = {
            **provenance(torch.device("cpu")),
            "picture": list(_SIZE),
            "side": _SIDE,
            "number": arguments.number,
            "rows": [
                asdict(rate) | {"median": rate.median, "of_pil": ratio}
                for rate, ratio in zip(rates, ratios, strict=True)
            ],
        }
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
