"""Output of a vision encoder with fewer tokens."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class ReducedEncoderOutput(ModelOutput):
    """Output of an encoder with clustered patches.

    R is the number of tokens of the image that keeps most: CLS and register tokens, unchanged, and
    one token for each cluster of patches, in the raster order of `patches`.

    Attributes:
        last_hidden_state: (B, R, D) tokens, 0 for padding, which is on the right.
        attention_mask: (B, R) int64, 1 for tokens, 0 for padding.
        patches: (B, R) int64 index of the patch that each token stands at: the seed of its
            cluster (for the residual the first patch). -1 for CLS, registers and padding.
        pooler_output: the model's own, from all tokens; None if it has none.
        image_embeds: the model's own projection of `pooler_output`, if it has one.
        hidden_states: the model's own, with all tokens, if asked for.
        attentions: the model's own, with all tokens, if asked for.
    """

    last_hidden_state: Tensor | None = None
    attention_mask: Tensor | None = None
    patches: Tensor | None = None
    pooler_output: Tensor | None = None
    image_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
