import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from helpers.published import NEEDS, PUBLISHED, save
from helpers.tiny_setokim import build
from setok_cli.main import main
from setokim.data import (
    BrokenSampleError,
    Sample,
    ShapesTasks,
    TooManyBrokenError,
    build_dataset,
)
from setokim.evaluation import batching, clusters, prompting, run
from setokim.evaluation.answer_log import AnswerLog
from setokim.evaluation.benchmarks import BENCHMARKS, mm_vet_scores
from setokim.evaluation.prompting import Response
from setokim.evaluation.settings import GenerationSettings
from setokim.training.stage2.evaluation import evaluate
from setokim.vlm.generation_config import SetokimGenerationConfig

WORLD = {"kind": "shapes-tasks", "size": 32, "seed": 1, "samples": 30}
OPTIONS = {"objects": [2, 3], "turns": 2, "visible": 0.9, "contrast": 0.5}
FOLDERS = {
    "aokvqa-choice": "aokvqa",
    "pope-random": "pope",
    "pope-aokvqa-random": "pope-aokvqa",
    "pope-gqa-random": "pope-gqa",
    "pope-adversarial": "pope",
}
# Other splits of POPE, which differ in nothing.
SKIPPED = {
    "pope-popular",
    *(f"pope-{data}-{split}" for data in ("aokvqa", "gqa") for split in ("popular", "adversarial")),
}


