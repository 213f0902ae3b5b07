"""Runs over a corpus: shards, resume, refusals, failures."""

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from helpers.serial_engine import serial_engine  # noqa: F401
from helpers.stored import token_rows, write_token_folder
from helpers.tiny_folders import VISION
from setok_bench.corpora import write_corpus
from setokim.corpus import run as run_module
from setokim.corpus import worker as worker_module
from setokim.corpus.engines import PartFailure
from setokim.corpus.run import TooManyFailuresError, tokenize_corpus
from setokim.corpus.settings import (
    CorpusSettings,
    FailureLimit,
    RunSettings,
    SourceSettings,
    TokenizerSettings,
)
from setokim.data.archives import SourceError
from setokim.data.conversations import images_of
from setokim.data.tokens.dataset import TokenDataset
from setokim.data.tokens.layout import KINDS, Layout
from setokim.data.tokens.manifest import TokenFolderError
from setokim.utils.folder_lock import FolderInUseError, locked

pytestmark = pytest.mark.usefixtures("serial_engine")
ALL = FailureLimit.parse("100%")
ALL_FEATURES = Layout(("features",), "fp32")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(
        tmp_path_factory.mktemp("corpus"), images=24, shards=4, broken=4, sides=(24, 40)
    )


def tokenize(source, out, grid=(6, 6), samples=None, limit=ALL, verify=False, show=None, **layout):
    what, dtype = layout.pop("what", ("tokens",)), layout.pop("dtype", "bf16")
    settings = CorpusSettings(
        SourceSettings((str(source),), shard_size=5, samples=samples),
        TokenizerSettings(encoder="patch-statistics", grid=grid),
        Layout(what, dtype),
        **{"batch_size": 4} | layout,
    )
    run = RunSettings(out, device="cpu", limit=limit, verify=verify)
    return tokenize_corpus(settings, run, show or (lambda _: None))


