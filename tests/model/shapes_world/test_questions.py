import re
from collections import Counter

import numpy as np
import pytest

from setokim.data import Object, Scene, ShapesWorld
from setokim.shapes_world.questions import (
    ALL_KINDS,
    NUMBERS,
    QUESTION_KINDS,
    Question,
    ask,
    chance,
    interview,
)
from setokim.shapes_world.scene import COLOURS, PLACES, SHAPES, place_name


def thing(colour, shape="circle", size="small", y=0.5, x=0.5, depth=0):
    return Object(shape, size, colour, "plain", y, x, depth=depth)


def row(*sizes):
    """Circles of all colours from left to right, 0.2 apart, at one height."""
    return Scene(
        tuple(
            thing(colour, SHAPES[i], size, x=0.1 + 0.2 * i, depth=i)
            for i, (colour, size) in enumerate(zip(COLOURS, sizes, strict=False))
        ),
        "grey",
    )


def draws(scene, kind, number=200, asked=()):
    generator = np.random.default_rng(0)
    return [ask(scene, generator, kind, asked) for _ in range(number)]


def first_of(scene, kind, text, asked=()):
    return next(one for one in draws(scene, kind, asked=asked) if one.text == text)


def looked_up(text, scene):
    """Return the answer to a question, by its text alone and by searching the scene."""

    def named(words):
        found = [
            one
            for one in scene.objects
            if all(word in (one.size, one.colour, one.shape, "object") for word in words.split())
        ]
        assert len(found) == 1, (words, scene)
        return found[0]

    if match := re.fullmatch(r"how many (?:(\w+) )?objects are there\?", text):
        size = match[1]
        return NUMBERS[sum(size in (None, one.size) for one in scene.objects)]
    if match := re.fullmatch(r"what (colour|shape) is the ([a-z ]+)\?", text):
        return getattr(named(match[2]), match[1])
    if match := re.fullmatch(r"where is the (\w+ \w+)\?", text):
        return place_name(named(match[1]).y, named(match[1]).x)
    match = re.fullmatch(r"is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?", text)
    one, other = named(match[1]), named(match[3])
    further = {
        "left of": other.x - one.x,
        "right of": one.x - other.x,
        "above": other.y - one.y,
        "below": one.y - other.y,
    }[match[2]]
    assert abs(further) >= 0.1
    return "yes" if further > 0 else "no"


@pytest.mark.parametrize("repeat_colours", [0.0, 0.6])
@pytest.mark.parametrize("asked", [None, dict.fromkeys(ALL_KINDS, 1.0)])
def test_answers_are_true_and_nothing_is_asked_twice(repeat_colours, asked):
    world = ShapesWorld(2, objects=(1, 8), repeat_colours=repeat_colours)
    generator = np.random.default_rng(1)
    kinds = Counter()
    for index in range(80):
        scene = world.scene(index)
        questions = interview(scene, generator, 6, asked)
        assert len({question.text for question in questions}) == len(questions)
        for question in questions:
            assert question.answer == looked_up(question.text, scene)
            assert question.answer in question.choices
            kinds[question.kind] += 1
    # Places are asked for only where they are named.
    assert set(kinds) == set(QUESTION_KINDS if asked is None else ALL_KINDS)
    assert min(kinds.values()) > 40


def test_choices_are_all_answers_of_the_kind():
    scene = row("small", "large")
    choices = {kind: draws(scene, kind, 1)[0].choices for kind in ALL_KINDS}
    assert choices == {
        "count": NUMBERS,
        "colour": tuple(COLOURS),
        "shape": SHAPES,
        "relation": ("yes", "no"),
        "place": tuple(name for names in PLACES for name in names),
    }
    assert (NUMBERS[0], NUMBERS[9], len(NUMBERS)) == ("zero", "nine", len(COLOURS) + 1)


