import json
import sys

import pytest
from PIL import Image

from setok_bench import loading


def test_rates_of_reading(tmp_path):
    rates = loading.measure(tmp_path, 5, [2], rounds=2)
    assert [(rate.what.split(",")[0], rate.workers) for rate in rates] == [
        ("PIL alone: decode", 0),
        ("decode", 0),
        ("decode", 0),
        ("read a sample", 0),
        ("read a sample", 2),
    ]
    assert all(len(rate.rates) == 2 and min(rate.rates) > 0 for rate in rates)
    assert rates[1].median > rates[2].median
    files = sorted(tmp_path.glob("*.jpg"))
    assert len(files) == 5
    with Image.open(files[0]) as opened:
        assert opened.size == (640, 480)


def test_the_script(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out" / "loading.json"
    command = ["loading.py", "--number", "2", "--rounds", "1", "--workers", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    loading.main()
    assert "images per second" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert [row["workers"] for row in result["rows"]] == [0, 0, 0, 0, 1] and result["commit"]
    assert result["rows"][0]["of_pil"] == 1.0 and result["rows"][1]["of_pil"] > 0
    monkeypatch.setattr(sys, "argv", ["loading.py", "--workers", "0"])
    with pytest.raises(SystemExit):
        loading.main()
    assert "--workers: expected at least 1" in capsys.readouterr().err


def test_ratios_compare_within_a_round():
    baseline = loading.Rate("a", 0, [10.0, 100.0, 1000.0])
    assert loading.ratio_to_baseline(loading.Rate("b", 0, [5.0, 90.0, 300.0]), baseline) == 0.5
