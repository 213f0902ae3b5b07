"""LLaVA 1.5 in its authors' own classes (haotian-liu/LLaVA), whose prompts hold one image token."""

from typing import Any

from torch import Tensor, nn

from setok_kernels.integrations.transformers.clustering import Encoded, reduce_features
from setok_kernels.integrations.transformers.encoding import recorded_inputs
from setok_kernels.integrations.transformers.options import Options
from setok_kernels.integrations.transformers.reduce import ATTRIBUTE, Reduction
from setok_kernels.integrations.transformers.registry import Family, register_family


def attach(model: nn.Module, family: Family, options: Options) -> Reduction:
    """Let `encode_images` return the merged tokens of each image.

    The model itself puts them in the place of its image token, so no prompt is shortened.

    Raises:
        ValueError: positions="original", which the model has no argument for.
    """
    if options.positions != "compact":
        raise ValueError(
            f"positions: expected 'compact' for {family.model_type}, got {options.positions!r}"
        )
    reduction = Reduction(model, family, options)
    reduction.wrap("encode_images", _encode_images)
    reduction.wrap("prepare_inputs_labels_for_multimodal", _prepare)
    model.__dict__[ATTRIBUTE] = reduction
    return reduction


def _prepare(reduction: Reduction, args: tuple, kwargs: dict[str, Any]) -> Any:
    name = "prepare_inputs_labels_for_multimodal"
    images = reduction.named(name, args, kwargs).get("images")
    if isinstance(images, list) or (isinstance(images, Tensor) and images.dim() != 4):
        got = tuple(images.shape) if isinstance(images, Tensor) else "a list"
        raise ValueError(
            f"images: expected shape (B, 3, H, W), got {got}; for tiles, use LlavaNext of "
            "transformers"
        )
    return reduction.original(name)(*args, **kwargs)


def _encode_images(reduction: Reduction, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    model: Any = reduction.model
    with recorded_inputs(model.get_model().mm_projector) as calls:
        tokens = reduction.original("encode_images")(*args, **kwargs)  # (B, N, D)
    items = [tokens.shape[1]] * tokens.shape[0]
    few = reduce_features(
        Encoded(
            output=None,
            tokens=tokens.flatten(0, 1),
            features=calls[0].flatten(0, 1),
            items=items,
            groups=items,
        ),
        reduction.options,
    )
    reduction.counts = list(zip(items, few.items, strict=True))
    return list(few.tokens.split(few.items))


for _model_type in ("llava_llama", "llava_mistral", "llava_mpt"):
    register_family(Family(model_type=_model_type, modalities=(), attach=attach))
