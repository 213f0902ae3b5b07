"""The judges of hard clusterings catch what they are there to catch, and pass what is right."""

import dataclasses

import pytest
import torch

import setok_kernels as sk
from setok_kernels import testing

OPTIONS = dict(num_clusters=4, k=3)
THRESHOLD = 0.6


@pytest.fixture(scope="module")
def peaks():
    x = testing.planted_clusters(2, 24, 8, 3, seed=1, noise=0.3)[0]
    return x, sk.dpc_knn(x, **OPTIONS, backend="reference")


@pytest.fixture(scope="module")
def greedy():
    x = testing.planted_clusters(2, 24, 8, 5, seed=1, noise=0.4)[0]
    out = sk.threshold_greedy(x, THRESHOLD, backend="reference")
    assert out.counts.tolist() == [4, 5]
    return x, out


def changed(out, name, index, value):
    """`out` with some elements of a tensor replaced."""
    tensor = getattr(out, name).clone()
    tensor[index] = value
    return dataclasses.replace(out, **{name: tensor})


def fails(match):
    return pytest.raises(AssertionError, match=match)


def farthest(x, i):
    return int((x - x[i]).square().sum(1).argmax())


def relabelled(x, out, centres):
    """`out` with other centres in its rows, every token with the nearest of them."""
    labels = torch.cdist(x.double(), x.double()).gather(
        1, centres[:, :, None].expand(-1, -1, x.shape[1])
    ).argmin(1)  # fmt: skip
    labels.scatter_(1, centres, torch.arange(centres.shape[1]).expand_as(centres))
    return dataclasses.replace(out, centres=centres, labels=labels)


def test_what_is_right_passes(peaks, greedy):
    testing.assert_valid_density_peaks(*peaks, **OPTIONS)
    testing.assert_valid_threshold_greedy(*greedy, THRESHOLD)
    for _, out in (peaks, greedy):
        testing.assert_same_hard_clusters(out, out)


def test_wrong_neighbour(peaks):
    x, out = peaks
    wrong = changed(out, "knn", (1, 4, 2), farthest(x[1], 4))
    with fails(r"image 1: a neighbour of token 4 is not among the nearest"):
        testing.assert_valid_density_peaks(x, wrong, **OPTIONS)
    with fails(r"knn\[1, 4, 2\]: got \d+, expected \d+"):
        testing.assert_same_hard_clusters(wrong, out)
    for value, match in [
        (out.knn[1, 4, [1, 0, 2]], r"neighbours of 4 do not ascend"),
        (torch.tensor([4, out.knn[1, 4, 1], -1]), r"expected 3 neighbours first, then -1"),
        (out.knn[1, 4, [0, 0, 1]], r"the same neighbour twice"),
    ]:
        with fails(rf"image 1: .*{match}"):
            testing.assert_valid_density_peaks(x, changed(out, "knn", (1, 4), value), **OPTIONS)


def test_wrong_parent(peaks):
    x, out = peaks
    i, top = int(out.density[0].argmin()), int((out.parent[0] < 0).nonzero())
    above = (out.density[0] > out.density[0, i]).nonzero()[:, 0]
    far = int(above[(x[0, above] - x[0, i]).square().sum(1).argmax()])
    for value, match in [
        (far, rf"image 0: parent of token {i} is not the nearest"),
        (i, rf"image 0: parent of token {i} does not precede it"),
        (-1, r"image 0: expected one top token \(parent -1\), got 2"),
    ]:
        with fails(match):
            testing.assert_valid_density_peaks(x, changed(out, "parent", (0, i), value), **OPTIONS)
    swapped = changed(out, "parent", (0, torch.tensor([top, i])), torch.tensor([i, -1]))
    with fails(rf"image 0: parent of token {top} does not precede it"):
        testing.assert_valid_density_peaks(x, swapped, **OPTIONS)


def test_order_of_the_densities_is_that_of_the_parents():
    """Two equal tokens: their densities tie in float64 too, but the later one does not precede."""
    x = torch.tensor([[[0.0], [0.0], [5.0]]])
    out = sk.dpc_knn(x, 1, k=1, backend="reference")
    wrong = changed(out, "parent", (0,), torch.tensor([1, -1, 0]))
    with fails(r"image 0: parent of token 0 does not precede it"):
        testing.assert_valid_density_peaks(x, wrong, 1, 1)


