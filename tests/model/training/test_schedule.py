import math

import pytest
import torch
from torch import nn

from setokim.training.schedule import EMA, cosine_with_warmup, parameter_groups


def test_cosine_with_warmup_by_hand():
    factors = [cosine_with_warmup(step, 4, 10, least=0.1) for step in range(13)]
    expected = [0.25, 0.5, 0.75, 1.0, 1.0]
    # Steps of a sixth of half a turn: cos 30°, 60°, 90°, 120°, 150°.
    cosines = [math.sqrt(3) / 2, 0.5, 0, -0.5, -math.sqrt(3) / 2]
    expected += [0.1 + 0.45 * (1 + c) for c in cosines] + [0.1, 0.1, 0.1]
    assert factors == pytest.approx(expected, abs=1e-12)


def test_cosine_at_the_edges():
    assert cosine_with_warmup(0, 0, 4) == 1
    assert cosine_with_warmup(4, 0, 4) == 0
    assert cosine_with_warmup(0, 1, 1) == 1
    assert cosine_with_warmup(1, 1, 1, least=0.5) == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 1), "step: expected at least 0, got -1"),
        ((0, -1, 1), "warmup: expected at least 0, got -1"),
        ((0, 0, 0), r"total: expected at least max\(1, warmup\), 1, got 0"),
        ((0, 5, 4), r"total: expected at least max\(1, warmup\), 5, got 4"),
        ((0, 0, 1, 1.5), r"least: expected a number in \[0, 1\], got 1.5"),
    ],
)
def test_cosine_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        cosine_with_warmup(*arguments)


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(2, 2)
        self.convolution = nn.Conv2d(2, 2, 3)
        self.table = nn.Embedding(3, 2)
        self.norm = nn.LayerNorm((2, 2))
        self.attention = nn.MultiheadAttention(2, 1)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.table.weight
        self.queries = nn.Parameter(torch.zeros(2, 3, 3))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.scale = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_parameter_groups_decay_matrices_only():
    zoo = Zoo()
    names = {id(p): name for name, p in zoo.named_parameters()}
    decayed, undecayed = parameter_groups(zoo, lr=0.1, weight_decay=0.2)
    assert (decayed["lr"], decayed["weight_decay"]) == (0.1, 0.2)
    assert (undecayed["lr"], undecayed["weight_decay"]) == (0.1, 0.0)
    assert [names[id(p)] for p in decayed["params"]] == [
        "query.weight",
        "convolution.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    ]
    assert {names[id(p)] for p in undecayed["params"]} == {
        "queries",
        "cls_token",
        "scale",
        "query.bias",
        "convolution.bias",
        "table.weight",
        "norm.weight",
        "norm.bias",
        "attention.in_proj_bias",
        "attention.out_proj.bias",
    }
    torch.optim.AdamW([decayed, undecayed])


def test_parameter_groups_without_empty_ones():
    (group,) = parameter_groups(nn.LayerNorm(3), 0.1, 0.2)
    assert len(group["params"]) == 2 and group["weight_decay"] == 0
    with pytest.raises(ValueError, match="module: expected at least one parameter with gradient"):
        parameter_groups(nn.ReLU(), 0.1, 0.2)


def set_weight(model, value):
    with torch.no_grad():
        model.weight.fill_(value)


def one_weight(dtype=torch.float32):
    model = nn.Linear(1, 1, bias=False, dtype=dtype)
    set_weight(model, 1.0)
    return model


def average(ema):
    return ema.state_dict()["average.weight"].item()


def test_ema_by_hand():
    model = one_weight()
    ema = EMA(model, decay=0.15)
    set_weight(model, 2.0)
    ema.update(model)
    assert average(ema) == pytest.approx(0.1 * 1 + 0.9 * 2)
    # (1 + 1) / (10 + 1) would be 0.18.
    set_weight(model, 0.0)
    ema.update(model)
    assert average(ema) == pytest.approx(0.15 * 1.9)


def test_ema_of_half_precision_keeps_small_changes():
    model = one_weight(torch.bfloat16)
    ema = EMA(model, decay=0.9999)
    ema.load_state_dict(ema.state_dict() | {"updates": torch.tensor(10**6)})
    set_weight(model, 2.0)
    ema.update(model)
    assert average(ema) == pytest.approx(1.0001, abs=1e-6)


def test_ema_without_decay_equals_the_model():
    model = one_weight()
    ema = EMA(model, 0).to("cpu")
    set_weight(model, 0.1)
    ema.update(model)
    assert average(ema) == model.weight.item()


def test_ema_leaves_frozen_parameters_alone():
    model = nn.Sequential(one_weight(), one_weight().requires_grad_(False))
    assert sorted(EMA(model, 0.9).state_dict()) == ["average.0.weight", "updates"]


def test_swapped_restores_the_weights():
    model = one_weight()
    ema = EMA(model, 0.5)
    set_weight(model, 0.1)
    own, parameter = model.weight.detach().clone(), model.weight
    with pytest.raises(KeyError), ema.swapped(model) as inside:
        assert inside is model
        assert model.weight.item() == 1.0
        with pytest.raises(RuntimeError, match="leave `swapped` first"):
            ema.update(model)
        with pytest.raises(RuntimeError, match="leave `swapped` first"), ema.swapped(model):
            pass
        assert model.weight.item() == 1.0
        raise KeyError
    assert model.weight is parameter and torch.equal(model.weight, own)
    ema.update(model)


def test_ema_resumes_bit_for_bit():
    model = one_weight()
    ema = EMA(model, 0.999)
    values = [0.3, 0.7, -0.2, 0.9]
    for value in values[:2]:
        set_weight(model, value)
        ema.update(model)
    state = ema.state_dict()
    other = one_weight()
    resumed = EMA(other, 0.999)
    resumed.load_state_dict(state)
    for value in values[2:]:
        set_weight(model, value)
        set_weight(other, value)
        ema.update(model)
        resumed.update(other)
    assert ema.state_dict()["updates"] == resumed.state_dict()["updates"] == 4
    assert average(ema) == average(resumed)
    # The state was a copy.
    assert state["updates"] == 2 and state["average.weight"].item() != average(ema)


def test_ema_errors():
    with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\), got 1"):
        EMA(one_weight(), 1)
    ema = EMA(one_weight(), 0.9)
    with pytest.raises(ValueError, match="model: expected a parameter named weight, got none"):
        ema.update(nn.Sequential(one_weight()))
    state = ema.state_dict()
    with pytest.raises(ValueError, match=r"got a state with 1 missing ones, such as updates"):
        ema.load_state_dict({"average.weight": state["average.weight"]})
    with pytest.raises(ValueError, match=r"with 1 unknown ones, such as average\.other"):
        ema.load_state_dict(state | {"average.other": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"state: expected average.weight of shape \(1, 1\), got \(2,\)"
    ):
        ema.load_state_dict(state | {"average.weight": torch.zeros(2)})