pytestmark = pytest.mark.usefixtures("no_meteor")


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture(scope="module")
def model(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in built:
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def world(tmp_path):
    path = tmp_path / "stage3.yaml"
    values = {
        "stage": 3,
        "steps": 5,
        "start": "nowhere",
        "held_out": WORLD | {"options": OPTIONS},
        "optimizer": {"warmup": 1},
        "generation": {"max_new_tokens": 6, "sampling_steps": 2},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def lines_of(folder):
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(
    "name",
    # test_image_scores.py judges generated images, test_reconstruction.py reconstructed ones.
    [
        name
        for name in BENCHMARKS
        if not name.startswith("shapes-world")
        and name not in SKIPPED
        # Tests of their own names run them.
        and name not in ("imagenet-probe", "imagenet-zero-shot", "reconstruction")
        and BENCHMARKS[name].image_metrics is None
    ],
)
def test_each_benchmark_on_its_fixture(name, model, tmp_path, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    PUBLISHED[FOLDERS.get(name, name)][0](data)
    options = ["--max-new-tokens", "4", "--sampling-steps", "2"]
    if name == "pope-adversarial":
        (data / "coco_pope_random.json").rename(data / "coco_pope_adversarial.json")
    where = ["--data", str(data), "--model", str(model), "--out", str(out)]
    assert main(["eval", "--benchmark", name, *where, *options]) == 0
    metrics, number = metrics_of(out), 4 if name == "mme" else 3
    assert metrics["samples"] == number and metrics["broken"] == 0
    if name == "coco-panoptic":
        assert 0 < metrics["miou"] < 1 and metrics["tokens"] > 1
        return
    assert len(lines_of(out)) == number
    if name == "mm-vet":
        # An external judge computes the metrics.
        assert set(metrics) == {"samples", "broken"}
    else:
        assert set(metrics) & {"accuracy", "cider", "ciou", "total"}
    said = capsys.readouterr()
    assert name in said.out and (f"{name}: no METEOR: no Java" in said.err) == ("cider" in metrics)
    if BENCHMARKS[name].submission is not None:
        assert len(json.loads((out / "submission.json").read_text())) == number


def test_names_of_special_tokens_in_questions(model, tmp_path):
    names = "<img> </img> <image> [SEG] <s> </s> <pad> <unk>"
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    PUBLISHED["vqav2"][0](data)
    for path in data.glob("*.json"):
        text = path.read_text().replace("what 2?", f"what {names}?").replace('"b"', f'"{names}"')
        path.write_text(text)
    where = ["--data", str(data), "--model", str(model), "--out", str(out)]
    assert main(["eval", "--benchmark", "vqav2", *where, "--max-new-tokens", "4"]) == 0
    assert metrics_of(out)["samples"] == 3 and metrics_of(out)["broken"] == 0
    assert names in (out / "predictions.jsonl").read_text(encoding="utf-8")


def test_shapes_world_equals_the_training_run(built, model, world, tmp_path):
    dataset = build_dataset(**WORLD, **OPTIONS)
    settings = GenerationSettings(max_new_tokens=6, sampling_steps=2)
    metrics = evaluate(*built, dataset, settings)
    expected = {name: metrics[name] for name in metrics if not name.endswith("text_loss")}
    out = tmp_path / "out"
    where = ["--data", str(world), "--model", str(model), "--out", str(out)]
    assert main(["eval", "--benchmark", "shapes-world", *where]) == 0
    found = metrics_of(out)
    assert found.pop("samples") == 30 and found.pop("broken") == 0
    assert found == expected and {"vqa_language_only", "edit_success", "ciou"} <= found.keys()


def test_the_ceiling_of_shapes_world(model, world, tmp_path):
    """The tokenizer of this model has no codes and random weights."""
    where = ["--data", str(world), "--model", str(model), "--out", str(tmp_path)]
    assert main(["eval", "--benchmark", "shapes-world-ceiling", *where]) == 0
    found = metrics_of(tmp_path)
    assert found["samples"] > 0 and found["broken"] == 0
    assert found["generation_image"] > 0.5 > found["generation_tokens"]
    assert "generation_codes" not in found


def test_a_killed_run_resumes(built, model, world, tmp_path, monkeypatch):
    monkeypatch.setattr(batching, "BATCH_SIZE", 3)
    arguments = ["eval", "--benchmark", "shapes-world", "--data", str(world)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*arguments, "--model", str(model), "--out", str(whole)]) == 0
    sizes, generate_responses = [], run.generate_responses

    def counted(model, processor, batch, config, indices):
        if len(sizes) == 4:
            raise KeyboardInterrupt
        sizes.append(len(batch))
        return generate_responses(model, processor, batch, config, indices)

    monkeypatch.setattr(run, "generate_responses", counted)
    assert main([*arguments, "--model", str(model), "--out", str(cut)]) == 130
    # As after a kill during a write.
    path = cut / "predictions.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    kept = data[:-20].count(b"\n")
    assert 0 < kept < sum(sizes)
    sizes.clear()
    monkeypatch.setattr(
        run, "generate_responses", lambda *a: sizes.append(len(a[2])) or generate_responses(*a)
    )
    assert main([*arguments, "--model", str(model), "--out", str(cut)]) == 0
    # The torn batch is answered again as a whole, since rounding depends on its rows.
    assert 0 <= sum(sizes) + kept - len(lines_of(whole)) < 3
    for name in ("predictions.jsonl", "metrics.json", "figures.json", "statistics.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    # Once more: nothing is generated.
    sizes.clear()
    assert main([*arguments, "--model", str(model), "--out", str(cut)]) == 0
    assert not sizes and metrics_of(cut) == metrics_of(whole)
    assert main([*arguments, "--model", str(model), "--out", str(cut), "--guidance", "2"]) == 2


def test_settings_reach_the_model(built):
    class Model:
        device = "cpu"

        def generate(self, **options):
            self.options = options
            return []

    options = {"guidance": 2.5, "sampling_steps": 7, "image_temperature": 0.3, "temperature": 0.7}
    config = SetokimGenerationConfig(max_new_tokens=9, **options)
    sample, model = ShapesTasks(0, length=1, size=16, tasks={"generate": 1})[0], Model()
    prompting.generate_answers(model, built[1], [sample.messages[:1]], config, indices=[4])
    assert model.options["generation_config"] == config
    (generator,) = model.options["generators"]
    assert generator.initial_seed() == 4


def test_the_rest_of_a_batch_is_answered_with_all_of_it(built, tmp_path, monkeypatch):
    dataset = ShapesTasks(0, length=5, size=16, tasks={"generate": 1})
    log, seen = AnswerLog(tmp_path, {}), []

    def generate_responses(model, processor, batch, config, indices):
        seen.append((indices, [one.number for one in batch]))
        return [Response(one, "") for one in batch]

    monkeypatch.setattr(run, "generate_responses", generate_responses)
    log.add([Response(q, "") for i in range(2) for q in prompting.prompts_of(i, dataset[i])])
    monkeypatch.setattr(batching, "BATCH_SIZE", 3)
    benchmark = dataclasses.replace(BENCHMARKS["shapes-world"], metrics=lambda rows: {})
    run.run_benchmark(benchmark, dataset, *built, SetokimGenerationConfig(), log, tmp_path)
    # Prompt i has the noise of i, whatever the log has.
    assert all(indices == numbers for indices, numbers in seen)
    assert [len(numbers) for _, numbers in seen] == [3, 2]
    assert sorted(row.prompt.number for row in log.rows) == list(range(5))


def test_broken_samples_are_counted(model, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    PUBLISHED["vqav2"][0](data)
    (data / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    where = ["--data", str(data), "--model", str(model), "--out", str(out)]
    command = ["eval", "--benchmark", "vqav2", *where, "--max-new-tokens", "2"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "1 of 3 samples could not be read" in said and "--allow-missing goes on" in said
    # Two answers, and no metrics.
    assert len(lines_of(out)) == 3 and not (out / "metrics.json").exists()
    assert not (out / "submission.json").exists()
    for _ in range(2):
        assert main([*command, "--allow-missing"]) == 0
        assert metrics_of(out)["samples"] == 2 and metrics_of(out)["broken"] == 1
        (line,) = (line for line in lines_of(out) if "broken" in line)
        assert line["number"] == 1 and "No such file" in line["broken"]
        assert "vqav2: 1 of 3 samples could not be judged, the first: " in capsys.readouterr().err
    # The image comes back.
    save(data / "val2014" / "COCO_val2014_000000000002.jpg", 2)
    assert main(command) == 0
    assert metrics_of(out)["samples"] == 3 and metrics_of(out)["broken"] == 0


@pytest.mark.parametrize("name", ["vqav2", "coco-panoptic", "evr"])
def test_without_a_readable_sample_there_is_no_result(name, model, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    PUBLISHED[name][0](data)
    for path in data.rglob("*.jpg"):
        path.unlink()
    where = ["--data", str(data), "--model", str(model), "--out", str(out)]
    for options, said in [([], "more than 0.01"), (["--allow-missing"], "no sample can be judged")]:
        assert main(["eval", "--benchmark", name, *where, *options]) == 2
        assert f"{name}: {said}" in capsys.readouterr().err
        assert not (out / "metrics.json").exists() and not (out / "submission.json").exists()


def test_too_many_broken_samples_end_a_run_early(built, tmp_path, monkeypatch):
    class Missing(ShapesTasks):
        def __getitem__(self, index):
            if index % 50 == 49:
                raise BrokenSampleError(f"{index}", "gone")
            return super().__getitem__(index)

    read, benchmark = [], dataclasses.replace(BENCHMARKS["shapes-world"], metrics=lambda rows: {})
    monkeypatch.setattr(
        run, "generate_responses", lambda m, p, batch, *rest: [Response(q, "") for q in batch]
    )

    def go(**options):
        log, show = AnswerLog(tmp_path / str(options), {}), read.append
        arguments = (SetokimGenerationConfig(), log, tmp_path / str(options), show)
        data = Missing(0, length=300, size=8, tasks={"vqa": 1})
        return run.run_benchmark(benchmark, data, *built, *arguments, **options)

    with pytest.raises(TooManyBrokenError, match=r"2 of 100 samples .* 49: gone; 99: gone$"):
        go()
    assert len(read) == 99
    assert go(allow_missing=True) == {"samples": 294, "broken": 6}


def test_a_split_without_answers_has_a_submission(model, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    questions = [{"image_id": i, "question_id": i, "question": "what?"} for i in (1, 2)]
    for number in (1, 2):
        save(data / "test2015" / f"COCO_test2015_{number:012d}.jpg", number)
    path = data / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    path.write_text(json.dumps({"questions": questions}))
    where = ["--data", str(data), "--model", str(model), "--out", str(out)]
    split = ["--split", "test-dev2015", "--max-new-tokens", "2"]
    assert main(["eval", "--benchmark", "vqav2", *where, *split]) == 0
    assert metrics_of(out) == {"samples": 2, "broken": 0}
    submitted = json.loads((out / "submission.json").read_text())
    assert [one["question_id"] for one in submitted] == [1, 2]
    assert all(isinstance(one["answer"], str) for one in submitted)


def test_all_benchmarks_of_a_folder(model, tmp_path, capsys):
    for name in ("gqa", "flickr30k"):
        (tmp_path / "data" / name).mkdir(parents=True)
        PUBLISHED[name][0](tmp_path / "data" / name)
    where = ["--data", str(tmp_path / "data"), "--model", str(model), "--out", str(tmp_path / "o")]
    assert main(["eval", "--all", *where, "--max-new-tokens", "2", "--samples", "2"]) == 0
    for name in ("gqa", "flickr30k"):
        assert metrics_of(tmp_path / "o" / name)["samples"] == 2
    assert main(["eval", "--all", *where[2:], "--data", str(tmp_path / "o" / "gqa")]) == 2
    assert "expected folders of benchmarks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("vqav2", "The b.", {"accuracy": 100.0 * (3 * 2 / 3 + 1) / 4, "accuracy/other": 75.0}),
        ("aokvqa", "two", {"accuracy": 100.0, "left_out": 0}),
        ("gqa", "Yes.", {"accuracy": 100.0}),
        ("gqa", "", {"accuracy": 0.0}),
        ("flickr30k", "nothing", {"cider": 0.0, "rouge_l": 0.0}),
        ("coco-karpathy", "A dog 3.", {"cider": 0.0, "bleu_3": 100.0, "rouge_l": 100.0}),
        ("pope-random", "no", {"accuracy": 1 / 3, "recall": 0.0, "yes_ratio": 0.0}),
        ("mme", "yes", {"total": 100.0, "existence/acc": 50.0, "OCR/acc_plus": 0.0}),
    ],
)
def test_metrics_by_hand(name, said, expected, tmp_path):
    PUBLISHED[FOLDERS.get(name, name)][0](tmp_path)
    benchmark = BENCHMARKS[name]
    dataset = benchmark.open(tmp_path)
    rows = [
        Response(question, said)
        for index in range(len(dataset))
        for question in prompting.prompts_of(index, dataset[index])
    ]
    found = benchmark.metrics(rows)
    assert {key: found[key] for key in expected} == pytest.approx(expected)


class Masked:
    """Images of two fields, whose masks are those fields, and one that cannot be read."""

    def __init__(self, masks):
        self.masks = masks

    def __len__(self):
        return len(self.masks)

    def __getitem__(self, index):
        masks = self.masks[index]
        if masks is None:
            raise BrokenSampleError("a", "cut")
        pixels = np.full((*masks.shape, 3), 40, np.uint8)
        pixels[:, masks.shape[1] // 2 :] = 220
        return Sample(Image.fromarray(pixels), "", (), masks, "")


def test_clusters_against_masks(built, monkeypatch):
    monkeypatch.setattr(clusters, "_BATCH_SIZE", 2)
    setok = built[0].setok
    right = np.zeros((24, 24), np.int64)
    right[:, 12:] = 1
    nothing, small = np.zeros((24, 24), np.int64), np.ones((2, 24), np.int64)
    dataset = Masked([right, None, right, nothing, small])
    shown = []
    found = clusters.cluster_metrics(setok, dataset, 5, shown.append)
    assert (found["samples"], found["broken"]) == (3, 2) and shown == [1, 2, 3, 4, 5]
    alone = clusters.cluster_metrics(setok, Masked([right]), 1)
    # Images without an object do not count, and equal ones count the same.
    assert found["miou"] == pytest.approx(alone["miou"]) and 0.5 < alone["miou"] <= 1
    assert clusters.cluster_metrics(setok, Masked([None]), 1) == {"samples": 0, "broken": 1}


def test_numbers_of_tokens_and_objects(built, monkeypatch):
    setok, counts = built[0].setok, [3, 4, 5, 1]
    tokenize, left = setok.tokenize, iter(counts)

    def counted(pixels):
        visual = tokenize(pixels)
        for row in visual.occupied:
            row[:] = torch.arange(len(row)) < next(left)
        return visual

    monkeypatch.setattr(setok, "tokenize", counted)
    masks = [np.arange(24 * 24).reshape(24, 24) % number for number in (2, 3, 6, 1)]
    found = clusters.cluster_metrics(setok, Masked(masks), 4)
    assert found["tokens"] == np.mean(counts)
    # Value 0 is the background.
    expected = np.corrcoef(counts, [1, 2, 5, 0])[0, 1]
    assert found["token_object_correlation"] == pytest.approx(expected)
    left = iter([3, 3])
    found = clusters.cluster_metrics(setok, Masked(masks[:2]), 2)
    assert "token_object_correlation" not in found


def test_a_custom_judge_of_mm_vet(tmp_path):
    PUBLISHED["mm-vet"][0](tmp_path)
    dataset = BENCHMARKS["mm-vet"].open(tmp_path)
    questions = [q for i in range(3) for q in prompting.prompts_of(i, dataset[i])]
    said = ("a dog", "a cat", "a tree")
    rows = [Response(question, text) for question, text in zip(questions, said, strict=True)]
    seen = []

    def judge(question, answer, prediction):
        seen.append((question, answer))
        return {"a dog": 1.0, "a cat": 0.5, "a tree": 0.0}[prediction]

    assert mm_vet_scores(rows, judge) == {"total": 50.0, "rec": 50.0, "ocr": 100.0}
    assert seen == [("what?", "a dog<OR>a cat")] * 3
    with pytest.raises(ValueError, match=r"^judge: expected a score in \[0, 1\], got 2$"):
        mm_vet_scores(rows, lambda *texts: 2)


def test_masks_leave_out_ignored_pixels(tmp_path):
    PUBLISHED["reasonseg"][0](tmp_path)
    benchmark = BENCHMARKS["reasonseg"]
    dataset = benchmark.open(tmp_path)
    questions = [q for i in range(3) for q in prompting.prompts_of(i, dataset[i])]
    # The target, and all ignored pixels.
    square = questions[0].target.copy()
    square[4:7, 4:7] = True
    found = benchmark.metrics([Response(question, "", None, square) for question in questions])
    assert {"ciou", "giou", "p_at_50", "p_at_90"} <= found.keys() and set(found.values()) == {1.0}
    nothing = benchmark.metrics([Response(question, "") for question in questions])
    assert set(nothing.values()) == {0.0} and nothing.keys() == found.keys()
    # One long query; its mask alone is right.
    rows = [Response(questions[0], "", None, square), *(Response(q, "") for q in questions[1:])]
    found = benchmark.metrics(rows)
    assert [found[f"giou{kind}"] for kind in ("", "/short", "/long")] == [1 / 3, 0.0, 1.0]
    assert "giou/long" not in benchmark.metrics(rows[1:])


def test_errors_of_the_command(model, tmp_path, capsys):
    where = ["--data", str(tmp_path), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main(["eval", "--benchmark", "poetry", *where]) == 2
    assert "expected one of vqav2, " in capsys.readouterr().err
    assert main(["eval", "--benchmark", "gqa", *where]) == 2
    assert "testdev_balanced_questions.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", *where])
