import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from setokim.evaluation import metrics


def test_psnr_of_known_differences():
    target = torch.zeros(3, 1, 2, 2)
    image = target.clone()
    image[0] = 0.1  # mean square 0.01
    image[1, 0, 0, 0] = 0.2  # 0.04 / 4 = 0.01
    out = metrics.psnr(image, target)
    assert out.dtype == torch.float64 and out.shape == (3,)
    assert out[:2].tolist() == pytest.approx([20, 20], abs=1e-5)
    assert out[2] == math.inf
    # Unsigned differences do not wrap: 10² of 255² are 28.13 dB.
    low, high = torch.full((1, 4), 10, dtype=torch.uint8), torch.full((1, 4), 20, dtype=torch.uint8)
    for pair in ((low, high), (high, low)):
        assert metrics.psnr(*pair, peak=255).item() == pytest.approx(28.1308036, abs=1e-6)


def test_sharpness_by_hand():
    # An edge of height 1 between two rows of four, against one of half the height, and a flat one.
    target = torch.zeros(3, 1, 4, 4)
    target[:, :, 2:] = 1.0
    image = target * torch.tensor([1.0, 0.5, 0.0]).reshape(3, 1, 1, 1)
    assert metrics.sharpness(image, target).tolist() == [1.0, 0.5, 0.0]
    # A blurred edge has the same sum of steps; noise adds to it.
    noisy = target.clone()
    noisy[0, 0, 0, 0] = 0.25  # two more steps of a quarter over four of 1
    assert metrics.sharpness(noisy, target)[0].item() == 1.125
    assert metrics.sharpness(target, torch.zeros_like(target)).isinf().all()
    with pytest.raises(ValueError, match="image: expected shape"):
        metrics.sharpness(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))


def test_ari_by_hand():
    # Contingency [[2, 1], [0, 1]]: index 1, A = 3, B = 2, C(4) = 6, expected 1.
    labels, truth = torch.tensor([[0, 0, 0, 1]]), torch.tensor([[5, 5, 7, 7]])
    assert metrics.adjusted_rand_index(labels, truth).tolist() == [0.0]
    # [[1, 1], [1, 1]]: index 0, A = B = 2, expected 4 / 6: below chance.
    labels, truth = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 0, 1]])
    assert metrics.adjusted_rand_index(labels, truth).item() == pytest.approx(-0.5, abs=1e-15)
    # [[2, 0], [1, 3]]: index 1 + 3 = 4, A = 1 + 6, B = 3 + 3, C(6) = 15, expected 2.8.
    labels, truth = torch.tensor([[0, 0, 1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 1, 1, 1]])
    out = metrics.adjusted_rand_index(labels, truth).item()
    assert out == pytest.approx((4 - 2.8) / (6.5 - 2.8), abs=1e-15)


@pytest.mark.parametrize("groups", [(1, 4), (2, 2), (5, 3), (40, 40), (1, 1)])
def test_ari_is_that_of_scikit_learn(groups):
    generator = np.random.default_rng(sum(groups))
    labels = generator.integers(0, groups[0], (6, 5, 8)) - 3
    truth = generator.integers(0, groups[1], (6, 5, 8))
    labels[0] = truth[0]
    labels[1] = -truth[1]
    labels[2] = np.arange(40).reshape(5, 8)
    truth[3] = labels[3] // 2
    expected = [
        adjusted_rand_score(x.ravel(), y.ravel()) for x, y in zip(labels, truth, strict=True)
    ]
    out = metrics.adjusted_rand_index(torch.from_numpy(labels), torch.from_numpy(truth))
    assert out.tolist() == pytest.approx(expected, abs=1e-12)
    assert out[:2].tolist() == [1.0, 1.0]


def test_ari_of_groupings_that_chance_cannot_correct():
    one, alone = torch.zeros(1, 4, dtype=torch.int64), torch.arange(4)[None]
    ari = metrics.adjusted_rand_index
    assert ari(one, one + 2).item() == 1
    assert ari(alone, alone.flip(1)).item() == 1
    assert ari(one, alone).item() == ari(alone, one).item() == 0
    assert ari(one[:, :1], alone[:, :1]).item() == 1


def test_foreground_ari_sees_only_the_mask():
    truth = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 0]])
    labels = torch.tensor([[1, 2, 3, 4, 4, 5, 5], [0, 0, 0, 1, 1, 1, 1]])
    fg = metrics.adjusted_rand_index(labels, truth, truth > 0)
    assert fg[0] == 1 and fg[1].isnan()
    assert metrics.adjusted_rand_index(labels, truth)[0] < 1


