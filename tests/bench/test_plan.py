"""The planner's hours by hand."""

import pytest
from rich.console import Console

from setok_bench import plan
from setok_bench.plan import Costs, device_hours, estimated_costs, measured_costs, print_plan


def test_tokenising_by_hand():
    # An encoder of one second an image, and a second for clustering: 28 M images take 56 M seconds.
    costs = Costs("x", plan.encoder_flops(), 1.0, 1.0, 2.0, ())
    name, hours, _ = device_hours(costs)[0]
    assert name == "tokenize 28 M images" and hours == pytest.approx(56e6 / 3600)


def test_stages_by_hand():
    costs = Costs("x", 1e30, plan.llm_flops(2048), 0.0, 0.5, ())
    hours = {name: h for name, h, _ in device_hours(costs)}
    # Only clustering costs in the first stage: half a second for 100 000 x 8192 images.
    assert hours["stage 1: tokenizer and detokenizer"] == pytest.approx(100_000 * 8192 * 0.5 / 3600)
    # A language model of one second forward takes three with its gradient.
    assert hours["stage 2: multimodal pretraining"] == pytest.approx(20_000 * 8192 * 3.5 / 3600)


def row(op, implementation, seconds, images, features, role="ours", flops=0):
    shape = {"images": images, "tokens": 729, "features": features}
    found = {implementation: {"role": role, "status": "timed", "p50_s": seconds}}
    return {"op": op, "shape": shape, "work": {"flops": flops}, "contenders": found}


def measured(*more):
    rows = [
        row("encode", "encoder", 2.0, 4, 384, "yardstick", flops=10),
        row("prefill", "all_patches", 4.0, 1, 512, "yardstick", flops=80),
        *more,
    ]
    return {"device": {"name": "a machine"}, "rows": rows}


def test_rates_come_from_the_largest_measured_models():
    found = measured_costs(
        measured(
            row("encode", "encoder", 1.0, 8, 1152, "yardstick", flops=100),
            row("cluster_tokens", "cpp", 0.4, 4, 1152),
            row("cluster_tokens", "cpp", 0.6, 8, 1152),
            row("cluster_tokens", "cpp", 9.0, 99, 384),
            row("cluster_backward", "cpp", 0.8, 4, 1152),
        )
    )
    assert (found.encoder_rate, found.llm_rate) == (100, 20)
    assert found.cluster_s == pytest.approx(0.6 / 8)
    assert found.cluster_training_s == pytest.approx(0.2)


def test_results_of_one_device_are_taken_together():
    encode, prefill = measured(), measured()
    encode["rows"], prefill["rows"] = encode["rows"][:1], prefill["rows"][1:]
    more = {
        "versions": {"torch": "2"},
        "commit": None,
        "uncommitted_changes": False,
        "time": "2026-01-01T00:00:00Z",
        "rates": {"dtype": "float32", "copy_bytes_per_s": 1e9, "matmul_flops_per_s": 1e9},
    }
    for found in (encode, prefill):
        found.update(more)
        found["device"] |= {"type": "cpu", "threads": 2}
    encode["rows"].append(row("cluster_tokens", "cpp", 0.4, 4, 1152))
    console = Console(record=True, width=200)
    print_plan([encode, prefill], console)
    assert "cluster_tokens measured, 4 x 729 x 1152" in console.export_text()


def test_without_the_encoder_there_is_no_plan():
    with pytest.raises(ValueError, match="plan: expected a result of the suites gpu or pipeline"):
        measured_costs({"device": {"name": "x"}, "rows": []})


def test_what_was_not_measured_says_so():
    console = Console(record=True, width=200)
    print_plan([], console)
    said = console.export_text()
    assert "no measured result was given" in said
    assert "estimated, not measured" in said
    assert "batch 16 x accumulation 8 x 64 devices" in said
    assert estimated_costs().encoder_rate == pytest.approx(0.4 * 790e12)
