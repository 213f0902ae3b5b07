"""Clusters made by hand, for pictures of them."""

import numpy as np
from PIL import Image

from setokim.visualization.image_clusters import ImageClusters


def clusters_by_hand(labels, seeds, size=(80, 60)):
    return ImageClusters(
        source=None,
        name="drawn",
        photo=Image.new("RGB", size, (128, 128, 128)),
        labels=np.array(labels),
        seeds=np.array(seeds).reshape(-1, 2),
        masks=np.array(labels) == np.arange(len(seeds) + 1)[:, None, None],
    )
