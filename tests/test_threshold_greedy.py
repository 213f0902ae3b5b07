"""threshold_greedy: against the oracle, the reference and float64; what the threshold means."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import setok_kernels as sk
from helpers import hard_oracle
from helpers.strategies import exact_directions, real_tokens, thresholds, token_masks
from setok_kernels import testing

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")


def judge(backend, x, threshold, exact=False, token_mask=None, cu_seqlens=None):
    """Runs `backend`, and every comparison that fits."""
    arguments = dict(token_mask=token_mask, cu_seqlens=cu_seqlens)
    out = sk.threshold_greedy(x, threshold, **arguments, backend=backend)
    testing.assert_valid_threshold_greedy(x, out, threshold, token_mask)
    if exact:
        expected = sk.threshold_greedy(x, threshold, **arguments, backend="reference")
        testing.assert_same_hard_clusters(out, expected)
    return out


def assert_equals_oracle(x, out, threshold, mask):
    for b in range(x.shape[0]):
        position = mask[b].nonzero()[:, 0].tolist()
        expected = hard_oracle.threshold_greedy(x[b, mask[b]].tolist(), threshold)
        count = len(expected["centres"])
        assert out.counts[b] == count
        assert out.centres[b, :count].tolist() == [position[c] for c in expected["centres"]]
        assert (out.centres[b, count:] == -1).all() and (out.labels[b, ~mask[b]] == -1).all()
        assert out.labels[b, mask[b]].tolist() == expected["labels"]


@settings(max_examples=300)
@given(exact_directions(), thresholds, st.data())
def test_reference_equals_oracle(x, threshold, data):
    mask = data.draw(token_masks(x))
    out = sk.threshold_greedy(x, threshold, mask, backend="reference")
    assert_equals_oracle(x, out, threshold, mask)


@pytest.mark.parametrize("threshold", [-0.3, 0.0, 0.31, 0.6, 0.9, 0.99])
def test_reference_equals_oracle_on_real_numbers(threshold):
    x, _ = testing.planted_clusters(3, 16, 5, 4, seed=1, noise=0.4, dtype=torch.float64)
    out = sk.threshold_greedy(x, threshold, backend="reference")
    assert_equals_oracle(x, out, threshold, torch.ones(3, 16, dtype=torch.bool))


def test_oracle_by_hand():
    """Directions of 0, 53, 90 and 180 degrees: keeps the oracle itself honest."""
    tokens = [[2.0, 0.0], [3.0, 4.0], [0.0, 1.0], [-5.0, 0.0], [0.0, 0.0]]
    # Cosines: 0-1 0.6, 1-2 0.8, 0-2 0, 2-3 0, 1-3 -0.6, 0-3 -1.
    for threshold, centres, labels in [
        (0.5, [1, 3, 4], [0, 0, 0, 1, 2]),
        (0.7, [0, 1, 3, 4], [0, 1, 1, 2, 3]),
        (0.8, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (-0.1, [2], [0, 0, 0, 0, 0]),
    ]:
        result = hard_oracle.threshold_greedy(tokens, threshold)
        assert result == dict(centres=centres, labels=labels), threshold


@settings(max_examples=80)
@given(exact_directions(torch.float32), thresholds, st.data())
def test_exact_input_is_bit_equal_to_the_reference(backend, x, threshold, data):
    judge(backend, x, threshold, exact=True, token_mask=data.draw(token_masks(x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=40)
@given(data=st.data(), threshold=st.floats(-1.1, 1.1))
def test_real_input_is_valid(backend, dtype, data, threshold):
    judge(backend, data.draw(real_tokens(dtype)), threshold)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=4),
    dim=st.sampled_from([1, 3, 17]),
    seed=st.integers(0, 999),
    threshold=st.floats(-0.9, 0.99),
)
def test_ragged_batches(backend, lengths, dim, seed, threshold):
    packed, cu_seqlens, padded, mask = testing.ragged_batch(lengths, dim, seed)
    judge(backend, packed, threshold, cu_seqlens=cu_seqlens)
    judge(backend, padded, threshold, token_mask=mask)


@pytest.mark.parametrize("tokens, dim", [(300, 24), (729, 64), (1025, 7)])
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_larger_images(backend, tokens, dim, threshold):
    x = testing.planted_clusters(2, tokens, dim, 40, seed=3, noise=0.4)[0]
    mask = torch.rand(2, tokens, generator=torch.Generator().manual_seed(0)) < 0.9
    out = judge(backend, x, threshold, token_mask=mask)
    assert (out.counts > 1).all() and (out.counts < mask.sum(1)).all()


@settings(max_examples=60)
@given(exact_directions(torch.float32), thresholds, st.integers(0, 2**16))
def test_powers_of_two_change_nothing(backend, x, threshold, seed):
    """Each token by its own, within the range of the dtype."""
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.randint(-60, 60, (*x.shape[:2], 1), generator=generator)
    out = sk.threshold_greedy(x, threshold, backend=backend)
    scaled = sk.threshold_greedy(x * 2.0**exponent, threshold, backend=backend)
    testing.assert_same_hard_clusters(scaled, out)


@settings(max_examples=40)
@given(real_tokens(), st.floats(-0.9, 0.99), st.integers(-60, 60))
def test_powers_of_two_change_no_label_of_real_tokens(backend, x, threshold, exponent):
    out = sk.threshold_greedy(x, threshold, backend=backend)
    scaled = sk.threshold_greedy(x * 2.0**exponent, threshold, backend=backend)
    testing.assert_same_hard_clusters(scaled, out)


@settings(max_examples=60)
@given(exact_directions(torch.float32), thresholds, st.integers(0, 2**16))
def test_permuted_tokens_are_judged_the_same(backend, x, threshold, seed):
    """The claims move with the tokens but for ties, which the oracle breaks anew."""
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    moved = sk.threshold_greedy(x[:, order], threshold, backend=backend)
    every = torch.ones(x.shape[:2], dtype=torch.bool)
    assert_equals_oracle(x[:, order], moved, threshold, every)


def test_permuting_tokens_permutes_the_result(backend):
    """Blobs of different sizes: no two centres are tied."""
    generator = torch.Generator().manual_seed(0)
    x = torch.eye(5)[torch.tensor([0] * 7 + [1] * 5 + [2] * 4 + [3] * 2 + [4])]
    order = torch.randperm(19, generator=generator)
    moved = sk.threshold_greedy(x[order][None], 0.5, backend=backend)
    out = sk.threshold_greedy(x[None], 0.5, backend=backend)
    assert out.centres[0, :5].tolist() == [0, 7, 12, 16, 18] and moved.counts.item() == 5
    assert (testing.pair_agreement(moved.labels, out.labels[:, order]) == 1).all()


@pytest.mark.parametrize("threshold", [1, 1.0, 1.5, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_from_one_on_every_token_is_a_centre(backend, threshold, dtype):
    """Equal tokens too, though the products of their directions may round to more than 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 37, generator=generator).to(dtype).repeat(1, 5, 1)
    out = judge(backend, x, threshold)
    assert out.counts.tolist() == [35, 35]
    assert torch.equal(out.centres, torch.arange(35).expand(2, -1))
    assert torch.equal(out.labels, out.centres)


