"""The work of `setok cluster`: image files in, cluster maps and their data on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from setok_cli.errors import UsageError
from setokim import UnreadableImageError, load_image
from setokim.cli.names import RESULT_MARK, result_names
from setokim.utils.file_names import printable_name
from setokim.utils.files import replacing, write_file
from setokim.visualization.cluster_maps import draw_figure
from setokim.visualization.cluster_record import to_json
from setokim.visualization.image_clusters import ImageClusters, Method, cluster_batch


def process_files(
    files: Sequence[Path], out: Path, method: Method, batch_size: int
) -> Iterator[ImageClusters | UnreadableImageError]:
    """Cluster image files and write a PNG and a JSON for each.

    Args:
        files: image files.
        out: folder of the results, which exists.
        method: encoder and options.
        batch_size: number of images that are encoded and clustered together.

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
            write_results(result, out, method)
            yield result


def write_results(result: ImageClusters, out: Path, method: Method) -> None:
    """Write the JSON and the PNG of an image, each atomically.

    The JSON comes first: it names the image, should the second file never be written.

    Args:
        result: clusters of the image.
        out: folder of the results.
        method: encoder and options.

    Raises:
        UsageError: the folder or a file is not writable.
    """
    stem = f"{result.name}{RESULT_MARK}"
    try:
        write_file(out / f"{stem}.json", to_json(result, method))
        with replacing(out / f"{stem}.png") as beside:
            draw_figure(result, method.encoder_name).save(beside)
    except OSError as error:
        source = printable_name(result.source)
        raise UsageError(f"cannot write the results of {source}: {error}") from error
