"""SeTokim model: a language model that reads, generates and segments images as semantic tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from setokim.tokenizer.shapelets import unit_shapes
from setokim.tokenizer.stored_tokens import Images, visual_tokens
from setokim.tokenizer.token_statistics import ChannelUnits, token_blocks
from setokim.vlm.configuration_setokim import SetokimConfig
from setokim.vlm.diffusion_head import DiffusionHead
from setokim.vlm.generation_config import SetokimGenerationConfig
from setokim.vlm.generation_mixin import SetokimGenerationMixin
from setokim.vlm.lora import LoraMixin, add_lora, base_of
from setokim.vlm.losses import LossContext, compute_losses
from setokim.vlm.multimodal_inputs import Spliced, input_tokens, prompt_positions, splice
from setokim.vlm.outputs import SetokimOutput
from setokim.vlm.pointer_head import Memory, Pointed, PointerHead
from setokim.vlm.processing_setokim import SetokimProcessor
from setokim.vlm.region_names import NameHead, RegionNames
from setokim.vlm.segmentation import MaskLogits, SegmentationHead
from setokim.vlm.token_order import (
    pack_in_order,
    pack_like_sources,
    repeated_tokens,
    source_images,
)


class SetokimModel(SetokimGenerationMixin, PreTrainedModel, LoraMixin):
    """Causal language model with a visual tokenizer, a projector, and heads for tokens and masks.

    Images become visual tokens at the positions of `<image>`. The language model's head predicts
    the next id: a text token, one more visual token (`<image>`), or the end of the image
    (`</img>`). The diffusion head generates a visual token from the hidden state before it. The
    hidden state of `[SEG]` selects among the clusters of the last image. The four special tokens
    of images have input and output embeddings of their own; those of the language model stay
    unchanged.

    Args:
        config: configuration of the model; the weights are random.
        with_encoder: flag; False for a model of stored tokens, see `SetokModel`.
    """

    config_class = SetokimConfig
    base_model_prefix = "setokim"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: SetokimConfig, with_encoder: bool = True):
        super().__init__(config)
        # transformers has set options of its own.
        self.generation_config = SetokimGenerationConfig()
        self.setok = SetokModel(config.setok_config(), with_encoder)
        self.llm = AutoModelForCausalLM.from_config(config.llm_config(), trust_remote_code=False)
        if config.lora is not None:
            self.llm = add_lora(self.llm, **config.lora)
        # Modules that fully sharded training wraps.
        self._no_split_modules = [*(base_of(self.llm)._no_split_modules or ()), "Block"]
        hidden = self.llm.get_input_embeddings().embedding_dim
        visual = self.setok.config
        width = hidden if config.projector_width is None else config.projector_width
        self.project_in = nn.Sequential(
            nn.Linear(visual.token_dim, width), nn.GELU(), nn.Linear(width, hidden)
        )
        self.special_in = nn.Parameter(torch.zeros(4, hidden))
        self.special_out = nn.Parameter(torch.zeros(4, hidden))
        # The diffusion head generates codes, if there are any, and tokens otherwise.
        blocks: tuple[int, ...] = token_blocks(visual.token_dim, visual.outline_dim)
        if visual.code_dim is not None:
            blocks = (visual.code_dim,)
        self.recall: PointerHead | None = None
        if config.recall_width is not None:
            width = config.recall_width
            self.recall = PointerHead(hidden, sum(blocks), width, blocks, config.copy_tokens)
        self.head = DiffusionHead(
            sum(blocks),
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
        self.names = NameHead(hidden) if config.name_regions else None
        ids = torch.tensor(config.special_ids)
        self.register_buffer("special_ids", ids, persistent=False)
        self.post_init()

    @classmethod
    def from_parts(
        cls, setok: SetokModel, llm: PreTrainedModel, processor: SetokimProcessor, **fields: Any
    ) -> SetokimModel:
        """Build a model around a trained visual tokenizer and a language model; the rest is random.

        Args:
            setok: visual tokenizer of stage 1.
            llm: any causal language model.
            processor: processor with the language model's tokenizer.
            **fields: further fields of `SetokimConfig`.

        Raises:
            ValueError: a field does not fit.
        """
        config = SetokimConfig(setok.config, llm.config, **processor.special_ids(), **fields)
        lora, config.lora = config.lora, None
        # Random weights of another encoder would take time, and change those of the other parts.
        model = cls(config, with_encoder=False)
        model.setok, model.llm = setok, llm
        if lora is not None:
            model.add_lora(lora)
        return model

    @property
    def token_units(self) -> ChannelUnits:
        """Module with the channel statistics of visual tokens."""
        return self.head if self.setok.codes is None else self.setok.codes

    def targets(self, tokens: Tensor) -> Tensor:
        """Return what the diffusion head generates for tokens (S, token_dim): codes or tokens."""
        codes = self.setok.codes
        return tokens if codes is None else codes.encode(tokens)[0].to(tokens)

    def tokens_of(self, targets: Tensor) -> Tensor:
        """Return the visual tokens (S, token_dim) of an output of the diffusion head."""
        codes = self.setok.codes
        if codes is None:
            return unit_shapes(targets, self.setok.config.outline_dim)
        return codes.decode(targets)

    def embed(self, ids: Tensor, visual: Tensor, tokens: Tensor) -> Tensor:
        """Embed text tokens, special tokens and visual tokens.

        Args:
            ids: (B, T) id at each position.
            visual: (B, T) index of the visual token at each position, -1 for none.
            tokens: (S, token_dim) visual tokens.

        Returns:
            (B, T, hidden) embeddings, in the dtype of the language model's embeddings.
        """
        special = self._special(ids)
        table = self.llm.get_input_embeddings()
        text = table(ids.masked_fill(special >= 0, 0))
        embeddings = torch.where(special[..., None] >= 0, self.special_in[special].to(text), text)
        # One more row for index -1: there may be no visual token at all.
        normal = self.token_units.normalise(tokens).to(self.dtype)
        projected = F.pad(self.project_in(normal), (0, 0, 0, 1))
        return torch.where(visual[..., None] >= 0, projected[visual].to(embeddings), embeddings)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (..., V) float32 logits of the next id, text and special tokens.

        Args:
            hidden: (..., hidden) hidden states of the last layer.
        """
        text = self.llm.get_output_embeddings()(hidden).float()
        special = F.linear(hidden, self.special_out.to(hidden)).float()
        size = max(text.shape[-1], 1 + max(self.config.special_ids))
        # Ids between the vocabulary and the special tokens are unused.
        logits = F.pad(text, (0, size - text.shape[-1]), value=-torch.inf)
        return logits.index_copy(-1, self.special_ids, special)

    def decode(
        self, embeddings: Tensor, attention_mask: Tensor, positions: Tensor, **kwargs: Any
    ) -> Any:
        """Run the language model without its head on embeddings.

        Args:
            embeddings: (B, T, hidden) input embeddings.
            attention_mask: (B, T) attention mask of transformers.
            positions: (B, T) position ids.
            **kwargs: further arguments of the decoder of transformers.

        Returns:
            Output of the decoder, with `last_hidden_state`.
        """
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
        pixel_values: Tensor | VisualTokens | Images,
        labels: Tensor | None = None,
        max_length: int | None = None,
        padding_side: str = "right",
    ) -> tuple[Spliced, VisualTokens, Packed]:
        """Tokenize the images and insert positions for their tokens.

        Args:
            input_ids: (B, L) int64 ids, as in `forward`.
            attention_mask: (B, L) attention mask, as in `forward`.
            pixel_values: images or their visual tokens, as in `forward`.
            labels: (B, L) int64 labels, as in `forward`.
            max_length: max length of a row, visual tokens included.
            padding_side: side of the padding of the rows, "right" or "left".

        Returns:
            Rows with all positions, visual tokens of the images, and the same tokens without
            padding in the order of the rows.

        Raises:
            ValueError: images and `<image>` do not match, or `max_length` cuts an image in two.
        """
        visual = pixel_values
        if isinstance(visual, Tensor):
            visual = self.setok.tokenize(visual)
        elif not isinstance(visual, VisualTokens):
            visual = visual_tokens(self.setok, visual)
        packed = pack_in_order(visual, self.config.token_order)
        if self.config.answer_order == "before":
            sources = self._sources(input_ids, attention_mask)
            packed = pack_like_sources(packed, self.token_units, sources)
        ids = (self.config.image_token_id, self.config.segment_id)
        offsets = packed.cu_seqlens
        spliced = splice(input_ids, attention_mask, labels, offsets, *ids, max_length, padding_side)
        return spliced, visual, packed

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | VisualTokens | Images,
        labels: Tensor | None = None,
        masks: Tensor | None = None,
        unconditional: Tensor | None = None,
        max_length: int | None = None,
        loss_weights: Mapping[str, float] | None = None,
        diffusion_repeats: int = 4,
        diffusion_noisiest: int = 0,
        regions: RegionNames | None = None,
    ) -> SetokimOutput:
        """Run whole conversations through the model and compute their losses.

        Args:
            input_ids: (B, L) int64 ids of `SetokimProcessor`, with one `<image>` for each image.
            attention_mask: (B, L) int64, 0 in padding on either side.
            pixel_values: (M, 3, H, W) images in the order of their `<image>`, their visual tokens
                by `self.setok`, or M RGB images and stored images.
            labels: (B, L) int64, -100 where nothing is trained; None to compute no loss.
            masks: (K, h, w) bool or floating-point targets of all `[SEG]` in `labels`, in order.
            unconditional: (B,) bool, rows with prompts masked out but for their last position, for
                classifier-free guidance.
            max_length: max length of a row, visual tokens included.
            loss_weights: weights by names of `setokim.vlm.losses.LOSSES`; a loss of weight 0 is not
                computed. None for `config.loss_weights`, without the mask loss if `masks` is None.
            diffusion_repeats: number of timesteps and noise samples for each visual token.
            diffusion_noisiest: number of these at the last timestep.
            regions: named regions of the images, for the loss "names".

        Returns:
            Hidden states, and with labels `loss` and its parts `losses`, which carry gradient.

        Raises:
            ValueError: images and `<image>` do not match, `max_length` cuts an image in two, or a
                loss is unknown or lacks its targets.
            RuntimeError: the weight of the diffusion loss is not 0, and `head.fit` was not called.
        """
        spliced, visual, packed = self.read(
            input_ids, attention_mask, pixel_values, labels, max_length
        )
        seen = spliced.attention_mask
        if unconditional is not None:
            prompt = prompt_positions(spliced.labels)
            seen = seen.masked_fill(unconditional[:, None] & prompt, 0)
        repeated = None
        if self.config.copy_tokens:
            sources = self._sources(input_ids, attention_mask)
            repeated = repeated_tokens(packed, self.token_units, sources)
        tokens = input_tokens(spliced, packed.tokens, self.setok.codes, repeated, self.training)
        embeddings = self.embed(spliced.ids, spliced.visual, tokens)
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        hidden = self.decode(embeddings, seen, positions, use_cache=False).last_hidden_state
        output = SetokimOutput(
            last_hidden_state=hidden,
            spliced=spliced,
            visual=visual,
            packed=packed,
            seen=seen,
            repeated=repeated,
        )
        if labels is None:
            return output
        if loss_weights is None:
            loss_weights = self.config.loss_weights
            if masks is None:
                loss_weights = {**loss_weights, "mask": 0.0}
        context = LossContext(self, output, masks, diffusion_repeats, diffusion_noisiest, regions)
        output.losses = compute_losses(context, loss_weights)
        if output.losses:
            weighted = [loss_weights[name] * loss for name, loss in output.losses.items()]
            output.loss = torch.stack(weighted).sum()
        return output

    def generated_tokens(self, output: SetokimOutput) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what the diffusion head shall generate, with its conditions.

        Args:
            output: output of `forward` with labels.

        Returns:
            (S, D) targets without gradient, codes if the model has them and tokens otherwise,
            (S, C) conditions, and (S, D) base of the head's output, or None. Tokens that repeat
            one of the source image are left out.
        """
        places = output.generated()
        if output.repeated is not None:
            places = [place[output.repeated[places[2]] < 0] for place in places]
        rows, positions, index = places
        with torch.no_grad():
            targets = self.targets(output.packed.tokens[index])
        pointed = self.point(output, rows, positions)
        return targets, pointed.condition, pointed.base

    def point(self, output: SetokimOutput, rows: Tensor, positions: Tensor) -> Pointed:
        """Return the conditions of the tokens at some positions of a forward pass.

        Args:
            output: output of `forward`.
            rows: (S,) int64 row of each token, in ascending order.
            positions: (S,) int64 position of each token.
        """
        inputs = output.spliced.ids, output.spliced.visual, output.packed.tokens, output.seen
        memory = self.memory(output.last_hidden_state, *inputs)
        hidden_states = output.last_hidden_state[rows, positions - 1]
        return self.conditions(hidden_states, rows, positions - 1, memory)

    def segment(self, output: SetokimOutput, size: tuple[int, int]) -> tuple[MaskLogits, Tensor]:
        """Return the mask of each `[SEG]` in the labels.

        Args:
            output: output of `forward` with labels.
            size: height and width of the masks in pixels.

        Returns:
            Logits of Q masks, and (Q,) int64 index of each among the batch's `[SEG]`: `max_length`
            may have cut some off.

        Raises:
            ValueError: a `[SEG]` has no image before it.
        """
        rows, positions = (output.spliced.segment >= 0).nonzero().unbind(1)
        images = output.spliced.image[rows, positions]
        hidden_states = output.last_hidden_state[rows, positions]
        masks = self.masks(hidden_states, output.visual, images, size)
        return masks, output.spliced.segment[rows, positions]

    def memory(
        self, hidden: Tensor, ids: Tensor, visual: Tensor, tokens: Tensor, seen: Tensor
    ) -> Memory | None:
        """Return the input of the pointer head; None for a model without one.

        Args:
            hidden: (B, T, hidden) hidden states.
            ids: (B, T) id at each position.
            visual: (B, T) index of the visual token at each position, -1 for none.
            tokens: (S, token_dim) visual tokens.
            seen: (B, T) attention mask, 0 at positions that are masked out.
        """
        if self.recall is None:
            return None
        # One more row for index -1.
        exact = F.pad(tokens.detach(), (0, 0, 0, 1))
        with torch.no_grad():
            normal = F.pad(self.head.normalise(self.targets(tokens)), (0, 0, 0, 1))
        kept = seen.bool()
        begun = (ids == self.config.image_start_id).cumsum(1)
        return Memory(
            hidden * kept[..., None],
            normal[visual],
            (visual >= 0) & kept,
            begun,
            exact[visual] if self.config.copy_tokens else None,
        )

    def conditions(
        self, hidden_states: Tensor, rows: Tensor, positions: Tensor, memory: Memory | None
    ) -> Pointed:
        """Return the conditions of the diffusion head.

        Args:
            hidden_states: (S, hidden) hidden states before the tokens.
            rows: (S,) int64 row of each hidden state, in ascending order.
            positions: (S,) int64 position of each hidden state.
            memory: result of `memory`.

        Returns:
            Result of the pointer head; without one the hidden states alone.
        """
        if memory is None:
            return Pointed(hidden_states, None)
        assert self.recall is not None
        return self.recall(hidden_states, rows, positions, memory)

    def masks(
        self, hidden_states: Tensor, visual: VisualTokens, images: Tensor, size: tuple[int, int]
    ) -> MaskLogits:
        """Return the masks of `[SEG]` tokens.

        Args:
            hidden_states: (Q, hidden) hidden states of the `[SEG]` tokens.
            visual: visual tokens of all images.
            images: (Q,) index of the image of each mask.
            size: height and width of the masks in pixels.

        Raises:
            ValueError: an index of `images` is -1.
        """
        if bool((images < 0).any()):
            raise ValueError(
                "input_ids: expected an image before each [SEG], got a row without one"
            )
        chosen = visual.select(images)
        return self.segmentation(
            hidden_states,
            chosen.tokens,
            chosen.occupied,
            chosen.masks,
            chosen.features,
            chosen.grid,
            size,
        )

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict | None = None
    ) -> None:
        """Recompute the language model's layers in the backward pass to save memory.

        Args:
            gradient_checkpointing_kwargs: arguments of `torch.utils.checkpoint.checkpoint`.
        """
        # Not reentrant: that needs inputs with gradient, and frozen embeddings have none.
        kwargs = {"use_reentrant": False} | (gradient_checkpointing_kwargs or {})
        base_of(self.llm).gradient_checkpointing_enable(kwargs)

    def _sources(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (M,) int64, the index of each generated image's source, -1 for other images."""
        visible = input_ids.masked_fill(attention_mask == 0, -1)
        return source_images(visible, *self.config.special_ids[:2])

    def _special(self, ids: Tensor) -> Tensor:
        """Return the index of each id among the four special tokens, -1 for all other ids."""
        is_special = ids[..., None] == self.special_ids
        return torch.where(is_special.any(-1), is_special.int().argmax(-1), -1)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            # These functions of transformers skip loaded parameters; the buffer is in no file.
            init.normal_(self.special_in, std=0.02)
            init.normal_(self.special_out, std=0.02)
            init.copy_(self.special_ids, torch.tensor(self.config.special_ids))


AutoConfig.register(SetokimConfig.model_type, SetokimConfig)
AutoModel.register(SetokimConfig, SetokimModel)