def test_best_overlap_by_hand():
    truth = torch.tensor([[[1, 1, 2], [1, 0, 2]], [[0, 0, 0], [0, 0, 0]], [[3, 3, 3], [0, 0, 9]]])
    labels = torch.tensor([[[4, 4, 0], [0, 0, 0]], [[0, 1, 2], [3, 4, 5]], [[1, 1, 1], [0, 0, 0]]])
    out = metrics.best_overlap_iou(labels, truth)
    # Object 1: cluster 4 has 2 of 3; object 2: cluster 0 has 2 of 4. Object 9: 1 of 3.
    assert out[0].item() == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert out[1].isnan()
    assert out[2].item() == pytest.approx((1 + 1 / 3) / 2)


def test_pearson_is_that_of_numpy():
    generator = np.random.default_rng(0)
    x = generator.normal(size=50)
    y = 0.3 * x + generator.normal(size=50) + 1e3
    out = metrics.pearson_correlation(torch.from_numpy(x), torch.from_numpy(y))
    assert out.item() == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    whole = torch.tensor([1, 2, 3])
    assert metrics.pearson_correlation(whole, -2 * whole).item() == pytest.approx(-1, abs=1e-15)
    assert metrics.pearson_correlation(torch.full((3,), 0.1), whole).isnan()
    assert metrics.pearson_correlation(whole, torch.full((3,), 0.1)).isnan()


def test_recall_counts_ties_against_the_own_column():
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3],  # first
            [0.5, 0.4, 0.1, 0.2],  # second
            [0.5, 0.7, 0.5, 0.1],  # third, by a tie
            [0.8, 0.7, 0.6, 0.5],  # last
        ]
    )
    assert [metrics.recall_at_k(similarity, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1]
    assert metrics.recall_at_k(torch.zeros(4, 4), 3) == 0
    assert metrics.recall_at_k(torch.eye(4), 1) == 1


def test_labels_belong_to_the_patch_under_the_pixels_centre():
    labels = torch.tensor([[1, 2], [3, 4]])
    out = metrics.upsample_labels(labels, (4, 3))
    # Centres of 3 columns over 2 patches: 1/3, 1, 5/3; one on the border is the right patch's.
    assert out.tolist() == [[1, 2, 2], [1, 2, 2], [3, 4, 4], [3, 4, 4]]
    batch = torch.arange(2 * 4 * 6).view(2, 4, 6)
    out = metrics.upsample_labels(batch, (8, 18))
    assert (out == batch.repeat_interleave(2, 1).repeat_interleave(3, 2)).all()
    exact = torch.nn.functional.interpolate(batch[None].double(), (7, 11), mode="nearest-exact")
    assert (metrics.upsample_labels(batch, (7, 11)) == exact[0]).all()


INTS, FLOATS = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.psnr(FLOATS, FLOATS[:1]), r"target: expected shape \(2, 4\), got \(1, 4"),
        (lambda: metrics.psnr(FLOATS[0], FLOATS[0]), r"image: .*pixels, got \(4,\)"),
        (lambda: metrics.psnr(FLOATS, FLOATS, peak=0), "peak: expected more than 0"),
        (lambda: metrics.adjusted_rand_index(INTS, INTS[:, :3]), "truth: expected shape"),
        (lambda: metrics.adjusted_rand_index(INTS, INTS, INTS[:1] > 0), "mask: expected shape"),
        (lambda: metrics.best_overlap_iou(INTS[:, :0], INTS[:, :0]), "labels: .*got"),
        (lambda: metrics.pearson_correlation(FLOATS, FLOATS), r"x: expected shape \(N,\)"),
        (lambda: metrics.pearson_correlation(FLOATS[0], FLOATS[0, :2]), "y: expected shape"),
        (lambda: metrics.recall_at_k(FLOATS, 1), r"similarity: expected shape \(N, N\)"),
        (lambda: metrics.recall_at_k(FLOATS[:, :2] * math.nan, 1), "expected numbers, got NaN"),
        (lambda: metrics.recall_at_k(FLOATS[:, :2], 0), "k: expected at least 1, got 0"),
        (lambda: metrics.recall_at_k(FLOATS[:, :2], 3), "k: expected at most .*2, got 3"),
        (lambda: metrics.upsample_labels(INTS[0], (4, 4)), r"labels: expected shape \(\.\.\., h"),
        (lambda: metrics.upsample_labels(INTS, (4, 3)), r"size: expected at least \(2, 4\), got"),
        (lambda: metrics.upsample_labels(INTS, (0, 4)), "size: expected at least 1, got 0"),
    ],
)
def test_values_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.psnr([1], FLOATS), "image: expected a torch.Tensor, got list"),
        (lambda: metrics.adjusted_rand_index(FLOATS, INTS), "labels: expected integers, got torch"),
        (lambda: metrics.best_overlap_iou(INTS, FLOATS), "truth: expected integers, got torch"),
        (lambda: metrics.adjusted_rand_index(INTS, INTS, INTS), "mask: expected dtype torch.bool"),
    ],
)
def test_values_of_other_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()
