"""Entries of decoders that read all visual tokens or clusters, at a small shape."""

import dataclasses

import pytest
import torch

from helpers import bench_fakes as fakes
from setok_bench import memory, suites, tables, vlm, work
from setok_bench.registry import Case, Job
from setok_bench.runner import measure_row
from setok_bench.work import Shape, Work

pytest.importorskip("transformers")
CPU = torch.device("cpu")
TINY = vlm.Decoder("tiny", 2, 4, 2, 24, 40, 12, True)
SHAPE = Shape(2, 50, 16, k=3, dtype=torch.float32)
ALL = [implementation.name for implementation in vlm.VLM_PREFILL.implementations]


@pytest.fixture(autouse=True)
def decoder(monkeypatch):
    monkeypatch.setitem(vlm.DECODERS, 16, TINY)
    yield
    vlm._model.cache_clear()


@pytest.mark.parametrize("entry", [vlm.VLM_PREFILL, vlm.VLM_ANSWER], ids=lambda entry: entry.op)
def test_every_implementation_is_right_and_timed(entry):
    found = measure_row(Job(entry, (SHAPE,)), SHAPE, fakes.SETTINGS, fakes.RATES)
    contenders = found["contenders"]
    assert {c["status"] for c in contenders.values()} == {"timed"}
    rates = ["all_tokens", "rate_0.5", "rate_0.25", "rate_0.1"]
    shares = ["clustering_0.5", "clustering_0.25", "clustering_0.1"]
    assert list(contenders) == rates + (shares if entry is vlm.VLM_PREFILL else [])


def implementation(name):
    return vlm.VLM_PREFILL.only((name,)).implementations[0]


@pytest.mark.parametrize("name", ALL)
def test_the_checks_catch_a_wrong_token(name):
    case = Case(SHAPE, CPU)
    made = implementation(name)
    right = made.make(case)()
    made.check(case, right)
    if isinstance(right, vlm.Prefilled):
        wrong = [dataclasses.replace(right, logits=right.logits * 1.01)]
        wrong += [dataclasses.replace(right, cache=(right.cache[0][:, :, 1:], *right.cache[1:]))]
    else:
        out, merged = right
        labels = out.labels.clone()
        labels[1, 7] = (labels[1, 7] + 1) % int(out.counts[1])
        fewer = dataclasses.replace(out, counts=out.counts - 1)
        wrong = [(out, merged + 1e-3), (dataclasses.replace(out, labels=labels), merged)]
        wrong += [(fewer, merged)]
    for result in wrong:
        with pytest.raises(AssertionError):
            made.check(case, result)


@pytest.mark.parametrize(("rate", "kept"), [(None, 50), (0.5, 25), (0.25, 13), (0.1, 5)])
def test_the_cache_has_the_tokens_that_are_kept(rate, kept):
    prefilled = vlm.make_prefill(rate)(Case(SHAPE, CPU))()
    length = kept + vlm.TEXT_TOKENS
    # Two heads of four channels.
    assert {tuple(part.shape) for part in prefilled.cache} == {(2, 2, length, 4)}
    logits = prefilled.logits.numel() * 4
    assert memory.held_bytes(prefilled) == vlm.cache_bytes(SHAPE, length) + logits


def test_work_by_hand():
    # Queries and outputs of 16 x 16, keys and values of 16 x 8, three matrices of 16 x 24.
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24
    assert vlm.weights_of(16) == 2 * layer + 16 * 40
    length = 50 + vlm.TEXT_TOKENS
    attention = 2 * length * 16
    flops = 2 * (length * 2 * (2 * layer + attention) + 2 * 16 * 40)
    cache = 2 * 2 * 2 * 8 * length * 4
    moved = 4 * (vlm.weights_of(16) + 2 * length * 16) + cache
    assert vlm.cache_bytes(SHAPE, length) == cache
    assert vlm.prefill_work(SHAPE) == Work(moved, flops)
    later = vlm.answer_work(SHAPE)
    assert later.flops - flops == 31 * 2 * 2 * vlm.weights_of(16)


def test_clustering_is_part_of_the_work_of_a_prefill():
    shape = dataclasses.replace(SHAPE, clusters=13)
    features = dataclasses.replace(shape, features=12)
    expected = work.cluster_tokens(features) + work.merge(shape, soft=False)
    assert vlm.clustering_work(SHAPE, 0.25) == expected
    shorter = vlm.prefill_work(dataclasses.replace(SHAPE, tokens=13))
    assert vlm.prefill_work(SHAPE, 0.25) == shorter + expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_suite_names_both_models_and_their_scale(device):
    suite = suites.get_suite("vlm", torch.device(device))
    names = {job.group for job in suite.jobs}
    assert len(names) == 2 and {name.partition(",")[0] for name in names} == {
        "LLaVA-1.5-7B",
        "Qwen2.5-VL-7B",
    }
    assert all(("full size" in name) == (device == "cuda") for name in names)
    for job in suite.memory:
        suites.ENTRIES[job.op].only((job.implementation,))
    assert {job.implementation for job in suite.memory} == {
        name for name in ALL if not name.startswith("clustering")
    }


def test_scaled_decoders_keep_the_ratios():
    for full, small in ((4096, 512), (3584, 448)):
        big, little = vlm.DECODERS[full], vlm.DECODERS[small]
        assert full / small == big.hidden / little.hidden == big.encoder / little.encoder == 8
        assert big.vocabulary / little.vocabulary == 8
        assert big.heads / big.kv_heads == little.heads / little.kv_heads


def test_an_unknown_width():
    with pytest.raises(ValueError, match=r"^features: expected one of .*3584.*, got 20$"):
        vlm.decoder_of(20)


def test_the_table_of_savings():
    def timed(seconds):
        return {"role": "ours", "status": "timed", "p50_s": seconds, "samples_s": [seconds] * 3}

    shape = SHAPE.to_dict()
    group = "LLaVA-1.5-7B, full size"
    prefill = {"all_tokens": timed(4.0), "rate_0.25": timed(1.0), "clustering_0.25": timed(0.1)}
    answer = {"all_tokens": timed(6.0), "rate_0.25": timed(3.0)}
    rows = [
        {"op": op, "group": group, "shape": shape, "yardstick": "all_tokens", "contenders": times}
        for op, times in (("vlm_prefill", prefill), ("vlm_answer", answer))
    ]
    held = [
        {"op": "vlm_prefill", "contender": name, "shape": shape, "result_bytes": size << 20}
        for name, size in (("all_tokens", 8), ("rate_0.25", 2))
    ]
    table = tables.vlm_table({"rows": rows, "memory": held})
    first, second = table.lines
    where = (f"{group}, 2 x 50 x 16",)
    assert first == (*where, "all_tokens", "4 s", "1.00", "–", "6 s", "1.00", "8.0")
    assert second == (*where, "rate_0.25", "1 s", "4.00", "10.0%", "3 s", "2.00", "2.0")
    assert not tables.vlm_table({"rows": [], "memory": []}).lines
