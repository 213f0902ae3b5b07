"""Vision-language models of transformers with a few thousand random weights, and their inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

PAD, IMAGE, VIDEO, VOCABULARY = 1, 90, 91, 96
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
        newline: (D,) layout token behind each line; None for none.
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
        token_types: function (inputs) -> token_type_ids; None for models without.
        around: token ids on both sides of an image.
        first_position: position id of the first token.
        by_row: pixel inputs (B, images, ...).
        takes_embeddings: flag: `generate` takes inputs_embeds.
        next_type: token type of generated tokens.
    """

    build: Callable
    images: Callable
    by_hand: Callable
    lengths: Callable
    token_types: Callable | None = None
    around: tuple[int, ...] = ()
    first_position: int = 0
    by_row: tuple[str, ...] = ()
    takes_embeddings: bool = True
    next_type: int = 0


def prepared(model, embedding: float = 3) -> torch.nn.Module:
    """Return a model in eval mode whose answers depend on the image.

    Args:
        model: model to change.
        embedding: factor of the embeddings of text.
    """
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    # The usual initialisation is so small that every prompt has the same answer.
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                scale = 1.4 / parameter[0].numel() ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        model.get_input_embeddings().weight.mul_(embedding)
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


def row_of(inputs: dict, counts: list[int], row: int, by_row: tuple[str, ...] = ()) -> dict:
    """Return one row of a batch without its padding, and its images.

    Args:
        inputs: inputs of the batch.
        counts: number of images of each row.
        row: index of the row.
        by_row: pixel inputs (B, images, ...); the others are (images, ...).
    """
    mask = inputs["attention_mask"][row].bool()
    alone = {}
    first, images = sum(counts[:row]), counts[row]
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
            alone[name] = value[row : row + 1, mask]
        elif name in by_row:
            alone[name] = value[row : row + 1, :images]
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


