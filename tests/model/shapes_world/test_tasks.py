import json
import re
from collections import Counter

import numpy as np
import pytest

from setokim.data import Object, Scene, ShapesTasks, ShapesWorld, render
from setokim.data.conversations import TASKS
from setokim.shapes_world.edits import edit_between
from setokim.shapes_world.questions import NUMBERS
from setokim.shapes_world.tasks import WORDS, describe, locate

# No phrase distinguishes the two.
TWINS = tuple(
    Object("ring", "small", "red", "plain", 0.5, x, depth=i) for i, x in ((0, 0.2), (1, 1))
)


def only(task, number=20, seed=3, **options):
    dataset = ShapesTasks(seed, tasks={task: 1}, **options)
    return [dataset[index] for index in range(number)]


def parts(conversation):
    """For each message its texts, "image" for its images and "mask" for its masks."""
    names = {"image": "picture", "mask": "mask"}
    return [
        [part.get("text", names.get(part["type"])) for part in message["content"]]
        for message in conversation.messages
    ]


def pictures(conversation):
    return [
        part["image"]
        for message in conversation.messages
        for part in message["content"]
        if part["type"] == "image"
    ]


def drawn(plain, size=64):
    return render(Scene.from_dict(plain), size)[0].tobytes()


def test_questions_about_one_image():
    talks = only("vqa", turns=4)
    for talk in talks:
        (first, *rest) = parts(talk)
        assert first[0] == "picture" and len(first) == 2
        assert all(len(texts) == 1 for texts in rest)
        answers = [texts[0] for texts in rest[::2]]
        assert answers == talk.facts["answers"] and len(talk.facts["kinds"]) == len(answers)
        assert [image.tobytes() for image in pictures(talk)] == [drawn(talk.facts["scene"])]
    assert Counter(len(talk.messages) for talk in talks)[8] > 15


def test_descriptions_of_an_image():
    for talk in only("caption", 3):
        scene = Scene.from_dict(talk.facts["scene"])
        assert parts(talk) == [["picture", "describe the picture."], [scene.caption]]
        assert talk.facts["answers"] == [scene.caption]
        assert pictures(talk)[0].tobytes() == drawn(talk.facts["scene"])


def test_where_everything_is():
    for talk in only("locate", 3):
        scene = Scene.from_dict(talk.facts["scene"])
        assert parts(talk) == [["picture", "where is everything?"], [locate(scene)]]
        assert talk.facts["answers"] == [locate(scene)]
        assert pictures(talk)[0].tobytes() == drawn(talk.facts["scene"])
    ring = Object("ring", "large", "red", "striped", 0.2, 0.1, depth=1)
    star = Object("star", "small", "blue", "plain", 0.5, 0.5)
    assert locate(Scene((ring, star), "grey")) == (
        "the ring at the top left is large and red, the star at the centre is small and blue."
    )


def test_images_of_a_description():
    for talk in only("generate", 3):
        scene = Scene.from_dict(talk.facts["scene"])
        assert parts(talk) == [[f"draw {describe(scene)}."], ["picture"]]
        assert talk.facts["wanted"] == talk.facts["scene"]
        assert pictures(talk)[0].tobytes() == drawn(talk.facts["wanted"])


def test_descriptions_name_objects_and_positions():
    ring = Object("ring", "large", "red", "striped", 0.2, 0.1, depth=1)
    star = Object("star", "small", "blue", "plain", 0.5, 0.5)
    dot = Object("circle", "medium", "pink", "dotted", 0.9, 0.7, depth=2)
    assert describe(Scene((star,), "grey")) == "a small blue star at the centre"
    assert describe(Scene((ring, star, dot), "grey")) == (
        "a large red striped ring at the top left, a small blue star at the centre and "
        "a medium pink dotted circle at the bottom right"
    )
    # From the top down, whatever lies on top.
    assert describe(Scene((dot, star, ring), "grey")) == describe(Scene((ring, star, dot), "grey"))


