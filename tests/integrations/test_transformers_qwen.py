"""Reduced Qwen-VL models against prompts merged by hand: positions, DeepStack, video."""

import copy

import pytest
import torch

import setok_kernels as sk
from helpers.tiny_qwen import (
    FAMILIES,
    answers_by_hand,
    image,
    inputs_of,
    logits_by_hand,
    rows_by_hand,
    tiny_model,
    video,
    visual_features,
)
from setok_kernels.integrations.transformers import reduce_visual_tokens

MODELS = {}
NEW = 6
BYPASS = {"rate": 1.0, "exact": True}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    """One model a family, which every test leaves as it was."""
    if family not in MODELS:
        MODELS[family] = tiny_model(family)
    model = MODELS[family]
    before = dict(model.__dict__)
    yield model
    if "_setok_reduction" in model.__dict__:
        model._setok_reduction.restore()
    model.model.rope_deltas = None
    model.zero_grad(set_to_none=True)
    assert model.__dict__ == before


def prompts_of(family):
    """Image and video, two images of different grids, and text only."""
    return [
        [5, 6, *image(4, 6), 7, *video(family, 3, 2, 3), 8],
        [7, 8, 9, *image(3, 3), 3, *image(2, 5), 4, 4],
        [4, 5, 6],
    ]


def clusters_of(features="encoder", **budget):
    """Return the function that `rows_by_hand` asks for the clusters of an image."""

    def clusters(encoded, projected):
        x = {"encoder": encoded, "projected": projected}[features]
        out = sk.cluster_tokens(x[None], **budget)
        groups = []
        for row in range(out.num_rows):
            members = (out.labels[0] == row).nonzero()[:, 0].tolist()
            if members:
                seed = int(out.decisions.seeds[0, row]) if row < int(out.counts[0]) else -1
                groups.append((seed if seed in members else members[0], members))
        return groups

    return clusters


def answer(model, inputs, **options):
    out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)
    # The caller's prompt stands in front, whole.
    assert torch.equal(out[:, :-NEW], inputs["input_ids"])
    return out[:, -NEW:].tolist()


@pytest.mark.parametrize(
    ("positions", "budget"),
    [
        ("compact", {"rate": 0.25}),
        ("original", {"rate": 0.3, "exact": True, "features": "projected"}),
        # One token for the whole video: in Qwen3, frames without any.
        ("compact", {"num_clusters": 1, "exact": True}),
        ("original", {"num_clusters": 1, "exact": True}),
    ],
    ids=["compact", "original", "one-compact", "one-original"],
)
def test_answers_equal_those_of_the_prompt_merged_by_hand(family, model, positions, budget):
    prompts = prompts_of(family)
    inputs = inputs_of(prompts)
    rows = rows_by_hand(model, prompts, inputs, clusters_of(**budget), positions)
    expected = answers_by_hand(model, rows, NEW)
    reduction = reduce_visual_tokens(model, positions=positions, **budget)
    assert answer(model, inputs) == expected
    assert reduction.counts == [
        (sum(len(getattr(part, "cells", ())) for part in prompt), int(row.visual.sum()))
        for prompt, row in zip(prompts, rows, strict=True)
    ]


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_one_cluster_per_token_changes_no_answer(family, model, positions):
    inputs = inputs_of(prompts_of(family))
    expected = answer(model, inputs)
    beams = answer(model, inputs, num_beams=2)
    reduce_visual_tokens(model, positions=positions, **BYPASS)
    assert answer(model, inputs) == expected
    assert answer(model, inputs, num_beams=2) == beams


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_a_batch_equals_its_rows_one_by_one(family, model, positions):
    prompts = prompts_of(family)
    inputs = inputs_of(prompts)
    reduce_visual_tokens(model, rate=0.3, positions=positions)
    together = answer(model, inputs)
    patches = {"image": 0, "video": 0}
    for number, prompt in enumerate(prompts):
        row = inputs_of([prompt])
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in row:
                # The pixels of this row within those of the batch.
                start, patches[kind] = patches[kind], patches[kind] + len(row[pixels])
                row[pixels] = inputs[pixels][start : patches[kind]]
        assert answer(model, row) == together[number : number + 1]


