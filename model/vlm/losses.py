"""What SeTokim learns from: words, drawn tokens and masks of whole conversations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from setok_kernels import Packed
from setokim.tokenizer.modeling_setok import VisualTokens
from setokim.utils.distributed import mean_over_ranks
from setokim.vlm.multimodal_inputs import Spliced
from setokim.vlm.processing_setokim import IGNORED
from setokim.vlm.segmentation import MaskLogits


@dataclass(frozen=True)
class SetokimOutput:
    """What one pass gives.

    Attributes:
        hidden: (B, T, hidden) last states of the language model.
        spliced: what is in each of the T places.
        visual: the tokens of all pictures of the batch.
        packed: the same, one after the other, as the places number them.
        seen: (B, T), 0 for places that no other sees.
    """

    hidden: Tensor
    spliced: Spliced
    visual: VisualTokens
    packed: Packed
    seen: Tensor


class Losses:
    """The losses of `SetokimModel`, by its states."""

    def text_loss(self, output: SetokimOutput) -> Tensor:
        """Mean cross-entropy of what the assistant says next, the ends of pictures included."""
        labels = output.spliced.labels[:, 1:]
        learnt = labels != IGNORED
        logits = self.logits(output.hidden[:, :-1][learnt])
        # Processes have different numbers of tokens; the mean is over those of all.
        number = mean_over_ranks(learnt.sum().float()).clamp(min=1)
        return F.cross_entropy(logits, labels[learnt], reduction="sum") / number

    def drawn(self, output: SetokimOutput) -> tuple[Tensor, Tensor, Tensor | None]:
        """Visual tokens that the assistant draws, and what the diffusion head draws them from.

        Returns:
            (S, token_dim) without gradient, and what `conditions` gives.
        """
        spliced = output.spliced
        rows, places = ((spliced.visual >= 0) & (spliced.labels != IGNORED)).nonzero().unbind(1)
        tokens = output.packed.tokens.detach()[spliced.visual[rows, places]]
        read = spliced.ids, spliced.visual, output.packed.tokens, output.seen
        memory = self.memory(output.hidden, *read)
        states = output.hidden[rows, places - 1]
        return tokens, *self.conditions(states, rows, places - 1, memory)

    def diffusion_loss(self, output: SetokimOutput, repeats: int, noisiest: int = 0) -> Tensor:
        """Mean over the tokens that are drawn, of all processes, of the diffusion head's loss.

        Args:
            output: of `forward`.
            repeats: timesteps and noises for each token.
            noisiest: how many of them are at the last timestep.
        """
        tokens, condition, base = self.drawn(output)
        number = mean_over_ranks(condition.new_tensor(len(tokens), dtype=torch.float32))
        loss = self.head.loss(tokens, condition, repeats, noisiest=noisiest, base=base)
        return loss * (len(tokens) / number.clamp(min=1))

    def segment(self, output: SetokimOutput, size: tuple[int, int]) -> tuple[MaskLogits, Tensor]:
        """Masks of all `[SEG]` that are learnt.

        Args:
            output: of `forward`.
            size: height and width of the masks in pixels.

        Returns:
            Logits of Q masks, and (Q,) the number of each among the batch's `[SEG]`: `max_length`
            may have cut some off.

        Raises:
            ValueError: there is no picture before one of them.
        """
        rows, places = (output.spliced.segment >= 0).nonzero().unbind(1)
        images = output.spliced.image[rows, places]
        return (
            self.masks(output.hidden[rows, places], output.visual, images, size),
            output.spliced.segment[rows, places],
        )