def test_edits_show_the_image_before_and_after():
    kinds = set()
    for talk in only("edit"):
        (first, instruction), answer = parts(talk)
        assert (first, answer) == ("picture", ["picture"])
        before, after = (image.tobytes() for image in pictures(talk))
        assert before == drawn(talk.facts["scene"]) != after == drawn(talk.facts["wanted"])
        (kind,) = talk.facts["kinds"]
        assert instruction.startswith("remove the" if kind == "remove" else "make the")
        number = [len(talk.facts[name]["objects"]) for name in ("scene", "wanted")]
        assert number[0] - number[1] == (kind == "remove")
        kinds.add(kind)
    assert kinds == {"recolour", "remove", "resize"}


@pytest.mark.parametrize("repeat_colours", [0.0, 0.7])
def test_masks_are_those_of_the_objects_named(repeat_colours):
    asked = set()
    talks = only("segment", 60, turns=3, repeat_colours=repeat_colours)
    for talk in talks:
        (_, *rest) = parts(talk)
        questions = [texts[-1] for texts in parts(talk)[::2]]
        assert rest[::2] == [["mask"]] * len(questions)
        _, labels = render(Scene.from_dict(talk.facts["scene"]))
        things = talk.facts["scene"]["objects"]
        assert len(set(talk.facts["objects"])) == len(questions) <= 3
        for question, number, mask in zip(
            questions, talk.facts["objects"], talk.masks, strict=True
        ):
            words = re.fullmatch(r"segment the (.*)\.", question)[1].split()
            named = [
                i
                for i, one in enumerate(things)
                if set(words) <= {one["size"], one["colour"], one["shape"], "object"}
            ]
            assert named == [number]
            assert np.array_equal(mask, labels == number + 1) and mask.any()
            asked.add((len(words), "object" in words))
    # The red object, the small red object, the circle, and the red or the small circle.
    assert asked == {(2, True), (3, True), (1, False), (2, False)}
    assert any(len(talk.masks) == 3 for talk in talks)


def test_sums_need_no_image():
    answers = Counter()
    for talk in only("text", 60, turns=5):
        assert not pictures(talk) and "scene" not in talk.facts
        assert talk.facts["kinds"] == ["sum"] * 5
        texts = [one[0] for one in parts(talk)]
        assert len(set(texts[::2])) == 5 and texts[1::2] == talk.facts["answers"]
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            first, second = re.fullmatch(r"what is (\w+) and (\w+)\?", question).groups()
            assert NUMBERS.index(first) + NUMBERS.index(second) == NUMBERS.index(answer)
            answers[answer] += 1
    assert set(answers) == set(NUMBERS[:10]) and max(answers.values()) < 50
    assert len(only("text", 1, turns=90)[0].facts["answers"]) == 55


def test_words_are_those_of_the_texts():
    dataset = ShapesTasks(0, size=8, objects=(1, 11))
    seen = set()
    for index in range(500):
        for text in (text for texts in parts(dataset[index]) for text in texts):
            if text not in ("picture", "mask"):
                assert text == text.lower() and text.split() == text.split(" ")
                seen |= set(re.findall(r"\w+|[^\w\s]", text))
    assert seen <= set(WORDS)
    # Numbers that are answers to few questions may be missing.
    assert set(WORDS) - seen <= {"eight", "nine", "ten", "eleven"}
    assert tuple(sorted(set(WORDS))) == WORDS


def test_an_item_depends_on_its_number_and_the_settings():
    dataset = ShapesTasks(3)
    late, one = dataset[2**31 - 1], dataset[9]
    again = ShapesTasks(3, length=10)[9]
    assert (again.task, again.facts, parts(again)) == (one.task, one.facts, parts(one))
    assert one.source == "shapes-tasks #9" and late.source == f"shapes-tasks #{2**31 - 1}"
    assert len(list(ShapesTasks(3, length=4))) == 4
    with pytest.raises(IndexError, match="index: expected less than 4, got 4"):
        ShapesTasks(3, length=4)[4]
    others = [only("caption", 2, seed=seed)[1].facts for seed in (3, 4)]
    assert others[0] != others[1]


