"""SeTokim: a language model that reads pictures as semantic tokens, draws and segments them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers import initialization as init

from setok_kernels import Packed
from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens
from setokim.tokenizer.token_statistics import token_blocks
from setokim.vlm.configuration_setokim import SetokimConfig
from setokim.vlm.diffusion_head import DiffusionHead
from setokim.vlm.lora import add_lora, base_of
from setokim.vlm.losses import Losses, SetokimOutput
from setokim.vlm.multimodal_inputs import Spliced, prompt_places, splice
from setokim.vlm.pointer_head import Memory, Recall
from setokim.vlm.processing_setokim import SetokimProcessor
from setokim.vlm.segmentation import MaskLogits, SegmentationHead
from setokim.vlm.token_order import follow, pictures_before

if TYPE_CHECKING:
    from setokim.vlm.generation import Answer

# Of `Packed`, what has a line for each token.
_ROWS = ("tokens", "images", "rows", "sizes", "seeds", "seed_positions", "centroids")


class SetokimModel(Losses, PreTrainedModel):
    """Any causal language model, with the visual tokenizer before and three heads behind it.

    Pictures become visual tokens in the places of `<image>`. The language model's head says what
    the next place is, one more visual token (`<image>`) or the end of the picture (`</img>`)
    included; what that token is, the diffusion head draws from the state before it. The state of
    `[SEG]` selects among the clusters of the last picture. The embeddings of the four tokens of
    pictures, in and out, are parameters of their own: the language model's stay as they were.

    Args:
        config: what to build; the weights are random.
    """

    config_class = SetokimConfig
    base_model_prefix = "setokim"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: SetokimConfig):
        super().__init__(config)
        self.setok = SetokModel(config.setok_config())
        self.llm = AutoModelForCausalLM.from_config(config.llm_config(), trust_remote_code=False)
        if config.lora is not None:
            self.llm = add_lora(self.llm, **config.lora)
        # What fully sharded training takes apart.
        self._no_split_modules = [*(base_of(self.llm)._no_split_modules or ()), "Block"]
        hidden = self.llm.get_input_embeddings().embedding_dim
        visual = self.setok.config
        width = hidden if config.projector_width is None else config.projector_width
        self.project_in = nn.Sequential(
            nn.Linear(visual.token_dim, width), nn.GELU(), nn.Linear(width, hidden)
        )
        self.special_in = nn.Parameter(torch.zeros(4, hidden))
        self.special_out = nn.Parameter(torch.zeros(4, hidden))
        blocks = token_blocks(visual.token_dim, visual.outline_dim)
        self.recall: Recall | None = None
        if config.recall_width is not None:
            self.recall = Recall(hidden, visual.token_dim, config.recall_width, blocks)
        self.head = DiffusionHead(
            visual.token_dim,
            hidden if self.recall is None else self.recall.condition_dim,
            config.head_width,
            config.head_layers,
            config.noise_steps,
            config.noise_schedule,
            config.prediction,
            blocks=blocks,
        )
        self.segmentation = SegmentationHead(
            hidden, visual.token_dim, self.setok.encoder.feature_dim, config.segmentation_width
        )
        ids = torch.tensor(config.special_ids)
        self.register_buffer("special_ids", ids, persistent=False)
        self.post_init()

    @classmethod
    def from_parts(
        cls, setok: SetokModel, llm: PreTrainedModel, processor: SetokimProcessor, **fields: Any
    ) -> SetokimModel:
        """A model around a trained visual tokenizer and a language model; the rest is random.

        Args:
            setok: of stage 1.
            llm: any causal language model.
            processor: with the language model's tokenizer.
            **fields: of `SetokimConfig`.

        Raises:
            TypeError, ValueError: a field does not fit.
        """
        config = SetokimConfig(setok.config, llm.config, **processor.special_ids(), **fields)
        lora, config.lora = config.lora, None
        model = cls(config)
        model.setok, model.llm = setok, llm
        if lora is not None:
            model.add_lora(lora)
        return model

    def embed(self, ids: Tensor, visual: Tensor, tokens: Tensor) -> Tensor:
        """Embeddings of places.

        Args:
            ids: (B, T).
            visual: (B, T) number of the visual token in each place, -1 for none.
            tokens: (S, token_dim) visual tokens.

        Returns:
            (B, T, hidden).
        """
        special = self._special(ids)
        table = self.llm.get_input_embeddings()
        words = table(ids.masked_fill(special >= 0, 0))
        found = torch.where(special[..., None] >= 0, self.special_in[special].to(words), words)
        # One row more, which -1 takes: there may be no token at all.
        normal = self.head.normalise(tokens).to(self.dtype)
        projected = F.pad(self.project_in(normal), (0, 0, 0, 1))
        return torch.where(visual[..., None] >= 0, projected[visual].to(found), found)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) float32 of the next token; V covers the vocabulary and the tokens of pictures.

        Args:
            hidden: (..., hidden) last states.
        """
        words = self.llm.get_output_embeddings()(hidden).float()
        special = F.linear(hidden, self.special_out.to(hidden)).float()
        size = max(words.shape[-1], 1 + max(self.config.special_ids))
        # Ids between the two are nobody's.
        found = F.pad(words, (0, size - words.shape[-1]), value=-torch.inf)
        return found.index_copy(-1, self.special_ids, special)

    def decode(
        self, embeddings: Tensor, attention_mask: Tensor, positions: Tensor, **kwargs: Any
    ) -> Any:
        """The language model without its head, on embeddings; arguments as of transformers."""
        return base_of(self.llm).get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=positions,
            **kwargs,
        )

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | VisualTokens,
        labels: Tensor | None = None,
        max_length: int | None = None,
        padding_side: str = "right",
    ) -> tuple[Spliced, VisualTokens, Packed]:
        """Pictures to tokens, and places for them; arguments and errors as of `forward`."""
        if isinstance(pixel_values, Tensor):
            visual = self.setok.tokenize(pixel_values)
        else:
            visual = pixel_values
        packed = visual.pack(self.config.token_order)
        if self.config.answer_order == "before":
            read = input_ids.masked_fill(attention_mask == 0, -1)
            before = pictures_before(read, *self.config.special_ids[:2])
            normal = self.head.normalise(packed.tokens.detach())
            order = follow(normal, packed.cu_seqlens, before, self.head.blocks)
            packed = replace(packed, **{name: getattr(packed, name)[order] for name in _ROWS})
        ids = (self.config.image_token_id, self.config.segment_id)
        offsets = packed.cu_seqlens
        spliced = splice(input_ids, attention_mask, labels, offsets, *ids, max_length, padding_side)
        return spliced, visual, packed

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | VisualTokens,
        labels: Tensor | None = None,
        unconditional: Tensor | None = None,
        max_length: int | None = None,
    ) -> SetokimOutput:
        """One pass over whole conversations.

        Args:
            input_ids: (B, L) int64 with one `<image>` for each picture, of `SetokimProcessor`.
            attention_mask: (B, L), 0 in padding, which may be on either side.
            pixel_values: (M, 3, H, W) of all pictures in the order of their `<image>`, or the
                tokens that `self.setok` has made of them.
            labels: (B, L) int64, -100 where nothing is learnt.
            unconditional: (B,) bool, rows that shall be drawn without what was asked: nothing of
                their prompt but its last place is seen.
            max_length: longest row with visual tokens in it.

        Returns:
            States and what they belong to: what `text_loss`, `diffusion_loss` and `segment` read.

        Raises:
            ValueError: pictures and `<image>` do not match, or `max_length` halves a picture.
        """
        spliced, visual, packed = self.read(
            input_ids, attention_mask, pixel_values, labels, max_length
        )
        seen = spliced.attention_mask
        if unconditional is not None:
            prompt = prompt_places(spliced.labels)
            seen = seen.masked_fill(unconditional[:, None] & prompt, 0)
        embeddings = self.embed(spliced.ids, spliced.visual, packed.tokens)
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        hidden = self.decode(embeddings, seen, positions, use_cache=False).last_hidden_state
        return SetokimOutput(hidden, spliced, visual, packed, seen)

    def memory(
        self, hidden: Tensor, ids: Tensor, visual: Tensor, tokens: Tensor, seen: Tensor
    ) -> Memory | None:
        """What `conditions` looks back at; None for a model that does not.

        Args:
            hidden: (B, T, hidden) states.
            ids: (B, T) token in each place.
            visual: (B, T) number of the visual token in each place, -1 for none.
            tokens: (S, token_dim) visual tokens.
            seen: (B, T), 0 for places that no other sees.
        """
        if self.recall is None:
            return None
        # One row more, which -1 takes.
        normal = F.pad(self.head.normalise(tokens.detach()), (0, 0, 0, 1))
        kept = seen.bool()
        begun = (ids == self.config.image_start_id).cumsum(1)
        return Memory(hidden * kept[..., None], normal[visual], (visual >= 0) & kept, begun)

    def conditions(
        self, states: Tensor, rows: Tensor, places: Tensor, memory: Memory | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the diffusion head draws tokens from.

        Args:
            states: (S, hidden) before the tokens.
            rows: (S,) int64 row of each, in ascending order.
            places: (S,) int64 place of each state.
            memory: of `memory`.

        Returns:
            (S, C) conditions, and (S, token_dim) what the head's answer is added to, or None.
        """
        if memory is None:
            return states, None
        assert self.recall is not None
        return self.recall(states, rows, places, memory)

    def masks(
        self, states: Tensor, visual: VisualTokens, images: Tensor, size: tuple[int, int]
    ) -> MaskLogits:
        """Masks for states of `[SEG]`.

        Args:
            states: (Q, hidden).
            visual: tokens of pictures.
            images: (Q,) which picture each is about.
            size: height and width of the masks in pixels.

        Raises:
            ValueError: an image is -1.
        """
        if bool((images < 0).any()):
            raise ValueError("input_ids: expected an image before each [SEG], got none")
        seen = visual.select(images)
        return self.segmentation(
            states, seen.tokens, seen.occupied, seen.masks, seen.features, seen.grid, size
        )

    def generate(self, *args: Any, **kwargs: Any) -> list[Answer]:
        """Text and pictures in order; see `setokim.vlm.generation.generate`."""
        from setokim.vlm.generation import generate

        return generate(self, *args, **kwargs)

    def add_lora(self, lora: dict[str, Any]) -> None:
        """Freezes the language model and puts adapters into it.

        Args:
            lora: as in `SetokimConfig`.

        Raises:
            ValueError: there are adapters already, or no such layers.
        """
        if self.config.lora is not None:
            raise ValueError(f"lora: expected a model without, got one with {self.config.lora}")
        self.llm = add_lora(self.llm, **lora)
        self.config.lora = lora

    def merge_lora(self) -> SetokimModel:
        """Adds the adapters to the weights they adapt and drops them; returns the model."""
        if self.config.lora is None:
            raise ValueError("lora: expected a model with adapters, got one without")
        self.llm = self.llm.merge_and_unload()
        self.config.lora = None
        return self

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict | None = None
    ) -> None:
        """Recomputes the language model's layers in the backward pass to save their memory."""
        # Not reentrant: its inputs need no gradient, which frozen embeddings have none of.
        kwargs = {"use_reentrant": False} | (gradient_checkpointing_kwargs or {})
        base_of(self.llm).gradient_checkpointing_enable(kwargs)

    def _special(self, ids: Tensor) -> Tensor:
        """(...) 0 to 3 for the tokens of pictures, -1 for all others."""
        is_special = ids[..., None] == self.special_ids
        return torch.where(is_special.any(-1), is_special.int().argmax(-1), -1)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            # These of transformers leave alone what was read from a file; the buffer never is.
            init.normal_(self.special_in, std=0.02)
            init.normal_(self.special_out, std=0.02)
            init.copy_(self.special_ids, torch.tensor(self.config.special_ids))


AutoConfig.register(SetokimConfig.model_type, SetokimConfig)
AutoModel.register(SetokimConfig, SetokimModel)
