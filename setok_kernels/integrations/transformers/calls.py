"""One call of a reduced model: encode, cluster, shorten the prompt, hand the features over."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from setok_kernels.integrations.transformers.clustering import Encoded, Reduced, reduce_features
from setok_kernels.integrations.transformers.encoding import encode_items, replaced_method
from setok_kernels.integrations.transformers.options import Options
from setok_kernels.integrations.transformers.positions import close_gaps
from setok_kernels.integrations.transformers.prompt import Shortening, shorten, shorten_inputs
from setok_kernels.integrations.transformers.registry import Family, Modality


@dataclass(frozen=True, eq=False)
class Visual:
    """Reduced visual tokens of one modality."""

    modality: Modality
    encoded: Encoded
    reduced: Reduced


@dataclass(frozen=True, eq=False)
class Call:
    """Prepared arguments of one call.

    Attributes:
        inputs: arguments with the shortened prompt.
        visuals: reduced tokens of each modality in the call.
        shortening: which tokens of the prompt stay.
    """

    inputs: dict[str, Any]
    visuals: list[Visual]
    shortening: Shortening

    def with_outputs(self) -> dict[str, Any]:
        """Return the arguments for models that take encoded images instead of pixels."""
        inputs = {
            name: value
            for name, value in self.inputs.items()
            if name not in {visual.modality.pixels for visual in self.visuals}
        }
        inputs["mm_encoder_outputs"] = {
            visual.modality.key: _output(
                visual.encoded.output, visual.reduced, visual.reduced.items
            )
            for visual in self.visuals
        }
        return inputs

    @contextmanager
    def replaced_features(self, base: nn.Module) -> Iterator[None]:
        """Let the feature functions of a model return the reduced tokens for a while."""
        with ExitStack() as stack:
            for number, visual in enumerate(self.visuals):
                function = self._feature_function(base, number, visual)
                stack.enter_context(replaced_method(base, visual.modality.function, function))
            yield

    def _feature_function(self, base: nn.Module, number: int, visual: Visual):
        pixels = visual.modality.pixels
        images = len(self.inputs[pixels])
        counts = [row[2 * number + 1] for row in self.shortening.placeholders]

        @functools.wraps(getattr(base, visual.modality.function))
        def features(*args, **kwargs):
            given = args[0] if args else kwargs.get(pixels, next(iter(kwargs.values())))
            # Beams and returned sequences repeat each row of the prompt, and with it its images.
            copies = len(given) // images
            if copies == 1:
                return _output(visual.encoded.output, visual.reduced, visual.reduced.items)
            index = torch.arange(sum(counts), device=visual.reduced.tokens.device)
            index = torch.cat([row.repeat(copies) for row in index.split(counts)])
            items = [count for count in counts for _ in range(copies)]
            return _output(visual.encoded.output, visual.reduced, items, index)

        return features


def prepare(
    base: nn.Module,
    family: Family,
    options: Options,
    inputs: Mapping[str, Any],
    generating: bool,
) -> Call:
    """Encode and cluster the images of a call, and shorten its prompt.

    Args:
        base: model without its head.
        family: family of the model.
        options: how to cluster.
        inputs: arguments of the call by name, with pixels.
        generating: flag: the call is `generate`.

    Raises:
        ValueError: the arguments do not fit; the message names the first.
    """
    _check(inputs, options)
    visuals = []
    for modality in family.modalities:
        if inputs.get(modality.pixels) is not None:
            encoded = (modality.encode or encode_items)(base, modality, inputs)
            visuals.append(Visual(modality, encoded, reduce_features(encoded, options)))
    ids = inputs["input_ids"]
    shortening = shorten(
        ids,
        inputs.get("attention_mask"),
        [
            (getattr(base.config, visual.modality.placeholder), visual.reduced.keep)
            for visual in visuals
        ],
        "left" if generating else "right",
    )
    names = {
        name: value for name, value in family.sequence_inputs.items() if name != "position_ids"
    }
    short = shorten_inputs(inputs, names, shortening, _padding_id(base, family))
    _place(base, family, options, inputs, short, shortening, generating)
    if family.remember is not None:
        family.remember(base, short)
    return Call(short, visuals, shortening)


def _place(
    base: nn.Module,
    family: Family,
    options: Options,
    inputs: Mapping[str, Any],
    short: dict[str, Any],
    shortening: Shortening,
    generating: bool,
) -> None:
    """Set the position ids of the shortened prompt, where the model does not count them itself."""
    positions = inputs.get("position_ids")
    if options.positions == "original":
        if positions is None:
            positions = family.original_positions(base, inputs, generating)
        if short.get("attention_mask") is None:
            # Without a mask, a model without a cache takes gaps for the ends of packed sequences.
            short["attention_mask"] = torch.ones_like(short["input_ids"])
    elif family.compact_positions is not None:
        short["position_ids"] = family.compact_positions(base, inputs, shortening, generating)
        return
    elif positions is not None:
        positions = close_gaps(positions.expand(shortening.keep.shape), shortening.keep)
    if positions is not None:
        short["position_ids"] = shortening.apply("position_ids", positions, 0)


def _check(inputs: Mapping[str, Any], options: Options) -> None:
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"input_ids: expected shape (B, L) with images, got {got}")
    if inputs.get("inputs_embeds") is not None:
        raise ValueError("inputs_embeds: expected None with images, got a tensor")
    past = inputs.get("past_key_values")
    if past is not None and past.get_seq_length() > 0:
        raise ValueError(
            f"past_key_values: expected an empty cache with images, got {past.get_seq_length()} "
            "tokens"
        )
    mask = inputs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask: expected shape {tuple(ids.shape)}, got {got}")
    if isinstance(inputs.get("logits_to_keep"), Tensor):
        raise ValueError("logits_to_keep: expected an int with images, got a tensor of positions")
    if inputs.get("cu_seq_lens_q") is not None:
        raise ValueError("cu_seq_lens_q: expected None with images, got offsets")
    given = inputs.get("position_ids") is not None
    if options.positions == "original" and given and mask is None:
        raise ValueError(
            "attention_mask: expected a mask with position_ids and positions='original', got None"
        )


def _padding_id(base: Any, family: Family) -> int:
    """Return a token id for padding, which is no placeholder."""
    text = base.config.get_text_config()
    taken = {getattr(base.config, modality.placeholder) for modality in family.modalities}
    known = [getattr(text, "pad_token_id", None), getattr(base.config, "pad_token_id", None)]
    for candidate in [*known, *range(len(taken) + 1)]:
        if isinstance(candidate, int) and candidate >= 0 and candidate not in taken:
            return candidate
    raise AssertionError("one more candidate than placeholders")


def _output(like: Any, reduced: Reduced, items: list[int], index: Tensor | None = None) -> Any:
    """Return the output of a feature function with the reduced tokens.

    Args:
        like: output with all tokens.
        reduced: reduced tokens.
        items: number of tokens of each item of the new output.
        index: order of the tokens; None as they are.
    """

    def laid_out(plane: Tensor, container: Any) -> Any:
        plane = plane if index is None else plane[index]
        if not isinstance(container, Tensor):
            return list(plane.split(items))
        # One token an item: a tensor cannot hold items of different lengths.
        return plane if container.dim() == 2 else plane[:, None]

    planes = {
        name: [
            laid_out(plane, container)
            for plane, container in zip(reduced.planes[name], getattr(like, name), strict=True)
        ]
        for name in reduced.planes
    }
    values = {"pooler_output": laid_out(reduced.tokens, like.pooler_output), **planes}
    fields = {field.name for field in dataclasses.fields(like)}
    made = type(like)(**{name: values[name] for name in values if name in fields})
    for name in values.keys() - fields:
        # Some models hang `pooler_output` on an output class without such a field.
        setattr(made, name, values[name])
    return made