def test_wrong_centre(peaks):
    """The fifth token by score in place of the fourth, all labels right for it."""
    x, out = peaks
    fifth = int(out.score[0].argsort(descending=True)[4])
    centres = out.centres.clone()
    replaced = int(centres[0, 3])
    centres[0, 3] = fifth
    with fails(rf"centre {fifth} has a lower score than token {replaced}, which is no centre"):
        testing.assert_valid_density_peaks(x, relabelled(x, out, centres), **OPTIONS)
    with fails(r"centres\[0, 3\]: got \d+, expected \d+"):
        testing.assert_same_hard_clusters(relabelled(x, out, centres), out)


@pytest.mark.parametrize("order", ["score", "index"])
def test_swapped_rows(peaks, order):
    x, _ = peaks
    out = sk.dpc_knn(x, **OPTIONS, order=order, backend="reference")
    testing.assert_valid_density_peaks(x, out, **OPTIONS, order=order)
    centres = out.centres.clone()
    centres[1, [1, 2]] = centres[1, [2, 1]]
    match = "precedes a centre of higher score" if order == "score" else "centres do not ascend"
    with fails(rf"image 1: .*{match}"):
        testing.assert_valid_density_peaks(x, relabelled(x, out, centres), **OPTIONS, order=order)


def test_label_of_a_farther_centre(peaks, greedy):
    x, out = peaks
    i = int((~torch.isin(torch.arange(24), out.centres[0])).nonzero()[0])
    second = int((x[0, out.centres[0]] - x[0, i]).norm(dim=1).argsort()[1])
    wrong = changed(out, "labels", (0, i), second)
    with fails(rf"image 0: label of token {i} is {second}, not the nearest centre"):
        testing.assert_valid_density_peaks(x, wrong, **OPTIONS)
    with fails(rf"labels\[0, {i}\]: got {second}, expected {int(out.labels[0, i])}"):
        testing.assert_same_hard_clusters(wrong, out)
    x, out = greedy
    i = int((~torch.isin(torch.arange(24), out.centres[1])).nonzero()[0])
    unit = torch.nn.functional.normalize(x[1], dim=1)
    second = int((unit[out.centres[1, :5]] @ unit[i]).argsort(descending=True)[1])
    with fails(rf"image 1: label of token {i} is {second}, not the nearest centre"):
        testing.assert_valid_threshold_greedy(x, changed(out, "labels", (1, i), second), THRESHOLD)


def test_off_by_one_ties():
    """All float64 says of equal tokens is that either may be chosen: bit equality says which."""
    x = testing.duplicate_tokens(1, 12, 3, distinct=3)
    out = sk.dpc_knn(x, 3, k=2, backend="reference")
    i = int(out.centres[0, 0])
    same = [j for j in range(12) if torch.equal(x[0, i], x[0, j])]
    other = int(next(j for j in out.knn[0, i] if j != i))
    wrong = changed(out, "knn", (0, i), torch.tensor([other, i]))
    testing.assert_valid_density_peaks(x, wrong, k=2, num_clusters=3)
    assert len(same) > 2 and out.knn[0, i].tolist() == same[:2]
    with fails(rf"knn\[0, {i}, 0\]: got {other}, expected {i}"):
        testing.assert_same_hard_clusters(wrong, out)
    # The last of three equal tokens has no parent but those before it, at distance 0.
    last = same[-1]
    wrong = changed(out, "parent", (0, last), same[1])
    testing.assert_valid_density_peaks(x, wrong, k=2, num_clusters=3)
    with fails(rf"parent\[0, {last}\]: got {same[1]}, expected {same[0]}"):
        testing.assert_same_hard_clusters(wrong, out)


