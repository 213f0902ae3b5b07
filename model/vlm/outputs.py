"""The output of one forward pass of SetokimModel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from setok_kernels import Packed
from setokim.tokenizer.modeling_setok import VisualTokens
from setokim.vlm.multimodal_inputs import Spliced


@dataclass
class SetokimOutput(ModelOutput):
    """Hidden states of a batch of conversations, and the losses where there are labels.

    Attributes:
        loss: 0-dim float32, weighted sum of `losses`; None without labels.
        losses: 0-dim float32 losses by name, not weighted; None without labels.
        last_hidden_state: (B, T, hidden) hidden states of the language model's last layer.
        spliced: token, label and visual token of each of the T positions.
        visual: visual tokens of all images of the batch.
        packed: the same tokens without padding, as `spliced.visual` indexes them.
        seen: (B, T), 0 for positions that are masked out of the attention.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    last_hidden_state: Tensor | None = None
    spliced: Spliced | None = None
    visual: VisualTokens | None = None
    packed: Packed | None = None
    seen: Tensor | None = None
