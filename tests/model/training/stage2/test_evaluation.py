import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny_setokim import build
from setokim.data import ShapesTasks
from setokim.data.conversations import message
from setokim.data.image_processing import to_image
from setokim.evaluation import asking
from setokim.training.stage2 import evaluation
from setokim.training.stage2.samples import draw_answers
from setokim.training.stage2.settings import GenerationSettings
from setokim.vlm.generation import Answer

SETTINGS = GenerationSettings(sampling_steps=2, max_new_tokens=4)


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture(scope="module")
def samples():
    world = ShapesTasks(0, 40, turns=2, objects=(2, 4), visible=0.9, contrast=0.5)
    return [world[i] for i in range(40)]


class Oracle:
    """Knows what the assistant says to each text of the samples, and nothing without a picture."""

    def __init__(self, samples, processor):
        self.asked, self.changes, self._known = [], {}, {}
        self._tokenizer = processor.tokenizer
        for sample in samples:
            masks = iter(sample.masks)
            for question, reply in zip(sample.messages[::2], sample.messages[1::2], strict=True):
                [text] = [p for p in question["content"] if p["type"] == "text"]
                own = next(masks) if sample.task == "segment" else None
                self._known[id(text)] = (sample.task, reply["content"][0], own)

    def __call__(self, model, processor, prompts, settings, mask_size=(64, 64), start=0):
        self.asked.append(prompts)
        return [self._answer(prompt[-1]["content"][-1]) for prompt in prompts]

    def _answer(self, text):
        if id(text) not in self._known:
            return Answer()
        task, part, mask = self._known[id(text)]
        if task in self.changes:
            part, mask = self.changes[task](part, mask)
        if part["type"] == "image":
            pixels = torch.from_numpy(np.asarray(part["image"], np.float32) / 255)
            return Answer(images=[pixels.permute(2, 0, 1)])
        masks = [] if mask is None else [torch.from_numpy(mask).float() - 0.5]
        said = part.get("text", "")
        return Answer(self._tokenizer.encode(said, add_special_tokens=False), masks=masks)


@pytest.fixture
def oracle(samples, built, monkeypatch):
    oracle = Oracle(samples, built[1])
    monkeypatch.setattr(asking, "answers", oracle)
    return oracle


def test_who_knows_everything_has_all_points(oracle, samples, built):
    found = evaluation.evaluate(*built, samples, SETTINGS)
    points = (
        "vqa_accuracy",
        "caption_accuracy",
        "locate_accuracy",
        "generation_accuracy",
        "edit_success",
    )
    assert {
        name: found[name] for name in (*points, "ciou", "giou", "text_accuracy")
    } == dict.fromkeys((*points, "ciou", "giou", "text_accuracy"), 1.0)
    # Without the picture it knows nothing.
    assert found["vqa_language_only"] == 0 < found["vqa_chance"] < 1
    assert found["generation_extra"] == found["caption_extra"] == found["edit_extra"] == 0


def test_every_question_is_asked_by_itself_with_its_picture(oracle, samples, built):
    evaluation.evaluate(*built, [s for s in samples if s.task == "vqa"], SETTINGS)
    blind, seen = (
        [p for asked in oracle.asked for p in asked if len(p[0]["content"]) == n] for n in (1, 2)
    )
    number = sum(len(s.facts["answers"]) for s in samples if s.task == "vqa")
    assert len(seen) == len(blind) == number
    for asked, expected in ((seen, ["image", "text"]), (blind, ["text"])):
        assert all(len(prompt) == 1 for prompt in asked)
        assert all([p["type"] for p in prompt[0]["content"]] == expected for prompt in asked)


@pytest.mark.parametrize(
    ("task", "change", "names"),
    [
        ("vqa", lambda part, _: ({"type": "text", "text": "grey"}, None), ["vqa_accuracy"]),
        ("caption", lambda part, _: ({"type": "text", "text": "a"}, None), ["caption_accuracy"]),
        ("text", lambda part, _: ({"type": "text", "text": "no"}, None), ["text_accuracy"]),
        ("segment", lambda part, mask: (part, ~mask), ["ciou", "giou"]),
        ("segment", lambda part, mask: (part, None), ["ciou", "giou"]),
        (
            "generate",
            lambda part, _: (part | {"image": Image.new("RGB", (64, 64), (150, 150, 150))}, None),
            ["generation_accuracy"],
        ),
        (
            "generate",
            lambda part, _: ({"type": "text", "text": "no"}, None),
            ["generation_accuracy"],
        ),
        ("edit", lambda part, _: ({"type": "text", "text": "no"}, None), ["edit_success"]),
    ],
)
def test_who_is_wrong_has_none(oracle, samples, built, task, change, names):
    oracle.changes[task] = change
    found = evaluation.evaluate(*built, samples, SETTINGS)
    assert [found[name] for name in names] == [0] * len(names)


def test_an_edit_that_changes_nothing_fails(oracle, samples, built, monkeypatch):
    before = {id(s.messages[1]["content"][0]): s.messages[0]["content"][0] for s in samples}
    oracle.changes["edit"] = lambda part, _: (before[id(part)], None)
    assert evaluation.evaluate(*built, samples, SETTINGS)["edit_success"] == 0


def test_as_many_as_the_settings_say(oracle, samples, built):
    evaluation.evaluate(*built, samples, GenerationSettings(samples=1))
    assert {prompt[-1]["role"] for asked in oracle.asked for prompt in asked} == {"user"}
    assert sum(map(len, oracle.asked)) <= 2 * len(samples[0].messages)


def test_noise_of_a_prompt_does_not_depend_on_its_batch(built, monkeypatch):
    prompts = [[message("user", f"draw a {colour} circle.")] for colour in ("red", "blue", "pink")]
    questions = [asking.Asked("generate", i, 0, "", {}, prompt) for i, prompt in enumerate(prompts)]
    seeds = []

    def generate(**options):
        seeds.extend(g.initial_seed() for g in options["generators"])
        return [Answer() for _ in options["generators"]]

    monkeypatch.setattr(built[0], "generate", generate)
    monkeypatch.setattr(asking, "AT_ONCE", 2)
    for start, batch in asking.batches_of(questions):
        asking.ask(*built, batch, SETTINGS.config(), start)
    assert seeds == [0, 1, 2]


def test_pictures_come_back_to_the_level():
    levels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = torch.from_numpy(levels / np.float32(255)).permute(2, 0, 1)
    assert (np.asarray(to_image(picture)) == levels).all()
    assert np.asarray(to_image(picture + 2)).min() == 255


def test_a_sheet_of_answers(samples, built, tmp_path, monkeypatch):
    oracle = Oracle(samples, built[1])
    monkeypatch.setattr("setokim.training.stage2.samples.answers", oracle)
    draw_answers(*built, samples, SETTINGS, tmp_path / "sheet" / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet" / "a.png"))
    # Wanted and drawn are the same picture, side by side.
    assert (sheet[4:68, 4:68] == sheet[4:68, 72:136]).all() and sheet[4:68, 4:68].std() > 0
    lines = (tmp_path / "sheet" / "a.txt").read_text().splitlines()
    assert lines[0].startswith("generate 1: draw a ")
