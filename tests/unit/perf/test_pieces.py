"""Long measurements in pieces whose counts add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perf.tools.pieces import Pieces


def kills(seed: int, count: int) -> dict[str, int]:
    return {"kills": count, "double": 0, "seeds": seed}


def test_pieces_add_up_to_what_is_wanted_each_with_its_own_seed() -> None:
    asked: list[tuple[int, int]] = []

    def measure_piece(seed: int, count: int) -> dict[str, int]:
        asked.append((seed, count))
        return {"kills": count, "double": seed}

    assert Pieces().measure("envoy", "kills", 120, 50, measure_piece) == {"kills": 120, "double": 3}
    assert asked == [(0, 50), (1, 50), (2, 20)]


def test_a_later_run_goes_on_after_the_pieces_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    assert Pieces(file).measure("envoy", "kills", 60, 50, kills)["kills"] == 60
    later = Pieces(file)
    # Two seeds were used up: 0 and 1.
    assert later.measure("envoy", "kills", 100, 50, kills) == {"kills": 100, "double": 0, "seeds": 3}
    assert later.measure("nginx", "kills", 10, 50, kills) == {"kills": 10, "double": 0, "seeds": 0}
    assert [piece["kills"] for piece in json.loads(file.read_text(encoding="utf-8"))["envoy"]] == [50, 10, 40]


def test_a_piece_that_fails_costs_only_itself(tmp_path: Path) -> None:
    def fails_later(seed: int, count: int) -> dict[str, int]:
        if seed:
            raise RuntimeError("a host is gone")
        return {"kills": count}

    file = tmp_path / "counts.json"
    with pytest.raises(RuntimeError, match="a host is gone"):
        Pieces(file).measure("envoy", "kills", 20, 10, fails_later)
    assert Pieces(file).sums("envoy") == {"kills": 10}


def test_no_piece_begins_after_the_time_that_is_given() -> None:
    assert Pieces(minutes=0).measure("envoy", "kills", 20, 10, kills) == {"kills": 0}


def test_a_piece_that_counts_nothing_does_not_go_on_for_ever() -> None:
    with pytest.raises(RuntimeError, match="a piece has counted no kills"):
        Pieces().measure("envoy", "kills", 20, 10, lambda _seed, _count: {"kills": 0})
