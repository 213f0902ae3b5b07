"""Pieces of work that succeed or fail on all ranks."""

from pathlib import Path

import pytest

from setokim.utils.distributed import OtherRankError, gather_objects, run_on_all_ranks


def test_one_process_is_all_there_are():
    assert gather_objects({"a": 1}) == [{"a": 1}]
    assert run_on_all_ranks(lambda: 3) == [3]
    with pytest.raises(KeyError, match="mine"):
        run_on_all_ranks(lambda: {}["mine"])


def test_results_of_all_ranks_in_their_order():
    found = run_on_all_ranks(lambda: "b", lambda own: [("a", None), own, ("c", None)])
    assert found == ["a", "b", "c"]


def test_an_error_elsewhere_reaches_this_rank_and_its_own_stays_unchanged():
    def gather(own):
        return [("a", None), own, (None, "out: held by another")]

    with pytest.raises(OtherRankError, match=r"^process 2: out: held by another$"):
        run_on_all_ranks(lambda: "b", gather)
    told = []
    with pytest.raises(OSError, match="mine"):
        run_on_all_ranks(
            Path("/nowhere/mine").read_bytes, lambda own: told.append(own) or gather(own)
        )
    # The others hear of it.
    assert "mine" in told[0][1]
