"""The work of `setok cluster`: image files in, cluster maps and their data on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from setok_cli.errors import UsageError
from setokim import UnreadableImageError, load_image
from setokim.cli.names import RESULT_MARK, result_names
from setokim.utils.file_names import printable_name
from setokim.utils.files import replacing, write_file
from setokim.visualization.animation import save_animation
from setokim.visualization.cluster_maps import draw_figure
from setokim.visualization.cluster_record import to_json
from setokim.visualization.image_clusters import ImageClusters, Method, cluster_batch


def process_files(
    files: Sequence[Path],
    out: Path,
    method: Method,
    batch_size: int,
    animate: str | None = None,
) -> Iterator[ImageClusters | UnreadableImageError]:
    """Cluster image files and write a PNG, a JSON and if desired an animation for each.

    Args:
        files: image files.
        out: folder of the results, which exists.
        method: encoder and options.
        batch_size: number of images that are encoded and clustered together.
        animate: format of the animations, one of `animation.FORMATS`; None for none.

    Yields:
        For each file its clusters, or the error of reading it. Within a batch the errors come
        first.

    Raises:
        UsageError: a result cannot be written.
    """
    named = list(zip(files, result_names(files, out), strict=True))
    for start in range(0, len(named), batch_size):
        batch = []
        for file, name in named[start : start + batch_size]:
            try:
                batch.append((file, name, load_image(file)))
            except UnreadableImageError as error:
                yield error
        for result in cluster_batch(batch, method):
            write_results(result, out, method, animate)
            yield result


def write_results(
    result: ImageClusters, out: Path, method: Method, animate: str | None = None
) -> None:
    """Write the JSON, the PNG and the animation of an image, each atomically.

    The JSON comes first: it names the image, should the other files never be written.

    Args:
        result: clusters of the image.
        out: folder of the results.
        method: encoder and options.
        animate: format of the animation; None for none.

    Raises:
        UsageError: the folder or a file is not writable.
    """
    stem = f"{result.name}{RESULT_MARK}"
    try:
        write_file(out / f"{stem}.json", to_json(result, method))
        with replacing(out / f"{stem}.png") as beside:
            draw_figure(result, method.encoder_name).save(beside)
        if animate is not None:
            with replacing(out / f"{stem}.{animate}") as beside:
                save_animation(result, beside)
    except OSError as error:
        source = printable_name(result.source)
        raise UsageError(f"cannot write the results of {source}: {error}") from error
