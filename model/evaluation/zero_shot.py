"""Zero-shot classification of ImageNet by the patches of an encoder and by their clusters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from setokim.data import Dataset, Sample
from setokim.data.readers.files import check_root
from setokim.data.readers.imagenet_classes import read_names
from setokim.data.readers.labels import ImageNetFolder, ImageNetParquet
from setokim.evaluation.dual_encoder import DualEncoder
from setokim.evaluation.figures import Figures
from setokim.evaluation.image_networks import ImageNetworks
from setokim.evaluation.readable import read_samples
from setokim.tokenizer.modeling_setok import SetokModel

_BATCH_SIZE = 32
_TOP = 5
_NAMES = "LOC_synset_mapping.txt"
# The subset of CLIP's 80 templates that its authors found to suffice.
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


@dataclasses.dataclass(frozen=True, eq=False)
class ZeroShotSample(Sample):
    """An image whose caption is the id of its class.

    Attributes:
        names: name of each class by id, one object for all samples.
    """

    names: Mapping[str, str] = dataclasses.field(default_factory=dict)


class ZeroShotImages:
    """Images of ImageNet in folders or parquet files, with the names of all classes.

    Args:
        root: folder with LOC_synset_mapping.txt (see `imagenet_classes.read_names`), and the images
            of the split as `ImageNetFolder` or `ImageNetParquet` reads them.
        split: subfolder of the images, or beginning of the names of the parquet files.

    Raises:
        ImportError: a package that the files need is not installed.
        ValueError: the names or the images are not there.
    """

    def __init__(self, root: str | Path, split: str = "val"):
        folder = check_root(root)
        names = read_names(folder / _NAMES)
        self._images: Dataset
        if (folder / split).is_dir():
            self._images = ImageNetFolder(folder / split)
        else:
            self._images = ImageNetParquet(folder, "validation" if split == "val" else split)
            # The numbers on the hub are those of the sorted WordNet ids.
            names = {str(number): names[one] for number, one in enumerate(sorted(names))}
        self.names = names

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """Data sets inside, for `contents_of`."""
        return (self._images,)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> ZeroShotSample:
        sample = self._images[index]
        fields = {one.name: getattr(sample, one.name) for one in dataclasses.fields(sample)}
        return ZeroShotSample(**fields, names=self.names)


@torch.no_grad()
def zero_shot_metrics(
    setok: SetokModel,
    dataset: Dataset,
    number: int,
    show: Callable[[int], None] = lambda number: None,
    networks: ImageNetworks | None = None,
) -> Figures:
    """Classify images by the text nearest to their features, and compute the accuracy.

    Args:
        setok: model in evaluation mode.
        dataset: samples of `ZeroShotImages`.
        number: number of samples, from the beginning.
        show: callback with the number of samples read so far.
        networks: networks with a `dual` encoder around the encoder of `setok`.

    Returns:
        `top1` and `top5` of all patches, as of the dual encoder itself; `token_top1` and
        `token_top5` of the means of the patches of each token, in percent; `agreement`, the
        percentage of images with the same class by both; `tokens`, their mean number. Of classes
        with one name, the first is found. `samples` and `broken` are numbers of images.

    Raises:
        ValueError: there is no dual encoder, or it does not fit `setok`.
    """
    dual = fitting_encoder(setok, networks)
    found: dict[str, list[float]] = {}
    units: list[str] = []
    waiting: list[tuple[int, ZeroShotSample]] = []
    texts: Tensor | None = None
    broken = 0

    def measure() -> None:
        nonlocal texts
        names = waiting[0][1].names
        if texts is None:
            texts = class_embeddings(dual, list(names.values()))
        labels = list(names)
        for name, values in _judged(setok, dual, [one for _, one in waiting], labels, texts):
            found.setdefault(name, []).extend(values)
        units.extend(str(index) for index, _ in waiting)
        waiting.clear()

    for index, sample in enumerate(read_samples(dataset, number, show)):
        if sample is None or sample.caption not in sample.names:
            broken += 1
            continue
        waiting.append((index, sample))
        if len(waiting) == _BATCH_SIZE:
            measure()
    if waiting:
        measure()
    figures = Figures()
    table = figures.table(units)
    for name, values in found.items():
        table.mean(name, values, _RULES[name], scale=1 if name == "tokens" else 100)
    figures.constant("samples", len(units), "images that count")
    figures.constant("broken", broken, "samples that cannot be read, or whose class has no name")
    return figures


def fitting_encoder(setok: SetokModel, networks: ImageNetworks | None) -> DualEncoder:
    """Return the dual encoder of `networks`.

    Raises:
        ValueError: there is none, or it does not fit `setok`.
    """
    if networks is None or networks.dual is None:
        raise ValueError("text_encoder: expected the folder of a SigLIP model, got none")
    networks.dual.check_encoder(setok)
    return networks.dual


_RULES = {
    "top1": "images whose class is nearest by attention pooling of all patches, percent",
    "top5": "images whose class is among the five nearest by all patches, percent",
    "token_top1": "as top1, by the mean patches of the tokens with the size of each, percent",
    "token_top5": "as top5, by the mean patches of the tokens with the size of each, percent",
    "agreement": "images with the same nearest class by patches and by tokens, percent",
    "tokens": "mean number of tokens of an image",
}


def class_embeddings(dual: DualEncoder, names: Sequence[str]) -> Tensor:
    """Return the normalised mean of the embedded `TEMPLATES` of each class, (C, D) float32."""
    texts = [template.format(name) for name in names for template in TEMPLATES]
    return F.normalize(dual.texts(texts).unflatten(0, (len(names), -1)).mean(1), dim=1)


def mean_patches(patches: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of the patches of each token.

    Args:
        patches: (B, N, D) features.
        masks: (B, R, N) fraction of each patch in each token.

    Returns:
        (B, R, D) means, 0 for tokens without patches; (B, R) float32 sizes in patches.
    """
    masks = masks.float()
    sizes = masks.sum(2)
    means = masks @ patches.float() / sizes.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    return means.to(patches.dtype), sizes


def _judged(
    setok: SetokModel,
    dual: DualEncoder,
    samples: Sequence[ZeroShotSample],
    labels: Sequence[str],
    texts: Tensor,
) -> list[tuple[str, list[float]]]:
    pixels = setok.preprocess([one.image for one in samples])
    visual, patches = setok.tokenize(pixels), dual.patches(pixels)
    means, sizes = mean_patches(patches, visual.masks.to(patches.device))
    true = torch.tensor([labels.index(one.caption) for one in samples])
    first, result = [], []
    for prefix, pooled in (("", dual.pool(patches)), ("token_", dual.pool(means, sizes))):
        # Stable: the first of equal classes is found, on each device.
        order = (pooled @ texts.T).cpu().sort(dim=1, descending=True, stable=True).indices
        right = order[:, :_TOP] == true[:, None]
        result.append((f"{prefix}top1", right[:, 0].float().tolist()))
        result.append((f"{prefix}top5", right.any(1).float().tolist()))
        first.append(order[:, 0])
    result.append(("agreement", (first[0] == first[1]).float().tolist()))
    result.append(("tokens", visual.occupied.sum(1).float().tolist()))
    return result
