"""Estimate of the GPU-hours of the paper's training, from measured costs.

Flops of a model over the rate at which it was measured to make them; clustering from its own
measured time. What was not measured is estimated, and the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from setok_bench import roofline, work
from setok_bench.machine import MACHINES
from setok_bench.pipeline import ENCODERS, LANGUAGE_MODELS
from setok_bench.results import timed
from setok_bench.tables import conditions, shape_text
from setok_bench.work import Shape

IMAGES = 28_000_000
GPUS, PER_GPU, ACCUMULATION = 64, 16, 8
BATCH = GPUS * PER_GPU * ACCUMULATION
SEQUENCE = 2048
# A backward pass makes twice the products of its forward pass.
TRAINING = 3
# Share of the products' peak that trained transformers reach; for devices that were not measured.
UTILISATION = 0.4
TOKENS, WIDTH, LLM_WIDTH = 729, 1152, 4096
# Layers, width, MLP of the detokenizer: a ViT-L, as the paper says "a ViT decoder".
DECODER = (24, 1024, 4096)


@dataclass(frozen=True)
class Stage:
    """A training stage.

    Attributes:
        name: name of the stage.
        warmup: warm-up steps of the paper's table.
        steps: total steps; the table has none, so ten times the warm-up is assumed.
        language_model: flag: train the language model, on sequences of `SEQUENCE` tokens.
    """

    name: str
    warmup: int
    language_model: bool

    @property
    def steps(self) -> int:
        return 10 * self.warmup


STAGES = (
    Stage("stage 1: tokenizer and detokenizer", 10_000, False),
    Stage("stage 2: multimodal pretraining", 2_000, True),
    Stage("stage 3: instruction tuning", 5_000, True),
)


@dataclass(frozen=True)
class Costs:
    """Costs on one device.

    Attributes:
        name: name of the device or of the result.
        encoder_rate: flop/s of the vision encoder.
        llm_rate: flop/s of the language model.
        cluster_s: seconds of clustering per image.
        cluster_training_s: seconds of clustering per image with the gradient.
        sources: origin of each number.
    """

    name: str
    encoder_rate: float
    llm_rate: float
    cluster_s: float
    cluster_training_s: float
    sources: tuple[str, ...]


def encoder_flops() -> int:
    """Return the flops of one image through SigLIP-so400m."""
    size = ENCODERS[WIDTH]
    return work.transformer(TOKENS, 1, size.layers, WIDTH, size.hidden, gated=False, causal=False)


def llm_flops(tokens: int) -> int:
    """Return the flops of one sequence through LLaMA-7B."""
    size = LANGUAGE_MODELS[LLM_WIDTH]
    return work.transformer(tokens, 1, size.layers, LLM_WIDTH, size.hidden, gated=True, causal=True)


def decoder_flops() -> int:
    """Return the flops of one image through the detokenizer."""
    layers, width, hidden = DECODER
    return work.transformer(TOKENS, 1, layers, width, hidden, gated=False, causal=False)


def estimated_costs(device: str = "H100") -> Costs:
    """Return the costs from the roofline alone."""
    machine = MACHINES[device]
    cluster = roofline.total(roofline.forward(Shape(64, TOKENS, WIDTH), machine)) / 64
    rate = UTILISATION * machine.matmul
    return Costs(
        f"{device}, estimated, not measured",
        rate,
        rate,
        cluster,
        TRAINING * cluster,
        (
            f"models at {UTILISATION:.0%} of {machine.matmul / 1e12:.0f} TFLOP/s (assumed)",
            "clustering as bench/roofline.py expects it, three times that with the gradient",
        ),
    )


def measured_costs(result: dict) -> Costs:
    """Return the costs from a result of the suites `gpu` or `pipeline`.

    Raises:
        ValueError: it has not measured an encoder and a language model.
    """
    encoder_rate, encoder_said, _ = _rate(result, "encode", "encoder")
    llm_rate, llm_said, _ = _rate(result, "prefill", "all_patches")
    sources = [encoder_said, llm_said]
    cluster, said = _per_image(result, "cluster_tokens")
    if cluster is None:
        _, _, row = _rate(result, "encode", "clusters")
        cluster = timed(row)["clusters"]["p50_s"] / row["shape"]["images"]
        said = (
            f"clustering measured at {shape_text(row['shape'])}, not the paper's {WIDTH} features"
        )
    training, training_said = _per_image(result, "cluster_backward")
    if training is None:
        training, training_said = TRAINING * cluster, "its gradient assumed at twice that"
    sources += [said, training_said]
    device = result["device"]["name"]
    return Costs(device, encoder_rate, llm_rate, cluster, training, tuple(sources))


def device_hours(costs: Costs) -> list[tuple[str, float, str]]:
    """Name, hours of one device, and the size of the job, for every part of the plan."""
    encode = encoder_flops() / costs.encoder_rate
    rows = [
        (
            f"tokenize {IMAGES / 1e6:.0f} M images",
            IMAGES * (encode + costs.cluster_s) / 3600,
            f"{(encode + costs.cluster_s) * 1e3:.2f} ms an image, "
            f"{costs.cluster_s / encode:.1%} of the encoder for clustering",
        )
    ]
    for stage in STAGES:
        seconds = TRAINING * encode + costs.cluster_training_s
        if stage.language_model:
            seconds += TRAINING * llm_flops(SEQUENCE) / costs.llm_rate
        else:
            # The perceptual loss: features of the reconstruction, and their gradient of the pixels.
            seconds += TRAINING * decoder_flops() / costs.encoder_rate + 2 * encode
        hours = stage.steps * BATCH * seconds / 3600
        rows.append((stage.name, hours, f"{stage.steps} steps of {BATCH} images"))
    return rows


def plans(results: list[dict]) -> list[tuple[Costs, str]]:
    """Return the costs of each device with results and their conditions, or else estimates."""
    devices: dict[str, dict] = {}
    for result in results:
        known = devices.setdefault(result["device"]["name"], {**result, "rows": []})
        known["rows"] += result["rows"]
    found = [(measured_costs(r), conditions(r)) for r in devices.values()]
    return found or [(estimated_costs("H100"), "no measured result was given")]


def print_plan(results: list[dict], console: Console) -> None:
    """Print a table for each device with results, or for estimates where there are none."""
    for costs, where in plans(results):
        table = Table("", "hours of one device", f"days on {GPUS}", "", title=costs.name)
        for name, hours, size in device_hours(costs):
            table.add_row(name, f"{hours:,.0f}", f"{hours / GPUS / 24:.2f}", size)
        console.print(where, markup=False, highlight=False)
        console.print(table)
        for line in (*costs.sources, *assumptions()):
            console.print(f"  - {line}", markup=False, highlight=False)


def plan_document(results: list[dict]) -> dict:
    """Return the tables of `print_plan` as plain values."""
    return {
        "devices": [
            {
                "name": costs.name,
                "conditions": where,
                "parts": [
                    {"name": name, "hours": hours, "days": hours / GPUS / 24, "size": size}
                    for name, hours, size in device_hours(costs)
                ],
                "sources": list(costs.sources),
            }
            for costs, where in plans(results)
        ],
        "gpus": GPUS,
        "assumptions": list(assumptions()),
    }


def assumptions() -> tuple[str, ...]:
    """What the numbers rest on."""
    layers, width, hidden = DECODER
    return (
        f"models of SigLIP-so400m's and LLaMA-7B's shape, {TOKENS} patches, {SEQUENCE} tokens a "
        "sample in stages 2 and 3, one image each",
        f"batch {PER_GPU} x accumulation {ACCUMULATION} x {GPUS} devices, no time lost between",
        "ten times the warm-up of the paper's table as steps (assumed: the table has no total)",
        "all weights trained: three times the flops of a forward pass, nothing computed twice",
        f"detokenizer of {layers} layers, {width} features, MLP {hidden} (assumed); perceptual "
        "loss by one more encoder; the discriminator and the losses themselves left out",
    )


def _rate(result: dict, op: str, contender: str) -> tuple[float, str, dict]:
    rows = [row for row in result["rows"] if row["op"] == op and contender in timed(row)]
    if not rows:
        raise ValueError(
            f"plan: expected a result of the suites gpu or pipeline, got one without {op!r}"
        )
    row = max(rows, key=lambda r: (r["shape"]["features"], r["shape"]["images"]))
    rate = row["work"]["flops"] / timed(row)[contender]["p50_s"]
    said = f"{contender} measured at {rate / 1e12:.3g} TFLOP/s, {shape_text(row['shape'])}"
    return rate, said, row


def _per_image(result: dict, op: str) -> tuple[float | None, str]:
    found = [
        (row["shape"]["images"], c["p50_s"] / row["shape"]["images"], row)
        for row in result["rows"]
        for c in timed(row).values()
        if row["op"] == op and c["role"] == "ours" and _is_the_papers(row["shape"])
    ]
    if not found:
        return None, ""
    _, seconds, row = max(found, key=lambda f: f[0])
    return seconds, f"{op} measured, {shape_text(row['shape'])}"


def _is_the_papers(shape: dict) -> bool:
    return (shape["tokens"], shape["features"]) == (TOKENS, WIDTH)
