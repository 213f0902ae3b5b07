"""Batched generation of text, images and masks, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from setok_kernels import Packed
from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens
from setokim.tokenizer.stored_tokens import Images
from setokim.vlm.configuration_setokim import SetokimConfig
from setokim.vlm.diffusion_head import DiffusionHead
from setokim.vlm.generation_config import SetokimGenerationConfig
from setokim.vlm.multimodal_inputs import Spliced
from setokim.vlm.reader import LanguageModel, Reader
from setokim.vlm.segmentation import MaskLogits


class GenerativeModel(LanguageModel, Protocol):
    """The part of `SetokimModel` that generation needs."""

    config: SetokimConfig
    setok: SetokModel
    head: DiffusionHead

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | VisualTokens | Images,
        *,
        padding_side: str,
    ) -> tuple[Spliced, VisualTokens, Packed]: ...

    def embed(self, ids: Tensor, visual: Tensor, tokens: Tensor) -> Tensor: ...

    def tokens_of(self, targets: Tensor) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def masks(
        self, states: Tensor, visual: VisualTokens, images: Tensor, size: tuple[int, int]
    ) -> MaskLogits: ...


class Streamer(Protocol):
    """Receiver of text tokens as they are generated, such as `transformers.TextStreamer`."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


@dataclass
class Answer:
    """Generated text, images and masks of one conversation.

    Attributes:
        ids: token ids of the text; each image is `<img>`, a single `<image>`, `</img>`.
        tokens: visual tokens of each image, (n, token_dim), in order.
        images: reconstructed images, (3, h, w) in [0, 1].
        masks: logits of each `[SEG]` for the last image of the prompt, (h, w).
        finished: True after an end token of the model, False after `max_new_tokens`.
    """

    ids: list[int] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    finished: bool = False


@torch.no_grad()
def generate(
    model: GenerativeModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values: Tensor | VisualTokens | Images,
    generation_config: SetokimGenerationConfig | None = None,
    *,
    generators: Sequence[torch.Generator] | None = None,
    streamer: Streamer | None = None,
    **options,
) -> list[Answer]:
    """Generate text, images and masks.

    Rows are independent: with one generator each, a row has the same result in any batch.

    Args:
        model: model, whose training or evaluation mode is kept.
        input_ids: (B, L) token ids of `SetokimProcessor` with `add_generation_prompt`.
        attention_mask: (B, L), 0 for padding.
        pixel_values: (M, 3, H, W), images of the prompts in order, or as in
            `SetokimModel.forward`.
        generation_config: options; None for those of `SetokimGenerationConfig`.
        generators: random generator of each row, on the CPU; None for torch's own.
        streamer: receiver of the ids of the prompt and of each new token; for a single row only.
        **options: options of `SetokimGenerationConfig` that replace those of `generation_config`.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an argument does not fit; see also `SetokimModel.forward`.
    """
    batch, config = input_ids.shape[0], model.config
    wanted = _merge(generation_config, options)
    _check(batch, generators, streamer)
    spliced, visual, packed = model.read(
        input_ids, attention_mask, pixel_values, padding_side="left"
    )
    guided = wanted.guidance != 1
    embeddings = model.embed(spliced.ids, spliced.visual, packed.tokens)
    seen = spliced.attention_mask
    if guided:
        # The unconditional half attends only to the last position of the prompt, as in training.
        last = torch.zeros_like(seen)
        last[:, -1] = 1
        embeddings, seen = torch.cat([embeddings, embeddings]), torch.cat([seen, last])
    reader = Reader(model, wanted.use_cache)
    hidden = reader.read(embeddings, seen, spliced.ids, spliced.visual, packed.tokens)
    # hidden: (B or 2 B, hidden)
    max_tokens = wanted.max_image_tokens
    if max_tokens is None:
        max_tokens = visual.tokens.shape[1]
    images = spliced.image[:, -1].tolist()
    rows = [_Row(config, max_tokens, i >= 0 and visual.has_patches) for i in images]
    if streamer is not None:
        streamer.put(input_ids)
    segments: list[tuple[int, Tensor]] = []  # row and hidden state (hidden,) of each [SEG]
    for _ in range(wanted.max_new_tokens):
        logits = model.logits(hidden[:batch])  # (B, V)
        for row, scores in zip(rows, logits, strict=True):
            row.restrict(scores)
        following = _choose(logits, wanted.temperature, wanted.top_p, generators)  # (B,)
        chosen = following.tolist()
        running = [not row.finished for row in rows]
        visual_rows = [i for i in range(batch) if running[i] and chosen[i] == config.image_token_id]
        tokens = packed.tokens[:0]
        indices = torch.full_like(following, -1)  # of the visual tokens
        if visual_rows:
            index = torch.tensor(visual_rows, device=hidden.device)
            indices[index] = torch.arange(len(visual_rows), device=hidden.device)
            tokens = _next_tokens(model, reader, hidden, index, wanted, guided, generators)
            tokens = tokens.to(packed.tokens.dtype)
        for i in range(batch):
            if running[i]:
                rows[i].add(chosen[i], tokens[indices[i]] if i in visual_rows else None)
        if streamer is not None and running[0]:
            streamer.put(following.cpu())
        if all(row.finished for row in rows):
            break
        embeddings = model.embed(following[:, None], indices[:, None], tokens)
        seen = torch.tensor([[not row.finished] for row in rows], device=hidden.device).long()
        if guided:
            embeddings, seen = torch.cat([embeddings, embeddings]), torch.cat([seen, seen])
        hidden = reader.read(embeddings, seen, following[:, None], indices[:, None], tokens)
        segments += [
            (i, hidden[i]) for i in range(batch) if running[i] and chosen[i] == config.segment_id
        ]
    if streamer is not None:
        streamer.end()
    answers = [row.close() for row in rows]
    _add_images(model, answers, wanted.image_size)
    _add_masks(model, answers, segments, visual, spliced.image[:, -1], wanted.mask_size)
    return answers


