import dataclasses
import json
import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from helpers.rounding import assert_same_but_for_rounding
from helpers.tiny_stage1 import assert_same_run, losses_of, run_in_processes, tiny_settings
from setokim import SetokModel
from setokim.data import Order, ShapesWorld, TooManyBrokenError
from setokim.training import (
    latest_checkpoint,
    load_checkpoint,
    progress,
    rng_state,
    unflatten_state,
)
from setokim.training.stage1.collator import Stage1Collator
from setokim.training.stage1.stage import Stage1
from setokim.training.state import changed_settings
from setokim.training.trainer import Trainer

ALL_LOSSES = ["pixel", "perceptual", "contrastive", "adversarial", "discriminator"]
# Two batches a step; checkpoints and evaluations are due at different steps.
WHOLE = ("steps=7", "accumulation=2", "every.checkpoint=3", "every.evaluation=2")


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def build(tmp_path):
    """Function that builds a trainer with an output folder of a name."""

    def make(out, *overrides, resume=False):
        return Trainer(tiny_settings(tmp_path, *overrides), tmp_path / out, resume)

    return make


@pytest.fixture
def train(build):
    """Function that trains a run and returns its trainer."""

    def run(out, *overrides, resume=False):
        trainer = build(out, *overrides, resume=resume)
        trainer.train()
        return trainer

    return run


class StopError(Exception):
    pass


def stop_at(trainer, step):
    """Train until just before a step."""
    take_step = trainer._take_step

    def stopping(batches):
        if trainer.step + 1 == step:
            raise StopError
        return take_step(batches)

    trainer._take_step = stopping
    with pytest.raises(StopError):
        trainer.train()


def with_noise(trainer):
    """Add random noise to each forward pass, like dropout; return the trainer."""

    def add_noise(module, arguments, output):
        tokens, occupied = output
        return tokens + 0.1 * torch.randn_like(tokens), occupied

    trainer.unwrapped.setok.merger.register_forward_hook(add_noise)
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["workers=0", "workers=1"])
def test_a_killed_run_resumes_exactly(tmp_path, train, workers):
    train("whole", *WHOLE, workers)
    killed = run_in_processes(tmp_path, tmp_path / "killed", *WHOLE, workers, die_at=6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Two steps follow the last checkpoint. Losses are written when an output is due: an evaluation
    # at step 4, none at step 5.
    assert [line["step"] for line in losses_of(tmp_path / "killed")] == [1, 2, 3, 4]
    assert latest_checkpoint(tmp_path / "killed").name == "checkpoint-00000003"
    assert not (tmp_path / "killed" / "model").exists()
    train("killed", *WHOLE, workers, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_stopped_run_resumes_exactly(tmp_path, build):
    whole = with_noise(build("whole", *WHOLE))
    whole.train()
    assert set(losses_of(tmp_path / "whole")[0]) == {"step", "loss", "gradient_norm", *ALL_LOSSES}
    stop_at(with_noise(build("stopped", *WHOLE)), 6)
    (tmp_path / "stopped" / "losses.jsonl").open("a").write('{"step": 6, "pix')
    resumed = with_noise(build("stopped", *WHOLE, resume=True))
    resumed.train()
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    for name, value in whole.unwrapped.state_dict().items():
        assert torch.equal(resumed.unwrapped.state_dict()[name], value)


def test_resuming_a_finished_run_changes_no_file(tmp_path, train):
    train("out", *WHOLE)
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != "metrics.json"]
    before = {path: path.read_bytes() for path in files}
    train("out", *WHOLE, resume=True)
    assert {path: path.read_bytes() for path in files} == before


def test_resume_without_a_checkpoint_is_refused(tmp_path, build):
    stop_at(build("out", *WHOLE), 3)
    before = (tmp_path / "out" / "losses.jsonl").read_bytes()
    expected = "out: expected a folder with a checkpoint to resume from, got "
    for name in ("out", "mistyped"):
        with pytest.raises(ValueError, match=f"^{expected}{tmp_path / name}$"):
            build(name, *WHOLE, resume=True)
    assert (tmp_path / "out" / "losses.jsonl").read_bytes() == before and len(before) > 9
    assert not (tmp_path / "mistyped").exists()


@pytest.mark.slow
def test_two_processes_match_one_with_twice_the_batch(tmp_path, train):
    settings = ("steps=5", "accumulation=2")
    done = run_in_processes(tmp_path, tmp_path / "two", *settings, "batch_size=2", world=2)
    assert done.returncode == 0, done.stderr
    assert "process 1, data: all 20 samples tried could be read" in done.stdout
    train("one", *settings, "batch_size=4")
    pairs = zip(losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), strict=True)
    for two, one in pairs:
        assert two == pytest.approx(one, rel=1e-5)

    # Negatives of the contrastive loss come from both processes.
    first = tiny_settings(tmp_path, *settings)
    torch.manual_seed(first.seed)
    stage = Stage1(first)
    world, collate = ShapesWorld(seed=0, size=32), Stage1Collator(stage.setok, stage.text.tokenize)
    apart, together = [], []
    for start in (0, 4):
        halves = [range(start, start + 2), range(start + 2, start + 4)]
        for indices in halves:
            apart.append(stage(collate([world[i] for i in indices])).losses["contrastive"].item())
        batch = collate([world[i] for i in range(start, start + 4)])
        together.append(stage(batch).losses["contrastive"].item())
    two = losses_of(tmp_path / "two")[0]["contrastive"]
    assert two == pytest.approx(np.mean(together), rel=1e-5)
    # Half as many candidates make the task easier: log 2 against log 4.
    assert two - np.mean(apart) > 0.5

    # Each process saves and restores its own record of samples.
    checkpoint = latest_checkpoint(tmp_path / "two")
    tensors, state = load_checkpoint(checkpoint)
    processes = unflatten_state(tensors, state["structure"])["processes"]
    for rank, tried in enumerate([{0, 1}, {2, 3}]):
        bits = np.unpackbits(processes[rank]["data"]["tried"].numpy(), bitorder="little")
        assert {i % 4 for i in np.flatnonzero(bits)} == tried and bits.sum() == 20
        other = Trainer(tiny_settings(tmp_path, *settings, "batch_size=2"), tmp_path / "other")
        accelerator = SimpleNamespace(process_index=rank)
        own = dataclasses.replace(other.state, accelerator=accelerator)
        assert own.restore(checkpoint, other.settings) == 5
        assert torch.equal(other.dataset.state_dict()["tried"], processes[rank]["data"]["tried"])
        assert torch.equal(rng_state()["cpu"], processes[rank]["rng"]["cpu"])
    assert not torch.equal(processes[0]["rng"]["cpu"], processes[1]["rng"]["cpu"])


