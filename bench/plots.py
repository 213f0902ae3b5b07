"""Plots of results: time against size, ratios to the floor and to other implementations."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from setok_bench.registry import SWEEPS
from setok_bench.results import timed
from setok_bench.tables import shape_text
from setok_bench.timing import fit_exponent, paired_ratio

_MARKERS = {"ours": "o", "reference": "s", "yardstick": "^", "peer": "D"}
_COLOURS = {"ours": "#1b7f5c", "reference": "#7a5195", "yardstick": "#555555", "peer": "#d1495b"}


def draw(result: dict, folder: Path, stem: str) -> list[Path]:
    """Write the plots for which the result has rows, and return their files."""
    files = []
    for name, make in (("growth", growth), ("floor", floor_ratios), ("peers", peer_ratios)):
        figure = make(result)
        if figure is not None:
            path = folder / f"{stem}-{name}.png"
            figure.savefig(path, dpi=110, bbox_inches="tight")
            plt.close(figure)
            files.append(path)
    return files


def growth(result: dict):
    """Plot the median time against the number of tokens and of images, with the floor."""
    groups = [g for g in reversed(SWEEPS) if any(row["group"] == g for row in result["rows"])]
    if not groups:
        return None
    figure, axes = plt.subplots(1, len(groups), figsize=(6 * len(groups), 4.5), squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        rows = [row for row in result["rows"] if row["group"] == group]
        for name in dict.fromkeys(name for row in rows for name in timed(row)):
            having = [row for row in rows if name in timed(row)]
            sizes = [row["shape"][group] for row in having]
            found = [timed(row)[name] for row in having]
            times = [f["p50_s"] * 1e3 for f in found]
            spread = [
                [f[a] * 1e3 * s - t * s for f, t in zip(found, times, strict=True)]
                for a, s in (("p20_s", -1), ("p80_s", 1))
            ]
            label = name
            if len(set(sizes)) > 1:
                label += f" (exponent {fit_exponent(sizes, times):.2f})"
            role = found[0]["role"]
            axis.errorbar(
                *(sizes, times, spread), marker=_MARKERS[role], color=_COLOURS[role], label=label
            )
        sizes = [row["shape"][group] for row in rows]
        floor = [row["work"]["floor_s"] * 1e3 for row in rows]
        axis.plot(sizes, floor, "k--", lw=1, label="floor")
        shape = rows[0]["shape"]
        fixed = "images" if group == "tokens" else "tokens"
        axis.set(xscale="log", yscale="log", xlabel=group, ylabel="median, ms")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_title(
            f"cluster_tokens, {fixed} = {shape[fixed]}, D = {shape['features']}, {shape['dtype']}"
        )
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle(result["device"]["name"], fontsize=10)
    return figure


def floor_ratios(result: dict):
    """Plot our time over the floor, for every operation."""
    bars = [
        (f"{row['op']}  {shape_text(row['shape'])}  {name}", found["p50_s"] / found["floor_s"])
        for row in result["rows"]
        for name, found in timed(row).items()
        if row["group"] == "main" and found["role"] in ("ours", "yardstick")
    ]
    return _bars(result, bars, "median over the physical floor", 1.0)


def peer_ratios(result: dict):
    """Plot the times of other implementations over ours, in the rounds of one row."""
    bars = []
    for row in result["rows"]:
        times = timed(row)
        ours = next((f for f in times.values() if f["role"] == "ours"), None)
        if ours is None or row["group"] in SWEEPS or row["op"] in ("encode", "prefill"):
            continue
        for name, found in times.items():
            if found["role"] in ("peer", "reference"):
                ratio = paired_ratio(found["samples_s"], ours["samples_s"])
                bars.append((f"{row['op']}  {shape_text(row['shape'])}  {name}", ratio))
    return _bars(result, bars, "times as long as ours", 1.0)


def _bars(result: dict, bars: list[tuple[str, float]], title: str, line: float):
    if not bars:
        return None
    names, values = zip(*reversed(bars), strict=True)
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.26 * len(bars)))
    axis.barh(range(len(values)), values, color=_COLOURS["ours"])
    axis.set_yticks(range(len(values)), names, fontsize=8)
    axis.set(xscale="log", xlabel=title)
    axis.axvline(line, color="k", lw=1, ls="--")
    axis.set_xlim(min(0.8, *values) * 0.9, max(values) * 1.5)
    for position, value in enumerate(values):
        axis.text(value * 1.03, position, f"{value:.2f}", va="center", fontsize=8)
    axis.set_title(result["device"]["name"], fontsize=10)
    axis.margins(y=0.01)
    return figure