class _Row:
    """Unfinished answer of one row, with the constraints on its next token.

    Args:
        config: configuration of the model.
        max_tokens: max number of visual tokens of an image.
        segments: presence of an image in the prompt that can be segmented, without which `[SEG]`
            cannot follow.
    """

    def __init__(self, config: SetokimConfig, max_tokens: int, segments: bool):
        self._config, self._max_tokens, self._segments = config, max_tokens, segments
        self._open_image: list[Tensor] | None = None  # visual tokens of an unfinished image
        self._answer = Answer()

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self._answer.finished

    def restrict(self, logits: Tensor) -> None:
        """Set the logits of tokens that cannot follow to -inf, in place; `logits` is (V,)."""
        config = self._config
        if self._open_image is None:
            logits[[config.image_token_id, config.image_end_id]] = -torch.inf
            if not self._segments:
                logits[config.segment_id] = -torch.inf
            return
        only = logits[[config.image_token_id, config.image_end_id]].clone()
        if not self._open_image:
            only[1] = -torch.inf
        elif len(self._open_image) >= self._max_tokens:
            only[0] = -torch.inf
        logits.fill_(-torch.inf)
        logits[[config.image_token_id, config.image_end_id]] = only

    def add(self, token: int, visual: Tensor | None) -> None:
        """Append a token; `visual` is its visual token (token_dim,), None for text."""
        config = self._config
        if token == config.eos_token_id:
            self._answer.finished = True
            return
        if visual is not None:
            self._open_image.append(visual)
            if len(self._open_image) > 1:
                return
        elif token == config.image_start_id:
            self._open_image = []
        elif token == config.image_end_id:
            self._end_image()
        self._answer.ids.append(token)

    def close(self) -> Answer:
        """Return the answer; an unfinished image keeps its tokens."""
        if self._open_image:
            self._answer.ids.append(self._config.image_end_id)
            self._end_image()
        return self._answer

    def _end_image(self) -> None:
        self._answer.tokens.append(torch.stack(self._open_image))
        self._open_image = None


