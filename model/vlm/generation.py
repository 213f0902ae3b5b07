"""Answers of SeTokim, place after place: words, visual tokens, and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from setokim.tokenizer.shapelets import unit_shapes
from setokim.vlm.reader import Reader

if TYPE_CHECKING:
    from setokim.vlm.modeling_setokim import SetokimModel


class Streamer(Protocol):
    """What shows words as they come, such as `transformers.TextStreamer`."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


@dataclass
class Answer:
    """What the model said to one conversation.

    Attributes:
        ids: of its words and of its pictures' tokens: `<img>`, one `<image>`, `</img>`.
        tokens: (n, token_dim) visual tokens of each picture, in order.
        images: (3, h, w) in [0, 1], the pictures.
        masks: (h, w) logits of each `[SEG]`, about the prompt's last picture.
        finished: False where `max_new_tokens` ended it.
    """

    ids: list[int] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    finished: bool = False


@torch.no_grad()
def generate(
    model: SetokimModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values: Tensor,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    guidance: float = 1.0,
    sampling_steps: int = 25,
    image_temperature: float = 1.0,
    max_image_tokens: int | None = None,
    image_size: tuple[int, int] | None = None,
    mask_size: tuple[int, int] = (256, 256),
    generators: Sequence[torch.Generator] | None = None,
    use_cache: bool = True,
    streamer: Streamer | None = None,
) -> list[Answer]:
    """Lets the model speak, draw and segment.

    Rows do not depend on one another: with a generator each, a row of a batch is what it would be
    alone.

    Args:
        model: in the mode that it is in.
        input_ids: (B, L) of `SetokimProcessor` with `add_generation_prompt`.
        attention_mask: (B, L).
        pixel_values: (M, 3, H, W) of all pictures in the prompts.
        max_new_tokens: most places of an answer, those of visual tokens included.
        temperature: of the words; 0 takes the likeliest.
        top_p: words are drawn from the likeliest that have this much probability together.
        guidance: how far visual tokens go from what would be drawn without the prompt to what is
            drawn with it, and beyond for more than 1 (classifier-free guidance).
        sampling_steps: of the diffusion head, for each visual token.
        image_temperature: of the noise that visual tokens begin as. With less they are more typical
            and differ less; with 0 the same words give the same picture.
        max_image_tokens: most tokens of a picture, after which it ends; None for as many as the
            visual tokenizer makes at most.
        image_size: height and width of the pictures; None for the detokenizer's own.
        mask_size: height and width of the masks.
        generators: one for each row, on the CPU; None draws from torch's own.
        use_cache: keep keys and values of what was read; without, all is read again each time.
        streamer: gets the prompt's ids and each new word of a single row.

    Raises:
        ValueError: an argument does not fit; what `SetokimModel.forward` raises.
    """
    batch, config = input_ids.shape[0], model.config
    _check_counts(max_new_tokens=max_new_tokens, sampling_steps=sampling_steps)
    _check_noise(temperature=temperature, image_temperature=image_temperature)
    _check(batch, top_p, generators, streamer)
    spliced, visual, packed = model.read(
        input_ids, attention_mask, pixel_values, padding_side="left"
    )
    guided = guidance != 1
    embeddings = model.embed(spliced.ids, spliced.visual, packed.tokens)
    seen = spliced.attention_mask
    if guided:
        # A second half that sees nothing of the prompt but its last place, as in training.
        alone = torch.zeros_like(seen)
        alone[:, -1] = 1
        embeddings, seen = torch.cat([embeddings, embeddings]), torch.cat([seen, alone])
    reader = Reader(model, use_cache)
    read = spliced.ids, spliced.visual, packed.tokens
    hidden = reader.read(embeddings, seen, *read)  # (B or 2 B, hidden)
    if max_image_tokens is None:
        max_image_tokens = visual.tokens.shape[1]
    rows = [_Row(config, max_image_tokens, bool(i >= 0)) for i in spliced.image[:, -1].tolist()]
    if streamer is not None:
        streamer.put(input_ids)
    states: list[tuple[int, Tensor]] = []
    for _ in range(max_new_tokens):
        logits = model.logits(hidden[:batch])
        for row, scores in zip(rows, logits, strict=True):
            row.restrict(scores)
        following = _choose(logits, temperature, top_p, generators)  # (B,)
        chosen = following.tolist()
        speaking = [not row.finished for row in rows]
        drawing = [i for i in range(batch) if speaking[i] and chosen[i] == config.image_token_id]
        tokens = packed.tokens[:0]
        places = torch.full_like(following, -1)
        if drawing:
            index = torch.tensor(drawing, device=hidden.device)
            places[index] = torch.arange(len(drawing), device=hidden.device)
            noise = _noise(drawing, tokens.shape[1], generators).to(hidden.device)
            condition, base = reader.conditions(hidden, index)
            unconditional = reader.conditions(hidden, index + batch) if guided else (None, None)
            tokens = model.head.sample(
                condition,
                unconditional[0],
                guidance,
                sampling_steps,
                temperature=image_temperature,
                noise=noise,
                base=base,
                unconditional_base=unconditional[1],
            )
            tokens = unit_shapes(tokens.to(packed.tokens.dtype), model.setok.config.outline_dim)
        for i in range(batch):
            if speaking[i]:
                rows[i].add(chosen[i], tokens[places[i]] if i in drawing else None)
        if streamer is not None and speaking[0]:
            streamer.put(following.cpu())
        if all(row.finished for row in rows):
            break
        embeddings = model.embed(following[:, None], places[:, None], tokens)
        seen = torch.tensor([[not row.finished] for row in rows], device=hidden.device).long()
        if guided:
            embeddings, seen = torch.cat([embeddings, embeddings]), torch.cat([seen, seen])
        hidden = reader.read(embeddings, seen, following[:, None], places[:, None], tokens)
        states += [
            (i, hidden[i]) for i in range(batch) if speaking[i] and chosen[i] == config.segment_id
        ]
    if streamer is not None:
        streamer.end()
    answers = [row.close() for row in rows]
    _draw(model, answers, image_size)
    _mask(model, answers, states, visual, spliced.image[:, -1], mask_size)
    return answers