def _llava_next(onevision: bool = False) -> TinyFamily:
    # Size of an image and its tiles, down and across.
    tiles_of = {(15, 46): (1, 2), (24, 24): (1, 2), (47, 40): (2, 2)}
    sizes = list(tiles_of)

    def build():
        torch.manual_seed(0)
        pinpoints = [[24, 48], [48, 24], [48, 48]]
        if onevision:
            config = transformers.LlavaOnevisionConfig(
                vision_config=transformers.SiglipVisionConfig(**SIGLIP),
                text_config=transformers.Qwen2Config(**TEXT),
                image_token_index=IMAGE,
                video_token_index=VIDEO,
                image_grid_pinpoints=pinpoints,
                # Small enough that the grid of the largest image is interpolated.
                vision_aspect_ratio="anyres_max_2",
            )
            model = transformers.LlavaOnevisionForConditionalGeneration(config)
        else:
            config = transformers.LlavaNextConfig(
                vision_config=transformers.CLIPVisionConfig(**CLIP),
                text_config=transformers.LlamaConfig(**TEXT),
                image_token_index=IMAGE,
                image_grid_pinpoints=pinpoints,
            )
            model = transformers.LlavaNextForConditionalGeneration(config)
        return prepared(model)

    def lengths(inputs):
        found = []
        for height, width in inputs["image_sizes"].tolist():
            rows, columns = grid_of(height, width)
            if onevision and (ratio := (rows * columns / (2 * 36)) ** 0.5) > 1.1:
                rows, columns = int(rows // ratio), int(columns // ratio)
            found.append(36 + rows * (columns + 1))
        return found

    def grid_of(height, width):
        # (lines, patches of a line) of the grid without padding.
        down, across = tiles_of[height, width]
        rows, columns = down * 6, across * 6
        if width / height > columns / rows:
            new = int(round(height * columns / width, 7))
            rows -= 2 * ((rows - new) // 2)
        else:
            new = int(round(width * rows / height, 7))
            columns -= 2 * ((columns - new) // 2)
        return rows, columns

    def images(counts):
        chosen = [sizes[i % 3] for i in range(sum(counts))]
        return {
            "pixel_values": seeded(1, sum(counts), 5, 3, 24, 24),
            "image_sizes": torch.tensor(chosen),
        }

    def by_hand(model, inputs):
        made = []
        newline = model.model.image_newline
        for pixels, (height, width) in zip(
            inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True
        ):
            down, across = tiles_of[height, width]
            tower = model.model.vision_tower(pixels[: 1 + down * across], output_hidden_states=True)
            encoded = tower.hidden_states[-1] if onevision else tower.hidden_states[-2][:, 1:]
            projected = model.model.multi_modal_projector(encoded)
            rows, columns = grid_of(height, width)

            def grid(tiles, down=down, across=across, rows=rows, columns=columns):
                plane = tiles[1:].reshape(down, across, 6, 6, -1)
                plane = plane.transpose(1, 2).reshape(down * 6, across * 6, -1)
                top, left = (down * 6 - rows) // 2, (across * 6 - columns) // 2
                plane = plane[top : top + rows, left : left + columns]
                if onevision and (ratio := (rows * columns / (2 * 36)) ** 0.5) > 1.1:
                    size = [int(rows // ratio), int(columns // ratio)]
                    plane = torch.nn.functional.interpolate(
                        plane.permute(2, 0, 1)[None], size, mode="bilinear"
                    )[0].permute(1, 2, 0)
                return plane

            fine, vectors = grid(encoded), grid(projected)
            made.append(
                [
                    Group(encoded[0], projected[0]),
                    Group(fine.flatten(0, 1), vectors.flatten(0, 1), newline, fine.shape[1]),
                ]
            )
        return made

    return TinyFamily(build=build, images=images, by_hand=by_hand, lengths=lengths)


def _internvl() -> TinyFamily:
    def build():
        torch.manual_seed(0)
        vision = dict(SIGLIP, image_size=[24, 24], patch_size=[4, 4])
        config = transformers.InternVLConfig(
            vision_config=transformers.InternVLVisionConfig(**vision),
            text_config=transformers.Qwen2Config(**TEXT),
            image_token_id=IMAGE,
        )
        return prepared(transformers.InternVLForConditionalGeneration(config))

    def by_hand(model, inputs):
        tower = model.model.vision_tower(inputs["pixel_values"])
        patches = tower.last_hidden_state[:, 1:].reshape(-1, 6, 6, 16)
        shuffled = model.model.pixel_shuffle(patches, 0.5).flatten(1, 2)
        projected = model.model.multi_modal_projector(shuffled)
        return [[Group(e, p)] for e, p in zip(shuffled, projected, strict=True)]

    return TinyFamily(
        build=build,
        images=lambda counts: {"pixel_values": seeded(1, sum(counts), 3, 24, 24)},
        by_hand=by_hand,
        lengths=lambda inputs: [9] * inputs["pixel_values"].shape[0],
        around=(81,),
    )


def _gemma3() -> TinyFamily:
    def build():
        torch.manual_seed(0)
        text_config = transformers.Gemma3TextConfig(
            **dict(TEXT, num_hidden_layers=3),
            head_dim=8,
            sliding_window=12,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        )
        config = transformers.Gemma3Config(
            vision_config=transformers.SiglipVisionConfig(**SIGLIP),
            text_config=text_config,
            image_token_index=IMAGE,
            mm_tokens_per_image=9,
            tie_word_embeddings=False,
        )
        return prepared(transformers.Gemma3ForConditionalGeneration(config), embedding=0.5)

    def by_hand(model, inputs):
        patches = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
        grid = patches.reshape(-1, 3, 2, 3, 2, 16)
        pooled = grid.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).mean(3).flatten(1, 2)
        projected = model.model.multi_modal_projector(patches)
        return [[Group(e, p)] for e, p in zip(pooled, projected, strict=True)]

    return TinyFamily(
        build=build,
        images=lambda counts: {"pixel_values": seeded(1, sum(counts), 3, 24, 24)},
        by_hand=by_hand,
        lengths=lambda inputs: [9] * inputs["pixel_values"].shape[0],
        token_types=lambda inputs: (inputs["input_ids"] == IMAGE).long(),
        around=(81,),
        takes_embeddings=False,
    )


def _smolvlm(idefics3: bool = False) -> TinyFamily:
    name = "Idefics3" if idefics3 else "SmolVLM"

    def build():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(
            vision_config=dict(SIGLIP),
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_id=IMAGE,
            scale_factor=2,
            pad_token_id=PAD,
        )
        return prepared(getattr(transformers, f"{name}ForConditionalGeneration")(config))

    def images(counts):
        pixels = torch.zeros(len(counts), max(counts), 3, 24, 24)
        for row, count in enumerate(counts):
            pixels[row, :count] = seeded(1 + row, count, 3, 24, 24)
        return {"pixel_values": pixels}

    def by_hand(model, inputs):
        pixels = inputs["pixel_values"].flatten(0, 1)
        pixels = pixels[pixels.flatten(1).any(1)]
        patches = model.model.vision_model(pixels).last_hidden_state
        shuffled = model.model.connector.pixel_shuffle(patches, 2)
        projected = model.model.connector.modality_projection(shuffled)
        return [[Group(e, p)] for e, p in zip(shuffled, projected, strict=True)]

    return TinyFamily(
        build=build,
        images=images,
        by_hand=by_hand,
        lengths=lambda inputs: [9] * 99,
        around=(81, 82),
        by_row=("pixel_values",),
    )


def _paligemma() -> TinyFamily:
    def build():
        torch.manual_seed(0)
        config = transformers.PaliGemmaConfig(
            vision_config=transformers.SiglipVisionConfig(**SIGLIP, projection_dim=32),
            text_config=transformers.GemmaConfig(**TEXT, head_dim=8),
            image_token_index=IMAGE,
            projection_dim=32,
            tie_word_embeddings=False,
        )
        return prepared(transformers.PaliGemmaForConditionalGeneration(config), embedding=0.5)

    def by_hand(model, inputs):
        patches = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
        projected = model.model.multi_modal_projector(patches)
        return [[Group(e, p)] for e, p in zip(patches, projected, strict=True)]

    def token_types(inputs):
        # The last two tokens of each prompt are the suffix, with a causal mask.
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return ((mask.flip(1).cumsum(1).flip(1) <= 2) & (mask == 1)).long().reshape(ids.shape)

    return TinyFamily(
        build=build,
        images=lambda counts: {"pixel_values": seeded(1, sum(counts), 3, 24, 24)},
        by_hand=by_hand,
        lengths=lambda inputs: [36] * inputs["pixel_values"].shape[0],
        token_types=token_types,
        first_position=1,
        takes_embeddings=False,
        next_type=1,
    )


FAMILIES = {
    "gemma3": _gemma3(),
    "idefics3": _smolvlm(idefics3=True),
    "internvl": _internvl(),
    "llava": _llava(),
    "llava_next": _llava_next(),
    "llava_onevision": _llava_next(onevision=True),
    "paligemma": _paligemma(),
    "smolvlm": _smolvlm(),
}
