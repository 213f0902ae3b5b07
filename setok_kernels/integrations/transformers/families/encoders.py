"""Vision encoders alone: CLIP, SigLIP, SigLIP 2, DINOv2 and DINOv3."""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from setok_kernels import layout
from setok_kernels.integrations.transformers.clustering import Encoded, reduce_features
from setok_kernels.integrations.transformers.options import Options
from setok_kernels.integrations.transformers.reduce import ATTRIBUTE, Reduction
from setok_kernels.integrations.transformers.registry import Family, register_family

if TYPE_CHECKING:
    from setok_kernels.integrations.transformers.encoder_output import ReducedEncoderOutput

# Model types, and the classes among them whose output has `last_hidden_state`.
ENCODERS = {
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "siglip_vision_model": ("SiglipVisionModel",),
    "siglip2_vision_model": ("Siglip2VisionModel",),
    "dinov2": ("Dinov2Model",),
    "dinov2_with_registers": ("Dinov2WithRegistersModel",),
    "dinov3_vit": ("DINOv3ViTModel",),
}
# Tokens in front of the patches, without registers.
WITHOUT_CLS = ("siglip_vision_model", "siglip2_vision_model")


def attach(model: nn.Module, family: Family, options: Options) -> Reduction:
    """Let an encoder return clustered patch tokens.

    Its `forward` returns a `ReducedEncoderOutput`.

    Raises:
        ValueError: the model has a head instead of an output `last_hidden_state`.
    """
    classes = ENCODERS[family.model_type]
    if not any(parent.__name__ in classes for parent in type(model).__mro__):
        raise ValueError(f"model: expected {' or '.join(classes)}, got {type(model).__name__}")
    reduction = Reduction(model, family, options)
    reduction.wrap("forward", _forward)
    model.__dict__[ATTRIBUTE] = reduction
    return reduction


def _forward(reduction: Reduction, args: tuple, kwargs: dict[str, Any]) -> Any:
    inputs = reduction.named("forward", args, kwargs)
    config: Any = reduction.model.config
    wanted = inputs.pop("return_dict", None)
    output = reduction.original("forward")(**inputs, return_dict=True)
    front = 0 if reduction.family.model_type in WITHOUT_CLS else 1
    front += getattr(config, "num_register_tokens", 0)
    mask = inputs.get("pixel_attention_mask")
    reduced = _reduced(output, front, None if mask is None else mask.bool(), reduction)
    as_dict = config.return_dict if wanted is None else wanted
    return reduced if as_dict else reduced.to_tuple()


def _reduced(
    output: Any, front: int, mask: Tensor | None, reduction: Reduction
) -> "ReducedEncoderOutput":
    """Return the output with clustered patches.

    Args:
        output: output of the encoder.
        front: number of tokens before the patches.
        mask: (B, N) bool, False for patches that are padding; None for none.
        reduction: reduction of the model.
    """
    hidden = output.last_hidden_state
    images, device = hidden.shape[0], hidden.device
    if mask is None:
        patches = hidden[:, front:]
        items = [patches.shape[1]] * images
        index = torch.arange(patches.shape[1], device=device).repeat(images)
        flat = patches.flatten(0, 1)
    else:
        flat = hidden[mask]
        items = mask.sum(1).tolist()
        index = mask.nonzero()[:, 1]
    few = reduce_features(
        Encoded(output=output, tokens=flat, features=flat, items=items, groups=items),
        reduction.options,
    )
    reduction.counts = list(zip(items, few.items, strict=True))

    longest = max(few.items, default=0)
    offsets = torch.tensor([0, *few.items], device=device).cumsum(0).int()
    tokens = layout.pad(few.tokens, offsets, longest)
    kept = layout.pad(index[few.keep], offsets, longest, fill=-1)
    rows = layout.valid_tokens(offsets, longest)
    fields = {name: value for name, value in output.items() if name != "last_hidden_state"}
    return _output_class()(
        last_hidden_state=torch.cat([hidden[:, :front], tokens], 1),
        attention_mask=nn.functional.pad(rows.long(), (front, 0), value=1),
        patches=nn.functional.pad(kept, (front, 0), value=-1),
        **fields,
    )


@functools.cache
def _output_class() -> "type[ReducedEncoderOutput]":
    # Families are registered without transformers.
    from setok_kernels.integrations.transformers.encoder_output import ReducedEncoderOutput

    return ReducedEncoderOutput


for _model_type in ENCODERS:
    register_family(Family(model_type=_model_type, modalities=(), attach=attach))
