"""Decisions of the real scorer, kept in the index, are decided again equal to the bit; a changed bit is seen."""

from __future__ import annotations

from perf.decided_again import measured


def test_all_kept_decisions_are_equal_but_the_one_that_was_changed_by_a_bit() -> None:
    assert measured(300, is_broken=True)["recomputed_equal_share"] == 299 / 300