def test_accumulated_batches_match_one_large_batch(tmp_path, train):
    # The remaining losses are means over samples. The contrastive one compares within a batch, and
    # the adaptive weight of the adversarial one is computed for each batch.
    settings = ("losses.contrastive=0", "losses.adversarial=0", "optimizer.weight_decay=0")
    two = train("two", *settings, "batch_size=2", "accumulation=2")
    one = train("one", *settings, "batch_size=4")
    pairs = zip(losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), strict=True)
    for accumulated, whole in pairs:
        assert accumulated == pytest.approx(whole, rel=1e-5)
    last_layers = [t.unwrapped.setok.detokenizer.last_layer for t in (two, one)]
    torch.testing.assert_close(*last_layers, rtol=1e-4, atol=1e-6)


def test_learning_rates_go_up_and_down(build):
    trainer = build("out", "steps=6", "optimizer.least=0.2", "discriminator.warmup=0")
    rates = []
    take_step = trainer._take_step

    def recording(batches):
        losses = take_step(batches)
        optimizers = (trainer.optimizer, trainer.unwrapped.adversary.optimizer)
        rates.append([{group["lr"] for group in o.param_groups} for o in optimizers])
        return losses

    trainer._take_step = recording
    trainer.train()
    eighth = math.sqrt(0.5)
    factors = [0.5, 1, 1, 0.6 + 0.4 * eighth, 0.6, 0.6 - 0.4 * eighth]
    model, other = zip(*rates, strict=True)
    assert [rate for (rate,) in model] == pytest.approx([1e-3 * f for f in factors])
    sixths = [1, math.sqrt(0.75), 0.5, 0, -0.5, -math.sqrt(0.75)]
    assert [rate for (rate,) in other] == pytest.approx([1e-3 * (1 + c) / 2 for c in sixths])