def test_two_places_answer_a_relation():
    """If they lie in different columns; circles of one column can still be compared."""
    columns = Scene(
        tuple(
            thing(colour, x=x, y=0.1 + 0.2 * i, depth=i)
            for i, (colour, x) in enumerate(zip(COLOURS, (0.02, 0.15, 0.3, 0.9), strict=False))
        ),
        "grey",
    )
    first, second, third, last = tuple(COLOURS)[:4]
    asked = [
        first_of(columns, "place", f"where is the {colour} circle?")
        for colour in (first, second, last)
    ]
    assert [one.answer for one in asked] == ["top left", "top left", "bottom right"]
    texts = {one.text for one in draws(columns, "relation", 400, asked) if "of" in one.text}

    def compared(one, other):
        return any(f"{one} circle" in text and f"{other} circle" in text for text in texts)

    assert not compared(first, last) and not compared(second, last)
    assert compared(first, second) and compared(third, last)
    # No place is asked for twice.
    assert draws(columns, "place", 1, asked)[0].text == f"where is the {third} circle?"


def test_counts_ask_for_all_and_for_sizes():
    # Half of them ask for all. The sizes have the numbers 2, 1 and 0, a third of the rest each.
    counts = Counter(
        (one.text, one.answer) for one in draws(row("small", "small", "large"), "count", 1200)
    )
    assert set(counts) == {
        ("how many objects are there?", "three"),
        ("how many small objects are there?", "two"),
        ("how many medium objects are there?", "zero"),
        ("how many large objects are there?", "one"),
    }
    for (text, _), number in counts.items():
        # Five standard deviations either way.
        expected, deviation = (600, 17.4) if text == "how many objects are there?" else (200, 13)
        assert abs(number - expected) < 5 * deviation


def test_zero_comes_as_often_as_other_numbers():
    # Two of three sizes have none, and yet half of the questions about a size are answered "one".
    counts = Counter(one.answer for one in draws(row("large"), "count", 800) if "large" in one.text)
    rest = Counter(one.answer for one in draws(row("large"), "count", 800))
    assert set(counts) == {"one"} and abs(rest["zero"] - 200) < 5 * 12.3


def test_colours_are_asked_by_shape_and_by_size_where_that_is_needed():
    twins = thing("red", size="small"), thing("blue", size="large", depth=1)
    scene = Scene((*twins, thing("pink", "star", depth=2)), "grey")
    asked = {(one.text, one.answer) for one in draws(scene, "colour")}
    assert asked == {
        ("what colour is the small circle?", "red"),
        ("what colour is the large circle?", "blue"),
        ("what colour is the star?", "pink"),
    }
    same = Scene((thing("red"), thing("blue", depth=1)), "grey")
    assert draws(same, "colour", 5) == [None] * 5


def test_shapes_are_asked_by_a_colour_that_is_there_once():
    things = thing("red"), thing("red", "ring", depth=1), thing("pink", "star", depth=2)
    asked = {(one.text, one.answer) for one in draws(Scene(things, "grey"), "shape", 50)}
    assert asked == {("what shape is the pink object?", "star")}
    assert draws(Scene(things[:2], "grey"), "shape", 5) == [None] * 5


def test_the_text_of_a_relation_does_not_predict_its_answer():
    # The same four questions come equally often if the objects swap positions.
    for x, y in [(0.2, 0.8), (0.8, 0.2)]:
        scene = Scene((thing("red", x=x), thing("blue", "star", x=y, depth=1)), "grey")
        counts = Counter((one.text, one.answer) for one in draws(scene, "relation", 1200))
        assert len(counts) == 4
        assert all(abs(number - 300) < 5 * 15 for number in counts.values())
        yes = "left of" if x < y else "right of"
        assert (f"is the red circle {yes} the blue star?", "yes") in counts


def test_relations_need_a_clear_distance_and_a_name():
    def asked(y, colour="blue"):
        scene = Scene((thing("red"), thing(colour, y=y, depth=1)), "grey")
        return draws(scene, "relation", 20)

    assert asked(0.59) == asked(0.9, "red") == [None] * 20
    texts = {one.text for one in asked(0.61)}
    assert all("above" in text or "below" in text for text in texts) and texts


