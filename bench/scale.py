"""Compute what tokenizing a large corpus takes, and keep the tables of docs/scale.md in step.

python bench/scale.py           # print the tables
python bench/scale.py --docs    # write them into docs/scale.md
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from setok_bench import plan
from setok_bench.corpus_tables import measured_table
from setok_bench.results import load_result, timed
from setok_bench.tables import Table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scale.md"
CORPORA = {"28 million": 28_000_000, "2 billion": 2_000_000_000}

# Assumptions about a corpus. With these a source shard has 1 GB, as is usual.
IMAGES_PER_SHARD = 10_000
JPEG_BYTES = 100_000
TOKENS, DIM = 32, plan.WIDTH
BROKEN = 0.001
SIDE, PATCHES = 384, plan.TOKENS
_MANIFEST_LINE, _BROKEN_LINE = 200, 100  # bytes of shards.jsonl
# Bytes of a value, and of a token's size (int32), position (3 x float32) and seed (int32).
_HALF, _BESIDE = 2, 4 + 12 + 4
# Bytes of the height, the width and the grid of an image.
_HEADER = 20
_LABEL = 2
_HOUR, _DAY = 3600.0, 86_400.0


@dataclass(frozen=True)
class Prices:
    """Example prices in US dollars; assumptions, not offers.

    Attributes:
        gpu: an hour of an H100.
        core: an hour of a CPU core.
        get: a thousand reads of an object.
        put: a thousand writes of an object.
        storage: a gigabyte for a month.
    """

    gpu: float = 3.0
    core: float = 0.04
    get: float = 0.0004
    put: float = 0.005
    storage: float = 0.023


@dataclass(frozen=True)
class Rates:
    """Seconds per image of each part of the work.

    Attributes:
        decode: JPEG to pixels in memory, on one core.
        preprocess: the same, with resizing and normalisation.
        encode: encoder on one GPU.
        encode_core: encoder on one core.
        cluster: clustering on one GPU.
    """

    decode: float
    preprocess: float
    encode: float
    encode_core: float
    cluster: float

    @property
    def gpu(self) -> float:
        """Seconds of a GPU for an image."""
        return self.encode + self.cluster


def rates() -> Rates:
    """Return the rates: decoding measured, GPUs from the model of `setok bench --plan`."""
    rows = json.loads((ROOT / "docs" / "loading.json").read_text())["rows"]
    found = {row["what"]: row["median"] for row in rows if row["workers"] == 0}
    costs = plan.estimated_costs("H100")
    return Rates(
        decode=1 / found["decode"],
        preprocess=1 / found["decode, resize, normalise"],
        encode=plan.encoder_flops() / costs.encoder_rate,
        encode_core=plan.encoder_flops() / core_flops(),
        cluster=costs.cluster_s,
    )


def core_flops() -> float:
    """Return the flop/s of one core in the encoder, from the largest measured one."""
    result = load_result(ROOT / "bench" / "results" / "xeon-2threads-pipeline.json")
    rows = [row for row in result["rows"] if row["op"] == "encode"]
    best = max(row["work"]["flops"] / timed(row)["encoder"]["p50_s"] for row in rows)
    return best / result["device"]["threads"]


def token_bytes(tokens: int, dim: int = DIM) -> int:
    """Return the bytes of an image's tokens, sizes, positions and seeds, before compression."""
    return _HEADER + tokens * (dim * _HALF + _BESIDE)


def repeated_work(part: float, between: float, restart: float) -> float:
    """Return the expected time lost to failures, as a fraction of the time without any.

    A part starts anew after each failure. With failures at random moments, one in `between` seconds
    on average, a part of `part` seconds takes (between + restart) (exp(part / between) - 1).

    Args:
        part: seconds of a part.
        between: mean seconds between two failures of a worker.
        restart: seconds until a new worker is ready.
    """
    return (between + restart) * math.expm1(part / between) / part - 1


def failed_parts(parts: int, part: float, between: float, attempts: int = 3) -> float:
    """Return the expected number of parts whose worker fails in each of `attempts` attempts."""
    return parts * (-math.expm1(-part / between)) ** attempts


