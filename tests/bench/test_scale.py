"""The tables of docs/scale.md are those of bench/scale.py, which computes what it says."""

import math
import random

import pytest

from setok_bench import scale


def test_the_page_has_the_tables():
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.updated(page) == page
    assert len(scale.all_tables()) == page.count(": begin -->")


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match=r"scale.md: expected '<!-- bench/scale.py stages: begin"):
        scale.updated("# Scale")


def test_bytes_by_hand():
    # 3 tokens of 4 values of 2 bytes, with a size, three coordinates and a seed of 4 bytes each;
    # height, width and (t, h, w) of the image.
    assert scale.token_bytes(3, dim=4) == 3 * (4 * 2 + 4 + 3 * 4 + 4) + (2 + 3) * 4


def test_rates_are_those_of_the_committed_measurements():
    found = scale.rates()
    assert 1 / found.preprocess == pytest.approx(278.53, abs=0.01)
    assert 1 / found.decode == pytest.approx(1192.17, abs=0.01)
    # 0.105 s for 20.7 GFLOP on two cores.
    assert scale.core_flops() == pytest.approx(20.706e9 / 0.105012 / 2, rel=1e-4)


def test_repeated_work_is_that_of_a_simulation():
    part, between, restart = 600.0, 1800.0, 60.0
    generator, total, parts = random.Random(0), 0.0, 20_000
    for _ in range(parts):
        while (alive := generator.expovariate(1 / between)) < part:
            total += alive + restart
        total += part
    expected = scale.repeated_work(part, between, restart)
    assert total / (parts * part) - 1 == pytest.approx(expected, rel=0.02)
    # Rare losses: half a part and a restart each.
    rare = scale.repeated_work(part, 1e7, restart)
    assert rare == pytest.approx((part / 2 + restart) / 1e7, rel=1e-3)


def test_failed_parts_by_hand():
    # One attempt in two fails.
    assert scale.failed_parts(800, math.log(2), 1.0) == pytest.approx(100)


def test_a_day_of_a_corpus_by_hand():
    rows = {row[0]: row[1:] for row in scale.corpus_table().lines}
    hours = [int(cell.replace(",", "")) for cell in rows["H100 hours"]]
    assert hours == [round(images * scale.rates().gpu / 3600) for images in (28e6, 2e9)]
    assert rows["reads + writes of shards"] == ("2,800 + 2,800", "200,000 + 200,000")