class _Row:
    """What one row has said, and what it may say next."""

    def __init__(self, config, max_image_tokens: int, has_picture: bool):
        self._config, self._most, self._has_picture = config, max_image_tokens, has_picture
        self._picture: list[Tensor] | None = None  # that is being drawn
        self._answer = Answer()

    @property
    def finished(self) -> bool:
        return self._answer.finished

    def restrict(self, logits: Tensor) -> None:
        """Forbids, in place, what cannot follow; `logits` is (V,)."""
        config = self._config
        if self._picture is None:
            logits[[config.image_token_id, config.image_end_id]] = -torch.inf
            if not self._has_picture:
                logits[config.segment_id] = -torch.inf
            return
        only = logits[[config.image_token_id, config.image_end_id]].clone()
        if not self._picture:
            only[1] = -torch.inf
        elif len(self._picture) >= self._most:
            only[0] = -torch.inf
        logits.fill_(-torch.inf)
        logits[[config.image_token_id, config.image_end_id]] = only

    def add(self, token: int, visual: Tensor | None) -> None:
        config = self._config
        if token == config.eos_token_id:
            self._answer.finished = True
            return
        if visual is not None:
            self._picture.append(visual)
            if len(self._picture) > 1:
                return
        elif token == config.image_start_id:
            self._picture = []
        elif token == config.image_end_id:
            self._end_picture()
        self._answer.ids.append(token)

    def close(self) -> Answer:
        """The answer; a picture that was cut off has the tokens that it has."""
        if self._picture:
            self._answer.ids.append(self._config.image_end_id)
            self._end_picture()
        return self._answer

    def _end_picture(self) -> None:
        self._answer.tokens.append(torch.stack(self._picture))
        self._picture = None


def _choose(logits: Tensor, temperature: float, top_p: float, generators) -> Tensor:
    """(B,) ids from (B, V) logits."""
    if temperature == 0:
        return logits.argmax(-1)
    shares = (logits / temperature).softmax(-1)
    ranked, order = shares.sort(-1, descending=True)
    # The first is always among them.
    beyond = ranked.cumsum(-1) - ranked >= top_p
    ranked = ranked.masked_fill(beyond, 0).cpu()
    drawn = [
        torch.multinomial(row, 1, generator=None if generators is None else generators[i])
        for i, row in enumerate(ranked)
    ]
    return order.gather(1, torch.stack(drawn).to(order.device)).squeeze(1)


def _noise(rows: list[int], width: int, generators) -> Tensor:
    """(len(rows), width) float32, each row's from its own generator."""
    own = [None if generators is None else generators[i] for i in rows]
    return torch.stack([torch.randn(width, generator=generator) for generator in own])


def _draw(model: SetokimModel, answers: list[Answer], size: tuple[int, int] | None) -> None:
    """Pictures of all answers, in one call."""
    tokens = [picture for answer in answers for picture in answer.tokens]
    if not tokens:
        return
    lengths = torch.tensor([0, *map(len, tokens)], device=tokens[0].device)
    offsets = lengths.cumsum(0).int()
    pictures = model.setok.detokenize(torch.cat(tokens), offsets, size=size)
    drawn = iter(pictures.float().clamp(0, 1))
    for answer in answers:
        answer.images = [next(drawn) for _ in answer.tokens]


def _mask(
    model: SetokimModel,
    answers: list[Answer],
    states: list[tuple[int, Tensor]],
    visual,
    last_image: Tensor,
    size: tuple[int, int],
) -> None:
    """Masks of all answers, in one call."""
    if not states:
        return
    rows = torch.tensor([row for row, _ in states], device=last_image.device)
    stacked = torch.stack([state for _, state in states])
    found = model.masks(stacked, visual, last_image[rows], size)
    for (row, _), mask in zip(states, found.fine.float(), strict=True):
        answers[row].masks.append(mask)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def _check_noise(**temperatures: float) -> None:
    for name, value in temperatures.items():
        if value < 0:
            raise ValueError(f"{name}: expected at least 0, got {value}")


def _check(batch, top_p, generators, streamer):
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number above 0 and up to 1, got {top_p}")
    if generators is not None and len(generators) != batch:
        raise ValueError(f"generators: expected one for each of {batch}, got {len(generators)}")
    if streamer is not None and batch != 1:
        raise ValueError(f"streamer: expected a single conversation, got {batch}")
