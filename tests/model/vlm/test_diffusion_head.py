"""Diffusion head against diffusers and hand-computed values, and training on a toy problem."""

import importlib.util
import math
import sys

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load, save
from torch import nn

from setokim.vlm.diffusion_head import DiffusionHead

TOKEN_DIM, CONDITION_DIM = 6, 5


class Stub(nn.Module):
    """Stub of the denoiser with unchanged conditions and a given function for the clean token."""

    def __init__(self, clean):
        super().__init__()
        self.clean, self.calls = clean, []

    def embed(self, condition):
        return condition

    def forward(self, noisy, timesteps, embedded):
        self.calls.append((noisy, timesteps))
        return self.clean(noisy, embedded)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def make_head(random=False, fit=True, **settings):
    """Build a small head; `random` weights replace the initial ones, which are partly 0."""
    settings = {"width": 16, "layers": 2, "blocks": (2, 4)} | settings
    head = DiffusionHead(TOKEN_DIM, CONDITION_DIM, **settings)
    generator = seeded(3)
    for parameter in head.parameters() if random else ():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    if fit:
        head.fit(3 * normal(50, TOKEN_DIM, seed=9) + 1)
    return head


def test_fit_by_hand():
    head = DiffusionHead(4, 1, width=8, layers=1, blocks=(1, 2, 1))
    head.fit(torch.tensor([[0.0, 0.0, 3.0, 7.0], [2.0, 4.0, 3.0, 7.0]]))
    assert head.mean.tolist() == [1.0, 2.0, 3.0, 7.0]
    # The second block: deviations 2 and 0. The last is constant.
    root = pytest.approx(math.sqrt(2))
    assert head.scale.tolist() == [1.0, root, root, 1.0]


def test_fit_ignores_rounding_in_a_constant_block():
    head = DiffusionHead(2, 1, width=8, layers=1)
    head.fit(torch.full((1001, 2), 0.1))
    assert head.scale.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_and_loss_equal_diffusers(schedule, prediction):
    head = make_head(schedule=schedule, prediction=prediction)
    predicted = normal(2 * 5, TOKEN_DIM, seed=1)
    head.network = stub = Stub(lambda noisy, embedded: predicted)
    tokens = normal(5, TOKEN_DIM, seed=2)
    loss = head.loss(tokens, normal(5, CONDITION_DIM), repeats=2, generator=seeded(2))

    replay = seeded(2)
    timesteps = torch.randint(1000, (2 * 5,), generator=replay)
    noise = torch.randn(2 * 5, TOKEN_DIM, generator=replay)
    ((noisy, called),) = stub.calls
    # The bound of the weight applies at earlier timesteps only.
    assert torch.equal(called, timesteps) and timesteps.min() > 300
    scheduler = DDPMScheduler(1000, beta_schedule=schedule)
    clean = ((tokens - head.mean) / head.scale).repeat(2, 1)
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timesteps))
    signal = scheduler.alphas_cumprod[timesteps, None].double()
    predicted_noise = (noisy.double() - signal.sqrt() * predicted) / (1 - signal).sqrt()  # noise
    if prediction == "epsilon":
        squares = (predicted_noise - noise).square()
    else:
        velocity = scheduler.get_velocity(clean.double(), noise.double(), timesteps)
        found = scheduler.get_velocity(predicted.double(), predicted_noise, timesteps)
        squares = (found - velocity).square()
    # Each block weighs the same.
    expected = sum(part.mean() for part in squares.split(head.blocks, 1)) / len(head.blocks)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_loss_by_hand_at_hardly_any_noise(prediction):
    # The only timestep has a² = 0.9999: v's weight is 10 000, e's 9999, both over the bound of 10.
    head = DiffusionHead(2, 1, 8, 1, steps=1, schedule="linear", prediction=prediction)
    head.fit(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    tokens = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 3.0]])  # mean squares 1, 2, 9
    condition = torch.ones(3, 1)
    assert head.loss(tokens, condition).item() == pytest.approx(10 * 4)
    weight = torch.tensor([3.0, 1.0, 0.0])
    assert head.loss(tokens, condition, weight=weight).item() == pytest.approx(10 * 5 / 4)


