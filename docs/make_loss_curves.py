"""Makes docs/small-world/curves.png: the losses of runs by step.

python docs/make_loss_curves.py runs/small-world/stage3 runs/other/stage3 [--out FILE]

A step without a sample of a loss has 0 for it, and does not count.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LOSSES = ("text", "diffusion", "names", "copy", "mask")
WINDOW = 100


def curve(lines: list[dict[str, float]], name: str) -> tuple[list[int], list[float]]:
    """Return the last step of each window and the mean loss over its steps."""
    steps, values = [], []
    for start in range(0, len(lines) - WINDOW + 1, WINDOW):
        window = lines[start : start + WINDOW]
        found = [line[name] for line in window if line.get(name)]
        if found:
            steps.append(int(window[-1]["step"]))
            values.append(fmean(found))
    return steps, values


def main() -> None:
    """Draw the losses of all runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--out", type=Path, default=Path("docs/small-world/curves.png"))
    args = parser.parse_args()
    figure, axes = plt.subplots(1, len(LOSSES), figsize=(15, 2.8), constrained_layout=True)
    for run in args.runs:
        text = (run / "losses.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        for axis, name in zip(axes, LOSSES, strict=True):
            axis.plot(*curve(lines, name), label=str(run.parent.name))
    for axis, name in zip(axes, LOSSES, strict=True):
        # The first windows are far above the others.
        later = max(max(line.get_ydata()[2:]) for line in axis.get_lines())
        axis.set(title=name, xlabel="step", ylim=(0, 1.2 * later))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