@pytest.mark.parametrize("cap", ["diameter", "eccentricity"])
@pytest.mark.parametrize("name", ["density", "delta", "score"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_per_cent_error(peaks, name, dtype, cap):
    x = peaks[0].to(dtype)
    out = sk.dpc_knn(x, **OPTIONS, cap=cap, backend="reference")
    testing.assert_valid_density_peaks(x, out, **OPTIONS, cap=cap)
    # All by as much, which changes no order; the score stays the product.
    wrong = dataclasses.replace(out, **{name: getattr(out, name) * 0.99})
    if name == "score":
        with fails(r"image 0: score of token 0 is not density \* delta"):
            testing.assert_valid_density_peaks(x, wrong, **OPTIONS, cap=cap)
        return
    wrong = dataclasses.replace(wrong, score=wrong.density * wrong.delta)
    with fails(rf"image 0: {name} of token \d+ is .*, expected .* to"):
        testing.assert_valid_density_peaks(x, wrong, **OPTIONS, cap=cap)


@pytest.mark.parametrize("name", ["density", "delta"])
def test_error_that_the_bounds_would_allow(name):
    """They hold for any order of summation, so plain PyTorch errs far less for many features."""
    x = testing.planted_clusters(2, 24, 512, 3, seed=1, noise=0.3)[0]
    out = sk.dpc_knn(x, **OPTIONS, backend="reference")
    wrong = dataclasses.replace(out, **{name: getattr(out, name) * (1 + 1e-5)})
    wrong = dataclasses.replace(wrong, score=wrong.density * wrong.delta)
    testing.assert_valid_density_peaks(x, out, **OPTIONS)
    with fails(rf"{name}: error .*, allowed .* \(plain"):
        testing.assert_valid_density_peaks(x, wrong, **OPTIONS)


def test_small_float64_error(peaks):
    x = peaks[0].double()
    out = sk.dpc_knn(x, **OPTIONS, backend="reference")
    density = out.density * (1 + 1e-12)
    wrong = dataclasses.replace(out, density=density, score=density * out.delta)
    with fails(r"image 0: density of token \d+ is"):
        testing.assert_valid_density_peaks(x, wrong, **OPTIONS)


def test_wrong_cap(peaks):
    """The diameter is the wider bound, for the top token at least."""
    x, out = peaks
    with fails(r"image 0: delta of token \d+ is"):
        testing.assert_valid_density_peaks(x, out, **OPTIONS, cap="eccentricity")


def test_noise_is_part_of_the_density(peaks):
    x, without = peaks
    noise = -torch.rand(2, 24, generator=torch.Generator().manual_seed(0)) * 2
    out = sk.dpc_knn(x, **OPTIONS, noise=noise, backend="reference")
    assert (out.density < 0).any()
    testing.assert_valid_density_peaks(x, out, **OPTIONS, noise=noise)
    for result, given in ((out, None), (without, noise)):
        with fails("is not the densest|is not of higher order|is not the nearest"):
            testing.assert_valid_density_peaks(x, result, **OPTIONS, noise=given)


def test_missing_centre(peaks):
    x, out = peaks
    fewer = relabelled(x, out, out.centres[:, :3])
    fewer = dataclasses.replace(
        fewer,
        centres=torch.nn.functional.pad(fewer.centres, (0, 1), value=-1),
        counts=out.counts - 1,
    )
    with fails(r"image 0: counts is 3, expected 4"):
        testing.assert_valid_density_peaks(x, fewer, **OPTIONS)
    with fails(r"centres\[0, 3\]: got -1, expected \d+"):
        testing.assert_same_hard_clusters(fewer, out)
    only = dataclasses.replace(out, counts=out.counts - 1)
    with fails(r"counts\[0\]: got 3, expected 4"):
        testing.assert_same_hard_clusters(only, out)


def test_threshold_of_the_score(peaks):
    x, _ = peaks
    every = sk.dpc_knn(x, 24, k=3, backend="reference").score.sort(descending=True).values
    # Between the third and the fourth of image 0, and above all of image 1.
    x = torch.cat([x[:1], x[1:] * 0.01])
    threshold = float(every[0, 2:4].mean())
    arguments = dict(k=3, threshold=threshold, min_clusters=2)
    out = sk.dpc_knn(x, **arguments, backend="reference")
    assert out.counts.tolist() == [3, 2] and out.num_rows == 24
    testing.assert_valid_density_peaks(x, out, **arguments)
    for count, match in [
        (2, r"token \d+ has a score above the threshold and is no centre"),
        (4, r"centre \d+ has no score above the threshold"),
    ]:
        other = sk.dpc_knn(x, count, k=3, backend="reference")
        centres = torch.nn.functional.pad(other.centres, (0, 24 - count), value=-1)
        with fails(rf"image 0: {match}"):
            testing.assert_valid_density_peaks(
                x, dataclasses.replace(other, centres=centres), **arguments
            )
    with fails(r"image 1: .*no score above the threshold"):
        testing.assert_valid_density_peaks(x, out, k=3, threshold=threshold, min_clusters=1)
    # As many as there is room for, where more are above.
    capped = sk.dpc_knn(x, 2, threshold, 3, min_clusters=2, backend="reference")
    testing.assert_valid_density_peaks(x, capped, **arguments, num_clusters=2)


def test_columns(peaks):
    x, out = peaks
    with fails("knn: 3 columns, expected 5"):
        testing.assert_valid_density_peaks(x, out, k=5, num_clusters=4)
    with fails("centres: 4 columns, expected 24"):
        testing.assert_valid_density_peaks(x, out, k=3, threshold=0.0)


def test_masked_token_as_centre(peaks, greedy):
    for (x, _), run, judge in [
        (peaks, lambda x, m: sk.dpc_knn(x, **OPTIONS, token_mask=m, backend="reference"),
         lambda *a: testing.assert_valid_density_peaks(*a[:2], **OPTIONS, token_mask=a[2])),
        (greedy, lambda x, m: sk.threshold_greedy(x, THRESHOLD, m, backend="reference"),
         lambda *a: testing.assert_valid_threshold_greedy(*a[:2], THRESHOLD, a[2])),
    ]:  # fmt: skip
        free = run(x, None)
        i = int(free.centres[0, 1])
        mask = torch.ones(2, 24, dtype=torch.bool)
        mask[0, i] = False
        judge(x, run(x, mask), mask)
        with fails(r"image 0: centres has an excluded token"):
            judge(x, free, mask)
        broken = x.clone()
        broken[0, i, 2] = torch.inf
        judge(broken, run(broken, None), None)
        with fails(r"image 0: centres has an excluded token"):
            judge(broken, free, None)


def test_unclaimed_token(greedy):
    """A centre left out, its cluster given to the others."""
    x, out = greedy
    kept = out.centres[1, [0, 1, 3, 4]]
    centres = changed(out, "centres", 1, -1).centres
    centres[1, :4] = kept
    unit = torch.nn.functional.normalize(x[1], dim=1)
    labels = changed(out, "labels", 1, (unit[kept] @ unit.T).argmax(0)).labels
    wrong = dataclasses.replace(
        out, centres=centres, labels=labels, counts=out.counts - torch.tensor([0, 1])
    )
    testing.assert_hard_invariants(x, wrong)
    with fails(r"image 1: token \d+ is no centre, and no earlier centre is its neighbour"):
        testing.assert_valid_threshold_greedy(x, wrong, THRESHOLD)


def two_groups():
    """Five directions 10 degrees apart: with a threshold of 15 degrees each sees those beside it.

    Tokens 1, 2 and 3 have three neighbours, so 1 claims 0 and 2, then 3 claims 4.
    """
    angle = torch.arange(5, dtype=torch.float64).mul(10).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], 1)[None]
    threshold = float(torch.tensor(15.0, dtype=torch.float64).deg2rad().cos())
    out = sk.threshold_greedy(x, threshold, backend="reference")
    assert out.centres[0].tolist() == [1, 3, -1, -1, -1]
    testing.assert_valid_threshold_greedy(x, out, threshold)
    return x, out, threshold