def test_noisiest_repeats_are_at_the_last_timestep():
    head = make_head()
    head.network = stub = Stub(lambda noisy, embedded: torch.zeros_like(noisy))
    tokens, condition = normal(5, TOKEN_DIM), normal(5, CONDITION_DIM)
    head.loss(tokens, condition, 3, seeded(2), noisiest=2)
    ((_, called),) = stub.calls
    sampled = torch.randint(1000, (3 * 5,), generator=seeded(2))
    assert called[:10].tolist() == [999] * 10 and torch.equal(called[10:], sampled[10:])


def test_tokens_of_weight_zero_have_no_gradient():
    head = make_head(random=True)
    condition = normal(4, CONDITION_DIM).requires_grad_()
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0])
    head.loss(normal(4, TOKEN_DIM), condition, 2, seeded(), weight).backward()
    assert torch.equal(condition.grad != 0, (weight > 0)[:, None].expand(4, CONDITION_DIM))


@pytest.mark.parametrize("rows", [0, 3])
def test_a_loss_without_weights_depends_on_every_parameter(rows):
    head = make_head(random=True)
    tokens, condition = normal(rows, TOKEN_DIM), normal(rows, CONDITION_DIM).requires_grad_()
    loss = head.loss(tokens, condition, weight=torch.zeros(rows))
    assert loss.shape == () and loss.dtype == torch.float32 and loss.item() == 0
    loss.backward()
    assert condition.grad is not None and not condition.grad.any()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_gradients_reach_conditions_tokens_and_all_parameters():
    head = make_head(random=True)
    tokens = normal(3, TOKEN_DIM, seed=1).requires_grad_()
    condition = normal(3, CONDITION_DIM).requires_grad_()
    head.loss(tokens, condition, generator=seeded()).backward()
    assert tokens.grad.all() and condition.grad.all()
    for name, parameter in head.named_parameters():
        assert parameter.grad.any(), name


def test_a_new_denoiser_is_zero_with_identity_layers():
    network = make_head().network
    noisy, given = normal(3, TOKEN_DIM), normal(3, 16, seed=1)
    assert not network(noisy, torch.arange(3), given).any()
    for layer in network.layers:
        assert torch.equal(layer(given, given), given)


def test_the_denoiser_depends_on_the_timestep():
    network = make_head(random=True).network
    noisy, given = normal(1, TOKEN_DIM), normal(1, 16, seed=1)
    clean = network(noisy.expand(1000, -1), torch.arange(1000), given.expand(1000, -1))
    assert torch.pdist(clean.detach()).min() > 1e-4


def test_a_new_head_samples_the_mean():
    head = make_head()
    sampled = head.sample(normal(3, CONDITION_DIM), steps=10, generator=seeded())
    assert torch.equal(sampled, head.mean.expand(3, TOKEN_DIM))


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_ddim_by_hand(steps):
    head = make_head(steps=20)
    head.network = Stub(lambda noisy, embedded: 0.5 * noisy + 0.1)
    noise = normal(3, TOKEN_DIM)
    sampled = head.sample(torch.zeros(3, CONDITION_DIM), steps=steps, noise=noise, temperature=0.7)

    def bar(time):
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    level, levels = 1.0, [1.0]  # a² before timestep 0, at 0, at 1, ...
    for i in range(20):
        level *= 1 - min(1 - bar((i + 1) / 20) / bar(i / 20), 0.999)
        levels.append(level)
    x = 0.7 * noise.double()
    for i in range(20, 0, -20 // steps):
        now, then = levels[i], levels[i - 20 // steps]
        clean = 0.5 * x + 0.1
        direction = (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
        x = math.sqrt(then) * clean + math.sqrt(1 - then) * direction
    expected = x * head.scale.double() + head.mean.double()
    torch.testing.assert_close(sampled.double(), expected, rtol=1e-4, atol=1e-4)


def test_guidance_by_hand():
    head = DiffusionHead(2, 2, width=8, layers=1)
    head.fit(torch.tensor([[-1.0, 1.0], [3.0, 5.0]]))  # mean 1, 3; scale 2
    head.network = stub = Stub(lambda noisy, embedded: embedded)
    condition, unconditional = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 1.0]])
    # 0.5 + 3 · 0.5 and 1 - 3 · 1, in units of the tokens.
    sampled = head.sample(condition, unconditional, guidance=3.0, steps=2, generator=seeded())
    assert sampled.tolist() == [[1 + 2 * 2.0, 3 + 2 * -2.0]]
    assert head.sample(condition, unconditional, guidance=0.0, steps=2).tolist() == [[2.0, 5.0]]
    stub.calls.clear()
    assert head.sample(condition, unconditional, steps=2).tolist() == [[3.0, 3.0]]
    # Without guidance the unconditional half is not computed.
    assert [len(noisy) for noisy, _ in stub.calls] == [1, 1]


