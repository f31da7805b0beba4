"""A passage through a history: labels that take effect when they are known, in chunks that do not show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS
from paywarden.features.history.event_order import order_by_code
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.history.point_in_time import Chunk, PointInTimeReplay
from paywarden.features.history.thread_pool import ThreadPool
from paywarden.features.kernel import UNKNOWN_AMOUNT
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.schemas.errors import Misconfigured
from tests.unit.features.kernel.profiles import USUAL
from tests.worlds.small import small_history

SUNDAY_MS = 1_530_403_200_000
RATES = RateTable({"EUR": [(0, 1_000_000)], "USD": [(0, 500_000)]})

Outcome = tuple[int, int, bool]


@cache
def engine() -> FeatureEngine:
    return FeatureEngine(USUAL)


def history(times_ms: Sequence[int], outcomes: Sequence[Outcome] = (), **changed: Any) -> History:
    """Payments of 1.00 EUR of one card at one merchant; outcomes are (payment, known ms, is fraud)."""
    count = len(times_ms)
    columns: dict[str, Any] = {
        "payment_id": pa.array([f"p{row}" for row in range(count)], pa.string()),
        "event_time_ms": pa.array(times_ms, pa.int64()),
        "card_id": pa.array(["c"] * count, pa.string()),
        "merchant_id": pa.array(["m"] * count, pa.string()),
        "amount_minor": pa.array([100] * count, pa.int64()),
        "currency": pa.array(["EUR"] * count, pa.string()),
        **{name: pa.nulls(count, pa.string()) for name in ("device_id", "ip", "mcc", "country", "channel")},
    }
    said = pa.table(
        {
            "payment_id": pa.array([f"p{row}" for row, _, _ in outcomes], pa.string()),
            "outcome_time_ms": pa.array([known_ms for _, known_ms, _ in outcomes], pa.int64()),
            "label": pa.array(["fraud" if fraud else "genuine" for *_, fraud in outcomes], pa.string()),
            "source": pa.nulls(len(outcomes), pa.string()),
        }
    )
    return history_of_tables(pa.table(columns | changed), said)


def chunks(of: History, **asked: Any) -> list[Chunk]:
    return list(PointInTimeReplay(of, engine(), RATES).chunks(**asked))


def column(name: str, made: Sequence[Chunk]) -> list[float]:
    return [float(v) for chunk in made for v in chunk.vectors[:, engine().plan.names.index(name)]]


# Attributes and combinations.


def vectors(of: FeatureEngine, history_of: History) -> list[dict[str, float]]:
    """Each payment's features by name."""
    found = [
        vector for chunk in PointInTimeReplay(history_of, of, RATES).chunks(rows=2) for vector in chunk.vectors.tolist()
    ]
    return [dict(zip(of.plan.names, vector, strict=True)) for vector in found]


# Chunks.


def test_a_replay_may_stop_before_the_end() -> None:
    made = chunks(history([SUNDAY_MS + hour for hour in range(5)]), rows=2, last=3)
    assert [(chunk.first, chunk.last) for chunk in made] == [(0, 2), (2, 3)]


@pytest.mark.parametrize("first", [1, 2, 3])
def test_payments_before_the_first_only_warm_profiles_up(first: int) -> None:
    of = history([SUNDAY_MS + hour * HOUR_MS for hour in range(5)], [(0, SUNDAY_MS + 2 * HOUR_MS, True)])
    whole = np.concatenate([chunk.vectors for chunk in chunks(of)])
    made = chunks(of, rows=2, first=first)
    assert made[0].first == first
    assert np.array_equal(np.concatenate([chunk.vectors for chunk in made]), whole[first:], equal_nan=True)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit_of_vectors_and_profiles(threads: int) -> None:
    """Labels, hot merchants and payments without a device included."""
    of, warm, rates = small_history.history(), small_history.engine(), small_history.rates()
    alone = PointInTimeReplay(of, warm, rates)
    wanted = list(alone.chunks(rows=5000))
    alone.finish()
    with ThreadPool(threads) as crew:
        shared = PointInTimeReplay(of, warm, rates, crew=crew)
        made = list(shared.chunks(rows=5000))
        shared.finish()
    assert [chunk.vectors.tobytes() for chunk in made] == [chunk.vectors.tobytes() for chunk in wanted]
    assert [chunk.late for chunk in made] == [chunk.late for chunk in wanted]
    assert shared.profiles == alone.profiles
    assert np.array_equal(shared.amounts, alone.amounts)


