import json

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny_setokim import build
from setokim.data import Conversation, ShapesTasks
from setokim.data.conversations import MASK, message
from setokim.data.image_processing import to_image
from setokim.evaluation import batching, prompting
from setokim.evaluation.settings import GenerationSettings
from setokim.training.stage2 import evaluation
from setokim.training.stage2.held_out_losses import held_out_losses
from setokim.training.stage2.samples import write_samples
from setokim.vlm.generation import Answer
from setokim.vlm.losses import LOSSES

SETTINGS = GenerationSettings(sampling_steps=2, max_new_tokens=4)


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture(scope="module")
def samples():
    world = ShapesTasks(0, 40, turns=2, objects=(2, 4), visible=0.9, contrast=0.5)
    return [world[i] for i in range(40)]


class Oracle:
    """Model with the right answer to each text of the samples, and none without its image."""

    def __init__(self, samples, processor):
        self.prompts, self.changes, self._known = [], {}, {}
        self._tokenizer = processor.tokenizer
        for sample in samples:
            masks = iter(sample.masks)
            for question, reply in zip(sample.messages[::2], sample.messages[1::2], strict=True):
                [text] = [p for p in question["content"] if p["type"] == "text"]
                own = next(masks) if sample.task == "segment" else None
                self._known[id(text)] = (sample.task, reply["content"][0], own)

    def __call__(self, model, processor, prompts, settings, mask_size=(64, 64), start=0):
        self.prompts.append(prompts)
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
        text = part.get("text", "")
        return Answer(self._tokenizer.encode(text, add_special_tokens=False), masks=masks)


@pytest.fixture
def oracle(samples, built, monkeypatch):
    oracle = Oracle(samples, built[1])
    monkeypatch.setattr(prompting, "generate_answers", oracle)
    return oracle


def test_right_answers_have_full_scores(oracle, samples, built):
    found = evaluation.evaluate(*built, samples, SETTINGS)
    scores = (
        "vqa_accuracy",
        "caption_accuracy",
        "locate_accuracy",
        "generation_accuracy",
        "edit_success",
    )
    assert {
        name: found[name] for name in (*scores, "ciou", "giou", "text_accuracy")
    } == dict.fromkeys((*scores, "ciou", "giou", "text_accuracy"), 1.0)
    # Without the image there is no right answer.
    assert found["vqa_language_only"] == 0 < found["vqa_chance"] < 1
    assert found["generation_extra"] == found["caption_extra"] == found["edit_extra"] == 0


def test_every_question_is_answered_separately_with_its_image(oracle, samples, built):
    evaluation.evaluate(*built, [s for s in samples if s.task == "vqa"], SETTINGS)
    blind, seen = (
        [p for batch in oracle.prompts for p in batch if len(p[0]["content"]) == n] for n in (1, 2)
    )
    number = sum(len(s.facts["answers"]) for s in samples if s.task == "vqa")
    assert len(seen) == len(blind) == number
    for prompts, expected in ((seen, ["image", "text"]), (blind, ["text"])):
        assert all(len(prompt) == 1 for prompt in prompts)
        assert all([p["type"] for p in prompt[0]["content"]] == expected for prompt in prompts)


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
def test_wrong_answers_score_zero(oracle, samples, built, task, change, names):
    oracle.changes[task] = change
    found = evaluation.evaluate(*built, samples, SETTINGS)
    assert [found[name] for name in names] == [0] * len(names)


def test_an_edit_without_a_change_fails(oracle, samples, built, monkeypatch):
    before = {id(s.messages[1]["content"][0]): s.messages[0]["content"][0] for s in samples}
    oracle.changes["edit"] = lambda part, _: (before[id(part)], None)
    assert evaluation.evaluate(*built, samples, SETTINGS)["edit_success"] == 0


def test_the_number_of_conversations_is_a_setting(oracle, samples, built):
    evaluation.evaluate(*built, samples, GenerationSettings(samples=1))
    assert {prompt[-1]["role"] for batch in oracle.prompts for prompt in batch} == {"user"}
    assert sum(map(len, oracle.prompts)) <= 2 * len(samples[0].messages)