def test_the_prediction_is_added_to_a_base():
    head = DiffusionHead(2, 2, width=8, layers=1)
    head.fit(torch.tensor([[-1.0, 1.0], [3.0, 5.0]]))  # mean 1, 3; scale 2
    tokens, condition = normal(4, 2), normal(4, 2)
    # The loss is 0 where the base is the token: the network predicts 0 before training.
    base = head.normalise(tokens)
    assert head.loss(tokens, condition, base=base).item() == pytest.approx(0, abs=1e-10)
    assert head.loss(tokens, condition).item() > 0.1
    sampled = head.sample(condition, steps=5, base=base)
    torch.testing.assert_close(sampled, tokens)
    head.network = Stub(lambda noisy, embedded: embedded)
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    found = head.sample(one, one, 3.0, steps=2, base=other, unconditional_base=one)
    # Conditional 1, 2; unconditional 2, 0.
    assert found.tolist() == [[1 + 2 * (2 - 3.0), 3 + 2 * (0 + 3 * 2.0)]]
    with pytest.raises(ValueError, match=r"^base: expected a floating-point \(4, 2\), got "):
        head.loss(tokens, condition, base=base[:3])


def test_rows_are_independent_of_their_batch():
    head = make_head(random=True)
    condition, unconditional = normal(5, CONDITION_DIM, seed=1), normal(5, CONDITION_DIM, seed=2)
    noise = normal(5, TOKEN_DIM)
    together = head.sample(condition, unconditional, 2.0, steps=5, noise=noise)
    for i in range(5):
        row = slice(i, i + 1)
        alone = head.sample(condition[row], unconditional[row], 2.0, steps=5, noise=noise[row])
        torch.testing.assert_close(alone, together[row], rtol=1e-5, atol=1e-5)


def test_generators_sample_the_initial_noise():
    head = make_head(random=True)
    condition = normal(3, CONDITION_DIM)
    one = head.sample(condition, steps=5, generator=seeded(4))
    assert torch.equal(one, head.sample(condition, steps=5, noise=normal(3, TOKEN_DIM, seed=4)))
    rows = head.sample(condition, steps=5, generator=[seeded(i) for i in (4, 5, 4)])
    noise = torch.stack([normal(TOKEN_DIM, seed=i) for i in (4, 5, 4)])
    assert torch.equal(rows, head.sample(condition, steps=5, noise=noise))
    assert head.sample(condition[:0], steps=5, generator=[]).shape == (0, TOKEN_DIM)


def test_training_fits_a_point_and_two_modes():
    torch.manual_seed(0)
    head = DiffusionHead(TOKEN_DIM, 2, width=64, layers=2)
    point, mode = normal(TOKEN_DIM, seed=1), normal(TOKEN_DIM, seed=2)
    generator = seeded()

    def sample(count):
        kind = torch.randint(2, (count,), generator=generator)
        sign = torch.randint(2, (count, 1), generator=generator) * 2.0 - 1
        tokens = torch.where(kind[:, None] == 0, point, sign * mode)
        return tokens, nn.functional.one_hot(kind, 2).float()

    head.fit(sample(1000)[0])
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(*sample(32), generator=generator).backward()
        optimizer.step()

    condition = torch.eye(2).repeat_interleave(200, 0)
    points, modes = head.sample(condition, generator=seeded(7)).split(200)
    assert (points - point).norm(dim=1).max() < 0.1
    sides = torch.cdist(modes, torch.stack([mode, -mode])).min(1)
    assert sides.values.quantile(0.95) < 0.25 and 60 <= sides.indices.sum() <= 140


def test_losses_and_samples_are_float32_under_autocast():
    tokens, condition = normal(8, TOKEN_DIM, seed=1), normal(8, CONDITION_DIM)
    exact = make_head(random=True).loss(tokens, condition, generator=seeded())
    head = make_head(random=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head.loss(tokens, condition, generator=seeded())
        sampled = head.sample(condition.bfloat16(), steps=5, generator=seeded())
    assert loss.dtype == sampled.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02) and loss.item() != exact.item()

    # bfloat16 would round this difference away.
    head.network = stub = Stub(lambda noisy, embedded: torch.zeros_like(noisy))
    with torch.autocast("cpu", torch.bfloat16):
        for shift in (0, 1e-4):
            head.loss(tokens + shift, condition, generator=seeded())
    (first, _), (second, _) = stub.calls
    assert first.dtype == torch.float32 and (first != second).float().mean() > 0.95


