from collections import Counter

import pytest

from setokim.data import ENDLESS, Order
from setokim.data.mixture import Mixture


class Named:
    def __init__(self, name, length):
        self.name, self.length = name, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.name, index


def make(seed=0, **weights):
    lengths = {"a": 7, "b": 250, "c": ENDLESS}
    chosen = weights or {"a": 1.0, "b": 2.0, "c": 5.0}
    return Mixture({name: Named(name, lengths[name]) for name in chosen}, chosen, seed)


def test_each_comes_by_its_weight():
    seen = [make()[index] for index in range(0, 1)] + [make()[index] for index in range(1, 3)]
    mixture = make()
    items = [mixture[index] for index in range(4000)]
    assert items[:3] == seen
    for start in range(0, 4000, 1000):
        counts = Counter(name for name, _ in items[start : start + 1000])
        assert counts == {"a": 125, "b": 250, "c": 625}
    assert len({name for name, _ in items[:20]}) == 3
    # In epochs of its own, each in another order.
    for name, length in (("a", 7), ("b", 250)):
        own = [index for other, index in items if other == name]
        epochs = [own[i : i + length] for i in range(0, len(own) - length + 1, length)]
        assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
        assert epochs[0] != epochs[1]
    assert [index for name, index in items if name == "c"] == list(range(2500))


def test_an_item_depends_on_its_number_alone():
    forwards, backwards = make(), make()
    expected = [forwards[index] for index in range(2500)]
    assert [backwards[index] for index in reversed(range(2500))] == expected[::-1]
    assert [make(seed=1)[index] for index in range(50)] != expected[:50]
    assert len(make()) == ENDLESS


@pytest.mark.parametrize("world", [1, 4])
def test_ranks_share_it_and_resume(world):
    def seen(start, steps):
        found = []
        orders = [iter(Order(ENDLESS, 5, rank, world, start=start)) for rank in range(world)]
        mixture = make()
        for _ in range(steps):
            found += [mixture[index] for order in orders for index in next(order)]
        return found

    whole = seen(0, 60)
    assert whole == [make()[index] for index in range(300 * world)]
    assert seen(25, 35) == whole[25 * 5 * world :]


def test_weights_need_not_be_whole():
    mixture = make(a=1.0, b=1.0, c=1.0)
    counts = Counter(mixture[index][0] for index in range(1000))
    assert sorted(counts.values()) == [333, 333, 334]


def test_errors():
    with pytest.raises(ValueError, match=r"^weights: expected those of .*\['a'\], got \['b'\]$"):
        Mixture({"a": Named("a", 1)}, {"b": 1})
    with pytest.raises(ValueError, match=r"^weights\['a'\]: expected more than 0, got 0$"):
        Mixture({"a": Named("a", 1)}, {"a": 0})
    with pytest.raises(ValueError, match=r"^datasets\['a'\]: expected at least one sample"):
        Mixture({"a": Named("a", 0)}, {"a": 1})
    with pytest.raises(
        ValueError, match=r"^weights\['a'\]: expected at least 1/1000 of all, got 1$"
    ):
        make(a=1, b=9999)
