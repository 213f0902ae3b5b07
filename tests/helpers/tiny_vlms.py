"""Vision-language models of transformers with a few thousand random weights, and their inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

PAD, IMAGE, VOCABULARY = 1, 90, 96
CLIP = dict(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=24,
    patch_size=4,
    projection_dim=16,
)
SIGLIP = {name: value for name, value in CLIP.items() if name != "projection_dim"}
TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCABULARY,
    max_position_embeddings=512,
    pad_token_id=PAD,
    bos_token_id=2,
    eos_token_id=None,
)


@dataclass
class Group:
    """Tokens that are clustered together, as a test computes them from the encoder.

    Attributes:
        encoded: (n, D') features of the encoder on the projected grid.
        projected: (n, D) features that the language model reads.
        ends: for tokens that end a line, the layout token behind them.
        width: tokens of a line; None for one line of all.
    """

    encoded: Tensor
    projected: Tensor
    newline: Tensor | None = None
    width: int | None = None


@dataclass
class TinyFamily:
    """A family as tests need it.

    Attributes:
        build: function that returns a model with random weights.
        images: function (numbers of images per row) -> pixel inputs.
        by_hand: function (model, inputs) -> groups of each image.
        lengths: function (inputs) -> number of placeholders of each image, in order.
        prefix: flag: the model reads token_type_ids.
        around: token ids on both sides of an image.
    """

    build: Callable
    images: Callable
    by_hand: Callable
    lengths: Callable
    token_types: Callable | None = None
    around: tuple[int, ...] = ()
    first_position: int = 0


def prepared(model) -> torch.nn.Module:
    """Return a model in eval mode whose answers depend on the image."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    # The usual initialisation is so small that every prompt has the same answer.
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                scale = 1.4 / parameter[0].numel() ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        model.get_input_embeddings().weight.mul_(3)
    return model.eval()


def seeded(seed: int, *shape: int) -> Tensor:
    """Return smooth random pixels: patches differ, and some are alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


def text(seed: int, length: int) -> list[int]:
    """Return ids of random text."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 80, (length,), generator=generator).tolist()


def prompts(family: TinyFamily, counts: list[int], side: str = "left", seed: int = 0) -> dict:
    """Return inputs of a batch whose rows have these numbers of images."""
    inputs = family.images(counts)
    lengths = iter(family.lengths(inputs))
    rows = []
    for number, images in enumerate(counts):
        row = text(seed + 10 * number, 3 + number)
        for image in range(images):
            row += [*family.around, *[IMAGE] * next(lengths), *family.around]
            row += text(seed + 10 * number + image + 1, 2 + image)
        rows.append(row + text(seed + 77 + number, 4))
    longest = max(map(len, rows))

    def padded(row, padding):
        fill = [padding] * (longest - len(row))
        return fill + row if side == "left" else row + fill

    inputs["input_ids"] = torch.tensor([padded(row, PAD) for row in rows])
    inputs["attention_mask"] = torch.tensor([padded([1] * len(row), 0) for row in rows])
    if family.token_types is not None:
        inputs["token_type_ids"] = family.token_types(inputs)
    return inputs


def row_of(inputs: dict, counts: list[int], row: int) -> dict:
    """Return one row of a batch without its padding, and its images."""
    mask = inputs["attention_mask"][row].bool()
    alone = {}
    first, images = sum(counts[:row]), counts[row]
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
            alone[name] = value[row : row + 1, mask]
        elif value.shape[0] == len(counts) and value.dim() > 4 and name != "pixel_values_stacked":
            alone[name] = value[row : row + 1, : max(images, 1)]
        else:
            alone[name] = value[first : first + images]
    if not images:
        alone = {name: value for name, value in alone.items() if not name.startswith("pixel")}
        alone.pop("image_sizes", None)
    return alone


def _llava() -> TinyFamily:
    def build():
        torch.manual_seed(0)
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**CLIP),
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
        )
        return prepared(transformers.LlavaForConditionalGeneration(config))

    def by_hand(model, inputs):
        tower = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        encoded = tower.hidden_states[-2][:, 1:]
        projected = model.model.multi_modal_projector(encoded)
        return [[Group(e, p)] for e, p in zip(encoded, projected, strict=True)]

    return TinyFamily(
        build=build,
        images=lambda counts: {"pixel_values": seeded(1, sum(counts), 3, 24, 24)},
        by_hand=by_hand,
        lengths=lambda inputs: [36] * inputs["pixel_values"].shape[0],
    )


FAMILIES = {"llava": _llava()}
