"""A process that runs one group of the equivalence cases."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from setok_kernels.equivalence import cases
from setok_kernels.equivalence.cases import REAL, Sizes
from setok_kernels.verification.groups import GROUPS
from setok_kernels.verification.identity import identify
from setok_kernels.verification.processes import COULD_NOT_BEGIN


def main(argv: Sequence[str] | None = None, sizes: Sizes = REAL) -> None:
    """Run the cases of one group, and write a line before and after each.

    Args:
        argv: command-line arguments; None means those of the process.
        sizes: sizes of the test inputs.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--key", required=True, help="expected key of the device's identity")
    parser.add_argument("--group", required=True)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(argv)
    device = arguments.device
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # Create the context: this fails without memory or permission.
            torch.zeros(1, device=device).item()
        if identify(device).key != arguments.key:
            raise RuntimeError(
                f"{device}: expected the device, driver and versions of the parent process, "
                "got others"
            )
    except (RuntimeError, AssertionError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(COULD_NOT_BEGIN) from error
    chosen = [case for case in cases.CASES if case.name in GROUPS[arguments.group]]
    outcomes = cases.run_cases(chosen, device, sizes)
    with arguments.out.open("w", encoding="utf-8", buffering=1) as file:
        for case in chosen:
            file.write(json.dumps({"case": case.name}) + "\n")
            file.write(json.dumps(asdict(next(outcomes))) + "\n")