def stage_table() -> Table:
    """What bounds each stage: its rate on one unit, and the units that keep one GPU busy."""
    found, per_gpu = rates(), 1 / rates().gpu
    network = per_gpu * JPEG_BYTES / 1e6, per_gpu * token_bytes(TOKENS) / 1e6
    return Table(
        "stages",
        ("stage", "rate of one unit", "for one H100", "origin"),
        [
            ("read", "network", f"{network[0]:.0f} MB/s", "100 kB an image, assumed"),
            (
                "decode",
                f"{1 / found.decode:.0f} images/s a core",
                f"{per_gpu * found.decode:.1f} cores",
                "measured, [data.md](data.md#loading-speed)",
            ),
            (
                "decode, resize, normalise",
                f"{1 / found.preprocess:.0f} images/s a core",
                f"{per_gpu * found.preprocess:.1f} cores",
                "measured, the same",
            ),
            (
                "encode",
                f"{1 / found.encode:.0f} images/s a GPU",
                f"{found.encode / found.gpu:.1%} of its time",
                f"{plan.encoder_flops() / 1e9:.0f} GFLOP at {plan.UTILISATION:.0%} of "
                f"{plan.MACHINES['H100'].matmul / 1e12:.0f} TFLOP/s, assumed",
            ),
            (
                "cluster",
                f"{1 / found.cluster:,.0f} images/s a GPU",
                f"{found.cluster / found.gpu:.1%} of its time",
                "counted, [status.md](status.md#speed-and-memory)",
            ),
            ("write", "network", f"{network[1]:.0f} MB/s", f"{TOKENS} tokens of {DIM}, assumed"),
            (
                "encode without a GPU",
                f"{1 / found.encode_core:.2f} images/s a core",
                f"{per_gpu * found.encode_core:,.0f} cores",
                f"{core_flops() / 1e9:.0f} GFLOP/s a core, measured with a smaller encoder",
            ),
        ],
    )


def bytes_table() -> Table:
    """Bytes of an image as files and in memory."""
    pixels = SIDE * SIDE * 3
    kinds = [
        ("JPEG file, 640 x 480", JPEG_BYTES, "assumed"),
        (f"pixels, {SIDE} x {SIDE} x 3", pixels, "one byte a value"),
        ("features of all patches", PATCHES * DIM * _HALF, f"{PATCHES} x {DIM} x 2 B"),
        *(
            (
                f"{tokens} tokens",
                token_bytes(tokens),
                f"{tokens} x ({DIM} x 2 + {_BESIDE}) + {_HEADER} B",
            )
            for tokens in (16, TOKENS, 65)
        ),
        ("labels of the patches", PATCHES * _LABEL, f"{PATCHES} x {_LABEL} B, before compression"),
    ]
    return Table(
        "bytes",
        ("of one image", "bytes", "over pixels", "origin"),
        [(name, f"{size:,}", f"{size / pixels:.2g}", origin) for name, size, origin in kinds],
    )


def corpus_table() -> Table:
    """Size of the job and of the result for each corpus."""
    found = rates()
    columns = []
    for images in CORPORA.values():
        shards, gpu_s = math.ceil(images / IMAGES_PER_SHARD), images * found.gpu
        cores = images * found.preprocess / _HOUR
        lines = shards * _MANIFEST_LINE, images * BROKEN * _BROKEN_LINE
        columns.append(
            [
                f"{gpu_s / _HOUR:,.0f}",
                f"{math.ceil(gpu_s / _HOUR):,}",
                f"{math.ceil(gpu_s / _DAY):,}",
                f"{cores:,.0f}",
                f"{math.ceil(cores / 24):,}",
                f"{images * found.encode_core / _HOUR:,.0f}",
                f"{images * JPEG_BYTES / 1e12:,.1f} TB",
                f"{images * token_bytes(TOKENS) / 1e12:,.1f} TB",
                f"{shards:,} + {shards:,}",
                f"{IMAGES_PER_SHARD * found.gpu:.0f} s",
                f"{sum(lines) / 1e6:,.1f} MB",
                f"{lines[1] / 1e6:,.1f} MB",
            ]
        )
    names = [
        "H100 hours",
        "H100s for an hour",
        "H100s for a day",
        "core hours to decode",
        "cores to decode in a day",
        "core hours to encode without a GPU",
        "bytes in",
        "bytes out",
        "reads + writes of shards",
        "one shard on a GPU",
        "shards.jsonl",
        f"of it: {BROKEN:.1%} broken images",
    ]
    lines = [(name, *cells) for name, cells in zip(names, zip(*columns, strict=True), strict=True)]
    return Table("corpora", ("", *(f"{name} images" for name in CORPORA)), lines)