def test_wrong_order_of_claims():
    """Sets in which no token is unclaimed and no centre another's neighbour, but not greedy's."""
    x, out, threshold = two_groups()
    for centres, match in [
        ([0, 3], r"token 1 is no centre, and no earlier centre is"),
        ([1, 4], r"token 3 is no centre, and no earlier centre is"),
        ([0, 2, 4], r"token 1 is no centre, and no earlier centre is"),
        ([1, 2, 3], r"centres 1 and 2 are neighbours"),
    ]:
        rows = torch.tensor([centres + [-1] * (5 - len(centres))])
        labels = (x[0, centres] @ x[0].T).argmax(0)[None]
        wrong = dataclasses.replace(
            out, centres=rows, labels=labels, counts=torch.tensor([len(centres)])
        )
        with fails(rf"image 0: {match}"):
            testing.assert_valid_threshold_greedy(x, wrong, threshold)
    unsorted = dataclasses.replace(
        out, centres=torch.tensor([[3, 1, -1, -1, -1]]), labels=1 - out.labels
    )
    with fails("image 0: centres do not ascend"):
        testing.assert_valid_threshold_greedy(x, unsorted, threshold)


def test_a_pair_at_the_threshold_counts_as_either():
    """Orthogonal tokens and a threshold of 0, in float32: any rounding may join them or not."""
    x = torch.tensor([[[3.0, 1.0], [-1.0, 3.0]]])
    apart = sk.threshold_greedy(x, 0.0, backend="reference")
    together = sk.threshold_greedy(x, -1e-9, backend="reference")
    assert apart.counts.item() == 2 and together.counts.item() == 1
    for threshold in (0.0, 1e-9, -1e-9):
        testing.assert_valid_threshold_greedy(x, apart, threshold)
        testing.assert_valid_threshold_greedy(x, together, threshold)
    with fails("token 1 is no centre"):
        testing.assert_valid_threshold_greedy(x, together, 1e-5)
    with fails("centres 0 and 1 are neighbours"):
        testing.assert_valid_threshold_greedy(x, apart, -1e-5)
    # A backend that rounds its inputs to tf32 knows less.
    testing.assert_valid_threshold_greedy(x, apart, -1e-5, input_roundoff=2.0**-11)


