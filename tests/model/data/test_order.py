from itertools import islice

import pytest

from setokim.data import ENDLESS, Order


def take(count, *args, **kwargs):
    return list(islice(Order(*args, **kwargs), count))


def test_unshuffled_ranks_split_the_batches():
    assert take(3, 10, 2, rank=0, world=2, shuffle=False) == [[0, 1], [4, 5], [8, 9]]
    assert take(3, 10, 2, rank=1, world=2, shuffle=False) == [[2, 3], [6, 7], [0, 1]]


def test_every_sample_comes_once_in_every_epoch_of_three_ranks():
    # 28 positions are one epoch: 7 batches of 3 · 4 are three epochs, and batches span two.
    ranks = [take(7, 28, 4, rank=rank, world=3, seed=5) for rank in range(3)]
    positions = [i for step in zip(*ranks, strict=True) for batch in step for i in batch]
    epochs = [positions[start : start + 28] for start in (0, 28, 56)]
    assert all(sorted(epoch) == list(range(28)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(range(28)) not in epochs


def test_two_ranks_read_the_samples_of_one_with_batches_twice_as_large():
    one = take(9, 25, 6, seed=2)
    two = [take(9, 25, 3, rank=rank, world=2, seed=2) for rank in (0, 1)]
    assert one == [left + right for left, right in zip(*two, strict=True)]


def test_batches_larger_than_the_data_set_span_many_epochs():
    (batch,) = take(1, 3, 9, seed=1)
    assert [sorted(batch[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3


@pytest.mark.parametrize("start", [0, 1, 4, 5, 17])
def test_a_resumed_order_goes_on_where_the_first_was(start):
    whole = take(25, 23, 5, rank=1, world=2, seed=8)
    assert take(5, 23, 5, rank=1, world=2, seed=8, start=start) == whole[start : start + 5]


def test_orders_start_again_and_depend_on_the_seed():
    order = Order(40, 8, seed=3)
    first = list(islice(order, 7))
    assert list(islice(order, 7)) == first == take(7, 40, 8, seed=3)
    assert take(7, 40, 8, seed=4) != first


def test_endless_data_sets_are_gone_through_in_order():
    assert take(2, ENDLESS, 3, rank=1, world=2, seed=9, start=10) == [[63, 64, 65], [69, 70, 71]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"world": 0}, "world: expected at least 1, got 0"),
        ({"rank": -1}, "rank: expected at least 0, got -1"),
        ({"rank": 2, "world": 2}, "rank: expected less than world, 2, got 2"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"start": -1}, "start: expected at least 0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        Order(**{"length": 4, "batch_size": 2} | changes)


def test_settings_of_other_types():
    with pytest.raises(TypeError, match=r"start: expected an int, got 1\.5"):
        Order(4, 2, start=1.5)
    with pytest.raises(TypeError, match="rank: expected an int, got True"):
        Order(4, 2, rank=True, world=2)