def test_counts_that_follow_from_others_are_not_asked():
    scene = row("small", "medium", "medium")

    def left(*sizes):
        asked = [
            first_of(scene, "count", f"how many {size}objects are there?".replace("  ", " "))
            for size in sizes
        ]
        return {one and one.text.split()[2] for one in draws(scene, "count", asked=asked)}

    assert left() == {"objects", "small", "medium", "large"}
    assert left("small ", "medium ") == {"objects", "large"}
    assert left("", "large ") == {"small", "medium"}
    # All parts give the whole, the whole and two parts the third, and nothing is left for it here.
    assert left("small ", "medium ", "large ") == {None}
    assert left("", "small ", "large ") == {None}
    assert left("", "small ", "medium ") == {None}
    alone = row("large")
    asked = [
        first_of(alone, "count", "how many objects are there?"),
        first_of(alone, "count", "how many large objects are there?"),
    ]
    assert draws(alone, "count", 5, asked) == [None] * 5


def test_looks_that_are_known_are_not_asked():
    scene = row("small", "large")
    for kind, text in [
        ("colour", "what colour is the circle?"),
        ("shape", "what shape is the red object?"),
    ]:
        asked = [first_of(scene, kind, text)]
        colours = {one.answer for one in draws(scene, "colour", asked=asked)}
        shapes = {one.answer for one in draws(scene, "shape", asked=asked)}
        assert (colours, shapes) == ({"orange"}, {"square"})
    asked = draws(scene, "relation", 1)
    assert draws(scene, "colour", 5, asked) == draws(scene, "shape", 5, asked) == [None] * 5


def test_relations_that_follow_are_not_asked():
    scene = row("small", "small", "small", "small")
    one = first_of(scene, "relation", "is the red circle left of the orange square?")
    other = first_of(scene, "relation", "is the yellow triangle left of the orange square?")
    last = first_of(scene, "relation", "is the yellow triangle left of the green star?")
    between = {
        frozenset(re.findall("red|orange|yellow|green", question.text))
        for question in draws(scene, "relation", asked=[one, other])
    }
    assert between == {
        frozenset(pair) for pair in (("red", "green"), ("orange", "green"), ("yellow", "green"))
    }
    assert draws(scene, "relation", 5, [one, other, last]) == [None] * 5


def test_kinds_come_evenly():
    scene = ShapesWorld(0, objects=(5, 5)).scene(0)
    generator = np.random.default_rng(3)
    kinds = Counter(interview(scene, generator, 1)[0].kind for _ in range(400))
    assert len(kinds) == 4 and all(abs(number - 100) < 5 * 8.7 for number in kinds.values())


def test_an_interview_ends_where_nothing_is_left():
    # One look, and two or three counts: two sizes give the third where the number is known, and
    # three give the number.
    generator = np.random.default_rng(0)
    lengths = {len(interview(row("large"), generator, 6)) for _ in range(60)}
    assert lengths == {3, 4}
    assert len(interview(row("large"), generator, 2)) == 2


def test_too_many_objects_are_not_counted():
    def asked(number):
        things = tuple(thing("red", depth=i) for i in range(number))
        return draws(Scene(things, "grey"), "count", 1)[0]

    assert asked(11) is not None and asked(12) is None


def test_chance_is_the_commonest_answer_of_each_kind():
    def question(kind, answer):
        return Question(kind, "", answer, ())

    counts = [question("count", answer) for answer in ("one", "two", "one")]
    relations = [question("relation", answer) for answer in ("yes", "no")]
    assert chance(counts) == pytest.approx(2 / 3)
    assert chance(counts + relations) == pytest.approx((2 + 1) / 5)
    # "one" is the commonest answer, but not to both kinds.
    assert chance([*counts, question("colour", "red")]) == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="questions: expected at least one, got none"):
        chance([])


def test_a_constant_guess_gains_little():
    world = ShapesWorld(5, objects=(1, 4), visible=0.9)
    generator = np.random.default_rng(5)
    questions = [
        question for index in range(200) for question in interview(world.scene(index), generator, 6)
    ]
    by_kind = {kind: [one for one in questions if one.kind == kind] for kind in QUESTION_KINDS}
    assert chance(by_kind["relation"]) < 0.58
    assert chance(by_kind["count"]) < 0.45
    assert chance(by_kind["shape"]) < 0.21 and chance(by_kind["colour"]) < 0.18


def test_errors():
    with pytest.raises(ValueError, match=r"kind: expected one of count, .*, got 'taste'"):
        ask(row("small"), np.random.default_rng(0), "taste")
    with pytest.raises(ValueError, match="turns: expected at least 1, got 0"):
        interview(row("small"), np.random.default_rng(0), 0)