def test_equal_tokens_are_not_above_a_threshold_of_one():
    x = torch.randn(1, 2, 37, generator=torch.Generator().manual_seed(0))[:, [0, 1, 0, 1]]
    joined = sk.threshold_greedy(x, 0.999, backend="reference")
    assert joined.counts.item() == 2
    with fails("token 2 is no centre"):
        testing.assert_valid_threshold_greedy(x, joined, 1.0)


def test_invariants(peaks):
    x, out = peaks
    centre = int(out.centres[0, 0])
    for wrong, match in [
        (dataclasses.replace(out, labels=out.labels.int()), r"labels: dtype torch.int32, expected"),
        (dataclasses.replace(out, labels=out.labels[:, :9]), r"labels: shape \(2, 9\), expected"),
        (dataclasses.replace(out, counts=out.counts[:1]), r"counts: shape \(1,\), expected \(2,\)"),
        (dataclasses.replace(out, delta=out.delta.double()), r"delta: dtype torch.float64"),
        (dataclasses.replace(out, score=out.score.clone().requires_grad_()), r"score: carries"),
        (changed(out, "counts", 0, 5), r"image 0: counts is 5 with 24 included tokens"),
        (changed(out, "counts", 0, 0), r"image 0: counts is 0 with 24 included tokens"),
        (changed(out, "counts", 0, 3), r"image 0: centres after the first 3 are not all -1"),
        (changed(out, "centres", (0, 1), -1), r"image 0: a centre below counts is -1"),
        (changed(out, "centres", (0, 1), 24), r"image 0: centres has a token outside the image"),
        (changed(out, "centres", (0, 1), centre), rf"image 0: token {centre}, centre of row 1"),
        (changed(out, "labels", (1, 3), 4), r"image 1: label of token 3 is not in \[0, 4\)"),
        (changed(out, "labels", (1, 3), -1), r"image 1: label of token 3 is not in \[0, 4\)"),
        (changed(out, "labels", (0, centre), 1), rf"image 0: token {centre}, centre of row 0"),
        (changed(out, "density", (1, 3), torch.nan), r"image 1: density: not finite"),
        (changed(out, "delta", (1, 3), -1.0), r"image 1: delta: negative"),
        (changed(out, "knn", (1, 3, 0), 24), r"image 1: knn has a token outside the image"),
        (changed(out, "parent", (1, 3), -2), r"image 1: parent has a token outside the image"),
    ]:  # fmt: skip
        with fails(match):
            testing.assert_hard_invariants(x, wrong)


def test_invariants_of_tokens_that_take_no_part(peaks):
    x, _ = peaks
    mask = torch.arange(24).expand(2, -1) != 5
    out = sk.dpc_knn(x, **OPTIONS, token_mask=mask, backend="reference")
    testing.assert_hard_invariants(x, out, mask)
    for name, index, value, match in [
        ("labels", (0, 5), 0, r"labels: not -1 on an excluded token"),
        ("density", (0, 5), 0.5, r"density: not 0 on an excluded token"),
        ("delta", (0, 5), 0.5, r"delta: not 0 on an excluded token"),
        ("knn", (0, 5, 0), 5, r"knn: not -1 on an excluded token"),
        ("parent", (0, 5), 1, r"parent: not -1 on an excluded token"),
        ("knn", (0, 4, 1), 5, r"knn has an excluded token"),
    ]:
        with fails(rf"image 0: {match}"):
            testing.assert_hard_invariants(x, changed(out, name, index, value), mask)
    nothing = torch.zeros(2, 24, dtype=torch.bool)
    empty = sk.dpc_knn(x, **OPTIONS, token_mask=nothing, backend="reference")
    testing.assert_valid_density_peaks(x, empty, **OPTIONS, token_mask=nothing)
    with fails(r"image 0: counts is 1 with 0 included tokens"):
        testing.assert_hard_invariants(x, changed(empty, "counts", 0, 1), nothing)