@pytest.mark.parametrize("highest", [0, 1, 40, 0xFFFE, 0xFFFF, 0x10000, 2**31 - 1])
def test_events_are_ordered_by_entity_and_time(highest: int) -> None:
    """In digits of 16 bits: the same as a sort that compares."""
    rng = np.random.default_rng(highest)
    code = np.minimum(rng.integers(-1, highest, 3000, endpoint=True), rng.integers(-1, highest, 3000, endpoint=True))
    code[:2] = -1, highest
    place = np.concatenate((np.arange(1, 5001, 2), np.sort(2 * rng.integers(0, 2500, 500))))
    assert np.array_equal(order_by_code(code.astype(np.int32), place), np.lexsort((place, code)))
    assert order_by_code(code[:0], place[:0]).tolist() == []


def test_chunks_may_be_kept_while_the_next_ones_are_made() -> None:
    """Rows and slots use the memory of the chunk before, vectors do not. A chunk's own missing values are missing."""
    hours = [SUNDAY_MS + hour * HOUR_MS for hour in range(6)]
    of = history(hours, merchant_id=pa.array(["m", "m", "n", "o", "m", "p"]), device_id=pa.array([*"dd", None, *"dxy"]))
    (whole,) = chunks(of)
    for rows in (1, 2, 4, 5):
        kept = list(PointInTimeReplay(of, engine(), RATES).chunks(rows=rows))
        assert np.array_equal(np.concatenate([chunk.vectors for chunk in kept]), whole.vectors, equal_nan=True)


def test_progress_gets_the_rows_of_each_chunk() -> None:
    done: list[int] = []
    chunks(history([SUNDAY_MS] * 5), rows=2, progress=done.append)
    assert done == [2, 2, 1]


def test_a_label_on_the_border_of_two_chunks_is_seen_once() -> None:
    days = (0, 8, 9, 10)
    of = history([SUNDAY_MS + day * DAY_MS for day in days], [(0, SUNDAY_MS + 8 * DAY_MS + 1, True)])
    for rows in (1, 2, 3, 4):
        assert column("merchant_fraud_share_7d", chunks(of, rows=rows))[1:] == [0, 1, 1]


def test_finish_applies_the_outcomes_after_the_last_payment() -> None:
    told = PointInTimeReplay(history([SUNDAY_MS], [(0, SUNDAY_MS + DAY_MS, True)]), engine(), RATES)
    untold = PointInTimeReplay(history([SUNDAY_MS]), engine(), RATES)
    for passage in (told, untold):
        assert len(list(passage.chunks())) == 1
    assert told.profiles == untold.profiles
    told.finish()
    untold.finish()
    merchant = engine().plan.entity_names.index("merchant")
    assert told.profiles[merchant] != untold.profiles[merchant]


def test_an_empty_history_has_no_chunks() -> None:
    passage = PointInTimeReplay(history([]), engine(), RATES)
    assert list(passage.chunks()) == []
    passage.finish()
    assert passage.profiles == [[], [], []]


def test_a_label_beyond_all_windows_is_counted_as_late() -> None:
    times = [SUNDAY_MS, SUNDAY_MS + 50 * DAY_MS, SUNDAY_MS + 51 * DAY_MS]
    # Late for the merchant, whose shares reach back 37 days; the card has no shares, the device is not there.
    assert sum(chunk.late for chunk in chunks(history(times, [(0, SUNDAY_MS + 50 * DAY_MS, True)]))) == 1


def test_a_currency_without_a_rate_counts_and_adds_no_amount() -> None:
    of = history([SUNDAY_MS, SUNDAY_MS, SUNDAY_MS], currency=pa.array(["USD", "NGN", "EUR"]))
    passage = PointInTimeReplay(of, engine(), RATES)
    assert passage.amounts.tolist() == [50, UNKNOWN_AMOUNT, 100]
    (chunk,) = passage.chunks()
    assert np.isnan(column("amount", [chunk])).tolist() == [False, True, False]
    assert (column("card_count_1d", [chunk])[2], column("card_amount_mean_1d", [chunk])[2]) == (2, 25)


def test_an_amount_that_would_overflow_is_refused() -> None:
    with pytest.raises(Misconfigured, match="row 0: amount_minor is above 100000000000"):
        history([SUNDAY_MS], amount_minor=pa.array([2**60]))
