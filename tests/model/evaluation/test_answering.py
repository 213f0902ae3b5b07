"""Answers in many processes: the file of one process, whatever is killed."""

import random
from collections import deque

import pytest

from helpers.dying_answerer import DyingFactory
from helpers.tiny_setokim import build, picture
from setokim.corpus.engines import EngineOptions, PartFailure, UnbuiltWorkerError
from setokim.data import BrokenSampleError, ShapesTasks, TooManyBrokenError
from setokim.evaluation import batching
from setokim.evaluation.answer_log import AnswerLog
from setokim.evaluation.answering import (
    AnswererFactory,
    AnsweringError,
    Timed,
    in_processes,
    responses_of,
)
from setokim.evaluation.benchmarks import BENCHMARKS
from setokim.evaluation.run import run_benchmark
from setokim.vlm.generation_config import SetokimGenerationConfig

CONFIG = SetokimGenerationConfig(max_new_tokens=4, sampling_steps=1)
TWO = EngineOptions(workers=2)


def shuffled_engine(seed, failing=None):
    """An engine in this process that finishes parts in a random order, and repeats some at last."""

    def run_parts(factory, parts, options):
        worker, order = factory("cpu"), random.Random(seed)
        taken, repeated = [], deque()
        while True:
            for part in parts:
                (repeated if order.random() < 0.2 else taken).append(part)
                run_parts.most = max(run_parts.most, len(taken) + len(repeated))
                if len(taken) >= options.local_workers:
                    break
            if not taken and not repeated:
                return
            part = taken.pop(order.randrange(len(taken))) if taken else repeated.popleft()
            dies = part.number == failing
            yield part, PartFailure("was ended by SIGKILL") if dies else worker(part)

    run_parts.most = 0
    return run_parts


class Holed(ShapesTasks):
    """Conversations of which every ninth cannot be read."""

    def __getitem__(self, index):
        if index % 9 == 4:
            raise BrokenSampleError(f"sample {index}", "gone")
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture(scope="module")
def model(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in built:
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def evaluate(built, tmp_path, monkeypatch):
    """Return a function that writes a folder of results of 40 samples in batches of 3."""
    monkeypatch.setattr(batching, "BATCH_SIZE", 3)

    def run(name, answer=serial, kind=ShapesTasks, **options):
        dataset = kind(0, length=40, size=16, objects=(2, 2), turns=2)
        folder = tmp_path / name
        log = AnswerLog(folder, {})
        arguments = (CONFIG, log, folder)
        run_benchmark(
            *(BENCHMARKS["shapes-world"], dataset, *built, *arguments), answer=answer, **options
        )
        return folder

    return run


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def said(batch):
    """Answers, images and masks that depend on the whole batch, as rounding does."""
    numbers = [one.number for one in batch.prompts]
    for index, one in zip(batch.indices, batch.prompts, strict=True):
        draws = one.part in ("generate", "edit")
        image = picture(sum(numbers)).resize((32, 32)) if draws else None
        mask = None if one.target is None else one.target & (one.number % 2 == 0)
        yield f"{index} of {numbers}", image, mask


def serial(batches):
    for batch in batches:
        yield batch, responses_of(batch, list(said(batch)))


def fake(device):
    return lambda batch: {"said": list(said(batch))}


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_completion_gives_the_same_file(seed, evaluate):
    one = files_of(evaluate("one", kind=Holed, allow_missing=True))
    assert b'"broken": "gone"' in one["predictions.jsonl"] and len(one) > 8
    engine = shuffled_engine(seed)
    answer = in_processes(fake, TWO, engine)
    assert files_of(evaluate("many", answer, Holed, allow_missing=True)) == one
    assert 2 <= engine.most <= 4


def test_too_many_broken_samples_leave_the_same_file(evaluate, tmp_path):
    for name, answer in (("one", serial), ("many", in_processes(fake, TWO, shuffled_engine(0)))):
        with pytest.raises(TooManyBrokenError):
            evaluate(name, answer, Holed)
    found = files_of(tmp_path / "one")
    assert files_of(tmp_path / "many") == found and "metrics.json" not in found
    assert found["predictions.jsonl"].count(b'"broken"') == 4


def test_a_batch_that_always_kills_keeps_earlier_answers(evaluate, tmp_path):
    answer = in_processes(fake, TWO, shuffled_engine(1, failing=5))
    with pytest.raises(AnsweringError, match="batch 5: was ended by SIGKILL"):
        evaluate("many", answer)
    kept = (tmp_path / "many" / "predictions.jsonl").read_bytes()
    assert 0 < kept.count(b"\n") <= 15
    whole = files_of(evaluate("one"))
    assert whole["predictions.jsonl"].startswith(kept)
    # It resumes in one process, and in several.
    assert files_of(evaluate("many")) == whole


def test_a_log_cut_anywhere_is_completed_to_the_same_file(evaluate, tmp_path):
    whole = files_of(evaluate("one"))
    data = whole["predictions.jsonl"]
    for seed in range(5):
        cut = random.Random(seed).randrange(len(data))
        folder = tmp_path / f"cut{seed}"
        folder.mkdir()
        (folder / "run.json").write_bytes(whole["run.json"])
        (folder / "predictions.jsonl").write_bytes(data[:cut])
        for path in (tmp_path / "one" / "pictures").iterdir():
            (folder / "pictures").mkdir(exist_ok=True)
            (folder / "pictures" / path.name).write_bytes(path.read_bytes())
        answer = in_processes(fake, EngineOptions(workers=seed + 1), shuffled_engine(seed))
        assert files_of(evaluate(folder.name, answer)) == whole


@pytest.mark.slow
def test_a_killed_process_is_replaced(model, evaluate, tmp_path):
    """Real processes: the second one or the first dies at a batch, which another one answers."""
    flag = tmp_path / "died"
    factory = DyingFactory(AnswererFactory(model, CONFIG, False, 1), 2, flag)
    timed = Timed(in_processes(factory, TWO))
    many = files_of(evaluate("many", timed))
    assert flag.exists() and many == files_of(evaluate("one", None))
    assert timed.answers == many["predictions.jsonl"].count(b"\n") and timed.seconds > 0


@pytest.mark.parametrize("kind", [UnbuiltWorkerError, KeyError])
def test_workers_that_cannot_be_built(kind, evaluate):
    def run_parts(factory, parts, options):
        raise kind("worker: expected a process that builds it")
        yield

    expected = AnsweringError if kind is UnbuiltWorkerError else kind
    with pytest.raises(expected, match="expected a process that builds it"):
        evaluate("many", in_processes(fake, TWO, run_parts))
