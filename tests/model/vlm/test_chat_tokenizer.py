"""Chat tokenizer: special tokens come from the chat template, never from texts."""

from collections import Counter

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from setokim.data.conversations import MASK, SEG, SPECIAL, message
from setokim.shapes_world.tasks import WORDS
from setokim.vlm.chat_tokenizer import ChatTokenizer
from setokim.vlm.processing_setokim import CHAT_TEMPLATE
from setokim.vlm.word_tokenizer import build_word_tokenizer

CORPUS = (
    "is there a red circle? yes, there is. USER: ASSISTANT: draw a small blue star at the centre",
    "segment the object. <s> </s> <pad> <unk> [SEG] <img> </img> <image> <|tool|> Qu'est-ce 猫é",
)
ALPHABET = sorted({letter for text in CORPUS for letter in text} | {"▁", "\n"})
NAMES = [*SPECIAL, "<s>", "</s>", "<pad>", "<unk>", "<|tool|>"]
METASPACE = pre_tokenizers.Metaspace("▁", prepend_scheme="first")


def fast(model, pre_tokenizer, decoder, normalizer=None, train=None, **options):
    """Build a tokenizer with the usual special tokens and one more."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    tokenizer.normalizer = normalizer
    if train is not None:
        tokenizer.train_from_iterator(CORPUS, train)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokens = {
        kind: AddedToken(name, special=True, normalized=options.get("normalized", False))
        for kind, name in names.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **tokens, additional_special_tokens=["<|tool|>"]
    )


def byte_level():
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return fast(models.BPE(), pre_tokenizer, decoders.ByteLevel(), train=trainer)


def byte_level_that_merges_names():
    """Build a tokenizer whose merges yield "</s>", an entry of the base vocabulary."""
    words = list(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "/"), ("</", "s"), ("</s", ">"), ("</s>", "a"), ("i", "s")]
    words += [one + other for one, other in merges]
    model = models.BPE({word: i for i, word in enumerate(words)}, merges)
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return fast(model, pre_tokenizer, decoders.ByteLevel())


def sentencepiece_bpe():
    """Build a tokenizer as of Llama: only the start of the text gets a space in front."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *ALPHABET, "re", "red"]
    model = models.BPE(
        {word: i for i, word in enumerate(words)},
        [("r", "e"), ("re", "d")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="first")]
    )
    return fast(model, METASPACE, decoder)


def legacy_sentencepiece_bpe(**options):
    """Build a tokenizer as of the first Llama: normalization inserts the spaces."""
    tokenizer = sentencepiece_bpe().backend_tokenizer
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    normalizer = normalizers.Sequence(spaces)
    return fast(tokenizer.model, None, tokenizer.decoder, normalizer, **options)