def test_runs_in_bfloat16():
    head = make_head(random=True).bfloat16()
    loss = head.loss(normal(3, TOKEN_DIM), normal(3, CONDITION_DIM).bfloat16())
    loss.backward()
    sampled = head.sample(normal(3, CONDITION_DIM), steps=5)
    assert loss.dtype == sampled.dtype == torch.float32 and sampled.isfinite().all()


def test_the_state_dict_stores_the_units():
    head, other = make_head(random=True), make_head(fit=False)
    other.load_state_dict(load(save(head.state_dict())))
    condition = normal(2, CONDITION_DIM)
    assert torch.equal(
        other.sample(condition, generator=seeded()), head.sample(condition, generator=seeded())
    )


def test_errors_of_the_settings():
    for name in ("token_dim", "condition_dim", "width", "layers", "steps"):
        settings = {"token_dim": 4, "condition_dim": 4} | {name: 0}
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            DiffusionHead(**settings)
    with pytest.raises(ValueError, match=r"schedule: expected one of .*linear.*, got 'cosine'"):
        make_head(schedule="cosine")
    with pytest.raises(ValueError, match=r"prediction: expected one of .*epsilon.*, got 'sample'"):
        make_head(prediction="sample")
    for blocks in ((), (2, 3), (7, -1)):
        with pytest.raises(ValueError, match=r"blocks: .* sum to token_dim, 6, got \("):
            make_head(blocks=blocks)


def test_errors_of_calls():
    head = make_head(fit=False)
    tokens, condition = normal(3, TOKEN_DIM), normal(3, CONDITION_DIM)
    for call in (lambda: head.loss(tokens, condition), lambda: head.sample(condition)):
        with pytest.raises(RuntimeError, match=r"expected fit\(tokens\) to be called first"):
            call()
    with pytest.raises(ValueError, match="tokens: expected at least one row, got none"):
        head.fit(tokens[:0])
    with pytest.raises(ValueError, match="tokens: expected finite values"):
        head.fit(tokens / 0)
    with pytest.raises(ValueError, match=r"tokens: .*\(S, 6\), got torch.float32 \(3, 5\)"):
        head.fit(condition)
    head.fit(tokens)

    bad = {
        r"tokens: .*\(S, 6\), got torch.int64 \(3, 6\)": (tokens.long(), condition),
        r"tokens: .*\(S, 6\), got torch.float32 \(1, 3, 6\)": (tokens[None], condition),
        r"condition: .*\(3, 5\), got torch.float32 \(2, 5\)": (tokens, condition[:2]),
        "repeats: expected at least 1, got 0": (tokens, condition, 0),
        r"weight: .*\(3,\), got \(3, 1\)": (tokens, condition, 1, None, torch.ones(3, 1)),
        "noisiest: expected 0 to 2, got 3": (tokens, condition, 2, None, None, 3),
        "noisiest: expected 0 to 2, got -1": (tokens, condition, 2, None, None, -1),
    }
    for match, arguments in bad.items():
        with pytest.raises(ValueError, match=match):
            head.loss(*arguments)
    bad = {
        r"condition: .*\(S, 5\), got torch.float32 \(3, 6\)": {"condition": tokens},
        "steps: expected a divisor of 1000, got 30": {"steps": 30},
        "steps: expected a divisor of 1000, got 0": {"steps": 0},
        r"unconditional: .* for guidance 2.0, got None": {"guidance": 2.0},
        r"unconditional: .*\(3, 5\), got torch.float32 \(1, 5\)": {
            "guidance": 2.0,
            "unconditional": condition[:1],
        },
        "noise: expected None beside a generator": {"noise": tokens, "generator": seeded()},
        r"noise: .*\(3, 6\), got torch.float32 \(2, 6\)": {"noise": tokens[:2]},
        "generator: expected one for each of 3 conditions, got 1": {"generator": [seeded()]},
    }
    for match, arguments in bad.items():
        with pytest.raises(ValueError, match=match):
            head.sample(**({"condition": condition} | arguments))


def test_import_needs_no_diffusers(monkeypatch):
    # None lets every import of the package fail.
    monkeypatch.setitem(sys.modules, "diffusers", None)
    spec = importlib.util.find_spec("setokim.vlm.diffusion_head")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
