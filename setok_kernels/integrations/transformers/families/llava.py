"""LLaVA: one projected token per patch, one item per image."""

from setok_kernels.integrations.transformers.registry import Family, Modality, register_family

IMAGE = Modality(
    placeholder="image_token_id",
    pixels="pixel_values",
    function="get_image_features",
    encoder="multi_modal_projector",
)

register_family(Family(model_type="llava", modalities=(IMAGE,)))
