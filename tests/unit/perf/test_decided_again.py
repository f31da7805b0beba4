"""Decisions of the real scorer, kept in the index, are decided again equal to the bit; a changed bit is seen."""

from __future__ import annotations

from pathlib import Path

from perf.console import recomputed


def test_all_kept_decisions_are_equal_but_one_with_a_changed_bit(tmp_path: Path) -> None:
    assert recomputed(tmp_path, 300, is_broken=True)["recomputed_equal_share"] == 299 / 300