def test_nothing_above_the_threshold(backend):
    x = torch.eye(6)[None]
    out = judge(backend, x, 0.5, exact=True)
    assert out.counts.item() == 6 and out.labels.tolist() == [list(range(6))]
    assert judge(backend, x, 0.0, exact=True).counts.item() == 6, "equal is not above"


@pytest.mark.parametrize("threshold", [-1.5, -0.001])
def test_everything_above_the_threshold(backend, threshold):
    out = judge(backend, torch.eye(6)[None], threshold, exact=True)
    assert out.counts.item() == 1 and out.centres[0, 0] == 0 and (out.labels == 0).all()


def test_zero_vectors_are_alone(backend):
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]])
    out = judge(backend, x, 0.3, exact=True)
    assert out.centres[0].tolist() == [0, 1, 2, -1] and out.labels[0].tolist() == [0, 1, 2, 1]
    alone = judge(backend, torch.zeros(1, 4, 2), 0.3, exact=True)
    assert alone.counts.item() == 4


def test_a_token_moves_to_a_more_similar_centre(backend):
    """Claimed by the first centre, but nearer to the second."""
    # Within 30 degrees those at 0 see nine, themselves included; token 8, at 28, sees six.
    degrees = torch.tensor([0.0, 0.1, 0.2, *[-20.0] * 5, 28.0, 50.0, 50.1], dtype=torch.float64)
    x = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], 1)[None].float()
    out = judge(backend, x, 0.5 * 3**0.5)
    assert out.centres[0, :3].tolist() == [0, 9, -1]
    assert out.labels[0].tolist() == [0] * 8 + [1] * 3


def test_equal_tokens(backend):
    for value in (0.1, 3.7e8, -1e-20):
        out = judge(backend, torch.full((2, 7, 5), value), 0.9)
        assert out.counts.tolist() == [1, 1] and (out.labels == 0).all()
        assert out.centres[:, 0].tolist() == [0, 0]


def test_one_token(backend):
    for token in (torch.ones(1, 1, 3), torch.zeros(1, 1, 3)):
        out = judge(backend, token, 0.5, exact=True)
        assert out.centres.tolist() == [[0]] and out.labels.tolist() == [[0]]


@pytest.mark.parametrize("magnitude", [1e-38, 1e-30, 1e30, 1e38])
def test_huge_and_tiny_tokens(backend, magnitude):
    x = testing.planted_clusters(2, 20, 6, 3, noise=0.2)[0].clamp(-3, 3) * magnitude
    out = judge(backend, x, 0.7)
    assert (out.counts < 20).all()


def test_mixed_magnitudes(backend):
    """Tokens of one direction are of one cluster, however long they are."""
    x = torch.tensor([1.0, 2.0, -2.0]) * torch.tensor([1e-37, 1.0, 1e37, 0.0])[:, None]
    out = judge(backend, x[None], 0.9)
    assert out.centres[0].tolist() == [0, 3, -1, -1] and out.labels[0].tolist() == [0, 0, 0, 1]


X = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    "threshold, error, match",
    [
        (float("nan"), ValueError, r"threshold: expected a finite number, got nan"),
        (float("inf"), ValueError, r"threshold: expected a finite number, got inf"),
        (None, TypeError, r"threshold: expected a real number, got None"),
        (True, TypeError, r"threshold: expected a real number, got True"),
        (torch.tensor(0.5), TypeError, r"threshold: expected a real number, got tensor"),
    ],
)
def test_errors(threshold, error, match):
    with pytest.raises(error, match=match):
        sk.threshold_greedy(X, threshold)
