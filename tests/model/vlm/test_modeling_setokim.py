"""The multimodal model: what it learns from what, and what it keeps on disk."""

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
from setokim.vlm.modeling_setokim import SetokimModel, prompt_places

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


def test_places_hold_words_pictures_and_special_tokens(model, processor):
    batch = processor([SHOW])
    spliced, visual, packed = model.read(**batch)
    assert visual.occupied.sum() == len(packed.tokens) > 3
    embeddings = model.embed(spliced.ids, spliced.visual, packed.tokens)[0]
    normal = (packed.tokens - model.head.mean) / model.head.scale
    projected = model.project_in(normal)
    special = {i: n for n, i in enumerate(model.config.special_ids)}
    seen = []
    for place, token in enumerate(spliced.ids[0].tolist()):
        number = int(spliced.visual[0, place])
        if number >= 0:
            assert token == model.config.image_token_id
            expected = projected[number]
            seen.append(number)
        elif token in special:
            expected = model.special_in[special[token]]
        else:
            expected = model.llm.model.embed_tokens.weight[token]
        assert_close(embeddings[place], expected)
    assert seen == list(range(len(packed.tokens)))


def test_the_loss_is_of_what_the_assistant_says(model, processor):
    batch = processor([SHOW, TEXT])
    output = model(**batch)
    logits, labels = model.logits(output.last_hidden_state).log_softmax(-1), output.spliced.labels
    expected = [
        -logits[row, place - 1, labels[row, place]]
        for row in range(2)
        for place in range(1, labels.shape[1])
        if labels[row, place] != -100
    ]
    pictures = output.visual.occupied.sum(1)
    # "yes , red . </s>", "<img>", a picture, "</img> </s>" and "yes , a red circle . </s>".
    assert len(expected) == 5 + 1 + pictures[2] + 2 + 7
    assert_close(output.losses["text"], torch.stack(expected).mean())


def test_only_states_before_what_is_learnt_get_gradient(model, processor):
    output = model(**processor([SHOW, TEXT, SELECT]))
    output.last_hidden_state.retain_grad()
    output.losses["text"].backward()
    got = output.last_hidden_state.grad.abs().sum(-1) > 0
    before = torch.zeros_like(got)
    before[:, :-1] = output.spliced.labels[:, 1:] != -100
    assert got.tolist() == before.tolist()
    assert 0 < before.sum() < before.numel() / 2


def test_pictures_of_other_rows_and_later_ones_get_no_gradient(model, processor):
    batch = processor([SHOW, SELECT])
    batch["labels"][1] = -100
    batch["pixel_values"].requires_grad_()
    model(**batch).losses["text"].backward()
    got = batch["pixel_values"].grad.abs().flatten(1).sum(1) > 0
    assert got.tolist() == [True, True, True, False]
    # Without what comes after it, nor does the drawn picture.
    batch["pixel_values"].grad = None
    after = (batch["labels"][0] == model.config.image_start_id).nonzero().item()
    batch["labels"][0, after:] = -100
    model(**batch).losses["text"].backward()
    got = batch["pixel_values"].grad.abs().flatten(1).sum(1) > 0
    assert got.tolist() == [True, True, False, False]


