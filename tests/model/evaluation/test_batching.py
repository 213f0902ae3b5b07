"""Batches of prompts of similar length: their composition, padding, noise and memory."""

import random

import numpy as np
import pytest

from helpers.tiny_setokim import build
from setokim.data import ShapesTasks
from setokim.data.conversations import message
from setokim.evaluation import batching
from setokim.evaluation.batching import batches_of
from setokim.evaluation.prompting import Prompt, generate_responses, in_order, prompts_of
from setokim.vlm.generation_config import SetokimGenerationConfig


def asked(part, number, size=None, text="", image=False):
    target = None if size is None else np.zeros(size, bool)
    images = [{"type": "image", "image": None}] if image else []
    content = [*images, {"type": "text", "text": text}]
    return Prompt(part, number, 0, "", {}, [{"role": "user", "content": content}], target)


def mixed(number, seed=0):
    """Questions of 1 to 60 words, most of them short."""
    draw = random.Random(seed)
    return [
        asked("vqa", i, text="a " * int(draw.paretovariate(1.2) * 4 % 60 + 1))
        for i in range(number)
    ]


def padded(batches):
    """Fraction of padded characters, if each batch is padded to its longest text."""
    sizes = [[len(one.text) for one in batch] for batch in batches]
    return 1 - sum(map(sum, sizes)) / sum(len(one) * max(one) for one in sizes)


def in_turn(prompts):
    """Batches in the order of arrival."""
    return [
        prompts[i : i + batching.BATCH_SIZE] for i in range(0, len(prompts), batching.BATCH_SIZE)
    ]


def test_batches_are_of_one_part_and_size():
    questions = [asked("vqa", i) for i in range(130)]
    questions[5:5] = [asked("segment", 0, (2, 3)), asked("segment", 1, (3, 2))]
    found = [(indices, batch[0].part) for indices, batch in batches_of(questions)]
    # Equal lengths keep their order.
    ranges = (range(64), range(64, 128), range(128, 130))
    assert found[:3] == [(list(numbers), "vqa") for numbers in ranges]
    assert found[3:] == [([0], "segment")] * 2


@pytest.mark.parametrize("number", [0, 1, 64, 511, 512, 513, 3000])
def test_each_prompt_is_in_one_batch_with_its_own_index(number):
    prompts, found = mixed(number), list(batches_of(mixed(number)))
    assert sorted(i for indices, _ in found for i in indices) == list(range(number))
    for indices, batch in found:
        assert indices == sorted(indices) == [one.number for one in batch]
        assert [one.text for one in batch] == [prompts[i].text for i in indices]
    # No batch is short, but for the last one.
    assert all(len(batch) == 64 for _, batch in found[:-1])


def test_padding_is_small():
    prompts = mixed(4000)
    before, after = padded(in_turn(prompts)), padded([batch for _, batch in batches_of(prompts)])
    assert before > 0.7 and after < 0.15


def test_images_count_more_than_text():
    prompts = [asked("vqa", i, text="a" * (i % 7), image=i % 2 == 0) for i in range(128)]
    for _, batch in batches_of(prompts):
        assert len({len(one.messages[0]["content"]) for one in batch}) == 1


@pytest.mark.parametrize("sizes", [1, 3, 400])
def test_few_prompts_wait(sizes):
    """Also with masks of so many sizes that no group fills a batch; the oldest leaves first."""
    read, answered, most = [], set(), 0

    def reading():
        for i in range(3000):
            read.append(i)
            yield asked("segment", i, (1 + i * i % sizes, 1), "a" * (i % 50))

    for _, batch in batches_of(reading()):
        most = max(most, len(read) - len(answered))
        answered |= {one.number for one in batch}
    assert most == batching.WINDOW * batching.BATCH_SIZE == 512 and answered == set(read)


def test_a_batch_depends_on_the_prompts_read_before_it():
    """A reader that ends early, by an error or a kill, has changed no earlier batch."""
    prompts = mixed(1000)
    whole = [indices for indices, _ in batches_of(prompts)]

    def failing():
        yield from prompts[:700]
        raise OSError("gone")

    found = []
    with pytest.raises(OSError, match="gone"):
        for indices, _ in batches_of(failing()):
            found.append(indices)
    assert len(found) == 3 and found == whole[:3]


def test_answers_do_not_depend_on_the_batches(monkeypatch):
    """Up to rounding, which turns no text of this model; noise is that of the index."""
    built = build()
    data = ShapesTasks(0, length=12, size=16, objects=(1, 3), turns=2)
    prompts = [one for i in range(len(data)) for one in prompts_of(i, data[i], blind=True)]
    config = SetokimGenerationConfig(max_new_tokens=4, sampling_steps=1, temperature=0.7)
    monkeypatch.setattr(batching, "BATCH_SIZE", 4)

    def answers(window):
        monkeypatch.setattr(batching, "WINDOW", window)
        found = list(batches_of(prompts))
        rows = [
            row
            for indices, batch in found
            for row in generate_responses(*built, batch, config, indices)
        ]
        return [[(p.part, p.number, p.turn) for p in batch] for _, batch in found], in_order(rows)

    (order, first), (other, second) = answers(1), answers(8)
    assert order != other and len(first) == len(prompts)
    for a, b in zip(first, second, strict=True):
        assert a.prompt is b.prompt and a.text == b.text
        assert (a.generated is None) == (b.generated is None) and (a.mask is None) == (
            b.mask is None
        )
        if a.generated is not None:
            difference = np.abs(np.asarray(a.image, int) - np.asarray(b.image, int))
            assert difference.max() <= 1
        if a.mask is not None:
            assert (a.mask != b.mask).mean() < 0.01


def test_a_prompt_of_text_has_the_length_of_all_its_messages():
    long = Prompt("vqa", 0, 0, "", {}, [message("user", "a" * 50), message("assistant", "b" * 50)])
    short = [asked("vqa", i, text="a" * 60) for i in range(1, 65)]
    batches = [batch for _, batch in batches_of([long, *short])]
    assert [len(batch) for batch in batches] == [64, 1] and batches[1][0] is long
