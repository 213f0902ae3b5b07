import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from setokim.training.losses import (
    adaptive_weight,
    concept_similarity,
    contrastive_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    phrase_loss,
    pixel_loss,
)
from setokim.utils.distributed import (
    gather_with_gradient,
    mean_over_ranks,
    rank,
    sizes_over_ranks,
    world_size,
)


def test_pixel_loss_by_hand():
    image = torch.zeros(1, 3, 1, 2, requires_grad=True)
    target = torch.tensor([0.0, 0.5]).expand(1, 3, 1, 2)
    assert pixel_loss(image, target).item() == pytest.approx(0.25 + 0.125)
    loss = pixel_loss(image, target, l1=2, l2=4)
    assert loss.item() == pytest.approx(2 * 0.25 + 4 * 0.125)
    loss.backward()
    expected = torch.tensor([0.0, (-2 - 4 * 2 * 0.5) / 6]).expand(1, 3, 1, 2)
    torch.testing.assert_close(image.grad, expected)


def test_pixel_loss_errors():
    good = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"image: expected shape .*, got \(1, 1, 2, 2\)"):
        pixel_loss(good[:, :1], good)
    with pytest.raises(ValueError, match=r"image: expected shape .*, got \(0, 3, 2, 2\)"):
        pixel_loss(good[:0], good[:0])
    # A shape that would broadcast.
    with pytest.raises(ValueError, match=r"target: .*\(1, 3, 2, 2\), got \(1, 3, 2, 1\)"):
        pixel_loss(good, good[..., :1])


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 1.0])
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx((2.5 / 3 + 2 / 2) / 2)
    assert hinge_generator_loss(fake).item() == 1.0


def test_adaptive_weight_by_hand():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction = (torch.tensor([3.0, 4.0]) * layer).sum()  # a gradient of length 5
    adversarial = 0.5 * layer[0]
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert weight.item() == pytest.approx(5 / (0.5 + 1e-4)) and not weight.requires_grad
    assert adaptive_weight(reconstruction, 0 * layer.sum(), layer).item() == 1e4
    assert adaptive_weight(reconstruction, adversarial, layer, max_weight=2, eps=0).item() == 2
    # The graphs are retained, and no gradient is added.
    assert layer.grad is None
    (reconstruction + adversarial).backward()
    assert layer.grad.tolist() == [3.5, 4.0]


def test_adaptive_weight_errors():
    layer = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="reconstruction_loss: expected a loss that depends on"):
        adaptive_weight(torch.tensor(1.0), layer.sum(), layer)
    other = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="adversarial_loss: expected a loss that depends on"):
        adaptive_weight(layer.sum(), other.sum(), layer)


def loop_similarity(tokens, occupied, concepts, present):
    """Compute the similarity from its definition, one pair at a time."""
    table = torch.zeros(len(tokens), len(concepts))
    for b in range(len(tokens)):
        for t in range(len(concepts)):
            own, others = tokens[b][occupied[b]], concepts[t][present[t]]
            if len(own) and len(others):
                cosines = F.cosine_similarity(own[:, None], others[None], dim=-1)
                table[b, t] = cosines.max(0).values.mean()
    return table


def sets(batch=4, slots=5, phrases=3, dim=6, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, slots, dim, generator=generator, dtype=dtype)
    concepts = torch.randn(batch, phrases, dim, generator=generator, dtype=dtype)
    occupied = torch.rand(batch, slots, generator=generator) < 0.6
    present = torch.rand(batch, phrases, generator=generator) < 0.6
    occupied[:, 0] = present[:, 0] = True
    return tokens, occupied, concepts, present


def test_similarity_by_hand():
    tokens = torch.tensor([[[2.0, 0.0], [1.0, 1.0], [0.0, 9.0]]])
    occupied = torch.tensor([[True, True, False]])
    concepts = torch.tensor([[[0.0, 3.0], [-1.0, 0.0]]])
    both, one = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    found = concept_similarity(tokens, occupied, concepts.expand(2, 2, 2), torch.cat([both, one]))
    # The diagonal token has the maximum cosine with both concepts.
    half = math.sqrt(0.5)
    torch.testing.assert_close(found, torch.tensor([[(half - half) / 2, half]]))


def test_similarity_matches_its_definition():
    tokens, occupied, concepts, present = sets()
    occupied[1] = False
    present[2] = False
    found = concept_similarity(tokens, occupied, concepts, present)
    torch.testing.assert_close(found, loop_similarity(tokens, occupied, concepts, present))
    assert (found[1] == 0).all() and (found[:, 2] == 0).all() and (found != 0).sum() == 9