def _next_tokens(
    model: GenerativeModel,
    reader: Reader,
    hidden: Tensor,
    rows: Tensor,
    wanted: SetokimGenerationConfig,
    guided: bool,
    generators: Sequence[torch.Generator] | None,
) -> Tensor:
    """Return the next visual tokens (S, token_dim) of some rows: repeated or new ones."""
    pointed = reader.conditions(hidden, rows)
    unconditional = reader.conditions(hidden, rows + len(hidden) // 2) if guided else None
    noise = _noise(rows.tolist(), model.head.token_dim, generators).to(hidden.device)
    targets = model.head.sample(
        pointed.condition,
        None if unconditional is None else unconditional.condition,
        wanted.guidance,
        wanted.sampling_steps,
        temperature=wanted.image_temperature,
        noise=noise,
        base=pointed.base,
        unconditional_base=None if unconditional is None else unconditional.base,
    )
    return reader.repeat(model.tokens_of(targets), pointed, rows)


def _choose(logits: Tensor, temperature: float, top_p: float, generators) -> Tensor:
    """Sample (B,) token ids from (B, V) logits; temperature 0 takes the most probable."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    ranked, order = probabilities.sort(-1, descending=True)
    # The most probable token always stays.
    beyond = ranked.cumsum(-1) - ranked >= top_p
    ranked = ranked.masked_fill(beyond, 0).cpu()
    sampled = [
        torch.multinomial(row, 1, generator=None if generators is None else generators[i])
        for i, row in enumerate(ranked)
    ]
    return order.gather(1, torch.stack(sampled).to(order.device)).squeeze(1)


def _noise(rows: list[int], width: int, generators) -> Tensor:
    """Sample noise (len(rows), width) in float32, each row from its own generator."""
    own = [None if generators is None else generators[i] for i in rows]
    return torch.stack([torch.randn(width, generator=generator) for generator in own])


def _add_images(
    model: GenerativeModel, answers: list[Answer], size: tuple[int, int] | None
) -> None:
    """Reconstruct the images of all answers in one call."""
    tokens = [image for answer in answers for image in answer.tokens]
    if not tokens:
        return
    lengths = torch.tensor([0, *map(len, tokens)], device=tokens[0].device)
    offsets = lengths.cumsum(0).int()
    images = model.setok.detokenize(torch.cat(tokens), offsets, size=size)
    remaining = iter(images.float().clamp(0, 1))
    for answer in answers:
        answer.images = [next(remaining) for _ in answer.tokens]


def _add_masks(
    model: GenerativeModel,
    answers: list[Answer],
    segments: list[tuple[int, Tensor]],
    visual: VisualTokens,
    last_image: Tensor,
    size: tuple[int, int],
) -> None:
    """Predict the masks of all answers in one call."""
    if not segments:
        return
    rows = torch.tensor([row for row, _ in segments], device=last_image.device)
    hidden = torch.stack([state for _, state in segments])
    predicted = model.masks(hidden, visual, last_image[rows], size)
    for (row, _), mask in zip(segments, predicted.fine.float(), strict=True):
        answers[row].masks.append(mask)


def _merge(config: SetokimGenerationConfig | None, options: dict) -> SetokimGenerationConfig:
    if config is None:
        return SetokimGenerationConfig(**options)
    if not isinstance(config, SetokimGenerationConfig):
        got = type(config).__name__
        raise TypeError(f"generation_config: expected SetokimGenerationConfig, got {got}")
    # Checked again, since an attribute may have been set after the construction.
    config.validate()
    return config.replace(**options)


def _check(batch: int, generators, streamer) -> None:
    if generators is not None and len(generators) != batch:
        raise ValueError(f"generators: expected one for each of {batch}, got {len(generators)}")
    if streamer is not None and batch != 1:
        raise ValueError(f"streamer: expected a single conversation, got {batch}")
