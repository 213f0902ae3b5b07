"""Token codes: units, sampling, errors and training on tokens alone."""

import pytest
import torch
from torch.testing import assert_close

from setokim.tokenizer.shapelets import POSE
from setokim.tokenizer.token_codes import TokenCodes, kl_to_normal
from setokim.tokenizer.token_statistics import token_blocks
from setokim.training.codes.fit import fit_codes
from setokim.training.codes.settings import CodeFitSettings

TOKEN_DIM, OUTLINE_DIM, CODE_DIM = 24, 9, 3


def examples(number):
    """Tokens on a surface of two dimensions, with shapes of unit length."""
    generator = torch.Generator().manual_seed(3)
    place = torch.randn(number, 2, generator=generator)
    tokens = torch.tanh(place @ torch.randn(2, TOKEN_DIM, generator=generator)) + 0.5
    shape = tokens[:, -(OUTLINE_DIM - POSE) :]
    return torch.cat([tokens[:, : -shape.shape[1]], torch.nn.functional.normalize(shape, dim=1)], 1)


@pytest.fixture
def codes():
    torch.manual_seed(0)
    codes = TokenCodes(TOKEN_DIM, OUTLINE_DIM, CODE_DIM, 32)
    codes.fit(examples(64))
    return codes


def test_decoded_tokens_have_shapes_of_unit_length(codes):
    decoded = codes.decode(torch.randn(2, 5, CODE_DIM))
    assert decoded.shape == (2, 5, TOKEN_DIM)
    assert_close(decoded[..., -(OUTLINE_DIM - POSE) :].norm(dim=-1), torch.ones(2, 5))
    mean, log_variance = codes.encode(examples(4))
    assert mean.shape == log_variance.shape == (4, CODE_DIM)
    assert_close(codes.recode(examples(4)), codes.decode(mean))


def test_samples_have_mean_and_variance_of_the_code(codes):
    torch.manual_seed(1)
    token = examples(1).expand(20_000, -1)
    sampled, mean, log_variance = codes.sample(token)
    assert_close(sampled.mean(0), mean[0], rtol=0, atol=0.03)
    assert_close(sampled.var(0), log_variance[0].exp(), rtol=0.05, atol=0)
    assert not torch.equal(codes.recode(token[:2], sample=True)[0], codes.recode(token[:1])[0])


def test_the_divergence_is_that_of_torch():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(7, 4), torch.randn(7, 4)
    one = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros(7, 4), torch.ones(7, 4))
    expected = torch.distributions.kl_divergence(one, standard).sum(1)
    assert_close(kl_to_normal(mean, log_variance), expected)


def test_blocks_of_a_token_error(codes):
    token = examples(1)
    content, centre, scale, shape = (part.clone() for part in token.split(codes.blocks, 1))
    scales = [part[0] for part in codes.scale.split(codes.blocks)]
    for moved, unit, weight in (
        ((content + scales[0], centre, scale, shape), 0, 1.0),
        ((content, centre + scales[1], scale, shape), 1, 4.0),
        ((content, centre, scale + scales[2], shape), 2, 4.0),
        ((content, centre, scale, shape + scales[3]), 3, 3.0),
    ):
        error = codes.token_error(torch.cat(moved, 1), token, (1.0, 4.0, 4.0, 3.0))
        assert_close(error, torch.tensor([weight]), rtol=1e-4, atol=1e-4), unit


def test_training_on_tokens_is_the_same_each_time_and_uses_no_global_random_numbers():
    settings = CodeFitSettings(steps=200, batch_size=32, lr=3e-3, kl=1e-4)
    errors, weights = [], []
    for _ in range(2):
        torch.manual_seed(0)
        codes = TokenCodes(TOKEN_DIM, OUTLINE_DIM, CODE_DIM, 32)
        state = torch.get_rng_state()
        errors.append(fit_codes(codes, examples(200), settings, (1.0, 4.0, 4.0, 3.0)))
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(codes.decoder[0].weight.detach().clone())
        assert all(p.grad is None for p in codes.parameters())
    assert errors[0] == errors[1] and torch.equal(*weights)
    # An untrained decoder has an error of the sum of the blocks' weights, 12, or more.
    assert errors[0] < 3


def test_codes_must_be_fitted():
    codes = TokenCodes(TOKEN_DIM, OUTLINE_DIM, CODE_DIM, 8)
    assert codes.blocks == token_blocks(TOKEN_DIM, OUTLINE_DIM)
    for call in (lambda: codes.encode(examples(2)), lambda: codes.decode(torch.zeros(2, 3))):
        with pytest.raises(RuntimeError, match=r"TokenCodes: expected fit\(tokens\)"):
            call()
