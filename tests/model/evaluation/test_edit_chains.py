"""Edits of MagicBrush that follow one another, with images of one colour for responses."""

import pytest
from PIL import Image

from helpers.published import edit_turns
from setokim.data import BrokenSampleError
from setokim.data.readers import READERS
from setokim.evaluation import run
from setokim.evaluation.answer_log import AnswerLog
from setokim.evaluation.benchmarks import BENCHMARKS
from setokim.evaluation.edit_chains import final_turns
from setokim.evaluation.prompting import Response
from setokim.vlm.generation_config import SetokimGenerationConfig


class Edits:
    """The samples of the fixture as two images of two and three turns, not all in order."""

    def __init__(self, root, broken=()):
        edit_turns(root)
        self.samples = READERS["magicbrush"](root, split="test")
        self.turns = [("a", 1), ("a", 2), ("b", 3), ("b", 1), ("b", 2)]
        self.broken = broken

    def __len__(self):
        return len(self.turns)

    def __getitem__(self, index):
        if index in self.broken:
            raise BrokenSampleError(f"{index}", "gone")
        sample, (image, turn) = self.samples[index % 3], self.turns[index]
        sample.facts.update(img_id=image, turn_index=turn)
        return sample


def source_of(prompt):
    return next(one["image"] for one in prompt.messages[0]["content"] if one["type"] == "image")


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Run the benchmark; return the turns asked with their sources, facts judged, metrics, log."""

    def start(dataset, drawn=lambda turn: True, stop=None, folder="out"):
        asked = []

        def generate_responses(model, processor, batch, config, indices):
            found = []
            for prompt in batch:
                turn = (prompt.facts["img_id"], prompt.facts["turn_index"])
                if turn == stop:
                    raise KeyboardInterrupt
                asked.append((turn, source_of(prompt)))
                colour = (ord(turn[0]), turn[1], 0)
                image = Image.new("RGB", (20, 20), colour) if drawn(turn) else None
                found.append(Response(prompt, "", image))
            return found

        monkeypatch.setattr(run, "generate_responses", generate_responses)
        benchmark = BENCHMARKS["magicbrush-multi-turn"]
        log, config = AnswerLog(tmp_path / folder, {}), SetokimGenerationConfig()
        metrics = run.run_benchmark(
            benchmark, dataset, None, None, config, log, tmp_path / folder, allow_missing=True
        )
        judged = [one.prompt.facts for one in final_turns(log.rows)]
        return asked, judged, metrics, log

    return start


def test_each_turn_begins_with_the_image_before(go, tmp_path):
    dataset = Edits(tmp_path)
    asked, judged, metrics, _ = go(dataset)
    assert [turn for turn, _ in asked] == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("b", 3)]
    colours = [image.getpixel((0, 0)) for _, image in asked]
    assert colours[2:] == [(97, 1, 0), (98, 1, 0), (98, 2, 0)]
    # The first turns begin with the images of the data set.
    for (_, image), index in zip(asked[:2], (0, 3), strict=True):
        assert image.tobytes() == dataset[index].messages[0]["content"][0]["image"].tobytes()
    assert {(one["img_id"], one["turn_index"]) for one in judged} == {("a", 2), ("b", 3)}
    assert metrics["samples"] == 2 and metrics["broken"] == 0 and metrics["undrawn"] == 0


def test_a_turn_without_an_image_keeps_the_one_before(go, tmp_path):
    dataset = Edits(tmp_path)
    asked, _, metrics, _ = go(dataset, drawn=lambda turn: turn not in [("a", 1), ("b", 2)])
    sources = dict(asked)
    first = dataset[0].messages[0]["content"][0]["image"]
    assert sources["a", 2].tobytes() == first.tobytes()
    assert sources["b", 3].getpixel((0, 0)) == (98, 1, 0) and metrics["undrawn"] == 0


def test_turns_after_one_that_cannot_be_read_are_broken(go, tmp_path):
    asked, judged, metrics, log = go(Edits(tmp_path, broken={3}))
    assert [turn for turn, _ in asked] == [("a", 1), ("a", 2)] and len(judged) == 1
    assert metrics["samples"] == 1 and metrics["broken"] == 3
    assert log.broken[2].endswith("turn 1 of its image has no response")


def test_a_run_that_stopped_resumes(go, tmp_path):
    dataset = Edits(tmp_path)
    whole = go(dataset, folder="whole")
    with pytest.raises(KeyboardInterrupt):
        go(dataset, stop=("b", 3))
    asked, _, metrics, _ = go(dataset)
    assert [turn for turn, _ in asked] == [("b", 3)] and metrics == whole[2]
    # The source is read from its file.
    assert asked[0][1].getpixel((0, 0)) == (98, 2, 0)
    assert go(dataset)[0] == []
