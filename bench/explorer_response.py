"""Measure how fast the explorer's page answers a slider, in a headless browser.

python bench/explorer_response.py --out bench/results/explorer-response.json

A time runs from the slider's `input` event in the page until the new cluster map is decoded, and
ends in a frame of the screen, of which there are 60 a second. Server and browser share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from setok_bench.provenance import provenance
from setok_kernels.extras import from_extra

MOVES = 25
# Sliders, and the two values that they take in turn.
SLIDERS = {"bandwidth": (0.3, 0.7), "max_clusters": (16, 128), "k": (4, 12)}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# The clock starts as the event is sent, and stops in the first frame with another image.
RESPONSE = """([slider, value, image, events, seconds]) => new Promise((resolve, reject) => {
    const input = document.querySelector(slider);
    const source = () => document.querySelector(image)?.currentSrc;
    const before = source();
    input.value = value;
    const start = performance.now();
    for (const name of events) input.dispatchEvent(new Event(name, {bubbles: true}));
    const look = async () => {
        const shown = document.querySelector(image);
        if (shown && shown.currentSrc !== before && shown.complete && shown.naturalWidth) {
            await shown.decode();
            resolve(performance.now() - start);
        } else if (performance.now() - start > 1000 * seconds) {
            reject(new Error(`no new image in ${image} after ${seconds} s`));
        } else {
            requestAnimationFrame(look);
        }
    };
    requestAnimationFrame(look);
})"""


def main() -> int:
    """Measure, print a table, and write the samples; return 2 without a browser."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    path: Path = parser.parse_args().out
    on_path = filter(None, map(shutil.which, BROWSERS))
    found = os.environ.get("SETOK_BROWSER") or next(on_path, None)
    if found is None:
        print(
            f"explorer_response: no browser ({', '.join(BROWSERS)}): make browser", file=sys.stderr
        )
        return 2
    cases = []
    with _served() as address, _page(found) as page:
        for settings in (1, 2):
            page.goto(f"{address}?image=astronaut{'&b=1' if settings == 2 else ''}")
            page.wait_for_selector("#map-A img")
            page.wait_for_timeout(2000)
            for field, values in SLIDERS.items():
                cases.append(_measure(page, field, values, settings))
                print(_line(cases[-1]))
    result = {
        **provenance(torch.device("cpu")),
        "browser": found,
        "tokens": 729,
        "unit": "ms from the input event to the decoded cluster map",
        "cases": cases,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def table(result: dict[str, Any]) -> str:
    """Return the medians of a result as a table in Markdown, with its conditions."""
    lines = ["| slider | one setting | two settings |", "|---|---:|---:|"]
    medians = {
        (case["slider"], case["settings"]): f"{median(case['ms']):.0f} ms"
        for case in result["cases"]
    }
    lines += [f"| `{name}` | {medians[name, 1]} | {medians[name, 2]} |" for name in SLIDERS]
    device = result["device"]
    conditions = (
        f"Medians of {MOVES} moves, {result['tokens']} tokens; {device['name']}, "
        f"{device['threads']} threads, server and browser on it; commit {result['commit'][:10]}, "
        f"{result['time'][:10]}."
    )
    return "\n".join([*lines, "", conditions])


def _measure(page: Any, field: str, values: tuple[float, float], settings: int) -> dict[str, Any]:
    """Move a slider to and fro; the first two moves do not count."""
    slider = f"#A-cluster_tokens-{field} input[type=range]"
    samples = []
    for i in range(MOVES + 2):
        samples.append(
            page.evaluate(RESPONSE, [slider, str(values[i % 2]), "#map-A img", ["input"], 20])
        )
        page.wait_for_timeout(250)
    samples = [round(sample, 1) for sample in samples[2:]]
    return {"slider": field, "settings": settings, "ms": samples}


def _line(case: dict[str, Any]) -> str:
    middle, slow = median(case["ms"]), quantiles(case["ms"], n=10)[7]
    name = f"{case['slider']:<13} {case['settings']} setting(s)"
    return f"{name}: median {middle:.0f} ms, p80 {slow:.0f} ms"


@contextmanager
def _served() -> Iterator[str]:
    from setokim import build_encoder
    from setokim.explorer.features import Features
    from setokim.explorer.images import Images
    from setokim.explorer.server import serve

    name = "patch-statistics"
    with serve(Features(Images(), build_encoder(name), name)) as address:
        yield address


@contextmanager
def _page(browser: str) -> Iterator[Any]:
    with from_extra("dev"):
        from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        # Root has no sandbox to offer.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        running = playwright.chromium.launch(executable_path=browser, args=arguments)
        yield running.new_page(viewport={"width": 1280, "height": 900})
        running.close()


if __name__ == "__main__":
    sys.exit(main())
