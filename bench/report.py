"""Write results as Markdown and plots, and keep the documentation in step with them.

python bench/report.py bench_out/cpu.json --out bench_out/report
python bench/report.py --docs    # documentation, from bench/results/
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

from setok_bench import kernel_tables, plots, roofline, tables
from setok_bench.machine import H200
from setok_bench.results import load_result
from setok_bench.work import dtype_name

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE, PICTURES = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance"
README, STATUS = ROOT / "README.md", ROOT / "docs" / "status.md"
BEGIN, END = "<!-- from bench/results: begin -->", "<!-- from bench/results: end -->"
# Committed results are called DEVICE-SUITE.json; those of other benchmarks have other formats.
_SUITES = ("cpu", "gpu", "pipeline", "vlm")

_INTRODUCTION = """\
# Performance

`python bench/report.py --docs` writes this page from the committed results in `bench/results`,
which hold the raw samples. `make bench` measures anew. Goals, met and missed, are in
[status.md](status.md).

- Implementations of one row take turns within one run. A ratio is the median of the ratios within
  a round.
- Every implementation is checked first. A wrong result is reported and not timed.
- The input is standard normal, and all 64 steps of the loop run (`stop_residual=0`): the slow case.
  Hard clusterings get 64 planted groups.
- The *floor* is max(bytes / copy rate, flops / product rate), with both rates measured in the same
  run. It counts each input read once, each output written once and each pair of tokens multiplied
  once. Data that fits into the caches is copied faster than the floor assumes.
- `bmm` is `torch.bmm(x, x.mT)`, which multiplies every pair twice. For merging it is the product
  with the masks.
- `reference` is plain PyTorch, and `compiled_reference` is the same through `torch.compile`.
- `neighbours` is `cluster_tokens` with one cluster. No smaller call returns neighbours.
- Baselines are the functions of the published repositories, timed on the input of our drop-ins.
- Peak memory is that of one call in a fresh process.
- No GPU has been measured. `python bench/run.py --suite gpu --out gpu.json` measures one in under
  nine minutes, and a second call resumes the first.
- `setok bench --plan RESULT` turns measured costs into the GPU-hours of the paper's training.
"""


_KERNELS = """\
## Triton kernels: counted, not measured

Nothing here ran on a GPU. Triton and the assembler compile the kernels for sm_90. An emulator of
PTX runs one image and counts what it executes. `bench/roofline.py` divides the counts by the rates
of the device ({machine}). `make kernel-counts` counts anew.

- *instructions* are machine instructions of warps. Each image of a batch executes the same number.
- A kernel takes as long as its scarcest resource: issue slots, shuffles, exp2 and other special
  functions, float64, shared memory and L1, tensor cores, L2 or memory.
- *waiting* is the other bound: the time of one warp alone in the scheduled code, times the number
  of rounds of programs that do not fit at once. Further overlap between programs is not modelled.
- *expected* includes the gaps between launches. The *floor* has neither gaps nor waits.
- L1 serves the lanes of one load. It also keeps the sectors that a program has read by cacheable
  loads, if those of all programs that a multiprocessor holds at once fit into 256 KB together with
  their shared memory. L2 then delivers each such sector once a program. Otherwise every load reads
  from L2. Copies to shared memory past L1 and descriptor copies always do.
- The longest program of a launch bounds its wait, not the mean program.
- `streaming` is the forward pass without distance rows, as above 2048 tokens. Its launches at 16384
  and 65536 tokens are counted, and what they execute is extrapolated from fewer tokens.