def test_words_learn_where_they_are_read_or_said(model, processor):
    batch = processor([TEXT])
    model(**batch).losses["text"].backward()
    got = model.llm.model.embed_tokens.weight.grad.abs().sum(1) > 0
    # The last place is nobody's condition; no other word is read.
    assert set(got.nonzero().flatten().tolist()) == set(batch["input_ids"][0, :-1].tolist())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_other_rows_change_nothing(model, processor, side):
    batch = processor([TEXT, SHOW], padding_side=side)
    output = model(**batch)
    number = int(batch["attention_mask"][0].sum())
    alone = model(**processor([TEXT]))
    assert_close(
        output.last_hidden_state[0, :number], alone.last_hidden_state[0], rtol=1e-4, atol=1e-4
    )
    # Not even words of pictures in the padding.
    changed = dict(batch)
    filling = torch.full_like(batch["input_ids"], model.config.image_token_id)
    changed["input_ids"] = torch.where(batch["attention_mask"] == 0, filling, batch["input_ids"])
    again = model(**changed)
    assert_close(again.last_hidden_state, output.last_hidden_state, **EXACT)
    assert_close(again.losses["text"], output.losses["text"], **EXACT)
    # Nor do the pictures and words of a later row.
    changed["pixel_values"] = -batch["pixel_values"]
    changed["input_ids"] = batch["input_ids"].clone()
    changed["input_ids"][1, -1] = model.config.eos_token_id + 2
    kept = model(**changed)
    expected = output.last_hidden_state[0, :number]
    assert_close(kept.last_hidden_state[0, :number], expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(kept.last_hidden_state[1, :number], output.last_hidden_state[1, :number])


def test_drawn_tokens_and_the_states_before_them(model, processor):
    output = model(**processor([TEXT, SHOW, SELECT]))
    tokens, states, _ = model.generated_tokens(output)
    packed = output.visual.pack("raster")
    # The third picture is the only one that the assistant draws.
    first, last = packed.cu_seqlens[2:4].tolist()
    assert_close(tokens, packed.tokens[first:last], **EXACT)
    assert not tokens.requires_grad and states.requires_grad
    start = (output.spliced.ids[1] == model.config.image_start_id).nonzero().item()
    expected = output.last_hidden_state[1, start : start + last - first]
    assert_close(states, expected, **EXACT)
    assert model.generated_tokens(model(**processor([TEXT])))[0].shape == (0, 24)


def test_an_answer_may_have_the_order_of_the_picture_before():
    model, processor = build(answer_order="before", recall_width=4)
    chats = [
        [message("user", picture(i), "draw"), message("assistant", picture(i).rotate(90 * turns))]
        for i in range(4)
        for turns in (1, 2, 3)
    ]
    batch = processor([TEXT, *chats], padding_side="left")
    # What is masked is no picture.
    batch["input_ids"][batch["attention_mask"] == 0] = model.config.image_token_id
    output = model(**batch)
    tokens, _, base = model.generated_tokens(output)
    packed = output.visual.pack("raster")
    offsets = packed.cu_seqlens.tolist()
    sizes = torch.tensor(model.head.blocks)
    scale = sizes.sqrt().repeat_interleave(sizes)
    expected, orders = [], []
    for number in range(0, 2 * len(chats), 2):
        # Each second picture follows the one before.
        a, b, c = offsets[number : number + 3]
        before, own = packed.tokens[a:b], packed.tokens[b:c]
        assert_close(output.packed.tokens[a:b], before, **EXACT)
        apart = torch.cdist(*(model.head.normalise(t) / scale for t in (own, before)))
        orders.append(apart.argmin(1).argsort(stable=True))
        expected.append(own[orders[-1]])
    assert_close(tokens, torch.cat(expected), **EXACT)
    assert any(order.tolist() != list(range(len(order))) for order in orders)
    # What was drawn before is read in the same order when the model goes on.
    batch.pop("labels")
    _, _, again = model.read(**batch)
    assert_close(again.tokens, output.packed.tokens, **EXACT)
    # What is not seen is nothing to look back at.
    memory = model.memory(
        output.last_hidden_state,
        output.spliced.ids,
        output.spliced.visual,
        packed.tokens,
        output.seen,
    )
    assert not memory.hidden[output.seen == 0].any() and memory.hidden[output.seen == 1].any()
    assert base.any()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_diffusion_loss_is_a_mean_over_the_tokens_of_all(model, processor, monkeypatch, share):
    output = model(**processor([SHOW]))
    tokens, states, _ = model.generated_tokens(output)
    torch.manual_seed(3)
    alone = model.head.loss(tokens, states, 2)
    # Other processes have so many that this one has a `share` of their mean.
    monkeypatch.setattr("setokim.vlm.losses.mean_over_ranks", lambda x: x / share)
    torch.manual_seed(3)
    assert_close(diffusion_loss(LossContext(model, output, diffusion_repeats=2)), share * alone)
    assert float(model(**processor([TEXT])).losses["diffusion"]) == 0


def test_a_picture_in_the_prompt_is_not_drawn(model, processor):
    assert len(model.generated_tokens(model(**processor([SELECT])))[0]) == 0


def test_unconditional_rows_ignore_the_prompt(model, processor):
    def draw(*parts, unconditional=True):
        # The second time, what was drawn before is all that is seen.
        chat = [message("user", *parts), message("assistant", picture(2))] * 2
        batch = processor([chat, TEXT])
        output = model(**batch, unconditional=torch.tensor([unconditional, False]))
        number = int(batch["attention_mask"][1].sum())
        return model.generated_tokens(output)[1], output.last_hidden_state[1, :number]

    states, other = draw("draw a red circle.")
    again, other_again = draw(picture(0), "draw two squares.")
    assert_close(again, states, rtol=1e-4, atol=1e-5)
    assert_close(other_again, other, rtol=1e-4, atol=1e-5)
    conditional, _ = draw("draw a red circle.", unconditional=False)
    assert (conditional - states).abs().max() > 0.01


def test_the_prompt_ends_before_what_is_learnt():
    labels = torch.tensor([[-100, -100, 3, 4, -100, -100, 5], [-100] * 7])
    expected = [[True, False, False, False, True, False, False], [True] * 7]
    assert prompt_places(labels).tolist() == expected


def test_logits_of_special_tokens_are_their_own():
    size = 10
    ids = {"image_token_id": 14, "image_start_id": 4, "image_end_id": 12, "segment_id": 11}
    llm = LLM | {"vocab_size": size}
    config = SetokimConfig(SetokConfig(**TINY["model"]), llm, **ids, eos_token_id=2, **FIELDS)
    torch.manual_seed(0)
    model = SetokimModel(config)
    hidden = torch.randn(3, 2, 32)
    logits = model.logits(hidden)
    assert logits.shape == (3, 2, 15) and logits.dtype == torch.float32
    for number, i in enumerate(ids.values()):
        # One of them is within the language model's vocabulary.
        assert_close(logits[..., i], hidden @ model.special_out[number])
    words = [i for i in range(size) if i != 4]
    assert_close(logits[..., words], model.llm.lm_head(hidden)[..., words])
    assert (logits[..., [10, 13]] == -torch.inf).all()
    places = torch.tensor([[4, 14]])
    found = model.embed(places, torch.full_like(places, -1), torch.zeros(0, 24))
    assert (found[0] == model.special_in[[1, 0]]).all()


def test_masks_are_about_the_last_picture(model, processor):
    both = [message("user", picture(0), picture(3), "red"), message("assistant", MASK, MASK)]
    output = model(**processor([TEXT, both, SELECT]))
    found, numbers = model.segment(output, (12, 10))
    assert found.fine.shape == (3, 12, 10)
    assert numbers.tolist() == [0, 1, 2]
    rows, places = (output.spliced.ids == model.config.segment_id).nonzero().unbind(1)
    assert rows.tolist() == [1, 1, 2]
    # Of pictures 0 to 2, the last of each row.
    images = torch.tensor([1, 1, 2])
    states = output.last_hidden_state[rows, places]
    assert_close(found.fine, model.masks(states, output.visual, images, (12, 10)).fine, **EXACT)
    other = model.masks(states, output.visual, torch.tensor([0, 0, 2]), (12, 10)).fine
    assert not torch.allclose(other[0], found.fine[0])


def test_masks_that_were_cut_off_have_no_logits(model, processor):
    long = [message("user", picture(0), "red"), message("assistant", "yes, a red circle.", MASK)]
    batch = processor([long, SELECT])
    number = int((model(**processor([SELECT])).spliced.attention_mask).sum())
    found, numbers = model.segment(model(**batch, max_length=number), (6, 6))
    assert numbers.tolist() == [1] and len(found.fine) == 1


def test_masks_need_a_picture(model, processor):
    output = model(**processor([[message("user", "red"), message("assistant", MASK)]]))
    with pytest.raises(ValueError, match="input_ids: expected an image before each"):
        model.segment(output, (4, 4))


def test_pictures_must_match_their_places(model, processor):
    batch = processor([SELECT])
    batch["pixel_values"] = batch["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match="expected"):
        model(**batch)


def test_a_cut_halves_no_picture(model, processor):
    batch = processor([SELECT])
    first = (batch["input_ids"][0] == model.config.image_token_id).nonzero().item()
    with pytest.raises(ValueError, match="max_length: expected a cut between pictures"):
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


def test_saved_and_read_its_weights_are_bit_equal(model, processor, tmp_path):
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
    noise, states = torch.randn(2, 24), torch.randn(2, 32)
    drawn = [m.head.sample(states, steps=4, noise=noise) for m in (model, again)]
    assert_same_but_for_rounding(*drawn)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prediction": "x"}, "prediction: expected v_prediction or epsilon, got 'x'"),
        ({"token_order": "x"}, "token_order: expected raster, size or seed, got 'x'"),
        ({"image_token_id": 1, "segment_id": 1}, "image_token_id: expected four ids, got"),
        ({"lora": {"rank": 2}}, "lora: expected rank, targets, alpha, dropout, got"),
        ({"lora": {"rank": 2, "targets": [], "r": 1}}, "lora: expected rank, targets"),
    ],
)
def test_configurations_that_do_not_fit(fields, expected):
    with pytest.raises(ValueError, match=expected):
        SetokimConfig(**fields)


def test_a_model_needs_both_parts():
    with pytest.raises(ValueError, match="setok: expected a configuration, got None"):
        SetokimModel(SetokimConfig(llm=LLM))
    with pytest.raises(ValueError, match="llm: expected a configuration, got None"):
        SetokimModel(SetokimConfig(SetokConfig(**TINY["model"])))
    with pytest.raises(ValueError, match="llm: expected fields with model_type, got"):
        SetokimModel(SetokimConfig(SetokConfig(**TINY["model"]), {"hidden_size": 4}))
