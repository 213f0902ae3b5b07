"""InternVL, Gemma 3, SmolVLM and Idefics 3: tiles of one size, pooled before the projection.

The features of the encoder are those behind the pixel shuffle or the average pooling, one vector
per placeholder. Separators between tiles are text and stay.
"""

from setok_kernels.integrations.transformers.encoding import encode_tiles
from setok_kernels.integrations.transformers.registry import Family, Modality, register_family

# Module that reads the pooled features of each model type.
ENCODERS = {
    "internvl": "multi_modal_projector",
    "gemma3": "multi_modal_projector.mm_soft_emb_norm",
    "smolvlm": "connector.modality_projection",
    "idefics3": "connector.modality_projection",
}

for model_type, encoder in ENCODERS.items():
    image = Modality(
        placeholder="image_token_id",
        pixels="pixel_values",
        function="get_image_features",
        encoder=encoder,
        encode=encode_tiles,
    )
    register_family(Family(model_type=model_type, modalities=(image,)))