def test_similarity_of_padding_has_no_nan_and_no_gradient():
    tokens, occupied, concepts, present = sets()
    occupied[1] = False
    present[2] = False
    tokens[~occupied] = torch.nan
    concepts[~present] = torch.inf
    tokens[0, 0] = 0
    tokens.requires_grad_()
    concepts.requires_grad_()
    concept_similarity(tokens, occupied, concepts, present).sum().backward()
    for vectors, real in ((tokens, occupied), (concepts, present)):
        assert vectors.grad.isfinite().all() and (vectors.grad[~real] == 0).all()
        assert vectors.grad.abs().sum() > 0


@pytest.mark.parametrize(("slots", "phrases"), [(0, 3), (5, 0)])
def test_similarity_without_slots_is_zero(slots, phrases):
    tokens, concepts = torch.ones(2, slots, 4), torch.ones(3, phrases, 4)
    found = concept_similarity(
        tokens, torch.ones(2, slots).bool(), concepts, torch.ones(3, phrases).bool()
    )
    assert torch.equal(found, torch.zeros(2, 3))


def test_similarity_is_precise_under_autocast():
    arguments = sets()
    with torch.autocast("cpu", torch.bfloat16):
        found = concept_similarity(*arguments)
    assert found.dtype == torch.float32 and torch.equal(found, concept_similarity(*arguments))


def test_similarity_gradient():
    tokens, occupied, concepts, present = sets(batch=2, slots=3, phrases=2, dtype=torch.float64)
    tokens.requires_grad_()
    concepts.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: concept_similarity(a, occupied, b, present), (tokens, concepts)
    )


def test_contrastive_loss_matches_its_definition():
    tokens, occupied, concepts, present = sets()
    log_scale = torch.tensor(1.3)
    logits = math.exp(1.3) * loop_similarity(tokens, occupied, concepts, present)
    rows = -logits.log_softmax(1).diagonal().mean()
    columns = -logits.log_softmax(0).diagonal().mean()
    loss = contrastive_loss(tokens, occupied, concepts, present, log_scale)
    torch.testing.assert_close(loss, (rows + columns) / 2)


def test_equal_captions_are_negatives_of_each_other():
    tokens, occupied, concepts, present = sets(batch=2)
    tokens[1], occupied[1], concepts[1], present[1] = tokens[0], occupied[0], concepts[0], True
    present[0] = True
    loss = contrastive_loss(tokens, occupied, concepts, present, torch.tensor(4.0))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)


def test_contrastive_errors():
    tokens, occupied, concepts, present = sets(batch=2)
    scale = torch.tensor(0.0)
    for bad, message in [
        ((tokens[0], occupied, concepts, present), r"tokens: expected .*, got \(5, 6\)"),
        ((tokens, occupied[:, 1:], concepts, present), r"occupied: expected \(2, 5\) bool"),
        ((tokens, occupied.int(), concepts, present), r"occupied: .*, got \(2, 5\) torch.int32"),
        ((tokens, occupied, concepts, present[:1]), r"present: expected \(2, 3\) bool"),
        ((tokens, occupied, concepts[..., 1:], present), "concepts: .* tokens, 6, got 5"),
        ((tokens, occupied, concepts[1:], present[1:]), "concepts: .* per image, 2, got 1"),
        ((tokens[:0], occupied[:0], concepts[:0], present[:0]), "tokens: .* one image, got none"),
    ]:
        with pytest.raises(ValueError, match=message):
            contrastive_loss(*bad, scale)


def test_one_process_without_torch_distributed():
    x = torch.ones(2, 3)
    assert (world_size(), rank()) == (1, 0)
    assert gather_with_gradient(x) is x
    assert torch.equal(mean_over_ranks(x), x) and mean_over_ranks(x) is not x
    assert sizes_over_ranks((3, 4), x.device) == [(3, 4)]
    with pytest.raises(ValueError, match="x: expected at least one dimension, got a scalar"):
        gather_with_gradient(x.sum())
    with pytest.raises(TypeError, match=r"x: expected a floating-point dtype, got torch.int64"):
        mean_over_ranks(torch.ones(2, dtype=torch.int64))


