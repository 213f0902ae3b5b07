"""Cluster photographs from scikit-image, and draw them on a contact sheet.

python bench/demo.py --out demo_out

Nothing is downloaded. The photographs are public domain or CC0 (see `skimage.data`). The code is
that of `setok cluster`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track

from setok_kernels import ClusterConfig
from setokim.cli.cluster import make_method, summarise, summary_table
from setokim.cli.cluster_results import process_files
from setokim.data.photographs import PHOTOGRAPHS, photograph
from setokim.visualization.cluster_maps import draw_contact_sheet


def save_photographs(folder: Path) -> list[Path]:
    """Write the photographs as PNG files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in PHOTOGRAPHS:
        files.append(folder / f"{name}.png")
        photograph(name).save(files[-1])
    return files


def main() -> None:
    """Cluster the photographs one by one, so that each has its own time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out: Path = parser.parse_args().out

    files = save_photographs(out / "photographs")
    method = make_method("patch-statistics", None, ClusterConfig())
    # The first call starts threads and loads libraries, which must not count for an image.
    method.encoder([Image.new("RGB", (64, 64))])
    console = Console()
    results = process_files(files, out, method, batch_size=1)
    pictures = list(track(results, "Clustering", total=len(files), console=console))

    sheet = out / "contact_sheet.png"
    draw_contact_sheet(pictures).save(sheet)
    console.print(summary_table([summarise(picture) for picture in pictures]))
    console.print(f"Contact sheet: {sheet}")


if __name__ == "__main__":
    main()
