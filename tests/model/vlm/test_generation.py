"""Generation of text, images and masks, position by position."""

import pytest
import torch
from torch.testing import assert_close

from helpers.tiny_setokim import Script, build, picture
from setokim.data.conversations import MASK, message
from setokim.vlm.generation import Answer, _choose

TEXT = [message("user", "is there a red circle?")]
SEE = [message("user", picture(0), picture(1), "segment the circle.")]
GENERATE = [message("user", "draw a large red circle above the two small blue square.")]
EDIT = [message("user", picture(2), "make the circle blue.")]
PROMPTS = [TEXT, SEE, GENERATE, EDIT]
SCRIPTS = [
    "yes, there is.",
    "[SEG] and [SEG]",
    "<img><image><image><image></img> a <img><image></img>",
    "the <img><image><image></img> [SEG]",
]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# Fewer steps than the model was built for, and small masks.
FAST = {"sampling_steps": 4, "mask_size": (12, 10)}


COPYING = {"code_dim": 4, "recall_width": 8, "copy_tokens": True}


@pytest.fixture(
    scope="module",
    params=[{}, {"recall_width": 8}, {"code_dim": 4}, COPYING],
    ids=["hidden_states", "recall", "codes", "copies"],
)
def built(request):
    model, processor = build(**request.param)
    if model.recall is not None:
        # Random hidden states are dissimilar, and a sharp choice among them amplifies rounding.
        model.recall.sharpness.data.fill_(0.7)
        if model.recall.novelty is not None:
            # A test of its own has repeated tokens.
            model.recall.novelty.bias.data.fill_(1e4)
    return model, processor


@pytest.fixture
def model(built):
    yield built[0]
    # Remove the replacements of a test.
    vars(built[0]).pop("logits", None)
    vars(built[0].head).pop("sample", None)


@pytest.fixture(scope="module")
def processor(built):
    return built[1]


def prompt(processor, *chats):
    return processor(chats, add_generation_prompt=True, padding_side="left")


def seeded(number, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(number)]


def follow(model, processor, chats, scripts, first=0, **options):
    """Return the answers that follow a script, and the hidden states of their positions."""
    script = Script(processor, *scripts)
    model.logits = script
    options = FAST | {"generators": seeded(len(chats), first)} | options
    return model.generate(**prompt(processor, *chats), **options), script.states


def same(found: Answer, expected: Answer):
    assert found.ids == expected.ids and found.finished == expected.finished
    for name in ("tokens", "images", "masks"):
        pairs = list(zip(getattr(found, name), getattr(expected, name), strict=True))
        for mine, theirs in pairs:
            assert_close(mine, theirs, **CLOSE)


def test_scripts_make_text_images_and_masks(model, processor):
    answers, _ = follow(model, processor, PROMPTS, SCRIPTS)
    texts = ["yes, there is.", "and", "a", "the"]
    assert [processor.decode(answer.ids) for answer in answers] == texts
    assert [[len(p) for p in answer.tokens] for answer in answers] == [[], [], [3, 1], [2]]
    assert [len(answer.images) for answer in answers] == [0, 0, 2, 1]
    assert [len(answer.masks) for answer in answers] == [0, 2, 0, 1]
    assert all(answer.finished for answer in answers)
    config = model.config
    expected_ids = [config.image_start_id, config.image_token_id, config.image_end_id]
    # An image has one <image>, whatever its number of tokens.
    assert answers[3].ids[1:] == [*expected_ids, config.segment_id]
    for answer in answers:
        assert config.eos_token_id not in answer.ids
        for image in answer.images:
            assert image.shape == (3, 32, 32)
            assert_close(image.clamp(0, 1), image, rtol=0, atol=0)
    assert answers[1].masks[0].shape == (12, 10)
    # The same token at other positions.
    assert not torch.allclose(answers[1].masks[0], answers[1].masks[1])


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_with_the_cache_as_without(model, processor, guidance):
    runs = [
        follow(model, processor, PROMPTS, SCRIPTS, guidance=guidance, use_cache=cached)
        for cached in (True, False)
    ]
    for found, expected in zip(runs[0][0], runs[1][0], strict=True):
        same(found, expected)
    # A finished row generates nothing more, whatever its hidden state.
    lengths = [len(script) for script in Script(processor, *SCRIPTS)._rows]
    for number, (found, expected) in enumerate(zip(runs[0][1], runs[1][1], strict=True)):
        going = torch.tensor(lengths) >= number
        assert_close(found[going], expected[going], **CLOSE)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_batch_is_its_rows(model, processor, guidance):
    together, states = follow(model, processor, PROMPTS, SCRIPTS, guidance=guidance)
    for i in range(len(PROMPTS)):
        alone, own = follow(
            model, processor, PROMPTS[i : i + 1], SCRIPTS[i : i + 1], first=i, guidance=guidance
        )
        same(alone[0], together[i])
        for number, state in enumerate(own):
            assert_close(states[number][i], state[0], **CLOSE)