def test_the_discriminators_rates_and_clip_are_its_own(build):
    """Its schedule starts with its training, and its gradients have their own maximum norm."""
    own = ("discriminator.clip=2e-4", "discriminator.lr=3e-3", "discriminator.warmup=2")
    trainer = build("out", "steps=6", "losses.adversarial_start=2", "optimizer.clip=1e-4", *own)
    seen = {"model": [], "discriminator": []}

    def record(name, optimizer):
        step = optimizer.step

        def recording():
            gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
            norm = torch.stack([g.norm() for g in gradients if g is not None]).norm().item()
            seen[name].append((optimizer.param_groups[0]["lr"], norm))
            step()

        optimizer.step = recording

    record("model", trainer.optimizer)
    record("discriminator", trainer.unwrapped.adversary.optimizer)
    trainer.train()
    rates, norms = zip(*seen["discriminator"], strict=True)
    # Its four steps, two up and two down, have the factors 1/2, 1, 1 and 1/2.
    assert rates == pytest.approx([1.5e-3, 3e-3, 3e-3, 1.5e-3])
    assert norms == pytest.approx([2e-4] * 4, rel=0.02)
    assert [norm for _, norm in seen["model"]] == pytest.approx([1e-4] * 6, rel=0.02)


def test_averages_follow_the_weights_from_the_first_step_on(build):
    trainer = build("out", "steps=3", "ema=0.15")
    name, weight = next(iter(trainer.unwrapped.named_parameters()))
    take_step, seen = trainer._take_step, [weight.detach().clone()]
    expected = seen[0].double()

    def recording(batches):
        nonlocal expected
        losses = take_step(batches)
        # (1 + n) / (10 + n), until it is above 0.15 at n = 1.
        keep = 0.1 if len(seen) == 1 else 0.15
        seen.append(weight.detach().clone())
        expected = keep * expected + (1 - keep) * seen[-1].double()
        found = trainer.ema.averages[name].double()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
        return losses

    trainer._take_step = recording
    trainer.train()
    assert len(seen) == 4 and not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("off", "absent", "frozen", "trained"),
    [
        (["adversarial"], {"adversarial", "discriminator"}, (), "setok.detokenizer."),
        (["perceptual"], {"perceptual"}, (), "setok.detokenizer."),
        (["l1", "l2"], {"pixel"}, (), "setok.detokenizer."),
        (
            ["contrastive"],
            {"contrastive"},
            ("setok.to_concept.", "text.", "log_scale"),
            "setok.detokenizer.",
        ),
        (
            ["l1", "l2", "perceptual", "adversarial"],
            {"pixel", "perceptual", "adversarial", "discriminator"},
            ("setok.detokenizer.",),
            "setok.to_concept.",
        ),
    ],
)
def test_weight_0_switches_a_loss_off(tmp_path, build, monkeypatch, off, absent, frozen, trained):
    def refuse(*arguments, **named):
        raise AssertionError("called for a loss of weight 0")

    computed_by = {
        "adversarial": ["adversary.PatchDiscriminator", "adversary.adaptive_weight"],
        "perceptual": ["stage.PerceptualLoss.pyramid"],
        "contrastive": ["losses.contrastive_loss", "evaluation._all_pairs"],
    }
    names = [name for loss in off for name in computed_by.get(loss, [])]
    for name in [*names, *(["losses.pixel_loss"] if "l1" in off else [])]:
        monkeypatch.setattr(f"setokim.training.stage1.{name}", refuse)
    trainer = build("out", *(f"losses.{name}=0" for name in off))
    if "contrastive" in off:
        monkeypatch.setattr(trainer.unwrapped.text, "forward", refuse)
    assert (trainer.unwrapped.adversary is None) == ("adversarial" in off)
    assert (trainer.unwrapped.perceptual is None) == ("perceptual" in off)
    before = {n: p.detach().clone() for n, p in trainer.unwrapped.named_parameters()}
    metrics = trainer.train()
    expected = {"step", "loss", "gradient_norm", *ALL_LOSSES} - absent
    assert [set(line) for line in losses_of(tmp_path / "out")] == [expected] * 4
    assert ("recall_at_1" in metrics) == ("contrastive" not in off)
    after = dict(trainer.unwrapped.named_parameters())
    kept = {name for name, value in before.items() if torch.equal(after[name], value)}
    assert {name for name in before if name.startswith(frozen)} <= kept
    assert not any(name.startswith(trained) for name in kept)


def test_adversarial_training_starts_at_its_step(tmp_path, build):
    trainer = build("out", "losses.adversarial_start=2")
    # A bias may stay: below both margins, the gradients of real and generated images cancel.
    matrices = [p for p in trainer.unwrapped.adversary.module.parameters() if p.dim() > 1]
    before = [p.detach().clone() for p in matrices]
    stop_at(trainer, 3)
    assert all(map(torch.equal, matrices, before))
    del trainer._take_step
    trainer.train()
    assert not any(map(torch.equal, matrices, before))
    adversarial = ["adversarial" in line for line in losses_of(tmp_path / "out")]
    assert adversarial == [False, False, True, True]


