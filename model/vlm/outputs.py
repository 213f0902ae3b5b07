"""Output of one forward pass of SetokimModel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from setok_kernels import Packed
from setokim.tokenizer.modeling_setok import VisualTokens
from setokim.vlm.multimodal_inputs import Spliced
from setokim.vlm.processing_setokim import IGNORED


@dataclass
class SetokimOutput(ModelOutput):
    """Hidden states and losses of a batch of conversations.

    Attributes:
        loss: 0-dim float32, weighted sum of `losses`; None without labels.
        losses: unweighted 0-dim float32 losses by name; None without labels.
        last_hidden_state: (B, T, hidden) hidden states of the language model's last layer.
        spliced: tokens, labels and indices of visual tokens of all T positions.
        visual: visual tokens of all images of the batch.
        packed: visual tokens without padding, as `spliced.visual` indexes them.
        seen: (B, T) attention mask, 0 in padding and in prompts of unconditional rows.
        repeated: (S,) int64 index of the token of the source image that each token of an edited
            image repeats, -1 for other tokens; None without `copy_tokens`.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    # Always there: a `ModelOutput` has defaults because the fields before them have.
    last_hidden_state: Tensor = None  # type: ignore[assignment]
    spliced: Spliced = None  # type: ignore[assignment]
    visual: VisualTokens = None  # type: ignore[assignment]
    packed: Packed = None  # type: ignore[assignment]
    seen: Tensor = None  # type: ignore[assignment]
    repeated: Tensor | None = None

    def generated(self) -> list[Tensor]:
        """Return the visual tokens that the assistant generates.

        Returns:
            (G,) int64 row and position of each, ascending, and its index in `packed`.
        """
        spliced = self.spliced
        generated = (spliced.visual >= 0) & (spliced.labels != IGNORED)
        rows, positions = generated.nonzero().unbind(1)
        return [rows, positions, spliced.visual[rows, positions]]