def test_guidance_and_prompts_change_the_image(model, processor):
    scripts = SCRIPTS[2:3]
    (plain,), _ = follow(model, processor, [GENERATE], scripts)
    (guided,), _ = follow(model, processor, [GENERATE], scripts, guidance=3.0)
    (other,), _ = follow(model, processor, [TEXT], scripts)
    for different in (guided, other):
        assert (different.tokens[0] - plain.tokens[0]).abs().max() > 1e-3


def test_guidance_0_ignores_the_prompt(model, processor):
    # The image is then the one generated without the prompt.
    runs = [
        follow(model, processor, [chat], SCRIPTS[2:3], guidance=0.0)[0][0]
        for chat in (GENERATE, EDIT)
    ]
    same(*runs)


@pytest.mark.parametrize("use_cache", [True, False])
def test_conditions_and_hidden_states_are_those_of_training(model, processor, use_cache):
    whole = processor([[*EDIT, message("assistant", picture(3))]])
    output = model(**whole)
    free = model(**whole, unconditional=torch.tensor([True]))
    tokens, *expected = model.generated_tokens(output)
    calls = []

    def sample(condition, unconditional, *args, **kwargs):
        calls.append((condition, unconditional, kwargs["base"], kwargs["unconditional_base"]))
        return tokens[len(calls) - 1 : len(calls)]

    model.head.sample = sample
    script = "<img>" + "<image>" * len(tokens) + "</img>"
    (answer,), states = follow(
        model, processor, [EDIT], [script], guidance=2.0, use_cache=use_cache
    )
    assert len(tokens) > 1
    conditions, unconditional, *bases = zip(*calls, strict=True)
    assert_close(torch.cat(conditions), expected[0], **CLOSE)
    assert_close(torch.cat(unconditional), model.generated_tokens(free)[1], **CLOSE)
    if model.recall is None:
        assert expected[1] is None and set(sum(bases, ())) == {None}
    else:
        assert_close(torch.cat(bases[0]), expected[1], **CLOSE)
        assert_close(torch.cat(bases[1]), model.generated_tokens(free)[2], **CLOSE)
        # The tokens of the prompt are masked without condition, so nothing can be recalled.
        assert expected[1][0].any() and not model.generated_tokens(free)[2][0].any()
    assert_close(answer.tokens[0], model.tokens_of(tokens), **CLOSE)
    # From before <img> to before </s>.
    assert_close(torch.cat(states), output.last_hidden_state[0, -len(states) - 1 : -1], **CLOSE)


def test_text_is_the_most_probable(model, processor):
    config = model.config
    # Images are no text, and the end would come too early.
    barred = [config.image_start_id, config.image_end_id, config.image_token_id]
    barred += [config.eos_token_id]
    logits = model.logits
    model.logits = lambda hidden: logits(hidden).index_fill(-1, torch.tensor(barred), -torch.inf)
    (answer,) = model.generate(**prompt(processor, SEE), max_new_tokens=6, **FAST)
    chat, expected = prompt(processor, SEE), []
    for _ in range(6):
        following = model.logits(model(**chat).last_hidden_state[0, -1]).argmax()
        expected.append(int(following))
        chat["input_ids"] = torch.cat([chat["input_ids"], following.view(1, 1)], 1)
        chat["attention_mask"] = torch.ones_like(chat["input_ids"])
    assert len(set(expected)) > 2
    assert answer.ids == expected
    assert not answer.finished


def test_masks_are_those_of_the_whole_conversation(model, processor):
    # Before the script replaces the logits, which the loss of the conversation needs.
    whole = processor([[*SEE, message("assistant", MASK, "and", MASK)]])
    expected = model.segment(model(**whole), (12, 10))[0].fine
    (answer,), _ = follow(model, processor, [SEE], ["[SEG] and [SEG]"])
    assert_close(torch.stack(answer.masks), expected, **CLOSE)


