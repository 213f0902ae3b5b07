"""Tiny Qwen2.5-VL and Qwen3-VL with random weights, their inputs, and runs written by hand."""

from dataclasses import dataclass

import torch

PATCH = 4
IMAGE, VIDEO, START, END, PAD = 90, 91, 92, 93, 0
VOCABULARY = 96
TOKENS_PER_SECOND = 2
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def tiny_model(family: str, seed: int = 0):
    """Return a model of `family`, one of `FAMILIES`, in evaluation mode."""
    import transformers

    text = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 100.0,
            "mrope_section": [2, 1, 1],
            **({"mrope_interleaved": True} if family.startswith("qwen3") else {}),
        },
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=512,
    )
    vision = dict(
        depth=3,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        patch_size=PATCH,
        temporal_patch_size=2,
        spatial_merge_size=2,
        out_hidden_size=32,
    )
    special = dict(
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    if family == "qwen2_vl":
        vision = dict(
            depth=3,
            embed_dim=32,
            hidden_size=32,
            mlp_ratio=2,
            num_heads=2,
            patch_size=PATCH,
            temporal_patch_size=2,
            spatial_merge_size=2,
        )
        names = "Qwen2VL"
    elif family == "qwen2_5_vl":
        vision |= dict(
            window_size=16, fullatt_block_indexes=[2], tokens_per_second=TOKENS_PER_SECOND
        )
        names = "Qwen2_5_VL"
    else:
        text["head_dim"] = 8
        vision |= dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
        names = "Qwen3VL"
        if family == "qwen3_vl_moe":
            text |= dict(moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
            names = "Qwen3VLMoe"
    config_class = getattr(transformers, f"{names}Config")
    model_class = getattr(transformers, f"{names}ForConditionalGeneration")
    torch.manual_seed(seed)
    model = model_class(config_class(text_config=text, vision_config=vision, **special))
    for parameter in model.parameters():
        # At the default scale all prompts are answered alike, which would hide faults.
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=1.0)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


@dataclass(frozen=True)
class Visual:
    """Placeholder run of one image, or of one video or frame of it.

    Attributes:
        kind: "image" or "video".
        grid: (t, h, w) in patches, before the spatial merge.
        first: index of the run's first token among the tokens of its image or video.
        advance: distance from the run's first position to that of the text behind it.
        interval: distance between the positions of two frames.
    """

    kind: str
    grid: tuple[int, int, int]
    first: int = 0
    interval: int = 1

    @property
    def cells(self) -> list[tuple[int, int, int]]:
        """(t, y, x) of each token, relative to the first position."""
        t, h, w = self.grid
        return [
            (i * self.interval, y, x)
            for i in range(t)
            for y in range(h // 2)
            for x in range(w // 2)
        ]

    @property
    def advance(self) -> int:
        return max(self.grid[1], self.grid[2]) // 2


def image(h: int, w: int):
    """Return the prompt's part of an image of `h` x `w` tokens."""
    return [START, Visual("image", (1, 2 * h, 2 * w)), END]


def video(family: str, t: int, h: int, w: int):
    """Return the prompt's part of a video of `t` x `h` x `w` tokens."""
    if family in ("qwen2_vl", "qwen2_5_vl"):
        interval = TOKENS_PER_SECOND if family == "qwen2_5_vl" else 1
        return [START, Visual("video", (t, 2 * h, 2 * w), interval=interval), END]
    # Each frame stands behind its own time stamp.
    prompt = []
    for frame in range(t):
        prompt += [20 + frame, START, Visual("video", (1, 2 * h, 2 * w), frame * h * w), END]
    return prompt


def inputs_of(prompts: list[list], side: str = "left", seed: int = 0) -> dict:
    """Return the keyword arguments that a processor would make of `prompts`.

    Args:
        prompts: token ids and `Visual` runs of each row of the batch.
        side: side of the padding.
        seed: random seed of the pixels.
    """
    rows, kinds, grids = [], [], {"image": [], "video": []}
    for prompt in prompts:
        ids, types = [], []
        for part in prompt:
            if isinstance(part, Visual):
                count = len(part.cells)
                ids += [IMAGE if part.kind == "image" else VIDEO] * count
                types += [1 if part.kind == "image" else 2] * count
                if part.first == 0:
                    grids[part.kind].append(list(part.grid))
                else:
                    grids[part.kind][-1][0] += 1
            else:
                ids.append(part)
                types.append(0)
        rows.append(ids)
        kinds.append(types)
    longest = max(map(len, rows))

    def padded(row, value):
        padding = [value] * (longest - len(row))
        return padding + row if side == "left" else row + padding

    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "input_ids": torch.tensor([padded(row, PAD) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row), 0) for row in rows]),
        "mm_token_type_ids": torch.tensor([padded(row, 0) for row in kinds]),
    }
    for kind, names in {
        "image": ("pixel_values", "image_grid_thw"),
        "video": ("pixel_values_videos", "video_grid_thw"),
    }.items():
        if grids[kind]:
            grid = torch.tensor(grids[kind])
            # Three blobs of texture an image, so that there are clusters to find.
            patches = []
            for t, h, w in grid.tolist():
                means = torch.randn(3, 3 * 2 * PATCH**2, generator=generator)
                blob = torch.randint(3, (t * h * w // 4,), generator=generator)
                noise = torch.randn(t * h * w, means.shape[1], generator=generator)
                patches.append(means[blob].repeat_interleave(4, 0) + 0.3 * noise)
            inputs[names[0]] = torch.cat(patches)
            inputs[names[1]] = grid
    return inputs


def visual_features(model, inputs: dict, kind: str) -> list[tuple]:
    """Return (encoder features, projected features, features of each deep layer) of each image.

    The encoder features of a token are those of its four patches, one after the other. `kind` is
    "image" or "video".
    """
    pixels = inputs.get({"image": "pixel_values", "video": "pixel_values_videos"}[kind])
    if pixels is None:
        return []
    grids = inputs[f"{kind}_grid_thw"].tolist()
    out = model.model.visual(pixels, grid_thw=inputs[f"{kind}_grid_thw"])
    encoded = out.last_hidden_state.reshape(len(out.pooler_output), -1)
    if hasattr(model.model.visual, "window_size"):
        order = torch.tensor(list(_windowed(grids, model.model.visual.window_size // 2 // PATCH)))
        encoded = encoded[order.argsort()]
    sizes = [t * h * w // 4 for t, h, w in grids]
    deep = [layer.split(sizes) for layer in getattr(out, "deepstack_features", None) or []]
    projected = out.pooler_output.split(sizes)
    return [
        (encoded.split(sizes)[i], projected[i], [layer[i] for layer in deep])
        for i in range(len(sizes))
    ]


def _windowed(grids, side):
    """Yield the index of each token in the order of Qwen2.5's windows."""
    start = 0
    for t, h, w in grids:
        h, w = h // 2, w // 2
        for frame in range(t):
            for y in range(0, h, side):
                for x in range(0, w, side):
                    for i in range(y, min(y + side, h)):
                        for j in range(x, min(x + side, w)):
                            yield start + (frame * h + i) * w + j
        start += t * h * w


@dataclass(frozen=True)
class Row:
    """Embedded prompt of one row of the batch, without padding.

    Attributes:
        embeds: (L, D) token embeddings, merged visual tokens in their places.
        positions: (3, L) positions.
        visual: (L,) bool, True for visual tokens.
        deep: (visual tokens, D) for each layer that adds visual features.
        kept: index in the full prompt of each token.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    visual: torch.Tensor
    deep: list[torch.Tensor]
    kept: list[int]


def rows_by_hand(model, prompts: list[list], inputs: dict, clusters, policy: str) -> list[Row]:
    """Return the prompts with merged visual tokens, token by token.

    Args:
        model: untouched model.
        prompts: token ids and `Visual` runs of each row of the batch.
        inputs: what `inputs_of` made of them.
        clusters: function of (encoder features, projected features) of an image that returns a
            list of (place, members), one for each merged token.
        policy: "compact" or "original" positions.
    """
    features = {kind: visual_features(model, inputs, kind) for kind in ("image", "video")}
    embed = model.get_input_embeddings()
    rows, image = [], {"image": -1, "video": -1}
    for prompt in prompts:
        embeds, positions, visual, deep, kept = [], [], [], [], []
        start = index = 0
        for part in prompt:
            if not isinstance(part, Visual):
                embeds.append(embed.weight[part])
                positions.append((start, start, start))
                visual.append(False)
                kept.append(index)
                start, index = start + 1, index + 1
                continue
            if part.first == 0:
                image[part.kind] += 1
            encoded, projected, layers = features[part.kind][image[part.kind]]
            largest = start - 1
            places = []
            for place, members in clusters(encoded, projected):
                if part.first <= place < part.first + len(part.cells):
                    places.append((place - part.first, members))
            for place, members in sorted(places):
                embeds.append(projected[members].mean(0))
                deep.append([layer[members].mean(0) for layer in layers])
                positions.append(tuple(start + c for c in part.cells[place]))
                visual.append(True)
                kept.append(index + place)
                largest = max(largest, *positions[-1])
            full = start + part.advance
            start = min(full, largest + 1) if policy == "compact" else full
            index += len(part.cells)
        rows.append(
            Row(
                torch.stack(embeds),
                torch.tensor(positions).T,
                torch.tensor(visual),
                [torch.stack(layer) for layer in zip(*deep, strict=True)],
                kept,
            )
        )
    return rows


def logits_by_hand(model, row: Row, more: list[int] = ()) -> torch.Tensor:
    """Return the logits (1, L, V) of a row followed by the tokens `more`, without a cache."""
    embeds = torch.cat([row.embeds, model.get_input_embeddings().weight[list(more)]])
    # The text goes on after the last token of the prompt.
    ahead = row.positions[:, -1:] + 1 + torch.arange(len(more))
    deepstack = {}
    if row.deep:
        visual = torch.nn.functional.pad(row.visual, (0, len(more)))[None]
        deepstack = dict(visual_pos_masks=visual, deepstack_visual_embeds=row.deep)
    hidden = model.model.language_model(
        inputs_embeds=embeds[None],
        position_ids=torch.cat([row.positions, ahead], 1)[:, None],
        use_cache=False,
        **deepstack,
    ).last_hidden_state
    return model.lm_head(hidden)


@torch.no_grad()
def answers_by_hand(model, rows: list[Row], count: int) -> list[list[int]]:
    """Return the `count` tokens of the greedy answer to each row."""
    answers = []
    for row in rows:
        answer = []
        for _ in range(count):
            answer.append(int(logits_by_hand(model, row, answer)[0, -1].argmax()))
        answers.append(answer)
    return answers
