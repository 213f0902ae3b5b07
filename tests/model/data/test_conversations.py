import numpy as np
import pytest
from PIL import Image

from setokim.data import Conversation
from setokim.data.conversations import MASK, message

SMALL, WIDE = Image.new("RGB", (4, 4)), Image.new("RGB", (6, 3))


def mask(height, width, dtype=bool):
    return np.zeros((height, width), dtype)


def talk(*answers, first=("what is it?",), masks=(), task="segment"):
    """Return a conversation that starts with `first`, with "and?" between the answers."""
    messages = []
    for answer in answers:
        asked = ("and?",) if messages else first
        messages += [message("user", *asked), message("assistant", *answer)]
    return Conversation(task, tuple(messages), tuple(masks), "here", {"kind": "none"})


def test_messages_are_in_the_chat_format():
    assert message("user", SMALL, "what is it?") == {
        "role": "user",
        "content": [{"type": "image", "image": SMALL}, {"type": "text", "text": "what is it?"}],
    }


def test_a_conversation_keeps_what_it_gets():
    one = talk(["a cat"], first=(SMALL, "what is it?"), task="caption")
    assert one.messages[1] == {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}
    assert (one.task, one.masks, one.source, one.facts) == ("caption", (), "here", {"kind": "none"})


def test_masks_have_the_size_of_the_last_image_before_them():
    answers = [MASK, "and", MASK], [WIDE, "it is", MASK], [MASK]
    right = [mask(4, 4), mask(4, 4), mask(3, 6), mask(3, 6)]
    assert len(talk(*answers, first=(SMALL, "where?"), masks=right).masks) == 4
    with pytest.raises(ValueError, match=r"masks\[2\]: expected bool of shape \(3, 6\), got bool"):
        talk(*answers, first=(SMALL, "where?"), masks=[mask(4, 4)] * 4)
    # The text comes before the image of the same answer.
    with pytest.raises(ValueError, match=r"masks\[0\]: expected bool of shape \(4, 4\)"):
        talk([MASK, WIDE], first=(SMALL, "where?"), masks=[mask(3, 6)])


def test_names_of_masks_in_texts_need_no_mask():
    assert talk(["[SEG] is a mask"], first=(SMALL, "what does [SEG] mean?")).masks == ()


@pytest.mark.parametrize(
    ("masks", "error", "got"),
    [
        ([], ValueError, r"masks: expected one for each of 1 MASK, got 0"),
        ([mask(4, 4)] * 2, ValueError, r"masks: expected one for each of 1 MASK, got 2"),
        ([mask(4, 5)], ValueError, r"masks\[0\]: expected bool of shape \(4, 4\), got bool \(4, 5"),
        ([mask(4, 4, np.uint8)], ValueError, r"masks\[0\]: expected bool of .*, got uint8"),
        (["mask"], TypeError, r"masks\[0\]: expected a numpy array, got 'mask'"),
    ],
)
def test_bad_masks(masks, error, got):
    with pytest.raises(error, match=got):
        talk([MASK], first=(SMALL, "where?"), masks=masks)


USER, ANSWER = message("user", "what?"), message("assistant", "that")


def user(**part):
    return {"role": "user", "content": [part]}


@pytest.mark.parametrize(
    ("messages", "error", "got"),
    [
        ((), ValueError, "messages: expected an even number of at least 2, got 0"),
        ((USER,), ValueError, "messages: expected an even number of at least 2, got 1"),
        ((ANSWER, USER), ValueError, r"messages\[0\]: expected the role user, got 'assistant'"),
        ((USER, USER), ValueError, r"messages\[1\]: expected the role assistant, got 'user'"),
        ((USER, "that"), ValueError, r"messages\[1\]: expected a dict of role and content, got 't"),
        (({"role": "user"}, ANSWER), ValueError, r"messages\[0\]: expected a dict of role and con"),
        ((message("user"), ANSWER), ValueError, r"messages\[0\]: expected a list of parts, got \["),
        (
            ({"role": "user", "content": "what?"}, ANSWER),
            ValueError,
            r"messages\[0\]: expected a list of parts, got 'what\?'",
        ),
        ((user(type="sound"), ANSWER), ValueError, r"messages\[0\]: expected a part of type text"),
        ((user(type="text"), ANSWER), ValueError, r"messages\[0\]: expected a part of type text"),
        ((user(type="text", text=1), ANSWER), TypeError, r"\[0\]: expected a str as text, got 1"),
        (
            (user(type="image", image="cat.png"), ANSWER),
            TypeError,
            r"messages\[0\]: expected a PIL image, got 'cat.png'",
        ),
        (
            (message("user", Image.new("L", (2, 2))), ANSWER),
            ValueError,
            r"messages\[0\]: expected an image of mode RGB, got L",
        ),
        (
            (USER, message("assistant", MASK)),
            ValueError,
            r"messages\[1\]: expected an image before a mask, got none",
        ),
        (
            (message("user", SMALL, MASK), ANSWER),
            ValueError,
            r"messages\[0\]: expected masks of the assistant, got one of user",
        ),
        ((USER, message("assistant", {"type": "mask", "mask": 1})), ValueError, r"got {'type': 'm"),
    ],
)
def test_bad_messages(messages, error, got):
    with pytest.raises(error, match=got):
        Conversation("text", messages)


def test_unknown_tasks():
    with pytest.raises(ValueError, match=r"task: expected one of vqa, .*, text, got 'sing'"):
        Conversation("sing", (USER, ANSWER))