def test_an_item_is_about_the_scene_of_its_number():
    options = {"objects": (2, 4), "contrast": 0.5, "visible": 0.9, "repeat_colours": 0.2}
    world = ShapesWorld(6, **options)
    for task in ("vqa", "caption", "generate", "edit", "segment"):
        talk = only(task, 5, seed=6, size=16, **options)[4]
        assert talk.facts["scene"] == world.scene(4).to_dict()
        assert all(image.size == (16, 16) for image in pictures(talk))
        assert all(mask.shape == (16, 16) for mask in talk.masks)


def test_items_come_back_to_the_same_scenes():
    dataset = ShapesTasks(6, size=16, scenes=3, tasks={"vqa": 1, "edit": 1})
    talks = [dataset[index] for index in range(60)]
    world = ShapesWorld(6)
    for index, talk in enumerate(talks):
        assert talk.facts["scene"] == world.scene(index % 3).to_dict()
    # The questions are others, the images are not.
    assert len({str(talk.facts["answers"]) for talk in talks if talk.task == "vqa"}) > 20
    assert len({image.tobytes() for talk in talks for image in pictures(talk)}) == 6


def test_no_scene_fits_a_task(monkeypatch):
    unnamed = Scene(TWINS, "grey")
    monkeypatch.setattr(ShapesWorld, "scene", lambda _, index: unnamed)
    with pytest.raises(ValueError, match=r"^scenes: expected one for 'edit', got none among 4$"):
        ShapesTasks(0, scenes=4, tasks={"edit": 1})[0]


def test_scenes_without_a_name_for_an_object_are_passed_over(monkeypatch):
    unnamed, scene = Scene(TWINS, "grey"), ShapesWorld(0).scene(0)
    monkeypatch.setattr(ShapesWorld, "scene", lambda _, index: unnamed if index == 4 else scene)
    for task in ("edit", "segment"):
        talk = only(task, 5)[4]
        assert talk.facts["scene"] == scene.to_dict() and talk.source == "shapes-tasks #4"
    assert only("generate", 5)[4].facts["scene"] == unnamed.to_dict()


def test_tasks_come_by_their_weights():
    dataset = ShapesTasks(1, size=8, objects=(1, 2), tasks={"text": 3, "caption": 1.0, "vqa": 0})
    counts = Counter(dataset[index].task for index in range(400))
    assert set(counts) == {"text", "caption"} and abs(counts["text"] - 300) < 5 * 8.7
    turned = ShapesTasks(1, tasks={"caption": 1.0, "text": 3})
    assert [turned[i].task for i in range(20)] == [dataset[i].task for i in range(20)]
    every = ShapesTasks(1, size=8, objects=(1, 2))
    assert {every[index].task for index in range(60)} == set(TASKS)


def test_kinds_of_questions_come_by_their_weights():
    options = {"size": 8, "turns": 1, "objects": (2, 4), "tasks": {"vqa": 1}}
    dataset = ShapesTasks(1, questions={"relation": 3, "count": 1, "shape": 0}, **options)
    kinds = Counter(kind for index in range(400) for kind in dataset[index].facts["kinds"])
    # Some scenes allow no relation.
    assert set(kinds) == {"relation", "count"} and 240 < kinds["relation"] < 330
    assert ShapesTasks(1, questions={"shape": 1}, **options)[0].facts["kinds"] == ["shape"]
    # A scene of one object has no relations.
    alone = ShapesTasks(1, questions={"relation": 1}, **options | {"objects": (1, 2)})
    numbers = {len(alone[index].facts["scene"]["objects"]) for index in range(20)}
    assert numbers == {2}


