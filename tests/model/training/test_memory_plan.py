import pytest
from transformers import LlamaConfig

from helpers.tiny_stage1 import TINY
from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.training.memory_plan import combine, paper_setok, plan, vicuna_7b
from setokim.vlm.modeling_setokim import SetokimModel

H, INNER, LAYERS, V = 32, 64, 2, 50
# Input and output embeddings; attention, MLP and two norms in each layer; and the last norm.
BLOCK = 4 * H * H + 3 * H * INNER + 2 * H
LLM = 2 * V * H + LAYERS * BLOCK + H


@pytest.fixture(scope="module")
def tiny():
    llm = LlamaConfig(
        hidden_size=H,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        vocab_size=V,
    )
    return combine(SetokConfig(**TINY["model"]), llm, head_width=16, head_layers=1)


def only_llm(model):
    model.requires_grad_(False)
    model.llm.requires_grad_(True)


def test_vicuna_and_the_paper():
    found = plan(combine(paper_setok(), vicuna_7b()), 64, 16, 2048)
    assert found.parameters["llm"] == 6_738_415_616
    # Two norms, four projections with biases and the MLP of a layer; patch and position
    # embeddings; last norm; and the pooling head: its query, attention, norm and MLP.
    d, m = 1152, 4304
    attention, mlp = 4 * (d * d + d), 2 * d * m + m + d
    layers = 27 * (attention + mlp + 4 * d)
    assert found.parameters["encoder"] == (
        layers + 3 * 14 * 14 * d + d + 729 * d + 2 * d + (d + attention + 2 * d + mlp)
    )
    assert all(found.parameters.values())


def test_parts_match_a_real_model(tiny):
    found, model = plan(tiny, 1, 2, 16), SetokimModel(tiny)
    assert found.parameters["llm"] == LLM
    assert sum(found.parameters.values()) == sum(p.numel() for p in model.parameters())
    setok = model.setok
    assert found.parameters["detokenizer"] == sum(p.numel() for p in setok.detokenizer.parameters())
    assert found.parameters["encoder"] == 0
    assert found.learning == found.parameters


@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_sums_and_shards(tiny, parallel):
    one, four = (plan(tiny, gpus, 2, 16, parallel, freeze=only_llm) for gpus in (1, 4))
    total = sum(one.parameters.values())
    assert one.learning == {n: LLM * (n == "llm") for n in one.parameters}
    for found, shards in ((one, 1), (four, 4 if parallel == "fsdp" else 1)):
        assert found.total == sum(found.bytes.values())
        assert found.weights == -(-4 * total // shards)
        assert found.moments == 2 * found.averages == 8 * LLM // shards
    buckets = 1 if parallel == "fsdp" else 2
    assert one.gradients == 4 * LLM
    assert four.gradients == (LLM if parallel == "fsdp" else 4 * LLM * buckets)
    assert one.activations == four.activations
    assert plan(tiny, 4, 2, 16, parallel, averages=False).averages == 0


def test_gathered(tiny):
    total = sum(plan(tiny, 4, 2, 16).parameters.values())
    model = SetokimModel(tiny)
    own = sum(
        p.numel() for m in model.modules() if type(m).__name__ == "Block" for p in m.parameters()
    )
    rest = total - own - LAYERS * BLOCK
    trainable = 2 * V * H + H
    for precision, width in (("bf16", 2), ("no", 4)):
        found = plan(tiny, 4, 2, 16, precision=precision, freeze=only_llm)
        assert found.gathered == 2 * (width + 4) * BLOCK + 4 * (rest + trainable)
    assert plan(tiny, 4, 2, 16, "ddp", freeze=only_llm).gathered == 2 * LLM
    assert plan(tiny, 4, 2, 16, "ddp", "no").gathered == 0


def test_activations(tiny):
    logits = 4 * 4 * 32 * (V + 4)
    layer = 10 * H + 4 * INNER
    checkpointed = plan(tiny, 4, 2, 16, freeze=only_llm)
    assert checkpointed.activations == logits + 2 * 32 * (LAYERS * H + layer)
    full = plan(tiny, 4, 2, 16, precision="no", checkpointing=False, freeze=only_llm)
    assert full.activations == logits + 4 * 32 * LAYERS * layer
    # The merger's two layers on 36 patches, the detokenizer's two on 16; width 16, MLP 32.
    trained = plan(tiny, 4, 2, 16, pictures=3)
    visual = 2 * 3 * (36 + 16) * 2 * (10 * 16 + 2 * 32)
    assert trained.activations == checkpointed.activations + 2 * visual


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus": 0}, "gpus: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"length": 0}, "length: expected"),
        ({"parallel": "magic"}, "parallel: expected fsdp or ddp, got 'magic'"),
        ({"precision": "fp8"}, "precision: expected no or bf16, got 'fp8'"),
        ({"optimizer_bytes": -1}, "optimizer_bytes: expected at least 0, got -1"),
        ({"pictures": -1}, "pictures: expected at least 0, got -1"),
    ],
)
def test_bad_arguments(tiny, fields, message):
    with pytest.raises(ValueError, match=message):
        plan(tiny, **{"gpus": 1, "batch_size": 1, "length": 1} | fields)
