"""Low-rank adapters in the language model."""

import copy

import pytest
import torch
from torch.testing import assert_close

from helpers.rounding import assert_same_but_for_rounding, assert_same_weights
from helpers.tiny_setokim import LORA, build, picture
from setokim.data.conversations import MASK, message
from setokim.training.stage2.model import freeze
from setokim.training.stage2.settings import InstructSettings
from setokim.vlm.lora import base_of
from setokim.vlm.modeling_setokim import SetokimModel

CHATS = [
    [message("user", picture(0), "red"), message("assistant", MASK)],
    [message("user", "draw a circle."), message("assistant", "yes.", picture(1))],
]
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def plain():
    return build()


@pytest.fixture(scope="module")
def processor(plain):
    return plain[1]


@pytest.fixture(scope="module")
def trained(processor):
    """Return a model after one step of all losses, and its parameters before the step."""
    model, _ = build(lora=LORA)
    model.setok.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    output = model(**processor(CHATS))
    tokens, conditions, _ = model.generated_tokens(output)
    diffusion = model.head.loss(tokens, conditions, generator=torch.Generator().manual_seed(0))
    masks = model.segment(output, (8, 8))[0].fine
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.1)
    (output.losses["text"] + diffusion + masks.square().sum()).backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)
    return model, before


def test_a_step_changes_adapters_and_new_modules_only(trained):
    model, before = trained
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    kinds = {"project_in": 4, "head.network": None, "segmentation": None, "special_": 2}
    adapters = {name for name in before if "lora_" in name}
    # Two matrices for each of two layers in each of two blocks.
    assert len(adapters) == 8 and adapters <= changed
    for kind, number in kinds.items():
        found = {name for name in changed if name.startswith(kind)}
        assert len(found) == number if number else found, kind
    rest = {name for name in changed - adapters if not name.startswith(tuple(kinds))}
    assert rest == set()
    assert sum("lora_" not in name and name.startswith("llm.") for name in before) > 15


def test_new_adapters_change_no_output(plain, processor):
    model, _ = build(lora=LORA)
    batch = processor(CHATS)
    assert_same_but_for_rounding(
        model(**batch).last_hidden_state, plain[0](**batch).last_hidden_state
    )


def test_merging_keeps_the_output(trained, plain, processor):
    model = copy.deepcopy(trained[0])
    batch = processor(CHATS)
    expected = model(**batch)
    assert (expected.last_hidden_state - plain[0](**batch).last_hidden_state).abs().max() > 0.01
    logits = model.logits(expected.last_hidden_state)
    assert model.merge_lora() is model
    found = model(**batch)
    assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    assert_close(model.logits(found.last_hidden_state), logits, rtol=1e-4, atol=1e-5)
    assert model.config.lora is None
    assert set(model.state_dict()) == set(plain[0].state_dict())
    assert not any("lora" in name for name, _ in model.named_modules())
    assert base_of(model.llm) is model.llm


@pytest.mark.parametrize("merged", [False, True])
def test_saving_and_loading_keeps_the_weights_bit_equal(trained, processor, tmp_path, merged):
    model = copy.deepcopy(trained[0])
    if merged:
        model.merge_lora()
    model.save_pretrained(tmp_path)
    again = SetokimModel.from_pretrained(tmp_path)
    assert again.config.lora == (None if merged else LORA)
    batch = processor(CHATS)
    expected, found = model(**batch), again(**batch)
    assert_same_but_for_rounding(found.last_hidden_state, expected.last_hidden_state)
    assert_same_but_for_rounding(
        again.logits(found.last_hidden_state), model.logits(expected.last_hidden_state)
    )
    assert_same_weights(again, model)


def test_after_loading_only_adapters_of_the_language_model_are_trained(trained, tmp_path):
    trained[0].save_pretrained(tmp_path)
    again = SetokimModel.from_pretrained(tmp_path)
    freeze(again, InstructSettings(start=str(tmp_path), train=("llm",)))
    trained_names = {name for name, p in again.llm.named_parameters() if p.requires_grad}
    assert len(trained_names) == 8
    assert trained_names == {name for name, _ in again.llm.named_parameters() if "lora_" in name}


def test_adapters_can_be_added_later(processor):
    model, _ = build()
    expected = model(**processor(CHATS)).last_hidden_state
    model.add_lora(LORA)
    assert model.config.lora == LORA
    assert_close(model(**processor(CHATS)).last_hidden_state, expected, **EXACT)
    scaling = {
        m.scaling["default"]
        for m in model.modules()
        if hasattr(m, "scaling") and hasattr(m, "lora_A")
    }
    # alpha over rank
    assert scaling == {2.0}


def test_errors(trained, plain):
    with pytest.raises(ValueError, match=r"lora: expected a model without adapters, got \{'rank'"):
        trained[0].add_lora(LORA)
    with pytest.raises(ValueError, match="lora: expected a model with adapters, got one without"):
        plain[0].merge_lora()
    model, _ = build()
    with pytest.raises(ValueError, match="nowhere"):
        model.add_lora(LORA | {"targets": ["nowhere"]})
    assert model.config.lora is None