@pytest.mark.parametrize(("side", "positions"), [("left", "compact"), ("right", "original")])
def test_the_loss_and_its_gradient_equal_those_by_hand(family, model, positions, side):
    prompts = prompts_of(family)
    inputs = inputs_of(prompts, side)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(inputs["mm_token_type_ids"] > 0, -100)
    # Padding on the left predicts the first token.
    labels[torch.arange(len(labels)), inputs["attention_mask"].argmax(1)] = -100
    rows = rows_by_hand(model, prompts, inputs, clusters_of(rate=0.3), positions)
    losses, expected = [], []
    for number, row in enumerate(rows):
        logits = logits_by_hand(model, row)[0]
        expected.append(logits.detach())
        target = labels[number][inputs["attention_mask"][number] > 0][row.kept][1:]
        each = torch.nn.functional.cross_entropy(logits[:-1], target.clamp(min=0), reduction="none")
        losses.append(each[target >= 0])
    loss = torch.cat(losses).mean()
    watched = [
        model.model.visual.patch_embed.proj.weight,
        *(
            parameter
            for name, parameter in model.named_parameters()
            if "deepstack_merger" in name and name.endswith("weight")
        ),
    ]
    grads = torch.autograd.grad(loss, watched)

    reduce_visual_tokens(model, rate=0.3, positions=positions)
    out = model(**inputs, labels=labels)
    out.loss.backward()
    torch.testing.assert_close(out.loss, loss)
    for got, logits in zip(out.logits, expected, strict=True):
        got = got[-len(logits) :] if side == "left" else got[: len(logits)]
        torch.testing.assert_close(got, logits, atol=2e-4, rtol=1e-4)
    for parameter, grad in zip(watched, grads, strict=True):
        largest = float(grad.abs().max())
        assert largest > 0
        torch.testing.assert_close(parameter.grad, grad, atol=1e-4 * largest, rtol=1e-3)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_a_cache_continues_at_the_right_position(family, model, positions):
    prompts = prompts_of(family)[:1]
    inputs = inputs_of(prompts)
    [row] = rows_by_hand(model, prompts, inputs, clusters_of(rate=0.3), positions)
    reduction = reduce_visual_tokens(model, rate=0.3, positions=positions)
    more = [11, 12, 13]
    with torch.no_grad():
        inputs.pop("attention_mask")
        cache = model(**inputs, use_cache=True).past_key_values
        logits = model(input_ids=torch.tensor([more]), past_key_values=cache).logits
        reduction.restore()
        expected = logits_by_hand(model, row, more)[:, -len(more) :]
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_positions_of_the_caller_are_shortened_too(family, model):
    inputs = inputs_of(prompts_of(family))
    grids = {name: value for name, value in inputs.items() if "pixel" not in name}
    given = model.model.get_rope_index(**grids)[0]
    text = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    reduce_visual_tokens(model, rate=0.3)
    expected = model(**inputs).logits
    assert torch.equal(model(**inputs, position_ids=given).logits, expected)
    four = torch.cat([text[None], given])
    assert torch.equal(model(**inputs, position_ids=four).logits, expected)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_without_token_types_the_model_counts_itself(family, model, positions):
    inputs = inputs_of([[5, 6, *image(4, 6), 7]])
    inputs.pop("mm_token_type_ids")
    expected = answer(model, inputs)
    reduce_visual_tokens(model, positions=positions, **BYPASS)
    assert answer(model, inputs) == expected


@torch.no_grad()
def test_text_alone_is_left_to_the_model(family, model):
    inputs = inputs_of([[4, 5, 6], [7, 8, 9, 10]])
    expected = model(**inputs).logits
    reduce_visual_tokens(model, rate=0.3)
    assert torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_restoring_gives_the_original_bits(family, model):
    inputs = inputs_of(prompts_of(family))
    state = copy.deepcopy(model.state_dict())
    expected = model(**inputs).logits
    reduction = reduce_visual_tokens(model, rate=0.3)
    assert model(**inputs).logits.shape[1] < expected.shape[1]
    reduction.restore()
    assert torch.equal(model(**inputs).logits, expected)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@torch.no_grad()
def test_a_cluster_spans_the_frames_of_a_video(family, model):
    prompts = [[5, *video(family, 3, 2, 2), 6]]
    inputs = inputs_of(prompts)
    # Three equal frames of four tokens.
    frames = inputs["pixel_values_videos"]
    inputs["pixel_values_videos"] = frames[: len(frames) // 3].repeat(3, 1)
    budget = {"num_clusters": 4, "exact": True}
    [(encoded, projected, _)] = visual_features(model, inputs, "video")
    groups = [members for _, members in clusters_of(**budget)(encoded, projected)]
    assert any({token // 4 for token in members} == {0, 1, 2} for members in groups)
    [row] = rows_by_hand(model, prompts, inputs, clusters_of(**budget), "original")
    expected = logits_by_hand(model, row)
    reduction = reduce_visual_tokens(model, positions="original", **budget)
    torch.testing.assert_close(model(**inputs).logits, expected, atol=2e-4, rtol=1e-4)
    assert reduction.counts == [(12, 4)]
