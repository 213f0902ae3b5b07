"""Metrics in the README and in docs/ are those of the committed runs."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def committed(name):
    return json.loads((DOCS / name).read_text())


STAGE1 = committed("stage1/metrics.json")
STAGE3 = committed("small-world/stage3.json")
SECOND = committed("small-world/second-seed.json")["stage3"]
CEILINGS = committed("small-world/ceilings.json")
SWAPPED = committed("small-world/token-swap.json")
CHANGES = committed("small-world/ablations.json")
ABLATIONS = committed("stage1/ablations.json")["runs"]
IDENTITY = json.loads((ROOT / "bench/results/epyc-zen4-2threads-identity.json").read_text())

# Beginning of a row of docs/stage1.md or of docs/status.md, the value, and
# its format.
ROWS = [
    ("stage1.md", "PSNR of reconstructions", STAGE1["psnr"], "{:.2f} dB"),
    ("stage1.md", "foreground ARI of clusters and objects", STAGE1["fg_ari"], "{:.3f}"),
    (
        "stage1.md",
        "correlation of the numbers of tokens and objects",
        STAGE1["token_object_correlation"],
        "{:.3f}",
    ),
    ("stage1.md", "mean best-overlap IoU", STAGE1["best_overlap_iou"], "{:.3f}"),
    ("stage1.md", "recall@1 of", STAGE1["recall_at_1"], "{:.3f}"),
    ("stage1.md", "tokens an image", STAGE1["tokens"], "{:.1f}"),
    ("status.md", "PSNR of reconstructions", STAGE1["psnr"], "{:.2f} dB"),
    ("status.md", "foreground ARI", STAGE1["fg_ari"], "{:.3f}"),
    ("status.md", "correlation of", STAGE1["token_object_correlation"], "{:.3f}"),
    ("status.md", "recall@1 of", STAGE1["recall_at_1"], "{:.3f}"),
    ("status.md", "accuracy of answers", STAGE3["vqa_accuracy"], "{:.2f}"),
    ("status.md", "relations among them", STAGE3["vqa_relation"], "{:.2f}"),
    ("status.md", "attributes in captions", STAGE3["caption_accuracy"], "{:.2f}"),
    ("status.md", "shapes among them", STAGE3["generation_shape"], "{:.2f}"),
    ("status.md", "attributes in generated", STAGE3["generation_accuracy"], "{:.2f}"),
    ("status.md", "edits", STAGE3["edit_success"], "{:.2f}"),
    ("status.md", "cIoU of referring", STAGE3["ciou"], "{:.2f}"),
]


def cells(page, start, column=0):
    """Cells of the one row of a page whose cell of a column begins with a text."""
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    (row,) = [r for r in rows if len(r) > column and r[column].startswith(start)]
    return row[column + 1 :]


@pytest.mark.parametrize(("page", "start", "value", "form"), ROWS)
def test_metrics_of_the_tables(page, start, value, form):
    reached, goal, verdict = cells(page, start, column=int(page == "status.md"))
    assert reached == form.format(value)
    if goal:
        met = value >= float(goal.split()[0])
        assert verdict == ("reached" if met else "missed")


@pytest.mark.parametrize(
    ("start", "key"),
    [
        ("questions (VQA)", "vqa_accuracy"),
        *((f"of these: {kind}", f"vqa_{kind}") for kind in ("count", "relation")),
        # Attributes in captions and images have the same names.
        *((f"of these: {kind} |", f"vqa_{kind}") for kind in ("colour", "shape")),
        ("attributes in captions", "caption_accuracy"),
        *(
            (f"of these: {kind} in captions", f"caption_{kind}")
            for kind in ("colour", "size", "shape", "texture")
        ),
        ("positions of all objects", "locate_accuracy"),
        ("attributes in generated", "generation_accuracy"),
        *(
            (f"of these: {kind}, generated", f"generation_{kind}")
            for kind in ("colour", "place", "size", "shape")
        ),
        ("edits |", "edit_success"),
        ("the requested change alone", "edit_changed"),
        ("the unchanged part alone", "edit_kept"),
        ("referring segmentation", "ciou"),
        ("the same, gIoU", "giou"),
        ("sums in words", "text_accuracy"),
    ],
)
def test_metrics_of_the_small_world(start, key):
    lines = (DOCS / "small-world.md").read_text().splitlines()
    (line,) = [one for one in lines if one.startswith(f"| {start}")]
    *both, goal, verdict = (cell.strip() for cell in line.strip("|").split("|")[1:])
    assert both == [f"{STAGE3[key]:.2f}", f"{SECOND[key]:.2f}"]
    reached = not goal or min(STAGE3[key], SECOND[key]) >= float(goal)
    assert verdict == ("" if not goal else "reached" if reached else "missed once")


@pytest.mark.parametrize("source", ["image", "tokens", "codes"])
@pytest.mark.parametrize(
    ("name", "key"),
    [("attributes", "generation"), ("shapes", "generation_shape"), ("edits", "edit")],
)
def test_what_the_parser_reads(name, key, source):
    end = "themselves" if source == "image" else f"their {source}"
    lines = (DOCS / "small-world.md").read_text().splitlines()
    (line,) = [one for one in lines if re.match(rf"\| {name} of .* {end} \|", one)]
    found = [cell.strip() for cell in line.strip("|").split("|")[1:]]
    assert found == [f"{CEILINGS[run][f'{key}_{source}']:.2f}" for run in ("committed", "second")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SeTok clusters", "clusters"),
        ("means over a 3 x 3 grid", "grid"),
        ("9 learned queries", "queries"),
        ("all 64 patches", "patches"),
    ],
)
def test_metrics_of_swapped_tokens(name, kind):
    stage1, codes, stage2 = (SWAPPED[kind][stage] for stage in ("stage1", "codes", "stage2"))
    named = ("vqa_accuracy", "vqa_count", "vqa_colour", "vqa_shape", "vqa_relation")
    named += ("caption_accuracy", "locate_accuracy", "generation_accuracy", "edit_success")
    assert cells("small-world.md", name) == [
        f"{stage1['tokens']:.1f}",
        f"{stage1['psnr']:.1f}",
        *(f"{stage2[key]:.2f}" for key in named),
        f"{stage1['seconds'] + codes['seconds'] + stage2['seconds']:.0f}",
    ]


@pytest.mark.parametrize("point", SWAPPED["clusters"]["curve"], ids=lambda point: point["step"])
def test_metrics_during_training(point):
    named = ("vqa_accuracy", "caption_accuracy", "locate_accuracy")
    named += ("generation_accuracy", "edit_success")
    found = cells("small-world.md", f"step {point['step']}")
    assert found == [f"{point[key]:.2f}" for key in named]


@pytest.mark.parametrize("name", list(CHANGES))
def test_what_each_change_is_worth(name):
    run = CHANGES[name]
    named = ("generation_accuracy", "generation_shape", "generation_colour")
    if name.startswith("edits"):
        named = ("edit_success", "edit_changed", "edit_kept")
    assert cells("small-world.md", name) == [f"{run[key]:.2f}" for key in named]


@pytest.mark.parametrize("name", list(ABLATIONS))
def test_metrics_of_the_ablations(name):
    run = ABLATIONS[name]
    recall = "–" if run["recall_at_1"] is None else f"{run['recall_at_1']:.3f}"
    expected = [f"{run['psnr']:.2f}", f"{run['sharpness']:.2f}"]
    assert cells("stage1.md", name) == [*expected, f"{run['perceptual_distance']:.4f}", recall]


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("TCFormer", "tcformer"),
        ("Chat-UniVi", "chatunivi"),
        ("SeTok's public code", "setok"),
        ("DiVT", "divt"),
    ],
)
def test_identical_results_of_the_drop_ins(name, peer):
    found = IDENTITY["peers"][peer]
    float32, float64 = cells("migrate.md", name)
    assert float32 == f"{found['equal']} of {found['cases']}"
    differing = [m for m in found["mismatches"] if not m["equal_in_float64"]]
    assert float64 == f"{found['cases'] - len(differing)} of {found['cases']}"
    assert all(m["ours_is_within_rounding"] for m in found["mismatches"])


def test_the_readme_quotes_the_small_world():
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"answers {STAGE3['vqa_accuracy']:.0%}".replace("%", " %") in text
    assert f"cIoU of {STAGE3['ciou']:.2f}" in text
    assert f"generates {STAGE3['generation_accuracy']:.0%}".replace("%", " %") in text
    assert f"makes {STAGE3['edit_success']:.0%}".replace("%", " %") in text
