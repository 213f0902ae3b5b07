"""What a result says, as tables of text: for the terminal, reports and the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from setok_bench.goals import GOALS
from setok_bench.registry import SWEEPS
from setok_bench.results import timed
from setok_bench.timing import fit_exponent, paired_ratio


@dataclass(frozen=True)
class Table:
    """Lines of cells below a header; notes are sentences to stand below them."""

    title: str
    header: tuple[str, ...]
    lines: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """In Markdown, numbers to the right."""
        rule = ("---", *("---:" for _ in self.header[1:]))
        rows = [f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self.lines)]
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return "\n".join(rows) + "\n" + notes


def all_tables(result: dict) -> Iterator[Table]:
    """Every table of a result that has lines."""
    groups = dict.fromkeys((row["op"], row["group"]) for row in result["rows"])
    tables = [parts_table(result), *(row_table(result, op, group) for op, group in groups)]
    tables += [exponent_table(result), memory_table(result), largest_table(result)]
    tables += [saving_table(result), vlm_table(result), goal_table(result)]
    return (table for table in tables if table.lines)


def parts_table(result: dict) -> Table:
    """What was asked first, and the answers."""
    lines = []
    for part in result.get("parts", []):
        answers = [*_flat(part["values"])]
        said = [(part["status"], part["reason"] or "")] if part["status"] != "done" else answers
        lines += [(part["name"], key, value) for key, value in said]
    return Table("parts", ("part", "", "answer"), lines)


def _flat(values: dict, before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{before} {key}".strip()
        if isinstance(value, dict):
            yield from _flat(value, name)
        elif isinstance(value, float) and name.endswith("_s") and "bytes" not in name:
            yield name.removesuffix("_s"), duration(value)
        else:
            yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def measured_on(result: dict) -> str:
    """Return device, versions, dtype, commit and date in one line."""
    device, versions = result["device"], result["versions"]
    if device["type"] == "cuda":
        where = f"{device['name']}, driver {device['driver']}, CUDA {device['cuda']}"
    else:
        where = f"{device['name']}, {device['threads']} threads"
    commit = (result["commit"] or "unknown")[:10]
    changed = " with uncommitted changes" if result["uncommitted_changes"] else ""
    return (
        f"{where}; torch {versions['torch']}, {result['rates']['dtype']}; "
        f"commit {commit}{changed}, {result['time'][:10]}"
    )


def conditions(result: dict) -> str:
    """Return device, versions, commit, date and the measured rates in one line."""
    rates = result["rates"]
    return (
        f"{measured_on(result)}; copies at {rates['copy_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"multiplies at {rates['matmul_flops_per_s'] / 1e9:.0f} GFLOP/s"
    )


def row_table(result: dict, op: str, group: str) -> Table:
    """Every contender of an operation at every shape."""
    lines, notes = [], {}
    for row in result["rows"]:
        if (row["op"], row["group"]) != (op, group):
            continue
        times = timed(row)
        yardstick = times.get(row["yardstick"])
        for name, found in row["contenders"].items():
            if found["status"] != "timed":
                notes[f"{name}: {found['status']}, {found['reason']}"] = None
                continue
            over = "–"
            if yardstick and name != row["yardstick"]:
                over = f"{paired_ratio(found['samples_s'], yardstick['samples_s']):.2f}"
            lines.append(
                (
                    shape_text(row["shape"]),
                    name + (" (graph)" if found["mode"] == "graph" else ""),
                    duration(found["p50_s"]),
                    f"{duration(found['p20_s'])} – {duration(found['p80_s'])}",
                    over,
                    f"{found['p50_s'] / found['floor_s']:.2f}",
                    f"{found['images_per_s']:.4g}",
                    f"{found['tokens_per_s']:.3g}",
                )
            )
    yard = next(r["yardstick"] for r in result["rows"] if (r["op"], r["group"]) == (op, group))
    header = ("B x N x D", "implementation", "median", "p20 – p80", f"over {yard or 'yardstick'}")
    header += ("over floor", "images/s", "tokens/s")
    title = op if group == "main" else f"{op}, {group}"
    return Table(title, header, lines, tuple(notes))


def summary_table(result: dict) -> Table:
    """Forward and backward of ours at every shape, over what they are compared with."""
    rows = {
        (row["op"], shape_text(row["shape"])): row
        for row in result["rows"]
        if row["group"] == "main"
    }
    lines = []
    for (op, shape), row in rows.items():
        name = next((n for n, f in timed(row).items() if f["role"] == "ours"), None)
        if op != "cluster_tokens" or name is None:
            continue
        times, training = timed(row), timed(rows.get(("cluster_backward", shape), row))
        both = training[name] if "forward" in training else None
        lines.append(
            (
                shape,
                duration(times[name]["p50_s"]),
                _over(times, name, "bmm"),
                f"{times[name]['p50_s'] / times[name]['floor_s']:.2f}",
                _over(times, "reference", name),
                duration(both["p50_s"]) if both else "–",
                _over(training, name, "forward"),
                _over(training, "reference", name) if both else "–",
            )
        )
    header = ("B x N x D", "forward", "over bmm", "over floor", "reference / ours")
    header += ("forward + backward", "over forward", "reference / ours")
    return Table("overview of cluster_tokens", header, lines)


def baseline_table(result: dict) -> Table:
    """Return the time of each published implementation, and its ratio to ours."""
    lines = []
    for row in result["rows"]:
        times = timed(row)
        ours = next((n for n, f in times.items() if f["role"] == "ours"), None)
        for name, found in times.items():
            if ours and found["role"] == "peer":
                where = (row["op"], shape_text(row["shape"]), name)
                medians = (duration(found["p50_s"]), duration(times[ours]["p50_s"]))
                lines.append((*where, *medians, _over(times, name, ours)))
    header = ("operation", "B x N x D", "baseline", "median", "ours", "baseline / ours")
    return Table("baselines", header, lines)


def _over(times: dict, above: str, below: str) -> str:
    if above not in times or below not in times:
        return "–"
    return f"{paired_ratio(times[above]['samples_s'], times[below]['samples_s']):.2f}"


def exponent_table(result: dict) -> Table:
    """How the time grows with the number of images and of tokens, by a fit to each sweep."""
    lines = []
    for op, group in dict.fromkeys(
        (row["op"], row["group"]) for row in result["rows"] if row["group"] in SWEEPS
    ):
        rows = [row for row in result["rows"] if (row["op"], row["group"]) == (op, group)]
        for name in dict.fromkeys(name for row in rows for name in timed(row)):
            points = [
                (r["shape"][group], timed(r)[name]["p50_s"]) for r in rows if name in timed(r)
            ]
            if len(points) > 1:
                sizes, seconds = zip(*points, strict=True)
                span = f"{sizes[0]} to {sizes[-1]} {group}"
                lines.append((f"{op}, {name}", span, f"{fit_exponent(sizes, seconds):.2f}"))
    return Table("growth: time ~ size ** exponent", ("", "range", "exponent"), lines)


def memory_table(result: dict) -> Table:
    """Peak memory of single calls."""
    lines = [
        (
            f"{m['op']}, {m['contender']}",
            shape_text(m["shape"]),
            mebibytes(m["input_bytes"]),
            mebibytes(m["result_bytes"]),
            mebibytes(max(0, m["peak_bytes"] - m["result_bytes"])),
            mebibytes(4 * m["shape"]["images"] * m["shape"]["tokens"] ** 2),
        )
        for m in result["memory"]
    ]
    header = ("", "B x N x D", "input", "result", "beyond both", "float32 N x N")
    return Table("peak memory, MiB", header, lines)


def largest_table(result: dict) -> Table:
    """The largest inputs that fit."""
    lines = []
    for found in result["largest"]:
        most = found["points"][-1]
        measured = f"{most['tokens']} in {most['bytes'] / 1e9:.2f} GB"
        tokens = f"{found['tokens']}" + (" (line)" if found["how"] == "extrapolated" else "")
        limit = f"{found['limit_bytes'] / 1e9:.0f} GB"
        lines.append((found["contender"], limit, str(found["features"]), tokens, measured))
    header = ("", "limit", "features", "max tokens", "largest measured")
    return Table("max tokens of one image within a limit", header, lines)


def saving_table(result: dict) -> Table:
    """From pixels to the end of the prompt, with all patches and with clusters."""
    rows = {
        (r["op"], r["shape"]["images"], r["shape"]["features"]): timed(r) for r in result["rows"]
    }
    encoders = [(key, t) for key, t in rows.items() if key[0] == "encode" and "encoder" in t]
    prefills = [(key, t) for key, t in rows.items() if key[0] == "prefill" and "all_patches" in t]
    lines = []
    for (_, images, features), prefill in prefills:
        # The encoder's largest batch: how pictures are encoded where many wait.
        (_, batch, width), encode = max(encoders, key=lambda e: e[0][1], default=((0, 1, 0), None))
        if encode is None or "encoder_and_clusters" not in encode:
            continue
        plain = encode["encoder"]["p50_s"] / batch
        clustered = encode["encoder_and_clusters"]["p50_s"] / batch
        before = plain + prefill["all_patches"]["p50_s"] / images
        for name, found in prefill.items():
            if name == "all_patches":
                continue
            after = clustered + found["p50_s"] / images
            lines.append(
                (
                    f"encoder of {width}, LLM of {features} features, {images} at once",
                    name,
                    duration(before),
                    duration(after),
                    f"{before / after:.2f}",
                )
            )
    header = ("", "visual tokens", "all patches", "with clustering", "times as fast")
    return Table("from pixels to the end of the prompt, per image", header, lines)


def vlm_table(result: dict) -> Table:
    """What a decoder costs with all visual tokens and with clusters of them."""
    rows = {(row["op"], row["group"], shape_text(row["shape"])): row for row in result["rows"]}
    held = {
        (m["contender"], shape_text(m["shape"])): m["result_bytes"]
        for m in result["memory"]
        if m["op"] == "vlm_prefill"
    }
    lines = []
    for (op, group, shape), row in rows.items():
        if op != "vlm_prefill":
            continue
        prefills = timed(row)
        answers = timed(rows.get(("vlm_answer", group, shape), {"contenders": {}}))
        for name, found in prefills.items():
            if name.startswith("clustering"):
                continue
            clustering = name.replace("rate", "clustering")
            share = "–"
            if clustering != name and clustering in prefills:
                samples = prefills[clustering]["samples_s"]
                share = f"{paired_ratio(samples, found['samples_s']):.1%}"
            size = held.get((name, shape))
            lines.append(
                (
                    f"{group}, {shape}",
                    name,
                    duration(found["p50_s"]),
                    _over(prefills, "all_tokens", name),
                    share,
                    duration(answers[name]["p50_s"]) if name in answers else "–",
                    _over(answers, "all_tokens", name),
                    "–" if size is None else mebibytes(size),
                )
            )
    header = ("decoder, B x N x D", "visual tokens", "prefill", "times as fast")
    header += ("share of clustering", "answer", "times as fast", "KV cache, MiB")
    return Table("decoders with all visual tokens and with clusters", header, lines)


def goal_table(result: dict) -> Table:
    """The goals for this device, and what became of them."""
    lines = []
    for goal in GOALS:
        if goal.device != result["device"]["type"]:
            continue
        value = goal.value(result)
        if value is not None:
            said = "met" if goal.met(value) else "MISSED"
            bound = f"{'at most' if goal.at_most else 'at least'} {goal.bound:g}"
            lines.append((goal.text, bound, f"{value:.3g}", said))
    return Table("goals", ("measure", "goal", "here", ""), lines)


def shape_text(shape: dict) -> str:
    """B x N x D."""
    return f"{shape['images']} x {shape['tokens']} x {shape['features']}"


def duration(seconds: float) -> str:
    """With three figures and a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds * 1e6)} us"


def mebibytes(size: int) -> str:
    """In MiB, without the unit."""
    return f"{size / 2**20:.1f}"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
