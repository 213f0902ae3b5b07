import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from setokim.data import (
    Broken,
    BrokenSampleError,
    Guarded,
    Order,
    Reading,
    Sample,
    TooManyBrokenError,
    split_concepts,
)


class Numbers:
    """Sample i has the caption "i"; those in `broken` cannot be read."""

    def __init__(self, length, broken=()):
        self.length = length
        self.broken = frozenset(broken)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.broken:
            raise BrokenSampleError(f"{index}.jpg", "torn")
        return Sample(Image.new("RGB", (2, 2)), str(index), (), None, f"{index}.jpg")


def gone_through(guarded, indices):
    for index in indices:
        guarded.count(guarded[index][1])
    return guarded


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("", ()),
        (" . , ", ()),
        ("A dog", ("dog",)),
        (
            "a large red circle, a small ring and the star.",
            ("large red circle", "small ring", "star"),
        ),
        ("An owl and an owl. Two  trees;\nsand", ("owl", "Two trees", "sand")),
        ("a 2.5 metre band", ("2.5 metre band",)),
        ("black AND white cat", ("black", "white cat")),
        ("theatre, anemone", ("theatre", "anemone")),
    ],
)
def test_split_concepts(caption, phrases):
    assert split_concepts(caption) == phrases


def test_samples_check_mode_and_size():
    with pytest.raises(ValueError, match="image: expected mode RGB, got L"):
        Sample(Image.new("L", (2, 2)), "", (), None, "a.png")
    with pytest.raises(ValueError, match=r"masks: expected shape \(2, 3\), got \(3, 2\)"):
        Sample(Image.new("RGB", (3, 2)), "", (), np.zeros((3, 2), np.int64), "a.png")


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(BrokenSampleError("a.tar: k", "torn")))
    assert (str(error), error.source, error.reason) == ("a.tar: k: torn", "a.tar: k", "torn")


def test_a_broken_sample_is_replaced_by_the_next_readable_one():
    guarded = Guarded(Numbers(6, broken=(2, 3, 5)))
    sample, reading = guarded[1]
    assert sample.caption == "1" and reading == Reading((1,), ())
    sample, reading = guarded[2]
    torn = [Broken(i, f"{i}.jpg", "torn") for i in (2, 3, 5)]
    assert sample.caption == "4" and reading == Reading((2, 3, 4), tuple(torn[:2]))
    sample, reading = guarded[5]
    assert sample.caption == "0" and reading == Reading((5, 0), (torn[2],))
    with pytest.raises(IndexError, match="index: expected less than 6, got 6"):
        guarded[6]


def test_reports_of_a_batch_are_merged():
    one, two = Broken(1, "a", "x"), Broken(4, "b", "y")
    readings = [Reading((1, 2), (one,)), Reading((3,), ()), Reading((4, 5), (two,))]
    assert Reading.merge(iter(readings)) == Reading((1, 2, 3, 4, 5), (one, two))
    assert Reading.merge([]) == Reading((), ())


def test_exactly_one_percent_is_borne_and_repeats_count_once():
    guarded = Guarded(Numbers(200, broken=(7, 199)))
    gone_through(guarded, [*range(200), *range(200), 7, 7, 7])
    assert guarded.finish() == guarded.summary()
    assert guarded.summary() == ("2 of 200 samples could not be read: 7.jpg: torn; 199.jpg: torn")
    assert guarded.broken == [("7.jpg", "torn"), ("199.jpg", "torn")]


def test_more_than_one_percent_stops_once_a_hundred_were_tried():
    guarded = Guarded(Numbers(1000, broken=(0, 1)))
    gone_through(guarded, range(2, 99))  # 97
    guarded.count(guarded[0][1])  # with 0 and 1, 99: nothing is judged yet
    with pytest.raises(TooManyBrokenError, match=r"2 of 100 .*: 0\.jpg: torn; 1\.jpg: torn"):
        guarded.count(guarded[99][1])


def test_short_runs_are_judged_at_their_end():
    guarded = gone_through(Guarded(Numbers(50, broken=(4,))), range(50))
    with pytest.raises(TooManyBrokenError, match=r"more than 0\.01 .*: 1 of 50 samples"):
        guarded.finish()
    assert gone_through(Guarded(Numbers(50)), range(30)).finish() == (
        "all 30 samples tried could be read"
    )


def test_summaries_name_the_first_five():
    guarded = gone_through(Guarded(Numbers(20, broken=range(7)), max_share=1), [0])
    assert guarded.summary().endswith("; 4.jpg: torn; and 2 more")
    assert guarded.summary().startswith("7 of 8 samples")


def test_reading_gives_up_where_the_whole_set_is_over_the_limit():
    with pytest.raises(TooManyBrokenError, match="no sample was readable: 3 of 3 samples"):
        Guarded(Numbers(3, broken=range(3)))[1]
    # 200 of 20000 are one percent; the run of 200 is passed, one of 201 is not.
    sample, reading = Guarded(Numbers(20000, broken=range(200)))[0]
    assert sample.caption == "200" and len(reading.broken) == 200
    with pytest.raises(TooManyBrokenError, match="201 of 201 samples"):
        Guarded(Numbers(20000, broken=range(201)))[0]


def test_bad_limits():
    with pytest.raises(ValueError, match="dataset: expected at least one sample"):
        Guarded(Numbers(0))
    with pytest.raises(ValueError, match="max_share: expected at most 1"):
        Guarded(Numbers(1), max_share=2)
    with pytest.raises(ValueError, match="min_tried: expected at least 1"):
        Guarded(Numbers(1), min_tried=0)


def collate(items):
    samples, readings = zip(*items, strict=True)
    return torch.tensor([int(sample.caption) for sample in samples]), Reading.merge(readings)


def test_workers_read_and_the_training_process_counts():
    guarded = Guarded(Numbers(120, broken=(50,)))
    order = Order(120, batch_size=12, seed=1)
    loader = torch.utils.data.DataLoader(
        guarded, batch_sampler=order, num_workers=2, collate_fn=collate
    )
    seen = []
    for _, (numbers, reading) in zip(range(10), loader, strict=False):
        seen += numbers.tolist()
        guarded.count(reading)
    assert sorted(seen) == [*range(50), 51, *range(51, 120)]
    assert guarded.summary() == "1 of 120 samples could not be read: 50.jpg: torn"