# Each process has a slice of the samples; the second one has fewer slots and more phrases.
TWO_PROCESSES = """
import sys
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from setokim.utils.distributed import gather_with_gradient, rank, world_size
from setokim.training.losses import adaptive_weight, contrastive_loss
torch.set_num_threads(1)
folder, own = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=own, world_size=2)
assert (world_size(), rank()) == (2, own)
data = load_file(f"{folder}/data.safetensors")
part = slice(2 * own, 2 * own + 2)
tokens = data["tokens"][part, :5 - own].clone().requires_grad_()
concepts = data["concepts"][part, :2 + own].clone().requires_grad_()
log_scale = torch.tensor(1.3, requires_grad=True)
loss = contrastive_loss(tokens, data["occupied"][part, :5 - own], concepts,
                        data["present"][part, :2 + own], log_scale)
loss.backward()
layer = torch.ones(6, requires_grad=True)
weight = adaptive_weight((tokens.detach()[:, 0] @ layer).square().mean(),
                         (concepts.detach()[:, 0] @ layer).square().mean(), layer)
x = torch.tensor([[1.0 + own]], requires_grad=True)
gathered = gather_with_gradient(x)
((1 + 9 * own) * gathered.squeeze() @ torch.tensor([1.0, 2.0])).backward()
try:
    contrastive_loss(tokens[own:], torch.ones(2 - own, 5 - own).bool(), concepts[own:],
                     torch.ones(2 - own, 2 + own).bool(), log_scale)
except ValueError as error:
    assert str(error) == "tokens: expected as many images on every rank, got [2, 1]", error
else:
    raise AssertionError("no error")
save_file({"loss": loss.detach(), "tokens": tokens.grad, "concepts": concepts.grad,
           "log_scale": log_scale.grad, "weight": weight, "gathered": gathered.detach(),
           "x": x.grad}, f"{folder}/{own}.safetensors")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_match_one(tmp_path):
    tokens, occupied, concepts, present = sets()
    occupied[2:, 4] = False
    present[:2, 2] = False
    data = {"tokens": tokens, "occupied": occupied, "concepts": concepts, "present": present}
    save_file(data, tmp_path / "data.safetensors")
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)
    ]
    for process in processes:
        _, error = process.communicate()
        assert process.returncode == 0, error
    first, second = (load_file(tmp_path / f"{i}.safetensors") for i in range(2))

    tokens.requires_grad_()
    concepts.requires_grad_()
    log_scale = torch.tensor(1.3, requires_grad=True)
    loss = contrastive_loss(tokens, occupied, concepts, present, log_scale)
    loss.backward()
    layer = torch.ones(6, requires_grad=True)
    weight = adaptive_weight(
        (tokens.detach()[:, 0] @ layer).square().mean(),
        (concepts.detach()[:, 0] @ layer).square().mean(),
        layer,
    )

    def close(a, b):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)

    assert abs(first["loss"] - second["loss"]) > 1e-3
    close((first["loss"] + second["loss"]) / 2, loss.detach())
    close((first["log_scale"] + second["log_scale"]) / 2, log_scale.grad)
    for own, (slots, phrases) in ((first, (5, 2)), (second, (4, 3))):
        part = slice(0, 2) if own is first else slice(2, 4)
        # DDP divides the sum over the ranks by their number.
        close(own["tokens"] / 2, tokens.grad[part, :slots])
        close(own["concepts"] / 2, concepts.grad[part, :phrases])
        close(own["weight"], weight)
        assert own["gathered"].tolist() == [[1.0], [2.0]]
    # Each x is in both losses, with the factors 1 and 10, at its own position.
    assert (first["x"].item(), second["x"].item()) == (11.0, 22.0)


def test_the_loss_of_phrases_by_loop():
    torch.manual_seed(0)
    tokens, phrases = torch.randn(3, 4, 5), torch.randn(6, 5)
    occupied = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    own = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]).bool()
    log_scale = torch.tensor(1.5)
    expected = []
    for image in range(3):
        scores = []
        for phrase in phrases:
            cosines = [
                float(F.cosine_similarity(token, phrase, dim=0))
                for token, real in zip(tokens[image], occupied[image], strict=True)
                if real
            ]
            scores.append(math.exp(1.5) * max(cosines, default=0.0))
        others = sum(math.exp(s) for s, o in zip(scores, own[image], strict=True) if not o)
        expected += [
            math.log(1 + others / math.exp(s)) for s, o in zip(scores, own[image], strict=True) if o
        ]
    found = phrase_loss(tokens, occupied, phrases, own, log_scale)
    assert float(found) == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert phrase_loss(tokens, occupied, phrases[:0], own[:, :0], log_scale) == 0


def test_padding_has_no_influence_on_the_loss_of_phrases():
    tokens = torch.randn(1, 2, 5, requires_grad=True)
    occupied = torch.tensor([[True, False]])
    own = torch.tensor([[True, False]])
    with torch.no_grad():
        tokens[0, 1] = torch.nan
    loss = phrase_loss(tokens, occupied, torch.randn(2, 5), own, torch.tensor(0.0))
    loss.backward()
    assert loss.isfinite() and tokens.grad[0, 0].any() and not tokens.grad[0, 1].any()
