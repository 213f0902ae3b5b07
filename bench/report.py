"""Turns results into Markdown and pictures, and keeps the documentation in step with them.

python bench/report.py bench_out/cpu.json --out bench_out/report
python bench/report.py --docs    # docs/performance.md and the README, from bench/results/
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from setok_bench import kernel_tables, plots, roofline, tables
from setok_bench.machine import H200
from setok_bench.results import load_result
from setok_bench.work import dtype_name

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE, PICTURES, README = (
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "performance",
    ROOT / "README.md",
)
BEGIN, END = "<!-- from bench/results: begin -->", "<!-- from bench/results: end -->"
# Committed results are called DEVICE-SUITE.json; those of other benchmarks have other formats.
_SUITES = ("cpu", "gpu", "pipeline")

_INTRODUCTION = """\
# Performance

Made by `python bench/report.py --docs` from the committed results in
[bench/results](../bench/results), which have the raw samples; `make bench` measures anew. How to
read it:

- All contenders of a row are timed in turns in one run; ratios are medians of the ratios within a
  round. Every contender is checked first, and one whose result is wrong is reported, not timed.
- The input is standard normal and all 64 steps of the loop are run: the slow case. Hard clusterings
  get 64 planted groups.
- The *floor* is max(bytes / copy rate, flops / product rate) with both rates measured in the same
  run. Inputs are read once, outputs written once, pairs of tokens multiplied once. `bmm` is
  `torch.bmm(x, x.mT)`, which multiplies every pair twice; for merging it is the product with the
  masks. Data that fits into the caches is copied faster than the floor has it.
- `reference` is plain PyTorch, `compiled_reference` the same through `torch.compile`. `neighbours`
  is `cluster_tokens` with one cluster, as there is no smaller call that returns neighbours. The
  peers' functions are those of their repositories, timed on the input of our drop-ins.
- Peak memory is that of one call in a fresh process.
"""


_KERNELS = """\
## Triton kernels: counted, not measured

Nothing here ran on a GPU. Triton and the assembler make the machine code for sm_90, an emulator of
PTX runs one image and counts, and `bench/roofline.py` divides by what the device does
({machine}). `make kernel-counts` counts anew.

- *instructions* are of warps, in machine code. Images of a batch do the same, each for itself.
- A kernel takes as long as what it has least of: issue slots, shuffles, exp2 and the like, float64,
  shared memory and L1, tensor cores, L2, memory; or as long as its warps *wait*, which is the
  time of one warp alone in the code as it was scheduled, times the rounds of programs that do not
  fit at once. What programs overlap beyond that is not modelled.
- *expected* has the gaps between launches, the *floor* neither gaps nor waits.
- Loads find in L1 what another lane or instruction of the program asked for before. Latencies, the
  rate of L2 and the gaps are assumed (`bench/machine.py`).
- `bmm` is counted as whole tiles of 128 x 128 at the measured rate of products.
"""


def committed_results() -> dict[str, dict]:
    """Results in the repository by the stem of their file."""
    files = sorted(p for suite in _SUITES for p in RESULTS.glob(f"*-{suite}.json"))
    return {path.stem: load_result(path) for path in files}


def report(result: dict, stem: str, pictures: list[Path], level: int = 2) -> str:
    """Markdown of one result: conditions, every table, pictures."""
    marks = "#" * level
    title = f"{marks} {result['device']['name']}, suite `{result['suite']}`"
    parts = [title, tables.conditions(result)]
    for table in tables.all_tables(result):
        parts += [f"{marks}# {table.title}", table.markdown().strip()]
    if result["left_out"]:
        parts += [f"{marks}# left out", "\n".join(f"- {line}" for line in result["left_out"])]
    for path in pictures:
        parts.append(f"![{path.stem}]({path.parent.name}/{path.name})")
    return "\n\n".join(parts) + "\n"


def kernel_section() -> str:
    """Markdown of the counts of the kernels, and of the times expected of them."""
    counts, before = (roofline.load_counts(p) for p in (roofline.COUNTS, kernel_tables.BEFORE))
    parts = [_KERNELS.format(machine=H200.described()).strip()]
    for table in kernel_tables.kernel_tables(counts, before):
        parts += [f"### {table.title}", table.markdown().strip()]
    return "\n\n".join(parts) + "\n"


def kernel_summary() -> str:
    """What is expected of the forward pass on a GPU, in two sentences."""
    counts, shape = roofline.load_counts(), kernel_tables.LARGE
    found = roofline.forward(shape, H200, counts)
    expected, product = roofline.total(found), roofline.product_seconds(shape, H200)
    issued = sum(k["issue"] for k in roofline.find_case(shape, counts)["kernels"].values())
    return (
        f"**Triton kernels, counted and not measured**: {shape} in {dtype_name(shape.dtype)} on an "
        f"{H200.name} should take {expected * 1e3:.2f} ms, {expected / product:.1f} times "
        f"`torch.bmm(x, x.mT)`, in {sum(p.launches for p in found):.0f} launches of which "
        f"{len(found) - 1} are kernels of ours, with {issued / 1e6:.1f} million warp instructions "
        "an image. [docs/performance.md](docs/performance.md#triton-kernels-counted-not-measured) "
        "has what bounds each kernel."
    )


def readme_section(results: dict[str, dict]) -> str:
    """What the README quotes of every result."""
    parts = [BEGIN]
    for result in results.values():
        parts.append(f"**Suite `{result['suite']}`**: {tables.conditions(result)}")
        chosen = (
            tables.summary_table(result),
            tables.peer_table(result),
            tables.memory_table(result),
            tables.saving_table(result),
            tables.goal_table(result),
        )
        parts += [f"*{t.title}*\n\n{t.markdown().strip()}" for t in chosen if t.lines]
    return "\n\n".join([*parts, kernel_summary(), END])


def documentation(results: dict[str, dict]) -> dict[Path, str]:
    """The text that each file of the documentation must have."""
    page = [_INTRODUCTION]
    for stem, result in results.items():
        drawn = sorted(PICTURES.glob(f"{stem}-*.png"))
        page.append(report(result, stem, drawn))
    page.append(kernel_section())
    readme = README.read_text()
    section = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not section.search(readme):
        raise ValueError(f"README.md: expected {BEGIN!r} and {END!r}, got neither")
    # A function, as a replacement text would have its backslashes read.
    return {
        PAGE: "\n".join(page),
        README: section.sub(lambda _: readme_section(results), readme),
    }


def main() -> int:
    """Writes reports, or the documentation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the reports go")
    parser.add_argument("--docs", action="store_true", help="update the documentation instead")
    args = parser.parse_args()
    if bool(args.results and args.out) == args.docs:
        parser.error("expected either RESULT and --out DIR, or --docs")
    try:
        if args.docs:
            results = committed_results()
            PICTURES.mkdir(exist_ok=True)
            for stem, result in results.items():
                plots.draw(result, PICTURES, stem)
            written = documentation(results)
        else:
            args.out.mkdir(parents=True, exist_ok=True)
            written = {}
            for path in args.results:
                result = load_result(path)
                (args.out / "pictures").mkdir(exist_ok=True)
                drawn = plots.draw(result, args.out / "pictures", path.stem)
                written[args.out / f"{path.stem}.md"] = report(result, path.stem, drawn, level=1)
        for path, text in written.items():
            path.write_text(text)
            print(f"written to {path}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
