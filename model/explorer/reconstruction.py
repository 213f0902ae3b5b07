"""Reconstruction of an image from its tokens, also without one of them or with one moved."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from setok_kernels import ClusterConfig, Clusters
from setok_kernels.config import check_count, check_number
from setokim.data.image_processing import to_image
from setokim.data.samples import check_natural
from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens
from setokim.tokenizer.token_grouping import ClusterGrouping


class Reconstruction:
    """Tokens of a model under other options of its clustering, and images from such tokens.

    The model is not changed.

    Args:
        model: model in evaluation mode, with its encoder, whose tokens are clusters.

    Raises:
        ValueError: the model is another one.
    """

    def __init__(self, model: SetokModel):
        if not isinstance(model.clustering, ClusterGrouping):
            raise ValueError(
                "model: expected tokens that are clusters, "
                f"got a model with tokens: {model.config.tokens}"
            )
        if not model.has_encoder:
            raise ValueError("model: expected a model with its encoder, got one without")
        if model.training:
            raise ValueError("model: expected evaluation mode, got training mode")
        self.model = model
        self._own = model.clustering

    @property
    def config(self) -> ClusterConfig:
        """Options of the model's own clustering, the trained ones as numbers."""
        return ClusterConfig(**self._own.current_config().to_dict())

    @torch.inference_mode()
    def tokenize(self, features: Tensor, config: ClusterConfig) -> VisualTokens:
        """Turn the features of an image into tokens.

        Args:
            features: (1, H, W, D) float32, features of the model's encoder.
            config: options of the clustering. Position weight and residual rule stay the model's.

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        grouping = self._grouping(config)
        depth = self.model.encoder.feature_dim
        if features.dim() != 4 or features.shape[0] != 1 or features.shape[3] != depth:
            got = tuple(features.shape)
            raise ValueError(f"features: expected shape (1, H, W, {depth}), got {got}")
        return self.model.tokenize_features(features.to(self.model.device), grouping)

    @torch.inference_mode()
    def cluster(self, features: Tensor, config: ClusterConfig) -> Clusters:
        """Cluster the features of an image as `tokenize` does, without making tokens.

        Args:
            features: (1, H, W, D) float32, features of the model's encoder.
            config: options of the clustering.

        Raises:
            TypeError: `config` is no `ClusterConfig`.
        """
        grid = (features.shape[1], features.shape[2])
        flat = features.flatten(1, 2).to(self.model.device)
        return replace(self._grouping(config)(flat, grid), grid=grid)

    @torch.inference_mode()
    def image(
        self,
        visual: VisualTokens,
        without: int | None = None,
        moved: tuple[int, float, float] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Image.Image:
        """Reconstruct an image from its tokens.

        The other tokens stay as they are. So the token of a background keeps the hole where a
        removed or moved object was, and a blurred spot of some token's colour fills it.

        Args:
            visual: tokens of one image.
            without: label of a token to remove; None to keep all.
            moved: label of a token, and its displacement down and to the right, in fractions of
                the image's height and width; None to move none.
            size: height and width in pixels; None for the detokenizer's own. The time grows with
                the fourth power of the side.

        Returns:
            RGB image.

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        if visual.tokens.shape[0] != 1:
            raise ValueError(f"visual: expected tokens of 1 image, got {visual.tokens.shape[0]}")
        for side in size or ():
            check_count("size", side)
        tokens, occupied = visual.tokens[0], visual.occupied[0].clone()  # (R, token_dim), (R,)
        if moved is not None:
            tokens = self._with_moved(tokens, occupied, *moved)
        if without is not None:
            _check_label("without", without, occupied)
            if moved is not None and moved[0] == without:
                expected = f"another label than without={without}"
                raise ValueError(f"moved: expected {expected}, got {without}")
            occupied[without] = False
        kept = tokens[occupied]  # (S, token_dim)
        offsets = torch.tensor([0, len(kept)], dtype=torch.int32, device=kept.device)
        return to_image(self.model.detokenize(kept, offsets, len(kept), size)[0].float())

    def _grouping(self, config: ClusterConfig) -> ClusterGrouping:
        """Return the model's grouping with other options."""
        if not isinstance(config, ClusterConfig):
            raise TypeError(f"config: expected a ClusterConfig, got {type(config).__name__}")
        grouping = ClusterGrouping(config, (), self._own.position_weight, self._own.residual)
        grouping.backend = self._own.backend
        return grouping

    def _with_moved(
        self, tokens: Tensor, occupied: Tensor, label: int, down: float, right: float
    ) -> Tensor:
        _check_label("moved", label, occupied)
        for displacement in (down, right):
            check_number("moved", displacement)
        tokens = tokens.clone()
        # The pose, the first of a token's shapelets, begins with the centre (y, x).
        pose = tokens[label, -self.model.config.outline_dim :]
        pose[0] += down
        pose[1] += right
        return tokens


def _check_label(name: str, label: int, occupied: Tensor) -> None:
    """Raise an error unless `label` is a row that holds a token."""
    check_natural(name, label)
    labels = occupied.nonzero().flatten().tolist()
    if label not in labels:
        known = ", ".join(map(str, labels))
        raise ValueError(f"{name}: expected the label of a token ({known}), got {label}")
