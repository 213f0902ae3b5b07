"""SetokimModel: inputs, losses and gradients of each part, and saved models."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel

from helpers.rounding import assert_same_but_for_rounding, assert_same_weights
from helpers.tiny_setokim import FIELDS, LLM, build, picture
from helpers.tiny_stage1 import TINY
from setokim.data.conversations import MASK, message
from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.vlm.configuration_setokim import SetokimConfig
from setokim.vlm.losses import LossContext, diffusion_loss
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.multimodal_inputs import prompt_positions

SHOW = [
    message("user", picture(0), picture(1), "is there a red circle?"),
    message("assistant", "yes, red."),
    message("user", "draw a circle."),
    message("assistant", picture(2)),
]
SELECT = [message("user", picture(3), "red"), message("assistant", MASK)]
TEXT = [message("user", "red"), message("assistant", "yes, a red circle.")]
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture(scope="module")
def model(built):
    return built[0]


@pytest.fixture(scope="module")
def processor(built):
    return built[1]


@pytest.fixture(autouse=True)
def _no_gradients(model):
    yield
    model.zero_grad(set_to_none=True)


def test_embeddings_of_text_visual_and_special_tokens(model, processor):
    batch = processor([SHOW])
    spliced, visual, packed = model.read(**batch)
    assert visual.occupied.sum() == len(packed.tokens) > 3
    embeddings = model.embed(spliced.ids, spliced.visual, packed.tokens)[0]
    normal = (packed.tokens - model.head.mean) / model.head.scale
    projected = model.project_in(normal)
    special = {token: row for row, token in enumerate(model.config.special_ids)}
    seen = []
    for position, token in enumerate(spliced.ids[0].tolist()):
        index = int(spliced.visual[0, position])
        if index >= 0:
            assert token == model.config.image_token_id
            expected = projected[index]
            seen.append(index)
        elif token in special:
            expected = model.special_in[special[token]]
        else:
            expected = model.llm.model.embed_tokens.weight[token]
        assert_close(embeddings[position], expected)
    assert seen == list(range(len(packed.tokens)))


def test_the_text_loss_covers_the_assistants_tokens(model, processor):
    batch = processor([SHOW, TEXT])
    output = model(**batch)
    logits, labels = model.logits(output.last_hidden_state).log_softmax(-1), output.spliced.labels
    expected = [
        -logits[row, position - 1, labels[row, position]]
        for row in range(2)
        for position in range(1, labels.shape[1])
        if labels[row, position] != -100
    ]
    image_tokens = output.visual.occupied.sum(1)
    # "yes , red . </s>", "<img>", an image, "</img> </s>" and "yes , a red circle . </s>".
    assert len(expected) == 5 + 1 + image_tokens[2] + 2 + 7
    assert_close(output.losses["text"], torch.stack(expected).mean())


def test_only_hidden_states_before_labels_get_gradient(model, processor):
    output = model(**processor([SHOW, TEXT, SELECT]))
    output.last_hidden_state.retain_grad()
    output.losses["text"].backward()
    has_gradient = output.last_hidden_state.grad.abs().sum(-1) > 0
    before = torch.zeros_like(has_gradient)
    before[:, :-1] = output.spliced.labels[:, 1:] != -100
    assert has_gradient.tolist() == before.tolist()
    assert 0 < before.sum() < before.numel() / 2


def test_images_of_other_rows_and_later_images_get_no_gradient(model, processor):
    batch = processor([SHOW, SELECT])
    batch["labels"][1] = -100
    batch["pixel_values"].requires_grad_()
    model(**batch).losses["text"].backward()
    has_gradient = batch["pixel_values"].grad.abs().flatten(1).sum(1) > 0
    assert has_gradient.tolist() == [True, True, True, False]
    # Nor does the generated image, without labels after it.
    batch["pixel_values"].grad = None
    after = (batch["labels"][0] == model.config.image_start_id).nonzero().item()
    batch["labels"][0, after:] = -100
    model(**batch).losses["text"].backward()
    has_gradient = batch["pixel_values"].grad.abs().flatten(1).sum(1) > 0
    assert has_gradient.tolist() == [True, True, False, False]


def test_embeddings_of_input_tokens_get_gradient(model, processor):
    batch = processor([TEXT])
    model(**batch).losses["text"].backward()
    has_gradient = model.llm.model.embed_tokens.weight.grad.abs().sum(1) > 0
    # The last position predicts no token; no other embedding is used.
    trained = set(has_gradient.nonzero().flatten().tolist())
    assert trained == set(batch["input_ids"][0, :-1].tolist())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_other_rows_change_nothing(model, processor, side):
    batch = processor([TEXT, SHOW], padding_side=side)
    output = model(**batch)
    length = int(batch["attention_mask"][0].sum())
    alone = model(**processor([TEXT]))
    assert_close(
        output.last_hidden_state[0, :length], alone.last_hidden_state[0], rtol=1e-4, atol=1e-4
    )
    # Nor does `<image>` in the padding.
    changed = dict(batch)
    filling = torch.full_like(batch["input_ids"], model.config.image_token_id)
    changed["input_ids"] = torch.where(batch["attention_mask"] == 0, filling, batch["input_ids"])
    again = model(**changed)
    assert_close(again.last_hidden_state, output.last_hidden_state, **EXACT)
    assert_close(again.losses["text"], output.losses["text"], **EXACT)
    # Nor do the images and text of a later row.
    changed["pixel_values"] = -batch["pixel_values"]
    changed["input_ids"] = batch["input_ids"].clone()
    changed["input_ids"][1, -1] = model.config.eos_token_id + 2
    kept = model(**changed)
    expected = output.last_hidden_state[0, :length]
    assert_close(kept.last_hidden_state[0, :length], expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(kept.last_hidden_state[1, :length], output.last_hidden_state[1, :length])


def test_generated_tokens_and_the_hidden_states_before_them(model, processor):
    output = model(**processor([TEXT, SHOW, SELECT]))
    tokens, hidden_states, _ = model.generated_tokens(output)
    packed = output.visual.pack("raster")
    # The third image is the only generated one.
    first, last = packed.cu_seqlens[2:4].tolist()
    assert_close(tokens, packed.tokens[first:last], **EXACT)
    assert not tokens.requires_grad and hidden_states.requires_grad
    start = (output.spliced.ids[1] == model.config.image_start_id).nonzero().item()
    expected = output.last_hidden_state[1, start : start + last - first]
    assert_close(hidden_states, expected, **EXACT)
    assert model.generated_tokens(model(**processor([TEXT])))[0].shape == (0, 24)


def test_generated_tokens_take_the_order_of_the_source_image():
    model, processor = build(answer_order="before", recall_width=4)
    chats = [
        [message("user", picture(i), "draw"), message("assistant", picture(i).rotate(90 * turns))]
        for i in range(4)
        for turns in (1, 2, 3)
    ]
    batch = processor([TEXT, *chats], padding_side="left")
    # `<image>` in the padding is no image.
    batch["input_ids"][batch["attention_mask"] == 0] = model.config.image_token_id
    output = model(**batch)
    tokens, _, base = model.generated_tokens(output)
    packed = output.visual.pack("raster")
    offsets = packed.cu_seqlens.tolist()
    sizes = torch.tensor(model.head.blocks)
    scale = sizes.sqrt().repeat_interleave(sizes)
    expected, orders = [], []
    for number in range(0, 2 * len(chats), 2):
        # Each second image takes the order of the image before it.
        a, b, c = offsets[number : number + 3]
        source, own = packed.tokens[a:b], packed.tokens[b:c]
        assert_close(output.packed.tokens[a:b], source, **EXACT)
        distances = torch.cdist(*(model.head.normalise(t) / scale for t in (own, source)))
        orders.append(distances.argmin(1).argsort(stable=True))
        expected.append(own[orders[-1]])
    assert_close(tokens, torch.cat(expected), **EXACT)
    assert any(order.tolist() != list(range(len(order))) for order in orders)
    # In generation, earlier generated images have the same order.
    batch.pop("labels")
    _, _, again = model.read(**batch)
    assert_close(again.tokens, output.packed.tokens, **EXACT)
    # The memory is 0 at positions that are masked out.
    memory = model.memory(
        output.last_hidden_state,
        output.spliced.ids,
        output.spliced.visual,
        packed.tokens,
        output.seen,
    )
    assert not memory.hidden[output.seen == 0].any() and memory.hidden[output.seen == 1].any()
    assert base.any()


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_diffusion_loss_is_a_mean_over_all_processes(model, processor, monkeypatch, fraction):
    output = model(**processor([SHOW]))
    tokens, conditions, _ = model.generated_tokens(output)
    torch.manual_seed(3)
    alone = model.head.loss(tokens, conditions, 2)
    # The tokens of this process are this fraction of the mean over the processes.
    monkeypatch.setattr("setokim.vlm.losses.mean_over_ranks", lambda x: x / fraction)
    torch.manual_seed(3)
    found = diffusion_loss(LossContext(model, output, diffusion_repeats=2))
    assert_close(found, fraction * alone)
    assert float(model(**processor([TEXT])).losses["diffusion"]) == 0


def test_an_image_in_the_prompt_is_not_generated(model, processor):
    assert len(model.generated_tokens(model(**processor([SELECT])))[0]) == 0


def test_unconditional_rows_ignore_the_prompt(model, processor):
    def conditions(*parts, unconditional=True):
        # In the second turn, only the earlier generated image is visible.
        chat = [message("user", *parts), message("assistant", picture(2))] * 2
        batch = processor([chat, TEXT])
        output = model(**batch, unconditional=torch.tensor([unconditional, False]))
        number = int(batch["attention_mask"][1].sum())
        return model.generated_tokens(output)[1], output.last_hidden_state[1, :number]

    first, text = conditions("draw a red circle.")
    second, text_again = conditions(picture(0), "draw two squares.")
    assert_close(second, first, rtol=1e-4, atol=1e-5)
    assert_close(text_again, text, rtol=1e-4, atol=1e-5)
    conditional, _ = conditions("draw a red circle.", unconditional=False)
    assert (conditional - first).abs().max() > 0.01


def test_prompt_positions_end_before_the_labels():
    labels = torch.tensor([[-100, -100, 3, 4, -100, -100, 5], [-100] * 7])
    expected = [[True, False, False, False, True, False, False], [True] * 7]
    assert prompt_positions(labels).tolist() == expected


def test_special_tokens_have_their_own_embeddings():
    size = 10
    ids = {"image_token_id": 14, "image_start_id": 4, "image_end_id": 12, "segment_id": 11}
    llm = LLM | {"vocab_size": size}
    config = SetokimConfig(SetokConfig(**TINY["model"]), llm, **ids, eos_token_id=2, **FIELDS)
    torch.manual_seed(0)
    model = SetokimModel(config)
    hidden = torch.randn(3, 2, 32)
    logits = model.logits(hidden)
    assert logits.shape == (3, 2, 15) and logits.dtype == torch.float32
    for row, i in enumerate(ids.values()):
        # One special id is within the language model's vocabulary.
        assert_close(logits[..., i], hidden @ model.special_out[row])
    text = [i for i in range(size) if i != 4]
    assert_close(logits[..., text], model.llm.lm_head(hidden)[..., text])
    assert (logits[..., [10, 13]] == -torch.inf).all()
    ids = torch.tensor([[4, 14]])
    found = model.embed(ids, torch.full_like(ids, -1), torch.zeros(0, 24))
    assert (found[0] == model.special_in[[1, 0]]).all()


def test_masks_select_in_the_last_image(model, processor):
    both = [message("user", picture(0), picture(3), "red"), message("assistant", MASK, MASK)]
    output = model(**processor([TEXT, both, SELECT]))
    found, indices = model.segment(output, (12, 10))
    assert found.fine.shape == (3, 12, 10)
    assert indices.tolist() == [0, 1, 2]
    rows, positions = (output.spliced.ids == model.config.segment_id).nonzero().unbind(1)
    assert rows.tolist() == [1, 1, 2]
    # The last image of each row, of images 0 to 2.
    images = torch.tensor([1, 1, 2])
    hidden_states = output.last_hidden_state[rows, positions]
    assert_close(
        found.fine, model.masks(hidden_states, output.visual, images, (12, 10)).fine, **EXACT
    )
    other = model.masks(hidden_states, output.visual, torch.tensor([0, 0, 2]), (12, 10)).fine
    assert not torch.allclose(other[0], found.fine[0])


def test_masks_beyond_max_length_have_no_logits(model, processor):
    long = [message("user", picture(0), "red"), message("assistant", "yes, a red circle.", MASK)]
    batch = processor([long, SELECT])
    length = int((model(**processor([SELECT])).spliced.attention_mask).sum())
    found, indices = model.segment(model(**batch, max_length=length), (6, 6))
    assert indices.tolist() == [1] and len(found.fine) == 1


def test_masks_need_an_image(model, processor):
    output = model(**processor([[message("user", "red"), message("assistant", MASK)]]))
    with pytest.raises(ValueError, match=r"input_ids: expected an image before each .*, got a row"):
        model.segment(output, (4, 4))


def test_images_must_match_their_ids(model, processor):
    batch = processor([SELECT])
    batch["pixel_values"] = batch["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(
        ValueError, match="input_ids: expected an <image> for each of 2 images, got 1"
    ):
        model(**batch)


def test_max_length_cuts_no_image_in_two(model, processor):
    batch = processor([SELECT])
    first = (batch["input_ids"][0] == model.config.image_token_id).nonzero().item()
    with pytest.raises(ValueError, match="max_length: expected a cut between images"):
        model(**batch, max_length=first + 1)
    cut = model(**batch, max_length=first)
    assert_close(
        cut.last_hidden_state, model(**batch).last_hidden_state[:, :first], rtol=1e-4, atol=1e-5
    )


def test_checkpointing_changes_nothing_but_memory(model, processor):
    batch = processor([SHOW])
    model(**batch).losses["text"].backward()
    expected = model.special_in.grad.clone()
    model.zero_grad(set_to_none=True)
    model.train()
    model.gradient_checkpointing_enable()
    try:
        model(**batch).losses["text"].backward()
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
    assert_close(model.special_in.grad, expected)


def test_saving_and_loading_keeps_the_weights_bit_equal(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is SetokimModel
    assert_same_weights(again, model)
    batch = processor([SHOW, SELECT])
    expected, found = model(**batch), again(**batch)
    assert_same_but_for_rounding(found.last_hidden_state, expected.last_hidden_state)
    assert_same_but_for_rounding(
        again.logits(found.last_hidden_state), model.logits(expected.last_hidden_state)
    )
    masks = model.segment(expected, (8, 8))[0].fine
    assert_same_but_for_rounding(again.segment(found, (8, 8))[0].fine, masks)
    noise, conditions = torch.randn(2, 24), torch.randn(2, 32)
    sampled = [m.head.sample(conditions, steps=4, noise=noise) for m in (model, again)]
    assert_same_but_for_rounding(*sampled)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prediction": "x"}, "prediction: expected v_prediction or epsilon, got 'x'"),
        (
            {"token_order": "x"},
            "token_order: expected one of raster, size, seed, background, got 'x'",
        ),
        (
            {"image_token_id": 1, "segment_id": 1},
            "image_token_id: expected four distinct ids .*, got",
        ),
        ({"lora": {"rank": 2}}, "lora: expected None or keys rank and targets, .*, got"),
        (
            {"lora": {"rank": 2, "targets": [], "r": 1}},
            "lora: expected None or keys rank and targets",
        ),
    ],
)
def test_errors_of_configurations(fields, expected):
    with pytest.raises(ValueError, match=expected):
        SetokimConfig(**fields)


def test_a_model_needs_both_parts():
    with pytest.raises(ValueError, match="setok: expected a configuration, got None"):
        SetokimModel(SetokimConfig(llm=LLM))
    with pytest.raises(ValueError, match="llm: expected a configuration, got None"):
        SetokimModel(SetokimConfig(SetokConfig(**TINY["model"])))
    with pytest.raises(ValueError, match="llm: expected fields with model_type, got"):
        SetokimModel(SetokimConfig(SetokConfig(**TINY["model"]), {"hidden_size": 4}))
