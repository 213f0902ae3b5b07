"""Comparison of short answers as in the official evaluation of VQA.

The rules are those of S. Antol et al., "VQA: Visual Question Answering", 2015, as in their
published evaluation, oddities included: metrics are comparable only under the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
# The official pattern tries to exclude decimals by a lookbehind that never fails, and passes a flag
# as the max number of replacements, which makes it 32.
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_FULL_STOPS = 32
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
# Contractions, also recognised without one of their apostrophes.
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
# Reversed in the official table.
_ODD = {"somebody'd": "somebodyd"}


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, sign in enumerate(word) if sign == "'"]


_CONTRACTIONS = {
    short: word for word in _CONTRACTED.split() for short in _without_one_apostrophe(word)
} | _ODD


def normalise_answer(text: str) -> str:
    """Lower the case, drop punctuation and articles, write numbers as digits, restore apostrophes.

    Args:
        text: answer to normalise.
    """
    text = _on_one_line(text)
    has_number = _NUMBER_WITH_COMMA.search(text) is not None
    kept = text
    for sign in _PUNCTUATION:
        at_edge = f"{sign} " in text or f" {sign}" in text
        kept = kept.replace(sign, "" if at_edge or has_number else " ")
    kept = _FULL_STOP.sub("", kept, count=_MAX_FULL_STOPS)
    words = [_DIGITS.get(word, word) for word in kept.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
    """Compute min(1, n / 3) for n equal answers of annotators, averaged over leaving one out.

    If all annotators agree, the official evaluation compares letter by letter.

    Args:
        answer: answer of the model; may be empty.
        given: answers of the annotators, usually ten.

    Returns:
        The accuracy, from 0 to 1.

    Raises:
        ValueError: `given` is empty.
    """
    if not given:
        raise ValueError("given: expected at least one answer, got none")
    answer, references = _on_one_line(answer), [_on_one_line(text) for text in given]
    if len(set(references)) > 1:
        answer, references = (
            normalise_answer(answer),
            [normalise_answer(text) for text in references],
        )
    matching = [text == answer for text in references]
    # Leave each of them out in turn.
    scores = (min(1.0, (sum(matching) - own) / 3) for own in matching)
    return sum(scores) / len(references)


def bare_answer(text: str) -> str:
    """Return an answer for exact matching: in lower case, without a final full stop.

    Args:
        text: answer of the model.
    """
    return text.strip().removesuffix(".").lower()


def choice_of(answer: str, choices: Sequence[str]) -> int | None:
    """Return the index of the choice in an answer to a multiple-choice question.

    A letter stands for its choice, "(b)" and "B." too; otherwise the normalised answer must equal
    one of the normalised choices.

    Args:
        answer: answer of the model.
        choices: texts of the choices in order, at most 26.

    Returns:
        The index from 0; None if the answer matches no choice, or two equal ones.

    Raises:
        ValueError: there are no choices, or more than letters.
    """
    if not 1 <= len(choices) <= 26:
        raise ValueError(f"choices: expected 1 to 26, got {len(choices)}")
    plain = [normalise_answer(choice) for choice in choices]
    normal = normalise_answer(answer)
    if normal and plain.count(normal) == 1:
        return plain.index(normal)
    letter = re.fullmatch(r"\s*\(?([A-Za-z])[).:]?(?:\s.*)?", answer, re.DOTALL)
    # A word of one letter at the start of a sentence is no choice: "a dog".
    if letter is None or (len(answer.split()) > 1 and not re.match(r"\s*\(?[A-Za-z][).:]", answer)):
        return None
    number = ord(letter[1].lower()) - ord("a")
    return number if number < len(choices) else None


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
