"""What the page shows of one clustering: pictures, captions and numbers."""

from __future__ import annotations

import html

from PIL import Image

from setokim.utils.palette import colour
from setokim.visualization.cluster_maps import draw_map
from setokim.visualization.image_clusters import ImageClusters
from setokim.visualization.patch_maps import draw_mask, draw_scope, draw_values, scope_after

# Views of a clustering beside its map, by their title on the page.
VIEWS = {
    "mask": "One cluster",
    "scope": "Scope",
    "density": "Density",
    "delta": "Seed distance",
    "score": "Score",
}


def cluster_map(result: ImageClusters) -> Image.Image:
    """Draw the clusters as large as the image on the page."""
    return draw_map(result, result.photo.size)


def detail(
    result: ImageClusters, view: str, label: int, step: int
) -> tuple[Image.Image | None, str]:
    """Draw a view of a clustering, with its caption.

    Args:
        result: clusters of an image.
        view: one of `VIEWS`.
        label: cluster of the view "mask"; the number of clusters for the residual.
        step: number of steps of the view "scope".

    Returns:
        The picture, or None if this clustering has no such view, and the caption.
    """
    size = result.photo.size
    if view == "mask":
        label = min(label, result.tokens)
        return draw_mask(result, label, size), describe_cluster(result, label)
    if view == "scope":
        step = min(step, result.tokens)
        return draw_scope(result, step, size), _describe_step(result, step)
    title = VIEWS[view]
    if view not in result.values:
        return None, f"{title}: this function computes none."
    values = result.values[view]
    ends = f"{values.min():.4g} (dark) to {values.max():.4g} (yellow)"
    return draw_values(values, size), f"{title}: {ends}, mean {values.mean():.4g}."


def describe_cluster(result: ImageClusters, label: int) -> str:
    """Return the numbers of a cluster, or of the residual, in a sentence."""
    patches, mass = result.sizes[label], result.masses[label]
    owned = f"label of {_count(int(patches), 'patch', 'patches')}, mass {mass:.1f}"
    if label == result.tokens:
        return f"Residual: {owned}."
    row, column = result.seeds[label]
    scores = result.scores
    scored = "" if scores is None else f", score {scores[label]:.3g}"
    return f"Cluster {label}: {owned}; seed in row {row}, column {column}{scored}."


def facts(result: ImageClusters, name: str, drawn_seconds: float) -> str:
    """Return the numbers of a clustering in one line.

    Args:
        result: clusters of an image.
        name: name of the setting.
        drawn_seconds: time of drawing.
    """
    parts = [
        f"{name}: <strong>{_count(result.tokens, 'token')} of {result.labels.size}</strong>",
        _count(result.distinct_labels, "distinct label"),
        f"residual {result.residual_fraction:.1%}",
        f"clustering {result.cluster_seconds * 1e3:.1f} ms, drawing {drawn_seconds * 1e3:.0f} ms",
    ]
    return f'<p role="status">{" · ".join(parts)}</p>'


def sizes_table(result: ImageClusters, setting: str) -> str:
    """Return the size of each cluster as a table in HTML, largest first.

    Args:
        result: clusters of an image.
        setting: name of the setting.
    """
    sizes, masses, scores = result.sizes, result.masses, result.scores
    order = sorted(range(result.tokens), key=lambda label: (-sizes[label], label))
    rows = []
    for label in [*order, result.tokens]:
        is_residual = label == result.tokens
        name = "residual" if is_residual else str(label)
        shade = "#808080" if is_residual else "#{:02x}{:02x}{:02x}".format(*colour(label))
        score = "" if scores is None or is_residual else f"{scores[label]:.3g}"
        width = 100 * masses[label] / result.labels.size
        rows.append(
            f'<tr><th scope="row"><i class="swatch" style="background:{shade}"></i>{name}</th>'
            f"<td>{sizes[label]}</td><td>{masses[label]:.1f}</td><td>{score}</td>"
            f'<td class="wide"><i class="bar" style="width:{width:.1f}%;background:{shade}"></i>'
            "</td></tr>"
        )
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("cluster", "patches", "mass", "score", "fraction of the image")
    )
    return (
        f'<div class="sizes" tabindex="0" role="region" aria-label="Sizes of {setting}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def caption(text: str) -> str:
    """Return a caption in HTML, which screen readers read when it changes."""
    return f'<p role="status">{html.escape(text)}</p>'


def notice(messages: list[str]) -> str:
    """Return messages to the user in HTML; "" without any."""
    if not messages:
        return ""
    items = "".join(f"<li>{html.escape(message)}</li>" for message in messages)
    title = "<p>The link was not used in full:</p>"
    return f'<div role="alert" class="notice">{title}<ul>{items}</ul></div>'


def _describe_step(result: ImageClusters, step: int) -> str:
    left = scope_after(result, step).mean()
    text = f"Scope after step {step} of {result.tokens}: {left:.3f} of the image is left."
    if step == 0:
        return text + " Each step takes the token of highest remaining score as its seed."
    row, column = result.seeds[step - 1]
    claimed = result.masses[step - 1]
    return text + f" Seed {step - 1} in row {row}, column {column} claimed {claimed:.1f} patches."


def _count(number: int, noun: str, nouns: str | None = None) -> str:
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"