def test_the_generator_loss_does_not_change_the_discriminator(build):
    trainer = build("out")
    batch, _ = next(iter(trainer._loader()))
    output = trainer.stage(batch)
    found, images = output.losses, output.images
    last_layer = trainer.unwrapped.setok.detokenizer.last_layer
    loss = trainer.unwrapped.adversary.generator_loss(found, images, last_layer)
    loss.backward(retain_graph=True)
    parameters = list(trainer.unwrapped.adversary.module.parameters())
    assert all(p.grad is None and p.requires_grad for p in parameters)
    # The balanced gradient is 0.5 times that of the reconstruction, except for eps.
    adversarial = last_layer.grad.norm().clone()
    reconstruction = found["pixel"] + found["perceptual"]
    (own,) = torch.autograd.grad(reconstruction, last_layer)
    assert adversarial.item() == pytest.approx(0.5 * own.norm().item(), rel=0.02)
    trainer.unwrapped.adversary.accumulate(batch["target"], images.detach())
    assert all(p.grad is not None for p in parameters)
    assert torch.equal(last_layer.grad.norm(), adversarial)


def test_averaged_weights_are_evaluated_and_written(tmp_path, build):
    trainer = build("out", "steps=6")
    metrics = trainer.train()
    model = SetokModel.from_pretrained(tmp_path / "out" / "model")
    samples = [ShapesWorld(seed=1, size=32)[i] for i in range(6)]
    batch = trainer.collate(samples)
    with torch.no_grad():
        visual, images = model(batch["pixels"])
        own, _ = trainer.unwrapped.setok(batch["pixels"])
        with trainer.ema.swapped(trainer.unwrapped) as stage:
            averaged, _ = stage.setok(batch["pixels"])
        for name, value in model.named_parameters():
            assert torch.equal(value, trainer.ema.averages[f"setok.{name}"])
    assert_same_but_for_rounding(visual.tokens, averaged.tokens)
    with pytest.raises(AssertionError):
        assert_same_but_for_rounding(visual.tokens, own.tokens)
    error = (images.clamp(0, 1) - batch["target"]).double().square().mean((1, 2, 3))
    assert metrics["psnr"] == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-6)


def image_folder(path, count, broken):
    path.mkdir()
    noise = np.random.default_rng(0)
    for i in range(count):
        file = path / f"{i:03}.png"
        if i in broken:
            file.write_text("not an image")
        else:
            Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8)).save(file)


def test_a_broken_image_is_skipped_and_named_also_after_resuming(tmp_path, build, train, capsys):
    # It is in the first batch, so that a resumed run has it from the checkpoint only.
    index = next(iter(Order(120, 20)))[3]
    image_folder(tmp_path / "images", 120, {index})
    data = f"data={{kind: folder, path: {tmp_path / 'images'}}}"
    settings = ("steps=6", "batch_size=20", "every.checkpoint=2", data)
    stop_at(build("out", *settings), 4)
    assert "could not be read" not in capsys.readouterr().out
    train("out", *settings, resume=True)
    name = tmp_path / "images" / f"{index:03}.png"
    assert (
        f"process 0, data: 1 of 120 samples could not be read: {name}: not an image of a known "
        "format\n"
    ) in capsys.readouterr().out
    # Without captions all similarities are equal.
    contrastive = [line["contrastive"] for line in losses_of(tmp_path / "out")]
    assert contrastive == pytest.approx([math.log(20)] * 6)


def test_too_many_broken_images_stop_the_run(tmp_path, build):
    broken = {7, 50, 93}
    image_folder(tmp_path / "images", 120, broken)
    data = f"data={{kind: folder, path: {tmp_path / 'images'}}}"
    trainer = build("out", "steps=20", "batch_size=20", data)
    with pytest.raises(TooManyBrokenError, match=r"more than 0\.01 of the samples") as e:
        trainer.train()
    assert trainer.step < 7 and any(f"{i:03}.png" in str(e.value) for i in broken)
    assert not (tmp_path / "out" / "model").exists()


def test_a_folder_with_checkpoints_needs_resume(tmp_path, train, build):
    train("out", "every.checkpoint=2")
    with pytest.raises(ValueError, match=f"out: expected a folder without .*{tmp_path / 'out'}"):
        build("out", "every.checkpoint=2")


