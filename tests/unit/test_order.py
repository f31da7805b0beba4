"""The order of a run's files."""

from __future__ import annotations

from tests.checkout import CHECKOUT
from tests.order import SECONDS, ordered, spread

WAITING = [f"tests/{folder}/test_{letter}.py" for folder in ("e2e", "integration") for letter in "ab"]
COMPUTING = [f"tests/unit/test_{number}.py" for number in range(12)]


def test_waiting_files_are_spread_evenly_among_computing_ones() -> None:
    order = spread([*WAITING, *COMPUTING])
    assert sorted(order) == sorted([*WAITING, *COMPUTING])
    assert [order.index(name) for name in WAITING] == [0, 4, 8, 12]
    assert [name for name in order if name in COMPUTING] == COMPUTING


def test_the_longest_files_of_each_group_come_first() -> None:
    waiting, computing = list(SECONDS)[1], next(name for name in SECONDS if name.startswith("tests/unit"))
    assert spread([*WAITING, *COMPUTING, computing, waiting])[:2] == [waiting, computing]


def test_waiting_and_computing_files_take_equal_shares_of_their_time() -> None:
    computes = {name: name.startswith(("tests/unit/", "tests/parity/")) for name in SECONDS}
    total = {kind: sum(SECONDS[name] for name in SECONDS if computes[name] is kind) for kind in (False, True)}
    passed = {False: 0.0, True: 0.0}
    for name in spread(list(SECONDS)):
        passed[computes[name]] += SECONDS[name] / total[computes[name]]
        longest = max(SECONDS[other] / total[computes[other]] for other in SECONDS)
        assert abs(passed[True] - passed[False]) <= longest, name


def test_each_file_whose_time_is_known_exists() -> None:
    assert [name for name in SECONDS if not (CHECKOUT / name).is_file()] == []


def test_the_tests_of_a_file_stay_together_in_their_order() -> None:
    items = [("tests/unit/test_a.py", 1), ("tests/e2e/test_b.py", 2), ("tests/unit/test_a.py", 3)]
    assert sorted([ordered(items)]) in ([[1, 3, 2]], [[2, 1, 3]])
    assert ordered([]) == []