def test_facts_are_plain():
    for task in TASKS:
        facts = only(task, 1)[0].facts
        assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": {"sing": 1}}, ValueError, r"tasks: expected names of vqa, .*, got 'sing'"),
        ({"tasks": {"vqa": 0}}, ValueError, r"tasks: expected a weight of more than 0, got {'vqa"),
        ({"tasks": {}}, ValueError, "tasks: expected a weight of more than 0, got {}"),
        ({"tasks": {"vqa": -1}}, ValueError, r"tasks\['vqa'\]: expected at least 0, got -1"),
        ({"tasks": {"vqa": "1"}}, TypeError, r"tasks\['vqa'\]: expected a real number, got '1'"),
        ({"tasks": ["vqa"]}, TypeError, r"tasks: expected a mapping of names to weights, got \["),
        (
            {"questions": {"why": 1}},
            ValueError,
            r"questions: expected names of count, .*, got 'why'",
        ),
        ({"questions": {"count": 0}}, ValueError, r"questions: expected a weight of more than 0"),
        ({"turns": 0}, ValueError, "turns: expected at least 1, got 0"),
        ({"scenes": 0}, ValueError, "scenes: expected at least 1, got 0"),
        ({"length": 0}, ValueError, "length: expected at least 1, got 0"),
        ({"size": 0}, ValueError, "size: expected at least 1, got 0"),
        ({"visible": 2}, ValueError, "visible: expected at most 1, got 2"),
        ({"contrast": 2}, ValueError, "contrast: expected at most 1, got 2"),
        ({"objects": (2, 12)}, ValueError, r"objects: .*got \(2, 12\)"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        ShapesTasks(0, **options)
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        ShapesTasks(-1)


def test_regions_name_the_objects_of_every_image():
    for task in TASKS:
        for talk in only(task, 4, objects=(1, 3)):
            scenes = [
                Scene.from_dict(talk.facts[key]) for key in ("scene", "wanted") if key in talk.facts
            ][: len(pictures(talk))]
            if task == "generate":
                assert scenes[0].to_dict() == talk.facts["wanted"]
            assert len(talk.regions) == len(pictures(talk)) == len(scenes)
            for scene, regions in zip(scenes, talk.regions, strict=True):
                assert np.array_equal(regions.labels, render(scene, 64)[1])
                assert regions.names[0] == "" and len(regions.names) == 1 + len(scene.objects)
                for name, thing in zip(regions.names[1:], scene.objects, strict=True):
                    assert name.startswith(thing.phrase) and set(name.split()) <= set(WORDS)


def test_a_run_of_items_has_one_task():
    dataset = ShapesTasks(3, run=4, objects=(1, 3))
    tasks = [dataset[index].task for index in range(80)]
    assert all(len(set(tasks[start : start + 4])) == 1 for start in range(0, 80, 4))
    assert len(set(tasks)) > 3


@pytest.mark.parametrize("scenes", [5, 2**31])
def test_variants_are_edits_of_a_scene_and_lead_to_further_edits(scenes):
    options = {"objects": (1, 4), "visible": 0.8}
    dataset = ShapesTasks(3, tasks={"edit": 1}, scenes=scenes, variants=2, **options)
    world = ShapesWorld(3, **options)
    kinds, edits, images = Counter(), set(), set()
    for index in range(60):
        talk = dataset[index] if scenes == 5 else dataset[index % 5]
        before, after = (Scene.from_dict(talk.facts[key]) for key in ("scene", "wanted"))
        change = edit_between(before, after)
        assert parts(talk)[0][1] == change.instruction and [change.kind] == talk.facts["kinds"]
        kinds[change.kind] += 1
        edits.add((before, after))
        images |= {before, after}
    own = {world.scene(index) for index in range(5)}
    if scenes == 5:
        assert len(edits) > len(own) + 5 and own <= images and len(images) <= 3 * len(own)
    told = ShapesTasks(3, tasks={"caption": 1}, scenes=scenes, variants=2, **options)
    seen = {Scene.from_dict(told[index].facts["scene"]) for index in range(40)}
    assert seen - {world.scene(index) for index in range(40)}
    with pytest.raises(ValueError, match="variants: expected at least 0, got -1"):
        ShapesTasks(3, variants=-1)