- *torch's own* operations, sorts too, count as one launch of {small:g} us, whatever they move.
- `backward` is the gradient of masks, density, delta and score, without the forward pass.
- Latencies, the rate of L2 and the gaps are assumed (`bench/machine.py`).
- `bmm` is counted as whole tiles of 128 x 128 at the measured rate of products.
"""


def committed_results() -> dict[str, dict]:
    """Return the results in the repository by the stem of their file."""
    files = sorted(p for suite in _SUITES for p in RESULTS.glob(f"*-{suite}.json"))
    return {path.stem: load_result(path) for path in files}


def report(result: dict, stem: str, pictures: list[Path], level: int = 2) -> str:
    """Return the Markdown of one result: conditions, every table, plots."""
    marks = "#" * level
    title = f"{marks} {result['device']['name']}, suite `{result['suite']}`"
    parts = [title, tables.conditions(result)]
    overview = (tables.summary_table(result), tables.baseline_table(result))
    for table in [*(t for t in overview if t.lines), *tables.all_tables(result)]:
        parts += [f"{marks}# {table.title}", table.markdown().strip()]
    if result["left_out"]:
        parts += [f"{marks}# left out", "\n".join(f"- {line}" for line in result["left_out"])]
    for path in pictures:
        parts.append(f"![{path.stem}]({path.parent.name}/{path.name})")
    return "\n\n".join(parts) + "\n"


def kernel_section() -> str:
    """Return the Markdown of the kernels' counts and expected times."""
    counts = roofline.load_counts()
    parts = [_KERNELS.format(machine=H200.described(), small=H200.small_kernel * 1e6).strip()]
    for table in kernel_tables.kernel_tables(counts, kernel_tables.committed_before()):
        parts += [f"### {table.title}", table.markdown().strip()]
    return "\n\n".join(parts) + "\n"


def kernel_summary() -> str:
    """Return the expected times of the passes on a GPU, in two sentences."""
    counts, shape = roofline.load_counts(), kernel_tables.LARGE
    found = roofline.forward(shape, H200, counts)
    expected, product = roofline.total(found), roofline.product_seconds(shape, H200)
    issued = sum(k["issue"] for k in roofline.find_case(shape, counts)["kernels"].values())
    ratio = roofline.training_over_forward(shape, H200, counts)
    long = kernel_tables.LONG[0]
    streamed = roofline.total(roofline.streaming(long, H200, counts))
    return (
        f"Expected, not measured: {shape} in {dtype_name(shape.dtype)} on an {H200.name} takes "
        f"{expected * 1e3:.2f} ms, {expected / product:.1f} times `torch.bmm(x, x.mT)`, in "
        f"{sum(p.launches for p in found):.0f} launches and {issued / 1e6:.1f} million warp "
        f"instructions an image. Forward and backward pass take {ratio:.1f} times the forward "
        f"pass, and the forward pass of {long} takes {streamed * 1e3:.1f} ms "
        "([what bounds each kernel](performance.md#triton-kernels-counted-not-measured))."
    )


def headline(result: dict) -> str:
    """Return the time of the smallest main row of `cluster_tokens` and its conditions.

    Empty for a result without such a row.
    """
    lines = tables.summary_table(result).lines
    if not lines:
        return ""
    shape, forward, over_bmm, _, faster = lines[0][:5]
    return (
        f"**Measured**: clustering {shape} (images x tokens x channels) takes {forward}, "
        f"{over_bmm} of the time of `torch.bmm(x, x.mT)`. Plain PyTorch takes {faster} times as "
        f"long. ({tables.measured_on(result)})"
    )


def readme_section(results: dict[str, dict]) -> str:
    """Return the block of the README between its markers: one measured time of each device."""
    lines = [headline(result) for result in results.values()]
    return "\n".join([BEGIN, *(_wrapped(line) for line in lines if line), END])


def status_section(results: dict[str, dict]) -> str:
    """Return the block of docs/status.md between its markers: the goals of speed and memory."""
    parts = [BEGIN]
    for result in results.values():
        goals = tables.goal_table(result)
        if goals.lines:
            parts += [f"{tables.measured_on(result)}:", goals.markdown().strip()]
    return "\n\n".join([*parts, _wrapped(kernel_summary()), END])


def _wrapped(text: str) -> str:
    # Links and code keep their hyphens on one line.
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False)


def _with_section(path: Path, section: str) -> str:
    """Return the text of a file with the block between its markers replaced.

    Raises:
        ValueError: the file has no markers.
    """
    text = path.read_text()
    block = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not block.search(text):
        raise ValueError(f"{path.name}: expected {BEGIN!r} and {END!r}, got neither")
    # A function, as a replacement text would have its backslashes read.
    return block.sub(lambda _: section, text)


def documentation(results: dict[str, dict]) -> dict[Path, str]:
    """Return the text of each file of the documentation that quotes results."""
    page = [_INTRODUCTION]
    for stem, result in results.items():
        plotted = sorted(PICTURES.glob(f"{stem}-*.png"))
        page.append(report(result, stem, plotted))
    page.append(kernel_section())
    return {
        README: _with_section(README, readme_section(results)),
        STATUS: _with_section(STATUS, status_section(results)),
        PAGE: "\n".join(page),
    }


def main() -> int:
    """Write reports, or the documentation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the reports")
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
