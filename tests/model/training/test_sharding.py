import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.tiny_stage1 import change_settings, losses_of, run_in_processes, tiny_settings
from setokim.training import load_checkpoint
from setokim.training.schedule import EMA
from setokim.training.sharding import Sharded
from setokim.training.state import TrainingState
from setokim.training.trainer import Trainer

SETTINGS = ("steps=5", "accumulation=2", "losses.adversarial=0", "every.checkpoint=3", "keep=9")
# Parameters without dimensions are trained too.
SETTINGS += ("every.evaluation=2", "every.pictures=4", "model.learnable=[bandwidth, temperature]")


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def gloo():
    """Process group of this process only."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Block(nn.Module):
    _no_split_modules = ("Block",)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x)


class Model(nn.Module):
    """Language model with tied embeddings, a block of this file, a scalar and a buffer."""

    def __init__(self):
        super().__init__()
        config = LlamaConfig(
            vocab_size=12,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
        self.llm = LlamaForCausalLM(config)
        self.block = Block()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("mean", torch.arange(8.0))
        self.block.linear.bias.requires_grad_(False)

    def forward(self, ids):
        hidden = self.block(self.llm.get_input_embeddings()(ids) - self.mean)
        return self.scale * self.llm(inputs_embeds=hidden).logits


def make():
    torch.manual_seed(0)
    return Model()


IDS = torch.tensor([[1, 5, 2], [7, 0, 11]])


def test_one_process_computes_the_same(gloo):
    plain, model = make(), make()
    sharded = Sharded(model, "no")
    assert all(isinstance(p, DTensor) == (p.dim() > 0) for p in model.parameters())
    parts = {name for name, part in model.named_modules() if isinstance(part, FSDPModule)}
    assert parts == {"", "block", "llm.model.layers.0", "llm.model.layers.1"}
    for module in (plain, model):
        module(IDS).square().mean().backward()
    sharded.reduce()
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == (name == "block.linear.bias")
        if a.grad is not None:
            full = b.grad.full_tensor() if a.dim() else b.grad
            torch.testing.assert_close(full, a.grad, rtol=1e-5, atol=1e-7)


def test_gathered_is_a_plain_module_with_the_averages(gloo):
    plain, model = make(), make()
    sharded = Sharded(model, "no")
    ema = EMA(model, 0.5)
    with torch.no_grad():
        for module in (plain, model):
            for parameter in module.parameters():
                parameter.mul_(3)
            module.mean.add_(1)
    # The first update has a decay of 1 / 10 at most.
    ema.update(model)
    with torch.no_grad():
        for parameter, first in zip(plain.parameters(), make().parameters(), strict=True):
            if parameter.requires_grad:
                parameter.copy_(first * 0.1 + parameter * 0.9)
        for _ in range(2):
            with sharded.gathered(ema.averages) as gathered:
                assert type(gathered) is Model and type(gathered.llm) is LlamaForCausalLM
                assert not any(isinstance(p, DTensor) for p in gathered.parameters())
                assert gathered.llm.lm_head.weight is gathered.llm.get_input_embeddings().weight
                pairs = zip(plain.named_parameters(), gathered.named_parameters(), strict=True)
                for (name, a), (other, b) in pairs:
                    assert name == other and a.requires_grad == b.requires_grad
                    torch.testing.assert_close(a, b)
                torch.testing.assert_close(gathered(IDS), plain(IDS))
    assert isinstance(model.block.linear.weight, DTensor)


def test_half_precision_within_blocks_of_hugging_face(gloo):
    model = make()
    Sharded(model, "bf16")
    dtypes = {}

    def record(name):
        def hook(module, arguments, output):
            dtypes[name] = module.weight.dtype, arguments[0].dtype

        return hook

    layer = model.llm.model.layers[0].mlp.gate_proj
    layer.register_forward_hook(record("transformers"))
    model.block.linear.register_forward_hook(record("this file"))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(IDS).float().square().mean()
    loss.backward()
    assert dtypes == {
        "transformers": (torch.bfloat16, torch.bfloat16),
        "this file": (torch.float32, torch.float32),
    }
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.full_tensor().any()
    with torch.no_grad():
        reference = make()(IDS).square().mean()
    assert loss.item() == pytest.approx(reference.item(), rel=0.03)


def test_a_state_is_restored(tmp_path, gloo):
    """Moments and averages included, into a sharded and an unsharded module."""

    class Nothing:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            assert state == {}

    class Alone:
        num_processes, process_index, is_main_process = 1, 0, True

        def wait_for_everyone(self):
            pass

    def parts(shard):
        model = make()
        if shard:
            Sharded(model, "no")
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.1)
        state = TrainingState(Alone(), {"m": model}, {"m": optimizer}, EMA(model, 0.5), Nothing())
        return model, optimizer, state

    def step(model, optimizer, state):
        model(IDS).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        state.ema.update(model)
        full = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
        return torch.cat([p.detach().flatten() for p in full])

    settings = tiny_settings(tmp_path)
    first = parts(True)
    step(*first)
    first[2].save(tmp_path / "out", 1, settings)
    expected = step(*first)
    expected_average = first[2].ema.averages["scale"].clone()
    for shard in (True, False):
        again = parts(shard)
        assert again[2].restore(tmp_path / "out" / "checkpoint-00000001", settings) == 1
        torch.testing.assert_close(step(*again), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again[2].ema.averages["scale"], expected_average)


@pytest.mark.slow
def test_two_processes_match_one_and_resume_as_one(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    sharded = (*SETTINGS, "batch_size=2", "parallel=fsdp")
    done = run_in_processes(tmp_path, two, *sharded, world=2)
    assert done.returncode == 0, done.stderr
    assert "process 1, data: all 20 samples tried could be read" in done.stdout
    alone = Trainer(tiny_settings(tmp_path, *SETTINGS, "batch_size=4"), one)
    alone.train()

    def assert_alike(a, b, steps):
        for x, y in zip(losses_of(a)[-steps:], losses_of(b)[-steps:], strict=True):
            assert x == pytest.approx(y, rel=1e-5)

    assert_alike(two, one, 5)
    metrics = [json.loads((out / "metrics.json").read_text()) for out in (two, one)]
    for name in ("psnr", "sharpness", "fg_ari", "recall_at_1"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-4)
    assert (two / "pictures" / "step-00000004.png").exists()
    averages = load_checkpoint(two / "checkpoint-00000005")[0]
    exported = {f"setok.{n}": t for n, t in load_file(two / "model/model.safetensors").items()}
    exported |= load_file(two / "model/text.safetensors")
    for name, value in exported.items():
        assert torch.equal(value, averages[f"ema.average.{name}"]), name

    # Each process has written about half of weights, moments and averages, and no other files.
    files = sorted((two / "checkpoint-00000003").iterdir())
    assert [f.name for f in files[:2]] == ["SHA256SUMS", "state.json"]
    assert [f.name for f in files[2:]] == [f"tensors-0000{i}-of-00002.safetensors" for i in (0, 1)]
    sizes = [sum(t.numel() for t in load_file(f).values()) for f in files[2:]]
    assert 0.4 < sizes[1] / sum(sizes) < 0.5
    a, b = (load_checkpoint(out / "checkpoint-00000003")[0] for out in (two, one))
    assert {n for n in a if not n.startswith("processes")} == {
        n for n in b if not n.startswith("processes")
    }

    # One process resumes from the shards of two, and two resume from the file of one.
    settings = {"one-from-two": two, "two-from-one": one}
    for name, source in settings.items():
        shutil.copytree(source / "checkpoint-00000003", tmp_path / name / "checkpoint-00000003")
        # With the number of processes the batch of each changes.
        batch_size = 4 if name == "one-from-two" else 2
        change_settings(tmp_path / name / "checkpoint-00000003", batch_size=batch_size)
    resumed = Trainer(
        tiny_settings(tmp_path, *SETTINGS, "batch_size=4", "parallel=fsdp"),
        tmp_path / "one-from-two",
        resume=True,
    )
    assert resumed.step == 3 and resumed.sharded is None
    resumed.train()
    assert_alike(tmp_path / "one-from-two", one, 2)
    done = run_in_processes(tmp_path, tmp_path / "two-from-one", *sharded, world=2, resume=True)
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "two-from-one", one, 2)
    assert math.isfinite(losses_of(tmp_path / "two-from-one")[-1]["gradient_norm"])
