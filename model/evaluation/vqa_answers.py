"""Short answers as the official evaluation of VQA compares them.

The rules are those of S. Antol et al., "VQA: Visual Question Answering", 2015, as their published
evaluation applies them, its oddities included: figures are comparable only by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
# The official pattern means to spare decimals by a look behind, which never fails as it is
# written; and the flag that follows is taken for the most replacements, which is 32.
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
# Words that may have lost one apostrophe.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've 'twas 'ow's'at
"""
# The other way round in the official table.
_ODD = {"somebody'd": "somebodyd"}


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, sign in enumerate(word) if sign == "'"]


_CONTRACTIONS = {
    short: word for word in _CONTRACTED.split() for short in _without_one_apostrophe(word)
} | _ODD


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation and articles, digits for numbers, apostrophes restored.

    Args:
        text: an answer.
    """
    text = _on_one_line(text)
    has_number = _NUMBER_WITH_COMMA.search(text) is not None
    kept = text
    for sign in _PUNCTUATION:
        at_edge = f"{sign} " in text or f" {sign}" in text
        kept = kept.replace(sign, "" if at_edge or has_number else " ")
    kept = _FULL_STOP.sub("", kept, count=_MOST_FULL_STOPS)
    words = [_DIGITS.get(word, word) for word in kept.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
    """How many people gave this answer: min(1, n / 3), the mean over all but one of them each.

    Where all people say the same, the official evaluation compares letter by letter.

    Args:
        answer: of the model; may be empty.
        given: of people, usually ten.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: nobody gave an answer.
    """
    if not given:
        raise ValueError("given: expected at least one answer, got none")
    answer, people = _on_one_line(answer), [_on_one_line(text) for text in given]
    if len(set(people)) > 1:
        answer, people = normalise_answer(answer), [normalise_answer(text) for text in people]
    matching = [text == answer for text in people]
    # Without each of them in turn.
    shares = (min(1.0, (sum(matching) - own) / 3) for own in matching)
    return sum(shares) / len(people)


def choice_of(answer: str, choices: Sequence[str]) -> int | None:
    """Which choice an answer to a multiple-choice question names.

    A letter stands for its choice, "(b)" and "B." too; otherwise the answer must be one of the
    choices by its normal form.

    Args:
        answer: of the model.
        choices: their texts in order, at most 26.

    Returns:
        Its number from 0; None where it names none, or two that read the same.

    Raises:
        ValueError: there are no choices, or more than letters.
    """
    if not 1 <= len(choices) <= 26:
        raise ValueError(f"choices: expected 1 to 26, got {len(choices)}")
    plain = [normalise_answer(choice) for choice in choices]
    said = normalise_answer(answer)
    if said and plain.count(said) == 1:
        return plain.index(said)
    letter = re.fullmatch(r"\s*\(?([A-Za-z])[).:]?(?:\s.*)?", answer, re.DOTALL)
    # A word of one letter that a sentence begins with is no choice: "a dog".
    if letter is None or (len(answer.split()) > 1 and not re.match(r"\s*\(?[A-Za-z][).:]", answer)):
        return None
    number = ord(letter[1].lower()) - ord("a")
    return number if number < len(choices) else None


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
