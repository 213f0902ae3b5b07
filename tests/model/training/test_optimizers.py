import copy

import pytest
import torch
from torch import nn

from setokim.training.base_settings import OptimizerSettings
from setokim.training.optimizers import MuonAdamW, build_optimizer


def groups_of(model, lr=1e-2):
    hidden, vectors = [model[0].weight], [model[0].bias, *model[1].parameters()]
    return [
        {"params": hidden, "lr": lr, "weight_decay": 0.1, "hidden": True},
        {"params": vectors, "lr": 2 * lr, "weight_decay": 0.0},
    ]


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 8))


def train(model, optimizer, steps=3):
    torch.manual_seed(1)
    for _ in range(steps):
        model(torch.randn(5, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def test_each_parameter_is_updated_as_by_its_own_optimizer():
    one, other = make(), make()
    found = train(one, MuonAdamW(groups_of(one), (0.9, 0.98)))
    hidden, rest = groups_of(other)
    rest.pop("hidden", None)
    hidden.pop("hidden")
    muon = torch.optim.Muon([hidden], adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW([rest], betas=(0.9, 0.98))
    torch.manual_seed(1)
    for _ in range(3):
        other(torch.randn(5, 6)).square().sum().backward()
        muon.step()
        adam.step()
        other.zero_grad()
    for a, b in zip(found, other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_has_equal_singular_values_and_the_size_of_adam():
    model = make()
    before = model[0].weight.detach().clone()
    groups = groups_of(model)
    groups[0]["weight_decay"] = 0.0
    train(model, MuonAdamW(groups, (0.9, 0.98)), 1)
    values = torch.linalg.svdvals(model[0].weight.detach() - before)
    # The iteration brings them to 1 within about a third.
    assert values.max() < 2.5 * values.min()
    # 0.2 lr sqrt(max(rows, columns)) for singular values of 1.
    assert values.mean().item() == pytest.approx(1e-2 * 0.2 * 6**0.5, rel=0.3)


def test_a_restored_state_continues_exactly():
    model = make()
    optimizer = MuonAdamW(groups_of(model), (0.9, 0.98))
    train(model, optimizer)
    again = copy.deepcopy(model)
    resumed = MuonAdamW(groups_of(again), (0.9, 0.98))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for a, b in zip(train(model, optimizer), train(again, resumed), strict=True):
        assert torch.equal(a, b)


def test_changed_rates_take_effect_after_a_state_is_loaded():
    model = make()
    optimizer = MuonAdamW(groups_of(model), (0.9, 0.98))
    train(model, optimizer)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for a, b in zip(train(model, optimizer), before, strict=True):
        assert torch.equal(a, b)


def test_changed_rates_take_effect():
    changes = []
    for factor in (1.0, 0.5):
        model = make()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = MuonAdamW(groups_of(model), (0.9, 0.98))
        for group in optimizer.param_groups:
            group["lr"] *= factor
            group["weight_decay"] = 0.0
        changes.append([a - b for a, b in zip(train(model, optimizer, 1), before, strict=True)])
    for whole, half in zip(*changes, strict=True):
        torch.testing.assert_close(whole, 2 * half, rtol=1e-4, atol=1e-7)


def test_optimizers_by_name():
    model = make()
    assert type(build_optimizer(groups_of(model), OptimizerSettings())) is torch.optim.AdamW
    muon = build_optimizer(groups_of(model), OptimizerSettings(kind="muon"))
    assert isinstance(muon, MuonAdamW)
    with pytest.raises(ValueError, match=r"^optimizer\.kind: expected adamw or muon, got 'sgd'$"):
        OptimizerSettings(kind="sgd")
    with pytest.raises(ValueError, match="2D"):
        bias = [{"params": [model[0].bias], "lr": 1e-3, "weight_decay": 0.0, "hidden": True}]
        MuonAdamW(bias, (0.9, 0.98))