def test_shapes_have_length_1(model, processor):
    (answer,), _ = follow(model, processor, [GENERATE], SCRIPTS[2:3])
    assert_close(answer.tokens[0][:, 19:].norm(dim=1), torch.ones(3))


def prefer(model, processor, *names):
    """Make the model generate the first of these tokens that may follow."""
    ids = processor.tokenizer.convert_tokens_to_ids(list(names))

    def logits(hidden):
        found = torch.zeros(len(hidden), len(processor.tokenizer))
        found[:, ids] = torch.arange(len(ids), 0, -1).float()
        return found

    model.logits = logits
    return ids


def test_an_image_ends_after_its_max_tokens(model, processor):
    prefer(model, processor, "<image>", "<img>")
    for max_tokens, expected in ((2, 2), (None, 5)):
        (answer,) = model.generate(
            **prompt(processor, SEE), max_new_tokens=7, max_image_tokens=max_tokens, **FAST
        )
        assert len(answer.tokens[0]) == expected
        config = model.config
        image = [config.image_start_id, config.image_token_id, config.image_end_id]
        assert answer.ids[:3] == image
        assert not answer.finished


def test_an_image_has_at_least_one_token(model, processor):
    prefer(model, processor, "</img>", "<img>", "<image>")
    (answer,) = model.generate(**prompt(processor, TEXT), max_new_tokens=3, **FAST)
    config = model.config
    assert answer.ids == [config.image_start_id, config.image_token_id, config.image_end_id]
    assert [len(tokens) for tokens in answer.tokens] == [1]


def test_within_an_image_there_is_no_text(model, processor):
    prefer(model, processor, "<img>", "▁red", "</s>", "<image>", "</img>")
    (answer,) = model.generate(**prompt(processor, TEXT), max_new_tokens=4, **FAST)
    # An unfinished image is reconstructed from its tokens.
    assert [len(tokens) for tokens in answer.tokens] == [3] and len(answer.images) == 1
    assert answer.ids[-1] == model.config.image_end_id


def test_an_unfinished_image_without_tokens_is_dropped(model, processor):
    prefer(model, processor, "<img>")
    (answer,) = model.generate(**prompt(processor, TEXT), max_new_tokens=1, **FAST)
    assert answer.tokens == [] and answer.images == []


def test_segments_need_an_image_in_the_prompt(model, processor):
    segment, red = prefer(model, processor, "[SEG]", "▁red")
    answers = model.generate(**prompt(processor, TEXT, SEE), max_new_tokens=3, **FAST)
    assert [answer.ids for answer in answers] == [[red] * 3, [segment] * 3]
    assert [len(answer.masks) for answer in answers] == [0, 3]


def test_images_have_the_given_size(model, processor):
    (answer,), _ = follow(model, processor, [GENERATE], SCRIPTS[2:3], image_size=(48, 40))
    assert [image.shape for image in answer.images] == [(3, 48, 40)] * 2


class Recorder:
    """Streamer that keeps its calls."""

    def __init__(self):
        self.got, self.ended = [], 0

    def put(self, value):
        self.got.append(value.flatten().tolist())

    def end(self):
        self.ended += 1


def test_a_streamer_gets_the_prompt_and_each_token(model, processor):
    streamer = Recorder()
    (answer,), _ = follow(model, processor, [TEXT], SCRIPTS[:1], streamer=streamer)
    start = prompt(processor, TEXT)["input_ids"][0].tolist()
    assert streamer.got == [start, *([i] for i in answer.ids), [model.config.eos_token_id]]
    assert streamer.ended == 1


def test_without_noise_all_images_are_equal(model, processor):
    options = {"scripts": SCRIPTS[2:3], "image_temperature": 0.0}
    runs = [follow(model, processor, [GENERATE], first=i, **options)[0][0] for i in (0, 9)]
    same(*runs)
    warm = follow(model, processor, [GENERATE], SCRIPTS[2:3])[0][0]
    assert (warm.tokens[0] - runs[0].tokens[0]).abs().max() > 1e-3


def test_nothing_is_random_but_the_generators(model, processor):
    options = {"temperature": 1.5, "max_new_tokens": 8}
    batch = prompt(processor, TEXT, GENERATE)
    runs = [
        [a.ids for a in model.generate(**batch, generators=seeded(2, first), **FAST, **options)]
        for first in (0, 0, 7)
    ]
    assert runs[0] == runs[1] != runs[2]
    # A row is sampled from its own generator only.
    (alone,) = model.generate(
        **prompt(processor, GENERATE), generators=seeded(1, 1), **FAST, **options
    )
    assert alone.ids == runs[0][1]