def cost_table() -> Table:
    """Cost of a million images."""
    found, prices, million = rates(), Prices(), 1e6
    shards = million / IMAGES_PER_SHARD
    gpu, core = million * found.gpu / _HOUR, million * found.preprocess / _HOUR
    size = million * token_bytes(TOKENS) / 1e9
    alone = million * found.encode_core / _HOUR
    return Table(
        "cost",
        ("for a million images", "amount", "example price", "cost"),
        [
            ("GPU", f"{gpu:.2f} h", f"${prices.gpu:.2f} an hour", f"${gpu * prices.gpu:.2f}"),
            (
                "decoding",
                f"{core:.1f} core hours",
                f"${prices.core:.2f} an hour",
                f"${core * prices.core:.2f}",
            ),
            (
                "reads and writes",
                f"{shards:.0f} + {shards:.0f}",
                f"${prices.get:.4f} and ${prices.put:.3f} a thousand",
                f"${shards * (prices.get + prices.put) / 1000:.4f}",
            ),
            (
                "storage of the tokens",
                f"{size:.0f} GB",
                f"${prices.storage:.3f} a GB and month",
                f"${size * prices.storage:.2f} a month",
            ),
            (
                "instead of the GPU: cores",
                f"{alone:,.0f} core hours",
                f"${prices.core:.2f} an hour",
                f"${alone * prices.core:.2f}",
            ),
        ],
    )


def failure_table() -> Table:
    """Repeated work and failed parts, by the length of a part and the rate of losses."""
    part = IMAGES_PER_SHARD * rates().gpu
    shards = math.ceil(CORPORA["2 billion"] / IMAGES_PER_SHARD)
    lines = []
    for name, seconds in ((f"{part:.0f} s: a GPU", part), ("10 min", 600.0), ("1 h", _HOUR)):
        for between in (_HOUR, _DAY, 30 * _DAY):
            lines.append(
                (
                    name,
                    {_HOUR: "1 h", _DAY: "1 day"}.get(between, "30 days"),
                    f"{repeated_work(seconds, between, restart=60):.2%}",
                    f"{failed_parts(shards, seconds, between):.2g}",
                )
            )
    return Table(
        "failures",
        (
            "time of a part",
            "one loss of a worker in",
            "time lost",
            f"failed parts of {shards:,}",
        ),
        lines,
    )


def all_tables() -> dict[str, Table]:
    """Return every table of the page by its title."""
    found = (stage_table(), bytes_table(), corpus_table(), cost_table(), failure_table())
    found = (*found, measured_table())
    return {table.title: table for table in found}


def updated(text: str) -> str:
    """Return the text of the page with all tables computed anew.

    Raises:
        ValueError: the page lacks the markers of a table.
    """
    for title, table in all_tables().items():
        begin, end = (f"<!-- bench/scale.py {title}: {word} -->" for word in ("begin", "end"))
        block = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not block.search(text):
            raise ValueError(f"{PAGE.name}: expected {begin!r} and {end!r}, got neither")
        body = f"{begin}\n\n{table.markdown().strip()}\n\n{end}"
        # A function, as a replacement text would have its backslashes read.
        text = block.sub(lambda _, body=body: body, text)
    return text


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="update docs/scale.md instead")
    if parser.parse_args().docs:
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"written to {PAGE}")
    else:
        for table in all_tables().values():
            print(table.markdown())


if __name__ == "__main__":
    main()
