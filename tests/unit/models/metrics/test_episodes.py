"""Episodes are cut from payments whose feature is on."""

from __future__ import annotations

import numpy as np

from paywarden.models.metrics.episodes import QUIET_MS, Episodes, episodes_of


def cut(*payments: tuple[int, int, float, bool, int]) -> Episodes:
    """Cuts episodes of payments: entity, time, value, whether it is approved, amount."""
    entity, time_ms, value, approved, amount = zip(*payments, strict=True) if payments else ((), (), (), (), ())
    return episodes_of(
        np.array(entity, dtype=np.int32),
        np.array(time_ms, dtype=np.int64),
        np.array(value, dtype=np.float32),
        np.array(approved, dtype=np.bool_),
        np.array(amount, dtype=np.int64),
    )


def test_an_episode_has_begin_end_size_and_cost() -> None:
    found = cut((0, 3, 1.5, True, 100), (0, 1, 0.9, True, 7), (0, 2, 1.0, False, 50), (1, 2, float("nan"), True, 1))
    assert len(found) == 1
    assert [int(column[0]) for column in (found.begin_ms, found.end_ms, found.payments, found.approved)] == [2, 3, 2, 1]
    assert (int(found.amount_minor[0]), int(found.approved_minor[0])) == (150, 100)


def test_quiet_hours_and_other_entities_end_an_episode() -> None:
    found = cut((0, 0, 2, True, 1), (0, QUIET_MS, 2, True, 1), (1, 1, 2, True, 1), (-1, 1, 2, True, 1))
    assert found.entity.tolist() == [0, 1, 0]
    assert found.begin_ms.tolist() == [0, 1, QUIET_MS]


def test_no_payment_makes_no_episode() -> None:
    assert len(cut()) == 0
