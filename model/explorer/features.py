"""Clusterings of images whose features are computed once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from setok_kernels import ClusterConfig
from setokim.explorer.exports import command, python_code, yaml_text
from setokim.explorer.images import Images
from setokim.explorer.reconstruction import Reconstruction
from setokim.tokenizer.encoders import VisionEncoder
from setokim.visualization.cluster_maps import fit
from setokim.visualization.functions import Config, cluster
from setokim.visualization.image_clusters import ImageClusters, Method, to_host

# Side of the square that holds an image on the page, in pixels.
PANEL = 560
_MAX_FEATURES = 512 * 2**20


@dataclass(frozen=True)
class Encoded:
    """An image as the explorer keeps it.

    Attributes:
        key: key of the image.
        small: image as large as on the page.
        features: (1, rows, columns, D) features of its patches.
        seconds: time of encoding.
    """

    key: str
    small: Image.Image
    features: Tensor
    seconds: float

    @property
    def bytes(self) -> int:
        """Memory that the entry takes."""
        pixels = self.small.width * self.small.height * 3
        return pixels + self.features.numel() * self.features.element_size()


class Features:
    """Images, their features, and clusterings of them; for any number of threads.

    Attributes:
        images: images by key.
        encoder_name: name or folder of the encoder, or of the model.
        reconstruction: the model behind `--model`; None with an encoder alone.

    Args:
        images: images by key.
        encoder: vision encoder.
        encoder_name: name or folder of the encoder, or of the model.
        backend: backend of the clustering.
        device: name of the device of encoder and clustering.
        reconstruction: model whose tokenizer the encoder is; its clustering sees positions too.
        grid: rows and columns of patches that were asked for; None for the encoder's own.
        whole: flag: the folder of the model has a `SetokimModel`, not its tokenizer alone.
    """

    def __init__(
        self,
        images: Images,
        encoder: VisionEncoder,
        encoder_name: str,
        backend: str = "auto",
        device: str = "cpu",
        reconstruction: Reconstruction | None = None,
        grid: tuple[int, int] | None = None,
        whole: bool = False,
    ):
        self.images, self.encoder_name, self.reconstruction = images, encoder_name, reconstruction
        self._encoder, self._backend, self._device = encoder, backend, device
        self._grid, self._whole = grid, whole
        self._kept: OrderedDict[str, Encoded] = OrderedDict()
        # One image is encoded at a time: the encoder uses all cores.
        self._encoding, self._lock = threading.Lock(), threading.Lock()

    @property
    def presets(self) -> dict[str, ClusterConfig]:
        """Options to begin with by name; the first are those of an empty link."""
        presets = {"default": ClusterConfig(), "paper": ClusterConfig.paper()}
        if self.reconstruction is None:
            return presets
        return {"model": self.reconstruction.config, **presets}

    def encode(self, key: str) -> Encoded:
        """Return an image with its features, computed at the first call.

        Raises:
            UnreadableImageError: see `Images.load`.
        """
        with self._encoding:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            photo = self.images.load(key)
            started = time.perf_counter()
            with torch.inference_mode():
                features = self._encoder([photo]).to(self._device)
            seconds = time.perf_counter() - started
            small = photo.resize(fit(photo.size, (PANEL, PANEL)), Image.Resampling.LANCZOS)
            encoded = Encoded(key, small, features, seconds)
            with self._lock:
                self._kept[key] = encoded
                while len(self._kept) > 1 and self._bytes() > _MAX_FEATURES:
                    self._kept.popitem(last=False)
            return encoded

    def clusters(self, key: str, config: Config) -> ImageClusters:
        """Cluster an image; the photograph of the result is as large as on the page.

        Raises:
            UnreadableImageError: see `Images.load`.
        """
        encoded = self.encode(key)
        started = time.perf_counter()
        with torch.inference_mode():
            if self.reconstruction is not None and isinstance(config, ClusterConfig):
                clusters = self.reconstruction.cluster(encoded.features, config)
            else:
                clusters = cluster(encoded.features, config, self._backend)
            [fields] = to_host(clusters)
        return ImageClusters(
            source=self.images.path(key),
            name=self.images.name(key),
            photo=encoded.small,
            encode_seconds=encoded.seconds,
            cluster_seconds=time.perf_counter() - started,
            **fields,
        )

    def reconstruct(
        self, key: str, config: Config, label: int, edit: str, down: float, right: float
    ) -> tuple[Image.Image | None, Image.Image | None]:
        """Reconstruct an image from its tokens.

        Args:
            key: key of the image.
            config: options of the clustering.
            label: cluster that `edit` is about.
            edit: "all" tokens, "without" the cluster, or with it "moved".
            down: displacement in heights of the image.
            right: displacement in widths of the image.

        Returns:
            The reconstruction from all tokens, and that from the chosen ones. Both are None without
            a model or for clusters that it makes no tokens of, the second one if the cluster in
            question has no token.
        """
        if self.reconstruction is None or not isinstance(config, ClusterConfig):
            return None, None
        model, encoded = self.reconstruction, self.encode(key)
        visual = model.tokenize(encoded.features, config)
        # The detokenizer's own size: its time grows with the fourth power of the side.
        rebuilt = edited = model.image(visual)
        if edit != "all":
            edited = None
            if label < visual.occupied.shape[1] and visual.occupied[0, label]:
                changed = (
                    {"without": label} if edit == "without" else {"moved": (label, down, right)}
                )
                edited = model.image(visual, **changed)
        size = encoded.small.size
        return rebuilt.resize(size), edited and edited.resize(size)

    def exports(self, key: str, config: Config) -> tuple[str, str, str]:
        """Return options as command line, YAML and Python.

        Args:
            key: key of the image that they cluster.
            config: options of the clustering.
        """
        image = self.images.path(key) or self.images.name(key)
        about: dict[str, Any] = {
            "grid": self._grid,
            "photograph": self.images.is_photograph(key),
            "model": None if self.reconstruction is None else self.encoder_name,
        }
        return (
            command(config, self.encoder_name, image, **about),
            yaml_text(config),
            python_code(
                config, self.encoder_name, image, self._backend, whole=self._whole, **about
            ),
        )

    def method(self, config: Config) -> Method:
        """Return the options in the form of `setok cluster`."""
        return Method(self._encoder, self.encoder_name, config, self._backend, self._device)

    def _bytes(self) -> int:
        return sum(kept.bytes for kept in self._kept.values())
