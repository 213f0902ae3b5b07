"""Write the folder of an embedded model from a run: python -m setokim.pretrained.release RUN OUT.

The embedded models lie beside this file, which only calls `setokim.training.release`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str] | None = None) -> int:
    """Write the folder; return 2 with a message if the run or the folder does not fit.

    Args:
        words: arguments of the command line; None for those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m setokim.pretrained.release",
        description="Writes weights in bfloat16, processor, options of generation, figures and "
        "model card. OUT is replaced as a whole, once all of it is written.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="finished run, with RUN/stage3")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the model")
    arguments = parser.parse_args(words)
    # Imported here: torch takes seconds, for which --help must not wait.
    from setokim.training.release import release

    try:
        figures = release(arguments.run, arguments.out)
    except (OSError, ValueError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    print(f"A model of {figures['bytes'] / 1e6:.2f} MB is in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