def contents(folder):
    """Bytes of all files but the metrics and the lock."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name != "metrics.jsonl" and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def folder_of(corpus):
    return corpus.shards[0].parent


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_every_readable_image_is_stored_once(corpus, folder_of, tmp_path, format):
    progress = tokenize(folder_of, tmp_path / "out", what=KINDS, dtype="fp32", format=format)
    dataset = TokenDataset(tmp_path / "out")
    assert (progress.done, progress.images, progress.broken) == (4, 20, 4)
    assert len(dataset) == 20
    broken = [json.loads(line) for line in (tmp_path / "out" / "broken.jsonl").open()]
    assert {one["key"] for one in broken} == set(corpus.broken)
    assert all(one["reason"] for one in broken)
    for index in range(20):
        sample = dataset[index]
        image = sample.image
        assert image.grid == (1, 6, 6)
        assert int(image.sizes.sum()) == 36
        assert len(image.labels.unique()) == len(image.sizes)
        # The token is the mean of the features with its label.
        for label in range(len(image.sizes)):
            mean = image.features[image.labels == label].mean(0)
            assert (mean - image.tokens[label]).abs().max() < 1e-5
    assert sum(bool(dataset[index].caption) for index in range(20)) > 12


def test_a_rerun_does_nothing(folder_of, tmp_path):
    tokenize(folder_of, tmp_path / "out")
    before = contents(tmp_path / "out")
    progress = tokenize(folder_of, tmp_path / "out")
    assert (progress.new_parts, progress.done) == (0, 4)
    assert contents(tmp_path / "out") == before


def test_a_stopped_run_goes_on(folder_of, tmp_path):
    tokenize(folder_of, tmp_path / "whole")

    def stop(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(folder_of, tmp_path / "out", show=stop)
    with pytest.raises(TokenFolderError, match=r"^path: expected all 4 shards, got 2 in "):
        TokenDataset(tmp_path / "out")
    assert len(TokenDataset(tmp_path / "out", unfinished=True)) < 20
    # What a killed process leaves.
    (tmp_path / "out" / ".unfinished-00.parquet").write_bytes(b"half")
    with (tmp_path / "out" / "shards.jsonl").open("ab") as file:
        file.write(b'{"part": 3, "fi')
    progress = tokenize(folder_of, tmp_path / "out")
    assert (progress.new_parts, progress.done) == (2, 4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".unfinished-*"))


def test_shards_that_are_gone_or_cut_are_made_again(folder_of, tmp_path):
    out = tmp_path / "out"
    tokenize(folder_of, out)
    before = contents(out)
    (out / "000001.parquet").unlink()
    (out / "000002.parquet").write_bytes(before["000002.parquet"][:-1])
    with pytest.raises(TokenFolderError, match=r"000001.parquet: expected \d+ bytes, got no file"):
        TokenDataset(out)
    assert tokenize(folder_of, out).new_parts == 2
    assert contents(out) == before
    # Only the checksum tells this one.
    damaged = bytearray(before["000003.parquet"])
    damaged[100] ^= 1
    (out / "000003.parquet").write_bytes(damaged)
    assert tokenize(folder_of, out).new_parts == 0
    assert tokenize(folder_of, out, verify=True).new_parts == 1
    assert contents(out) == before


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"dtype": "fp16"}, "layout.dtype"),
        ({"what": ("tokens", "labels")}, "layout.what"),
        ({"format": "webdataset"}, "format"),
        ({"batch_size": 5}, "settings.batch_size"),
        ({"precision": "bf16"}, "settings.precision"),
        ({"grid": (5, 5)}, "tokenizer.fingerprint.encoder"),
    ],
)
def test_a_folder_of_other_settings_is_refused(folder_of, tmp_path, change, names):
    tokenize(folder_of, tmp_path / "out")
    before = contents(tmp_path / "out")
    message = r"^--out: expected the settings and the model of .*manifest.json, got others of "
    with pytest.raises(TokenFolderError, match=message + names):
        tokenize(folder_of, tmp_path / "out", **change)
    assert contents(tmp_path / "out") == before


def test_another_source_is_refused(folder_of, tmp_path):
    tokenize(folder_of, tmp_path / "out")
    write_corpus(tmp_path / "other", images=8, shards=4, sides=(24, 40))
    with pytest.raises(TokenFolderError, match=r"got others of plan$"):
        tokenize(tmp_path / "other", tmp_path / "out")


def test_a_folder_of_something_else_is_refused(folder_of, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    expected = (
        r"^--out: expected an empty folder, or one with manifest.json, got .* with photo.jpg$"
    )
    with pytest.raises(TokenFolderError, match=expected):
        tokenize(folder_of, tmp_path)


def test_a_second_process_is_refused(folder_of, tmp_path):
    with (
        locked(tmp_path / "out"),
        pytest.raises(
            FolderInUseError, match=r"^--out: expected a folder that no process writes into"
        ),
    ):
        tokenize(folder_of, tmp_path / "out")


def test_too_many_brokenimages_of(folder_of, tmp_path):
    with pytest.raises(TooManyFailuresError) as caught:
        tokenize(folder_of, tmp_path / "out", limit=FailureLimit(3))
    assert str(caught.value).startswith(
        "--max-failures: expected at most 3 broken samples, got 4 of "
    )
    assert len((tmp_path / "out" / "broken.jsonl").read_text().splitlines()) == 4
    # The default is a fraction, which is judged at the end of a small corpus.
    with pytest.raises(
        TooManyFailuresError, match=r"at most 0.01 of all broken samples, got 4 of 2"
    ):
        tokenize(folder_of, tmp_path / "out", limit=FailureLimit())
    assert len((tmp_path / "out" / "broken.jsonl").read_text().splitlines()) == 4
    assert tokenize(folder_of, tmp_path / "out", limit=FailureLimit(4)).new_parts == 0


@pytest.mark.parametrize(
    ("text", "limit"),
    [("0", FailureLimit(0)), ("12", FailureLimit(12)), ("2.5%", FailureLimit(fraction=0.025))],
)
def test_limits_are_parsed(text, limit):
    assert FailureLimit.parse(text) == limit


@pytest.mark.parametrize("text", ["", "-1", "x", "101%", "1.5", "%"])
def test_limits_that_are_none(text):
    with pytest.raises(ValueError, match=r"^expected a number or a percentage"):
        FailureLimit.parse(text)


def test_an_archive_that_is_missing_fails_alone(corpus, tmp_path):
    source = tmp_path / "tars"
    shutil.copytree(corpus.shards[0].parent, source)
    progress = tokenize(source, tmp_path / "whole")
    gone = source / corpus.shards[2].name
    data = gone.read_bytes()

    def remove(progress):
        if not progress.done:
            gone.unlink()

    progress = tokenize(source, tmp_path / "out", show=remove)
    assert (progress.done, list(progress.failed)) == (3, [2])
    assert gone.name in progress.failed[2]
    gone.write_bytes(data)
    progress = tokenize(source, tmp_path / "out")
    assert (progress.done, progress.failed) == (4, {})
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_archive_that_is_cut_off_keeps_what_is_whole(corpus, tmp_path):
    source = tmp_path / "tars"
    shutil.copytree(corpus.shards[0].parent, source)
    cut = source / corpus.shards[0].name
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    progress = tokenize(source, tmp_path / "out")
    assert (progress.done, progress.failed) == (4, {})
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "broken.jsonl").open()]
    assert [reason for reason in reasons if "truncated or damaged" in reason]


def test_a_lost_connection_is_tried_again(folder_of, tmp_path, monkeypatch):
    calls = []
    real = worker_module.process

    def flaky(entries, *rest):
        calls.append(0)
        if len(calls) == 1:
            error = worker_module.UnreadableSourceError("connection lost")
            raise error from SourceError("connection lost")
        real(entries, *rest)

    monkeypatch.setattr(worker_module, "process", flaky)
    monkeypatch.setattr(worker_module, "_PAUSE", 0)
    assert tokenize(folder_of, tmp_path / "out").failed == {}
    assert len(calls) == 5


def test_a_part_that_kills_its_process_fails_alone(folder_of, tmp_path, monkeypatch):
    def run_parts(factory, parts, options):
        worker = factory("cpu")
        (tmp_path / "out" / ".unfinished-1.parquet").write_bytes(b"half")
        for job in parts:
            yield job, PartFailure("was killed by signal 9") if job.number == 1 else worker(job)

    monkeypatch.setattr(run_module, "find_engine", lambda _: run_parts)
    progress = tokenize(folder_of, tmp_path / "out")
    assert progress.done == 3
    assert progress.failed[1].endswith("shard-00001.tar: was killed by signal 9")
    assert not list((tmp_path / "out").glob(".unfinished-*"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    assert lines[1]["error"] == "was killed by signal 9"
    assert lines[-1]["images_per_second"] > 0


def test_another_model_on_a_worker_is_refused(folder_of, tmp_path, monkeypatch):
    real, other = run_module.build_tokenizer, TokenizerSettings(None, "patch-statistics", (5, 5))
    monkeypatch.setattr(
        run_module,
        "build_tokenizer",
        lambda settings, device: real(dataclasses.replace(settings, tokenizer=other), device),
    )
    with pytest.raises(ValueError, match=r"^model: expected the tokenizer .* of the run, got "):
        tokenize(folder_of, tmp_path / "out")


def test_conversations_come_back(tmp_path):
    path = tmp_path / "data.yaml"
    tasks = {"vqa": 1, "edit": 1, "segment": 1, "text": 1}
    data = {"kind": "shapes-tasks", "size": 32, "seed": 5, "options": {"tasks": tasks, "scenes": 4}}
    path.write_text(json.dumps(data))
    progress = tokenize(path, tmp_path / "out", samples=12)
    dataset = TokenDataset(tmp_path / "out")
    from setokim.data import build_dataset

    source = build_dataset(**data["options"], **{n: v for n, v in data.items() if n != "options"})
    # Recurring images are stored once in a shard.
    assert progress.samples == 12
    assert progress.images < sum(len(images_of(source[i])) for i in range(12))
    for index in range(12):
        found, wanted = dataset[index], source[index]
        assert (found.task, found.facts, found.source) == (
            wanted.task,
            _plain(wanted.facts),
            wanted.source,
        )
        assert [_texts(m) for m in found.messages] == [_texts(m) for m in wanted.messages]
        assert all((a == b).all() for a, b in zip(found.masks, wanted.masks, strict=True))
        for own, other in zip(found.regions, wanted.regions, strict=True):
            assert (own.labels == other.labels).all()
            assert own.names == other.names
        sizes = [(one.height, one.width) for one in images_of(found)]
        assert sizes == [(one.height, one.width) for one in images_of(wanted)]


def test_half_precision_changes_the_computation_only(folder_of, tmp_path):
    folder = tmp_path / "siglip"
    config = SiglipVisionConfig(**VISION)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SiglipVisionModel(config).save_pretrained(folder)
    tokenizer, found = TokenizerSettings(encoder=str(folder)), []
    for precision in ("fp32", "bf16", "fp32"):
        out = tmp_path / str(len(found))
        source = SourceSettings((str(folder_of),))
        settings = CorpusSettings(source, tokenizer, ALL_FEATURES, precision=precision)
        tokenize_corpus(settings, RunSettings(out, device="cpu", limit=ALL))
        found.append(torch.stack([one.image.features for one in TokenDataset(out)]))
    assert torch.equal(found[0], found[2])
    assert 0 < (found[0] - found[1]).abs().max() < 0.05 * found[0].abs().max()


def test_the_number_of_open_shards_is_bounded(tmp_path, monkeypatch):
    from setokim.data.tokens import dataset as module

    monkeypatch.setattr(module, "_MAX_OPEN", 2)
    rows = [token_rows(2, seed=10 * i) for i in range(5)]
    dataset = TokenDataset(write_token_folder(tmp_path / "t", rows))
    for index in (0, 9, 4, 2, 0, 8):
        image = rows[index // 2][index % 2].image
        assert (dataset[index].image.tokens == image.tokens).all()
        assert len(dataset._open) <= 2


def _plain(value):
    return json.loads(json.dumps(value))


def _texts(message):
    return message["role"], [part.get("text", part["type"]) for part in message["content"]]