def unigram():
    """Build a tokenizer as of T5: special names are the pieces of max score."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<s>", 0.0), ("▁red", -3.0)]
    model = models.Unigram([*pieces, *((letter, -9.0) for letter in ALPHABET)], 2)
    return fast(model, METASPACE, decoders.Metaspace("▁"), normalizers.NFKC())


def words_between_spaces():
    """Build a tokenizer with every special name as a word of the vocabulary."""
    words = [*NAMES, *sorted({word for text in CORPUS for word in text.split()} - set(NAMES))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    return fast(model, pre_tokenizers.WhitespaceSplit(), None)


def word_pieces():
    words = [
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        "red",
        "##r",
        *ALPHABET,
        *(f"##{a}" for a in ALPHABET),
    ]
    model = models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    normalizer = normalizers.BertNormalizer(lowercase=False)
    return fast(model, pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(), normalizer)


TOKENIZERS = {
    "words": lambda: build_word_tokenizer(WORDS),
    "byte-level": byte_level,
    "byte-level, merged names": byte_level_that_merges_names,
    "sentencepiece": sentencepiece_bpe,
    "legacy sentencepiece": legacy_sentencepiece_bpe,
    "unigram": unigram,
    "words between spaces": words_between_spaces,
    "word pieces": word_pieces,
}
# Tokenizers without unknown characters in these tests.
COMPLETE = set(TOKENIZERS) - {"words", "words between spaces"}


def with_names(tokenizer):
    """Add the special tokens as the processor does."""
    added = [
        AddedToken(name, lstrip=True, rstrip=True, normalized=False, special=True)
        for name in SPECIAL
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    return tokenizer


@pytest.fixture(scope="module", params=TOKENIZERS)
def name_and_tokenizer(request):
    return request.param, with_names(TOKENIZERS[request.param]())


@pytest.fixture(scope="module")
def tokenizer(name_and_tokenizer):
    return name_and_tokenizer[1]


@pytest.fixture(scope="module")
def chat(tokenizer):
    return ChatTokenizer(tokenizer, CHAT_TEMPLATE)


def conversation(text, other="yes"):
    return [
        {"role": "system", "content": [{"type": "text", "text": text}]},
        message("user", {"type": "image"}, text, other),
        message("assistant", text, MASK, {"type": "image"}, other),
        message("user", text),
        message("assistant", other, text),
    ]


def directly(tokenizer, messages, template=CHAT_TEMPLATE):
    """Tokenize by transformers directly, with "[SEG]" as the text of a mask."""
    found = tokenizer.apply_chat_template(
        [
            {
                "role": one["role"],
                "content": [
                    {"type": "text", "text": SEG} if part == MASK else part
                    for part in one["content"]
                ],
            }
            for one in messages
        ],
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return found["input_ids"], [bool(own) for own in found["assistant_masks"]]


@pytest.mark.parametrize(
    "text",
    [
        "is there a red circle?",
        "",
        " red ",
        "  two  spaces\nand a line",
        "a < b and c > d, [s] SEG img </i> <|tool",
        "Qu'est-ce que c'est? 猫é 😀 \u200b\ue000\U000f0000",
        "USER: red ASSISTANT: yes",
    ],
)
def test_ordinary_text_has_the_ids_of_the_tokenizer(tokenizer, chat, text):
    messages = conversation(text)
    ids, generated = chat(messages)
    assert (ids, generated) == directly(tokenizer, messages)
    assert tokenizer.convert_tokens_to_ids(SEG) in ids


@pytest.mark.parametrize(
    "text", ["{0}", "red {0} red", "red{0}red", "{0}{0}", " {0}  {0}\n", "<{0}>"]
)
def test_special_names_in_texts_are_ordinary_tokens(name_and_tokenizer, chat, text):
    kind, tokenizer = name_and_tokenizer
    special = set(tokenizer.all_special_ids)
    if kind not in COMPLETE:
        special -= {tokenizer.unk_token_id}  # an unknown word

    def count(text):
        return Counter(token for token in chat(conversation(text))[0] if token in special)

    expected = count("red")
    for name in NAMES:
        assert count(text.format(name)) == expected, name
        if kind.startswith("byte-level"):
            ids = chat([message("user", text.format(name))])[0]
            assert tokenizer.decode(ids) == f"<s>USER: {text.format(name)} "


def test_split_special_tokens_misses_names_of_the_base_vocabulary():
    """Check the premise: the option of transformers does not suffice."""
    for build in (unigram, words_between_spaces, byte_level_that_merges_names):
        tokenizer = build()
        ids = tokenizer("</s>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.eos_token_id in ids


def test_names_do_not_come_from_normalization():
    tokenizer = with_names(unigram())
    chat = ChatTokenizer(tokenizer, CHAT_TEMPLATE)
    # Full-width characters, which NFKC normalizes to "</s>".
    spelled, plain = (chat([message("user", text)])[0] for text in ("＜／s＞", "</s>"))
    assert spelled == plain and tokenizer.eos_token_id not in spelled


def test_the_template_names_its_tokens_where_normalization_hides_them():
    """Check a template that transformers misreads: normalization turns the token to "▁</s>"."""
    tokenizer = with_names(legacy_sentencepiece_bpe(normalized=True))
    messages = [message("user", "red"), message("assistant", "yes")]
    assert tokenizer.eos_token_id not in directly(tokenizer, messages)[0]
    ids, generated = ChatTokenizer(tokenizer, CHAT_TEMPLATE)(messages)
    assert ids[-1] == tokenizer.eos_token_id and generated[-1]


def test_names_do_not_come_from_two_parts(chat, tokenizer):
    template = (
        "{{ bos_token }}{% for message in messages %}{% generation %}{% for part in message.content"
        " %}{{ part.text }}{% endfor %}{% endgeneration %}{% endfor %}{{ eos_token }}"
    )
    joined = ChatTokenizer(tokenizer, template)
    ids, _ = joined([message("user", "<ima", "ge>", "<", "/s>")])
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert [i for i in ids if i in special] == tokenizer.convert_tokens_to_ids(["<s>", "</s>"])


def test_private_names_cannot_be_spelled(chat, tokenizer):
    private = [*chat._names.values(), "\ufdd0", "\ufdd00", "0\ufdd0"]
    for text in private:
        ids, _ = chat(conversation(text))
        assert ids == chat(conversation(text.replace("\ufdd0", "\ufffd")))[0]


def test_lone_surrogates_are_replaced(chat):
    assert chat(conversation("a \ud800 cat"))[0] == chat(conversation("a \ufffd cat"))[0]


def test_other_templates():
    tokenizer = with_names(byte_level())
    turns = "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}" + (
        "{{ message.content[0].text | trim }}</s>{% endgeneration %}{% else %}"
        "{{ '<|tool|>' + message.role }} {{ message.content[0].text | trim }}"
        "{% endif %}{% endfor %}"
    )
    demanding = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + turns
    )
    messages = [
        {"role": "system", "content": [{"type": "text", "text": " red "}]},
        message("user", " red "),
        message("assistant", " red "),
    ]
    for template in (turns, demanding):
        expected = directly(tokenizer, messages, template)
        assert ChatTokenizer(tokenizer, template)(messages) == expected
        assert tokenizer.decode(expected[0]) == "<|tool|>system red<|tool|>user redred</s>"
    pieces = turns.replace("'<|tool|>'", "'<|' + 'tool|>'")
    with pytest.raises(ValueError, match="chat_template: expected a template with the names of"):
        ChatTokenizer(tokenizer, pieces)


def test_an_eos_token_among_ordinary_added_tokens():
    tokenizer = with_names(byte_level())
    tokenizer.add_tokens(["<|end|>"])
    tokenizer.eos_token = "<|end|>"
    assert not tokenizer.added_tokens_decoder[tokenizer.eos_token_id].special
    chat = ChatTokenizer(tokenizer, CHAT_TEMPLATE)
    ids, _ = chat([message("user", "<|end|>"), message("assistant", "<|end|>")])
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
