"""The order of a run's files."""

from __future__ import annotations

from tests.order import LONGEST, ordered, spread

WAITING = [f"tests/{folder}/test_{letter}.py" for folder in ("e2e", "integration") for letter in "ab"]
COMPUTING = [f"tests/unit/test_{number}.py" for number in range(12)]


def test_waiting_files_are_spread_evenly_among_computing_ones() -> None:
    order = spread([*WAITING, *COMPUTING])
    assert sorted(order) == sorted([*WAITING, *COMPUTING])
    assert [order.index(name) for name in WAITING] == [2, 6, 10, 14]
    assert [name for name in order if name in COMPUTING] == COMPUTING


def test_the_longest_files_of_each_group_come_first() -> None:
    waiting, computing = LONGEST[1], next(name for name in LONGEST if name.startswith("tests/unit"))
    order = spread([*WAITING, *COMPUTING, computing, waiting])
    assert next(name for name in order if name in WAITING or name == waiting) == waiting
    assert order[0] == computing


def test_the_tests_of_a_file_stay_together_in_their_order() -> None:
    items = [("tests/unit/test_a.py", 1), ("tests/e2e/test_b.py", 2), ("tests/unit/test_a.py", 3)]
    assert sorted([ordered(items)]) in ([[1, 3, 2]], [[2, 1, 3]])
    assert ordered([]) == []
