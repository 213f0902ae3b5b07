import math

import pytest
import torch

from helpers.tiny_stage1 import losses_of, tiny_settings
from setokim.training import step_losses
from setokim.training.step_losses import NotFiniteError, PendingLosses, StepLosses
from setokim.training.trainer import Trainer


def step(pixel, text=None, discriminator=None):
    minimised = {"pixel": torch.tensor(pixel)}
    if text is not None:
        minimised["text"] = torch.tensor(text)
    others = {} if discriminator is None else {"discriminator": torch.tensor(discriminator)}
    return StepLosses(minimised, others)


def test_losses_of_steps_by_hand():
    pending = PendingLosses()
    assert pending.take() == [] and len(pending) == 0
    pending.add(4, step(0.5, 0.25), torch.tensor(3.0))
    # A loss that begins later, and one that is not the model's.
    pending.add(5, step(1.0, 2.0, 7.0), torch.tensor(4.0))
    assert len(pending) == 2
    first, second = pending.take()
    assert first == {"step": 4, "pixel": 0.5, "text": 0.25, "loss": 0.75, "gradient_norm": 3.0}
    expected = {"pixel": 1.0, "text": 2.0, "discriminator": 7.0, "loss": 3.0, "gradient_norm": 4.0}
    assert second == {"step": 5, **expected}
    assert list(second) == ["step", *expected]
    assert len(pending) == 0 and pending.take() == []


def test_batches_of_a_step_are_averaged():
    losses = StepLosses()
    value = torch.tensor(3.0, requires_grad=True)
    losses.add(StepLosses({"pixel": value}, {"discriminator": torch.tensor(1.0)}), 2)
    losses.add(step(5.0, discriminator=2.0), 2)
    assert losses.minimised["pixel"] == 4 and losses.others["discriminator"] == 1.5
    assert not losses.minimised["pixel"].requires_grad


def test_the_mean_over_processes_is_taken_of_losses_alone(monkeypatch):
    """The norm of the gradient is the same everywhere: it is of the exchanged gradients."""
    monkeypatch.setattr(step_losses, "mean_over_ranks", lambda x: x + 10)
    pending = PendingLosses()
    pending.add(1, step(1.0), torch.tensor(2.0))
    assert pending.take() == [{"step": 1, "pixel": 11, "loss": 11, "gradient_norm": 2.0}]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["pixel", "norm"])
def test_a_step_that_is_not_finite_is_named(name, value):
    pending = PendingLosses()
    pending.add(7, step(1.0), torch.tensor(1.0))
    pending.add(
        8, step(value if name == "pixel" else 1.0), torch.tensor(1.0 if name == "pixel" else value)
    )
    pending.add(9, step(1.0), torch.tensor(1.0))
    with pytest.raises(NotFiniteError, match=r"^step 8: a loss is not finite: \{'pixel'") as error:
        pending.take()
    assert [line["step"] for line in error.value.before] == [7]


def test_losses_stay_on_the_device_between_log_steps(tmp_path, monkeypatch):
    taken = []
    take = PendingLosses.take

    def noting(pending):
        taken.append(len(pending))
        return take(pending)

    monkeypatch.setattr(PendingLosses, "take", noting)
    settings = tiny_settings(tmp_path, "steps=7", "every.log=3", "optimizer.warmup=1")
    trainer = Trainer(settings, tmp_path / "out")
    trainer.train()
    # At steps 3 and 6, and before the checkpoint of the last one.
    assert taken == [3, 3, 1]
    assert [line["step"] for line in losses_of(tmp_path / "out")] == list(range(1, 8))


def test_losses_do_not_pile_up_without_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr("setokim.training.trainer._MAX_PENDING", 2)
    settings = tiny_settings(tmp_path, "steps=5", "optimizer.warmup=1")
    trainer = Trainer(settings, tmp_path / "out")
    monkeypatch.setattr(trainer.folder, "save", lambda *_: None)
    lengths = []
    add = trainer.losses.add

    def noting(*arguments):
        add(*arguments)
        lengths.append(len(trainer.losses))

    monkeypatch.setattr(trainer.losses, "add", noting)
    trainer.train()
    assert lengths == [1, 2, 1, 2, 1]
