"""Processor: conversations to batches, and ids back to text."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import PreTrainedTokenizer

from helpers.tiny_setokim import picture
from setokim.data.conversations import MASK, message
from setokim.shapes_world.tasks import WORDS
from setokim.tokenizer.processing_setok import SetokProcessor
from setokim.vlm.processing_setokim import SPECIAL, SetokimProcessor
from setokim.vlm.word_tokenizer import build_word_tokenizer


@pytest.fixture(scope="module")
def processor():
    return SetokimProcessor(build_word_tokenizer(WORDS), SetokProcessor((24, 24)))


def tokens(processor, ids):
    return processor.tokenizer.convert_ids_to_tokens(ids)


CHAT = [
    message("user", picture(0), "is there a red circle?"),
    message("assistant", "yes, red."),
    message("user", "draw a circle."),
    message("assistant", picture(1)),
]


def test_one_conversation_by_hand(processor):
    batch = processor([CHAT])
    answer = ["▁yes", ",", "▁red", ".", "</s>"]
    generated = ["<img>", "<image>", "</img>", "</s>"]
    user, assistant = ["▁USER", ":"], ["▁ASSISTANT", ":"]
    question = ["▁is", "▁there", "▁a", "▁red", "▁circle", "?"]
    first = ["<s>", *user, "<image>", *question, *assistant]
    second = [*user, "▁draw", "▁a", "▁circle", ".", *assistant]
    assert tokens(processor, batch["input_ids"][0]) == [*first, *answer, *second, *generated]
    trained = batch["labels"][0] != -100
    parts = [(first, False), (answer, True), (second, False), (generated, True)]
    assert trained.tolist() == [own for part, own in parts for _ in part]
    assert_close(batch["labels"][0][trained], batch["input_ids"][0][trained])
    pixels = processor.image_processor([picture(0), picture(1)])["pixel_values"]
    assert_close(batch["pixel_values"], pixels, rtol=0, atol=0)


def test_a_generation_prompt_ends_with_the_assistants_header(processor):
    batch = processor([CHAT[:1]], add_generation_prompt=True)
    assert tokens(processor, batch["input_ids"][0])[-2:] == ["▁ASSISTANT", ":"]
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    # The prompt is a prefix of the whole conversation.
    whole = processor([CHAT])["input_ids"][0]
    assert_close(whole[: batch["input_ids"].shape[1]], batch["input_ids"][0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_on_one_side(processor, side):
    short = [
        message("system", "a"),
        message("user", "is there a red circle?"),
        message("assistant", "no."),
    ]
    batch = processor([CHAT, short], padding_side=side)
    alone = processor([short])
    number = alone["input_ids"].shape[1]
    missing = batch["input_ids"].shape[1] - number
    assert missing > 0
    own = slice(missing, None) if side == "left" else slice(number)
    rest = slice(missing) if side == "left" else slice(number, None)
    for name, fill in (
        ("input_ids", processor.tokenizer.pad_token_id),
        ("attention_mask", 0),
        ("labels", -100),
    ):
        assert_close(batch[name][1, own], alone[name][0])
        assert batch[name][1, rest].tolist() == [fill] * missing
        assert batch[name].dtype == torch.int64
    assert batch["pixel_values"].shape == (2, 3, 24, 24)


def test_two_images_in_one_prompt_and_a_string_as_content(processor):
    chat = [
        message("user", picture(0), picture(1), "is there a red circle?"),
        {"role": "assistant", "content": "no"},
    ]
    batch = processor([chat])
    assert tokens(processor, batch["input_ids"][0])[3:6] == ["<image>", "<image>", "▁is"]
    pixels = processor.image_processor([picture(0), picture(1)])["pixel_values"]
    assert_close(batch["pixel_values"], pixels)
    assert_close(batch["labels"], processor([[chat[0], message("assistant", "no")]])["labels"])


def test_text_only(processor):
    batch = processor([[message("user", "is there a red circle?"), message("assistant", "no.")]])
    assert batch["pixel_values"].shape == (0, 3, 24, 24)
    assert processor.special_ids()["image_token_id"] not in batch["input_ids"]


def test_a_mask_is_a_trained_token_of_the_assistant(processor):
    batch = processor([[message("user", picture(0), "red"), message("assistant", MASK)]])
    trained = batch["labels"][0][batch["labels"][0] != -100]
    assert tokens(processor, trained) == ["[SEG]", "</s>"]


def test_decoding_inverts_encoding(processor):
    text = "yes, there is a red circle. draw a square, is there one?"
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert processor.tokenizer.unk_token_id not in ids
    assert processor.decode(ids) == text
    batch = processor([[message("user", "a"), message("assistant", text)]])
    assert processor.decode(batch["labels"][0][batch["labels"][0] != -100]) == text
    assert processor.decode(processor.tokenizer.encode("<img><image></img> red </s>")) == "red"


def test_saving_and_loading_changes_nothing(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = SetokimProcessor.from_pretrained(tmp_path)
    assert again.special_ids() == processor.special_ids()
    assert again.image_processor == processor.image_processor
    assert again.tokenizer.chat_template == processor.tokenizer.chat_template
    assert len(again.tokenizer) == len(processor.tokenizer)
    expected, found = processor([CHAT]), again([CHAT])
    for name, value in expected.items():
        assert_close(found[name], value, rtol=0, atol=0)


def test_special_tokens_are_four_new_ids(processor):
    ids = processor.special_ids()
    plain = build_word_tokenizer(WORDS)
    assert list(ids.values())[:4] == list(range(len(plain), len(plain) + 4))
    assert tokens(processor, list(ids.values())) == [*SPECIAL, "</s>"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([message("tool", "red")], "role: expected system, user or assistant, got 'tool'"),
        (
            [{"role": "user", "content": []}],
            r"content: expected a text or a list of parts, got \[\]",
        ),
        (
            [{"role": "user", "content": None}],
            "content: expected a text or a list of parts, got None",
        ),
        ([{"role": "user", "content": ["red"]}], "content: expected parts .* got 'red'"),
        (
            [{"role": "user", "content": [{"type": "image", "image": np.zeros((2, 2, 3))}]}],
            "content: expected parts with a text or an image",
        ),
        ([message("system", picture(0))], "content: expected text only in a system"),
        ([message("user", picture(0), MASK)], "content: expected .* a mask of the assistant, got"),
    ],
)
def test_errors_of_messages(processor, messages, expected):
    with pytest.raises(ValueError, match=expected):
        processor([messages])


@pytest.mark.parametrize("name", [*SPECIAL, "<s>", "</s>", "<pad>", "<unk>"])
def test_special_names_in_text_are_ordinary_tokens(processor, name):
    def batch_of(text):
        return processor(
            [
                [
                    {"role": "system", "content": text},
                    message("user", picture(0), f"is {text} red?"),
                    message("assistant", f"yes, {text}.", MASK, picture(1)),
                ],
                [message("user", text), message("assistant", text)],
            ]
        )

    def counts(ids):
        special = {*processor.special_ids().values(), processor.tokenizer.bos_token_id}
        return {i: int((ids == i).sum()) for i in special}

    expected, found = batch_of("red"), batch_of(name)
    for part in ("input_ids", "labels"):
        assert counts(found[part]) == counts(expected[part])
    # One image in the prompt and one generated.
    assert counts(found["input_ids"])[processor.special_ids()["image_token_id"]] == 2
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_a_lone_surrogate_is_replaced(processor):
    chats = [[message("user", text)] for text in ("is \ud800 red?", "is \ufffd red?")]
    found, expected = (processor([chat])["input_ids"] for chat in chats)
    assert torch.equal(found, expected)


def test_conversations_without_images_are_packed(processor):
    texts = [[message("user", "is the?"), message("assistant", text)] for text in ("red " * 9, "a")]
    chats = [texts[0], CHAT, texts[1]]
    plain, packed = processor(chats), processor(chats, pack_to=7)

    def rows_of(batch):
        return [
            [
                batch[name][i][batch["attention_mask"][i] == 1].tolist()
                for name in ("input_ids", "labels")
            ]
            for i in range(len(batch["labels"]))
        ]

    expected, found = rows_of(plain), rows_of(packed)
    # The row with images is unchanged; the others are concatenated without loss.
    assert found[0] == expected[1]
    joined = [[token for row in found[1:] for token in row[part]] for part in (0, 1)]
    assert joined == [expected[0][part] + expected[2][part] for part in (0, 1)]
    assert [len(ids) for ids, _ in found[1:-1]] == [7] * (len(found) - 2)
    assert 1 <= len(found[-1][0]) <= 7
    assert torch.equal(packed["pixel_values"], plain["pixel_values"])
    # A batch of conversations with images stays as it is.
    assert torch.equal(processor([CHAT], pack_to=7)["input_ids"], processor([CHAT])["input_ids"])
    for options, got in (({"pack_to": 0}, "0"), ({"add_generation_prompt": True}, "add_gen")):
        with pytest.raises(ValueError, match=rf"^pack_to: expected at least 1 .*, got {got}"):
            processor([CHAT], **{"pack_to": 7} | options)


def test_errors_of_batches(processor):
    with pytest.raises(ValueError, match="conversations: expected at least one, got none"):
        processor([])
    with pytest.raises(ValueError, match="padding_side: expected left or right, got 'top'"):
        processor([CHAT], padding_side="top")


def test_errors_of_tokenizers():
    image_processor = SetokProcessor((24, 24))
    with pytest.raises(ValueError, match="chat_template: expected a template with"):
        SetokimProcessor(build_word_tokenizer(WORDS), image_processor, "{{ bos_token }}")
    endless = build_word_tokenizer(WORDS)
    endless.eos_token = None
    with pytest.raises(ValueError, match="tokenizer: expected a tokenizer with eos_token, got"):
        SetokimProcessor(endless, image_processor)
    with pytest.raises(ValueError, match=r"tokenizer: expected a fast tokenizer, .* got Slow"):
        SetokimProcessor(Slow(), image_processor)


class Slow(PreTrainedTokenizer):
    vocab_size = 0

    def get_vocab(self):
        return {}