def test_packed_results_are_judged_image_by_image():
    packed, cu_seqlens, _, _ = testing.ragged_batch([9, 0, 12], 4)
    out = sk.dpc_knn(packed, **OPTIONS, cu_seqlens=cu_seqlens, backend="reference")
    testing.assert_valid_density_peaks(packed, out, **OPTIONS)
    far = farthest(packed[9:], 2)
    with fails("image 2: a neighbour of token 2 is not among the nearest"):
        testing.assert_valid_density_peaks(packed, changed(out, "knn", (11, 2), far), **OPTIONS)
    wrong = dataclasses.replace(out, delta=out.delta * 0.99)
    wrong = dataclasses.replace(wrong, score=wrong.density * wrong.delta)
    with fails(r"image 0: delta of token \d+ is"):
        testing.assert_valid_density_peaks(packed, wrong, **OPTIONS)
    out = sk.threshold_greedy(packed, 0.5, cu_seqlens=cu_seqlens, backend="reference")
    testing.assert_valid_threshold_greedy(packed, out, 0.5)
    assert out.counts[2] > 1
    centre = int(out.centres[2, 1])
    wrong = changed(out, "labels", 9 + centre, 0)
    with fails(f"image 2: token {centre}, centre of row 1, has label 0"):
        testing.assert_valid_threshold_greedy(packed, wrong, 0.5)


def test_differences_of_shape_and_dtype(peaks, greedy):
    _, out = peaks
    fewer = dataclasses.replace(out, knn=out.knn[..., :2])
    with fails(r"knn: got \(2, 24, 2\) torch.int64, expected \(2, 24, 3\)"):
        testing.assert_same_hard_clusters(fewer, out)
    _, out = greedy
    with fails(r"labels: got \(2, 24\) torch.int32"):
        testing.assert_same_hard_clusters(dataclasses.replace(out, labels=out.labels.int()), out)


def rand_index(a, b):
    """By the definition, in loops over the pairs."""
    kept = [i for i in range(len(a)) if a[i] >= 0 and b[i] >= 0]
    pairs = [(i, j) for i in kept for j in kept if i < j]
    return sum((a[i] == a[j]) == (b[i] == b[j]) for i, j in pairs) / len(pairs) if pairs else 1.0


def test_pair_agreement():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-1, 4, (6, 13), generator=generator)
    b = torch.randint(-1, 3, (6, 13), generator=generator)
    a[4], b[5, 1:] = -1, -1
    got = testing.pair_agreement(a, b)
    assert got.dtype == torch.float64 and got.shape == (6,)
    expected = [rand_index(*pair) for pair in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert got[0] < 1 and got[4] == 1, "no pair of tokens, none that disagrees"
    ids = torch.tensor([17, 10**12, 3, 8])
    renamed = torch.where(a >= 0, ids[a.clamp(min=0)], -1)
    assert (testing.pair_agreement(a, renamed) == 1).all(), "ids do not matter"
    assert testing.pair_agreement(a[:0], b[:0]).shape == (0,)
    assert testing.pair_agreement(a[:, :0], b[:, :0]).tolist() == [1] * 6


def test_pair_agreement_of_many_tokens():
    """All of one cluster against all apart, and against halves: exact where N x N would not fit."""
    one = torch.zeros(1, 100_000, dtype=torch.int64)
    assert testing.pair_agreement(one, torch.arange(100_000)[None]).item() == 0
    halves = torch.arange(100_000)[None] % 2
    inside = 2 * 50_000 * 49_999 / (100_000 * 99_999)
    assert testing.pair_agreement(one, halves).item() == inside
    with pytest.raises(ValueError, match=r"labels_b: expected \(B, N\) like labels_a, got"):
        testing.pair_agreement(one, halves[0])


def test_centres_of_another_guide_are_caught():
    x = testing.planted_clusters(2, 20, 6, 3, noise=0.4)[0]
    weight = torch.rand(2, 20, generator=torch.Generator().manual_seed(0))
    budget = torch.tensor([3, 5])
    out = sk.dpc_knn(x, budget, importance=weight, backend="reference")
    testing.assert_valid_density_peaks(x, out, importance=weight, budget=budget)
    for guide, message in {
        "other budget": (dict(importance=weight, budget=budget + 1), "counts is 3, expected 4"),
        "other weights": (dict(importance=weight.flip(1), budget=budget), "score of token"),
        "no weights": (dict(budget=budget), "score of token"),
    }.values():
        with pytest.raises(AssertionError, match=message):
            testing.assert_valid_density_peaks(x, out, **guide)
