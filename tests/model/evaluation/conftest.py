"""What tests of metrics share."""

import pytest

from setokim.evaluation import caption_metrics, meteor


@pytest.fixture
def no_meteor(monkeypatch):
    """Its program takes seconds to start; test_caption_metrics.py runs it."""
    for module in (caption_metrics, meteor):
        monkeypatch.setattr(module, "missing_meteor", lambda: "no Java")