def test_resume_refuses_other_settings_and_names_them(train, build):
    train("out")
    with pytest.raises(ValueError, match=r"got other values of model\.width, optimizer\.lr, seed$"):
        build("out", "seed=1", "optimizer.lr=2e-3", "model.width=32", resume=True)
    logging = ("every.log=5", "every.checkpoint=2", "every.evaluation=1", "every.pictures=3")
    resumed = build("out", *logging, "workers=1", "prefetch=3", "keep=9", resume=True)
    assert resumed.step == 4


def test_changed_settings_by_hand():
    old = {"a": 1, "every": {"log": 1}, "b": {"every": 1, "c": [0.9, 0.95]}, "keep": 1}
    new = {"a": 1, "every": {"log": 2}, "b": {"every": 2, "c": [0.9, 0.99]}, "d": None, "e": 0}
    assert changed_settings(old, new) == ["b.c", "b.every", "e"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, build, value):
    trainer = build("out", "every.checkpoint=1")
    take_step = trainer._take_step

    def poisoned(batches):
        if trainer.step == 2:
            trainer.unwrapped.setok.detokenizer.last_layer.data.fill_(value)
        return take_step(batches)

    trainer._take_step = poisoned
    with pytest.raises(RuntimeError, match=r"^step 3: a loss is not finite: \{'pixel': "):
        trainer.train()
    assert [line["step"] for line in losses_of(tmp_path / "out")] == [1, 2]
    assert latest_checkpoint(tmp_path / "out").name == "checkpoint-00000002"


def test_workers_load_the_same_batches(build):
    alone, helped = build("alone", "accumulation=3"), build("helped", "accumulation=3", "workers=2")
    # In the middle of a run, before batch 6 with samples 24 to 27.
    alone.step = helped.step = 2
    readings = []
    for _, (batch, reading), (other, other_reading) in zip(
        range(5), alone._loader(), helped._loader(), strict=False
    ):
        assert batch.keys() == other.keys()
        assert all(torch.equal(other[name], value) for name, value in batch.items())
        assert reading == other_reading
        readings += reading.tried
    assert readings == list(range(24, 44))


def test_batches_are_loaded_ahead_and_pinned_for_a_gpu(build, monkeypatch):
    trainer = build("out", "workers=2", "prefetch=5")
    assert (trainer._loader().prefetch_factor, trainer._loader().pin_memory) == (5, False)
    assert build("alone", "prefetch=5")._loader().prefetch_factor is None
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    assert trainer._loader().pin_memory


def test_loading_does_not_change_the_random_state(build):
    trainer = build("out")
    before = rng_state()["cpu"]
    next(iter(trainer._loader()))
    assert torch.equal(rng_state()["cpu"], before)


def test_bfloat16_trains_and_resumes(tmp_path, build, train):
    # A process has one precision, and accelerate remembers it.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        trainer = train("whole", *WHOLE, "precision=bf16")
        batch, _ = next(iter(trainer._loader()))
        flags = []
        layer = trainer.unwrapped.setok.merger
        hook = layer.register_forward_hook(
            lambda *_: flags.append(torch.is_autocast_enabled("cpu"))
        )
        assert trainer.stage(batch).losses["pixel"].dtype == torch.float32
        hook.remove()
        assert flags == [True]
        stop_at(build("stopped", *WHOLE, "precision=bf16"), 6)
        train("stopped", *WHOLE, "precision=bf16", resume=True)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_late_failures_are_found_early(build):
    with pytest.raises(ValueError, match=r"held_out.samples: expected a number for an endless"):
        build("out", "held_out.samples=null")
    with pytest.raises(
        ValueError, match=r"^model: expected sides of at least 24 pixels .*, got \(16, 16\)$"
    ):
        build("out", "model.decoder_patch_size=4")
    trainer = build("out", "model.decoder_patch_size=4", "losses.adversarial=0")
    assert trainer.unwrapped.adversary is None


def test_a_run_without_a_commit(monkeypatch):
    def missing(*arguments, **named):
        raise FileNotFoundError("git")

    monkeypatch.setattr(progress.subprocess, "run", missing)
    assert progress.commit() is None


def test_metrics_and_evaluations_are_json(tmp_path, build):
    # All scenes have two objects, so that the correlation is undefined.
    two = "held_out.options={objects: [2, 2]}"
    trainer = build("out", two, "every.evaluation=2")
    assert trainer.train()["token_object_correlation"] is None

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()
    texts = [*lines, (tmp_path / "out" / "metrics.json").read_text()]
    values = [json.loads(text, parse_constant=refuse) for text in texts]
    assert [v["token_object_correlation"] for v in values] == [None] * 3
    assert [v["step"] for v in values[:2]] == [2, 4]