def test_noise_of_a_prompt_does_not_depend_on_its_batch(built, monkeypatch):
    chats = [[message("user", f"draw a {colour} circle.")] for colour in ("red", "blue", "pink")]
    prompts = [
        prompting.Prompt("generate", i, 0, "", {}, messages) for i, messages in enumerate(chats)
    ]
    seeds = []

    def generate(**options):
        seeds.extend(g.initial_seed() for g in options["generators"])
        return [Answer() for _ in options["generators"]]

    monkeypatch.setattr(built[0], "generate", generate)
    monkeypatch.setattr(batching, "BATCH_SIZE", 2)
    for indices, batch in batching.batches_of(prompts):
        prompting.generate_responses(*built, batch, SETTINGS.config(), indices)
    assert seeds == [0, 1, 2]


def test_images_are_converted_exactly():
    levels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = torch.from_numpy(levels / np.float32(255)).permute(2, 0, 1)
    assert (np.asarray(to_image(image)) == levels).all()
    assert np.asarray(to_image(image + 2)).min() == 255


def test_a_sheet_of_answers(samples, built, tmp_path, monkeypatch):
    oracle = Oracle(samples, built[1])
    monkeypatch.setattr("setokim.training.stage2.samples.generate_answers", oracle)
    write_samples(*built, samples, SETTINGS, tmp_path / "sheet" / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet" / "a.png"))
    # The target and the generated image are equal, side by side.
    assert (sheet[4:68, 4:68] == sheet[4:68, 72:136]).all() and sheet[4:68, 4:68].std() > 0
    lines = (tmp_path / "sheet" / "a.txt").read_text().splitlines()
    assert lines[0].startswith("generate 1: draw a ")


def real_conversations():
    """Conversations as of published data sets: other facts, and images of different sizes."""
    wide, tall = (Image.new("RGB", size, (200, 0, 0)) for size in ((60, 20), (500, 1000)))
    mask = np.zeros((1000, 500), bool)
    mask[:500] = True
    conversations = {
        "vqa": ([wide, "what is it?"], ["a dog"], {"question_id": 1, "answers": ["a dog"] * 10}),
        "caption": ([tall, "describe the picture."], ["a red circle."], {"answers": ["a"]}),
        "generate": (["draw a dog"], [wide], {"caption": "a dog"}),
        "edit": ([wide, "make it red"], [tall], {"instruction": "make it red"}),
        "segment": ([tall, "segment the dog."], [MASK], {"phrase": "dog"}),
        "text": ([""], ["is it a small blue star?"], {}),
    }
    return [
        Conversation(
            task,
            (message("user", *request), message("assistant", *reply)),
            (mask,) if task == "segment" else (),
            facts=facts,
        )
        for task, (request, reply, facts) in conversations.items()
    ]


def test_real_conversations_have_losses_and_no_questions(oracle, built):
    found = evaluation.evaluate(*built, real_conversations(), SETTINGS)
    tasks = ("vqa", "caption", "generate", "edit", "segment", "text")
    assert found.keys() == {"text_loss", *(f"{task}_text_loss" for task in tasks)}
    assert oracle.prompts == []
    json.dumps(found, allow_nan=False)


def test_shapes_world_among_real_conversations(oracle, samples, built):
    mixed = [*real_conversations(), *samples[:10]]
    found = evaluation.evaluate(*built, mixed, SETTINGS)
    alone = evaluation.evaluate(*built, samples[:10], SETTINGS)
    metrics = {name for name in alone if not name.endswith("text_loss")}
    assert metrics and {name: found[name] for name in metrics} == {n: alone[n] for n in metrics}


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_losses_are_means_of_tokens(built, samples, batch_size):
    model, processor = built
    chosen = [*real_conversations(), *samples[:12]]
    found = held_out_losses(model, processor, chosen, batch_size, 256)
    sums = {}
    for sample in chosen:
        inputs = processor([sample.messages])
        output = model(**inputs)
        labels = output.spliced.labels[0, 1:]
        logits = model.logits(output.last_hidden_state[0, :-1]).double().log_softmax(-1)
        losses = [-float(logits[i, label].detach()) for i, label in enumerate(labels) if label >= 0]
        for name in ("", f"{sample.task}_"):
            sums.setdefault(name, []).extend(losses)
    expected = {f"{name}text_loss": np.mean(losses) for name, losses in sums.items()}
    assert found == pytest.approx(expected, rel=1e-5)


def test_losses_use_no_random_numbers(built):
    before = torch.random.get_rng_state()
    held_out_losses(*built, real_conversations(), 4, 256)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_long_rows_are_cut_as_in_training(built):
    long = Conversation("text", (message("user", ""), message("assistant", "red " * 400)))
    short = Conversation("text", (message("user", ""), message("assistant", "red " * 40)))
    found, other = (held_out_losses(*built, [one], 1, 16) for one in (long, short))
    assert found == other


def test_a_loss_that_is_not_finite_is_none(built, monkeypatch):
    model, processor = built
    monkeypatch.setitem(LOSSES._found, "text", lambda context: torch.tensor(torch.nan))
    found = held_out_losses(model, processor, real_conversations()[:1], 4, 256)
    assert found == {"text_loss": None, "vqa_text_loss": None}
    assert held_out_losses(model, processor, [], 4, 256) == {}


def test_a_sheet_of_images_of_any_size(built, tmp_path, monkeypatch):
    conversations = real_conversations()
    red, black = (200, 0, 0), (0, 0, 0)

    def reply(model, processor, prompts, settings):
        (prompt,) = prompts
        image = torch.full((3, 32, 32), 0.5)
        task = "segment" if "segment" in prompt[0]["content"][-1]["text"] else "image"
        mask = torch.ones(64, 64)
        mask[32:] = -1
        return [Answer(masks=[mask]) if task == "segment" else Answer(images=[image])]

    monkeypatch.setattr("setokim.training.stage2.samples.generate_answers", reply)
    write_samples(*built, conversations, SETTINGS, tmp_path / "a.png")
    sheet = Image.open(tmp_path / "a.png")
    # Cells of the maximum width and height: two of generation, three of editing, two of masks.
    width, height = 192, 384
    assert sheet.size == (7 * (width + 4) + 4 * 4, height + 4 + 4)
    columns = [4, 200, 400, 596, 792, 992, 1188]
    # The answer and the source have the size of the target.
    assert sheet.getpixel((4, 4)) == sheet.getpixel((4 + 59, 4 + 19)) == red
    assert sheet.getpixel((4 + 60, 4)) == sheet.getpixel((4, 4 + 20)) == (255, 255, 255)
    assert sheet.getpixel((200 + 59, 4 + 19)) == (128, 128, 128)
    for left, colour in zip(columns[2:5], (red, red, (128, 128, 128)), strict=True):
        assert sheet.getpixel((left + width - 1, 4 + height - 1)) == colour
    # The upper halves of both masks are tinted; that of the answer has a lower resolution.
    for left in columns[5:]:
        assert sheet.getpixel((left + 9, 4 + 9)) == (227, 0, 127)
        assert sheet.getpixel((left + 9, 4 + height - 9)) == red
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert lines == [
        "generate 1: draw a dog",
        "edit 1: make it red",
        "segment 1: segment the dog.",
    ]
    monkeypatch.setattr(
        "setokim.training.stage2.samples.generate_answers", lambda *arguments: [Answer()]
    )
    write_samples(*built, conversations[2:3], SETTINGS, tmp_path / "none.png")
    sheet = Image.open(tmp_path / "none.png")
    assert sheet.getpixel((4, 4)) == red and sheet.getpixel((68 + 9, 4 + 9)) == black


def test_no_sheet_without_images_to_show(built, tmp_path):
    write_samples(*built, real_conversations()[:2], SETTINGS, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