def test_temperature_and_top_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    generators = [torch.Generator().manual_seed(0)] * 4000

    def frequencies(temperature, top_p):
        return _choose(logits, temperature, top_p, generators).bincount(minlength=4) / 4000

    close = {"rtol": 0, "atol": 0.03}
    assert frequencies(0, 1.0).tolist() == [1, 0, 0, 0]
    assert_close(frequencies(1.0, 1.0), torch.tensor([0.5, 0.3, 0.15, 0.05]), **close)
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert_close(frequencies(0.5, 1.0), squared / squared.sum(), **close)
    assert_close(frequencies(1.0, 0.7), torch.tensor([0.625, 0.375, 0, 0]), **close)
    assert frequencies(1.0, 0.01).tolist() == [1, 0, 0, 0]
    # Probabilities need not be sorted.
    assert set(_choose(logits.flip(1), 1.0, 0.7, generators).tolist()) == {2, 3}


def test_top_p_keeps_the_fewest_that_reach_it():
    """Four tokens of probability 1/4; its multiples are exact."""
    logits = torch.full((400, 6), -torch.inf)
    logits[:, 1:5] = 0
    generators = [torch.Generator().manual_seed(0)] * 400
    for top_p, number in ((0.25, 1), (0.5, 2), (0.75, 3), (0.7501, 4), (1.0, 4)):
        assert len(set(_choose(logits, 1.0, top_p, generators).tolist())) == number


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ({"sampling_steps": 0}, "sampling_steps: expected at least 1, got 0"),
        ({"temperature": -1.0}, "temperature: expected at least 0, got -1.0"),
        ({"image_temperature": -1.0}, "image_temperature: expected at least 0, got -1.0"),
        ({"top_p": 0.0}, "top_p: expected a number above 0 and up to 1, got 0.0"),
        ({"top_p": 1.5}, "top_p: expected a number above 0 and up to 1, got 1.5"),
        ({"generators": []}, "generators: expected one for each of 2, got 0"),
        ({"streamer": Recorder()}, "streamer: expected a single conversation, got 2"),
    ],
)
def test_arguments_that_do_not_fit(model, processor, options, expected):
    with pytest.raises(ValueError, match=expected):
        model.generate(**prompt(processor, TEXT, GENERATE), **options)


def test_images_must_match_their_positions(model, processor):
    batch = prompt(processor, SEE)
    batch["pixel_values"] = batch["pixel_values"][:1]
    with pytest.raises(ValueError, match="expected"):
        model.generate(**batch)


def test_a_head_without_units_generates_nothing(model, processor):
    prefer(model, processor, "<img>", "<image>")
    model.head.fitted.fill_(False)
    try:
        with pytest.raises(RuntimeError, match="DiffusionHead: expected fit"):
            model.generate(**prompt(processor, TEXT), **FAST)
    finally:
        model.head.fitted.fill_(True)


@pytest.mark.parametrize("use_cache", [True, False])
def test_tokens_are_repeated_exactly_or_decoded_from_new_codes(use_cache):
    model, processor = build(**COPYING)
    source = model.setok.tokenize([EDIT[0]["content"][0]["image"]]).pack("raster").tokens
    script = ["<img><image><image></img> and <img><image></img>"]
    novelty = model.recall.novelty.bias.data
    novelty.fill_(-1e4)
    (answer,), _ = follow(model, processor, [EDIT], script, use_cache=use_cache)
    for token in torch.cat(answer.tokens):
        assert (token == source).all(1).any()
    novelty.fill_(1e4)
    codes = []
    sample = model.head.sample
    model.head.sample = lambda *args, **named: codes.append(sample(*args, **named)) or codes[-1]
    (answer,), _ = follow(model, processor, [EDIT], script, use_cache=use_cache)
    expected = model.setok.codes.decode(torch.cat(codes))
    assert_close(torch.cat(answer.tokens), expected)
    # Without an image before it there is nothing to repeat.
    novelty.fill_(-1e4)
    codes.clear()
    (answer,), _ = follow(model, processor, [GENERATE], ["<img><image></img>"])
    assert_close(answer.tokens[0], model.setok.codes.decode(codes[0]))
