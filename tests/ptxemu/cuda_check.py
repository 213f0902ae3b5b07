"""The kernels of csrc/cuda on the emulator, with every option, through the package's functions.

    python -m ptxemu.cuda_check --arch 90
    python -m ptxemu.cuda_check --arch 90 --mutate

Each case runs with two random seeds of the machine, whose results must be bit-identical, and with
approximations off by a unit in the last place. Prints a line per case; exits 1 on a mismatch or a
finding. With --mutate it takes out each barrier of a kernel in turn and prints what is found.
"""

import argparse
import dataclasses
import sys

from ptxemu import driver

driver.prepare()

import torch

import setok_kernels as sk
from ptxemu.cases import tokens_of
from ptxemu.comparisons import arrange, same
from ptxemu.engine import Options
from ptxemu.nvcc import barriers, in_place_of_triton, without
from setok_kernels import testing

VALUES = ("masks", "labels", "density", "delta", "score")
DECISIONS = ("knn", "parent", "seeds", "counts")
# Two seeds, then approximations that err more than correctly rounded ones.
MACHINES = (
    Options(seed=1),
    Options(seed=2, copies="late"),
    Options(seed=3, truncate=True, ulp=True),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Input of a clustering; `kind` and `layout` are those of `cases.py`."""

    name: str
    shape: tuple[int, int, int, int]  # B, N, D, K
    layout: str = "plain"
    kind: str = "vit"
    dtype: torch.dtype = torch.float32
    guided: bool = False  # importance and budgets
    exact: bool = False
    options: dict = dataclasses.field(default_factory=dict)

    def tokens(self):
        """Return the tokens and the arguments that describe their layout."""
        x, given = arrange(tokens_of(self.kind, self.shape).to(self.dtype), self.layout)
        if self.name == "non-finite tokens":
            x[0, 3, 0], x[1, 5] = float("nan"), float("inf")
        if self.name == "no usable token":
            given["token_mask"] = torch.arange(x.shape[0])[:, None].expand(x.shape[:2]) > 0
        return x, given

    def run(self):
        """Cluster, compare with the reference and with a replay, and return the result."""
        x, given = self.tokens()
        config = sk.ClusterConfig(k=self.shape[3], **{"max_clusters": 9, **self.options})
        guide, named = {}, {}
        if self.guided:
            images = x.shape[0] if x.dim() == 3 else given["cu_seqlens"].numel() - 1
            powers = torch.randint(-3, 3, x.shape[:-1], generator=torch.Generator().manual_seed(2))
            importance = torch.where(powers == -3, 0.0, 2.0**powers)
            budget = 1 + (4 * torch.arange(images)) % 6
            guide = dict(importance=importance, budget=budget, exact_budget=self.exact)
            named = dict(importance=importance, num_clusters=budget, exact=self.exact)
        integers = self.kind in ("integers", "duplicates")
        out = testing.check_backend("triton", x, config, exact=integers, **guide, **given)
        again = sk.cluster_tokens(
            x, config, backend="triton", decisions=out.decisions, **named, **given
        )
        same(again, out, VALUES)
        return out


def cases():
    """Every kernel and alpha, layout, size of the template, and special image."""
    kernels = ("gaussian", "laplacian", "epanechnikov")
    for i, kernel in enumerate(kernels):
        for j, alpha in enumerate(("sigmoid", "kernel")):
            options = dict(kernel=kernel, alpha=alpha, include_self=bool(j))
            layout = ("masked", "packed", "padded")[(i + j) % 3]
            yield Case(f"{kernel} {alpha} {layout}", (2, 70, 16, 5), layout, options=options)
    paper = dict(score_norm=None, distinct_seeds=False, temperature=1.0, offset=0.0, beta=0.5)
    yield Case("repeated seeds, raw scores", (1, 130, 24, 5), options=paper)
    yield Case("minimum mass", (1, 130, 24, 5), "masked", options=dict(min_mass=6.0))
    yield Case("late stop", (1, 40, 8, 3), options=dict(stop_residual=0.0, max_clusters=64))
    yield Case("budgets", (2, 33, 9, 3), "packed", "integers", guided=True)
    yield Case("exact budgets", (2, 35, 9, 3), "masked", "duplicates", guided=True, exact=True)
    yield Case("ties", (2, 35, 9, 3), "packed", "duplicates", torch.float16)
    yield Case("integers", (1, 300, 5, 8), "padded", "integers", torch.bfloat16)
    yield Case("equal tokens", (1, 64, 1, 4), kind="equal")
    yield Case("long lists", (1, 130, 24, 64), "masked")
    yield Case("one token", (1, 1, 3, 1))
    yield Case("no usable token", (2, 20, 4, 3))
    yield Case("non-finite tokens", (2, 40, 6, 3), "padded", options=dict(min_mass=0.5))
    sharp = dict(temperature=1e-4, bandwidth=1e-3, beta=0.0)
    yield Case("masks of 0 and 1", (1, 100, 8, 5), "masked", options=sharp)
    for tokens in (3, 31, 256, 257):
        yield Case(f"{tokens} integers", (1, tokens, 4, 2), kind="integers")
    yield Case("few tokens", (2, 5, 8, 8), "packed", dtype=torch.bfloat16)
    yield Case("729 tokens", (1, 729, 48, 8), dtype=torch.bfloat16, options=dict(max_clusters=64))
    yield Case("four tokens a thread", (1, 1030, 16, 8), "masked", dtype=torch.bfloat16)


def check(case, arch):
    """Return what is wrong with a case, an empty list if nothing."""
    wrong, results = [], []
    for options in MACHINES:
        with driver.emulated(arch, options) as emulator, in_place_of_triton(emulator):
            try:
                results.append(case.run())
            except AssertionError as error:
                wrong.append(f"{options}: {' '.join(str(error).split())[:300]}")
            ran = {record.kernel for record in emulator.records}
            if not any(name.startswith("scope_fwd_kernel") for name in ran):
                wrong.append(f"the kernel did not run, but {ran}")
            wrong += [str(f) for f in emulator.findings if is_fault(f)]
    if len(results) == len(MACHINES):
        try:
            same(results[0], results[1], VALUES)
            same(results[0].decisions, results[1].decisions, DECISIONS)
        except AssertionError as error:
            wrong.append(f"two random seeds: {error}")
    return wrong


def is_fault(finding):
    """Return True for any finding in a kernel of ours, and for faults of the others."""
    return finding.kernel.startswith("scope_fwd_kernel") or not finding.is_note


def mutate(arch):
    """Take out each barrier; return True if all are missed nowhere."""
    case, missed = Case("mutated", (1, 300, 16, 8)), 0
    kernel = "scope_fwd_kernel_2"
    for number, where in enumerate(barriers(arch, kernel)):
        with (
            driver.emulated(arch, Options(seed=1, max_instructions=10**6)) as emulator,
            in_place_of_triton(emulator, lambda ptx, number=number: without(ptx, number)),
        ):
            failed = ""
            try:
                case.run()
            except (AssertionError, RuntimeError, ValueError) as error:
                failed = type(error).__name__
            kinds = {f.kind for f in emulator.findings if not f.is_note}
        missed += not kinds
        said = "found " if kinds else "missed"
        print(said, f"barrier {number}, {where}:", *sorted(kinds), failed)
    return not missed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, default=90, choices=[80, 90])
    parser.add_argument("--only", nargs="*", default=[""], help="cases whose names contain one")
    parser.add_argument("--mutate", action="store_true", help="take out each barrier in turn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if args.mutate:
        return int(not mutate(args.arch))
    bad = 0
    for case in cases():
        if any(part in case.name for part in args.only):
            wrong = check(case, args.arch)
            bad += bool(wrong)
            name = f"{'BAD ' if wrong else 'ok  '} {case.name}"
            print(name, *wrong[:6], sep="\n       ", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
