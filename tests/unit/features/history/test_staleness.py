"""Profiles that lag behind: what a payment sees, and traces that say how far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS
from paywarden.features.history.history import History
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.history.staleness import GAP_MS, Staleness
from paywarden.features.history.thread_pool import ThreadPool
from paywarden.schemas.errors import Misconfigured
from tests.unit.features.history.test_point_in_time import RATES, SUNDAY_MS, Outcome, column, engine, history


def made(of: History, lag: str, **asked: Any) -> list[Any]:
    return list(PointInTimeReplay(of, engine(), RATES, staleness=Staleness.read(lag)).chunks(**asked))


def test_a_payment_sees_only_what_is_older_than_the_lag() -> None:
    times = [SUNDAY_MS + ms for ms in (0, 149, 150, 151, 300, 300)]
    assert column("card_count_1h", made(history(times), "150ms")) == [0, 0, 1, 1, 3, 3]
    assert column("card_count_1h", made(history(times), "0")) == [0, 1, 2, 3, 4, 5]


def test_outcomes_come_as_late_as_payments() -> None:
    times = [SUNDAY_MS + ms for ms in (0, 8 * DAY_MS, 8 * DAY_MS + HOUR_MS, 9 * DAY_MS)]
    said = [(0, SUNDAY_MS + 8 * DAY_MS - 1, True)]
    assert column("merchant_fraud_share_7d", made(history(times, said), "0"))[1:3] == [1, 1]
    assert column("merchant_fraud_share_7d", made(history(times, said), "30m"))[1:3] == [0, 1]


@given(st.data())
def test_a_vector_is_that_of_a_history_of_what_could_be_seen(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    gaps = data.draw(
        st.lists(st.sampled_from([0, 1, 500, 1000, 60_000, HOUR_MS, DAY_MS]), min_size=count, max_size=count)
    )
    times = (SUNDAY_MS + np.cumsum(gaps)).tolist()
    cards = data.draw(st.lists(st.sampled_from("ab"), min_size=count, max_size=count))
    delays = data.draw(st.lists(st.sampled_from([0, 1, 1000, HOUR_MS, 8 * DAY_MS]), min_size=count, max_size=count))
    told: list[Outcome] = [(row, times[row] + delay, True) for row, delay in enumerate(delays) if delay]
    said = sorted(told, key=lambda outcome: outcome[1])
    lag_ms = data.draw(st.sampled_from([1, 500, 1000, 60_000, HOUR_MS]))

    def of(rows: list[int], outcomes: list[Outcome]) -> History:
        return history(
            [times[row] for row in rows],
            [(rows.index(row), known_ms, fraud) for row, known_ms, fraud in outcomes],
            card_id=pa.array([cards[row] for row in rows], pa.string()),
        )

    whole = of(list(range(count)), said)
    rows = data.draw(st.integers(1, count))
    with ThreadPool(data.draw(st.integers(1, 2))) as crew:
        replay = PointInTimeReplay(whole, engine(), RATES, crew=crew, staleness=Staleness.read(f"{lag_ms}ms"))
        found = np.concatenate([chunk.vectors for chunk in replay.chunks(rows=rows)])
        replay.finish()
    for row in range(count):
        until = times[row] - lag_ms
        seen = [other for other in range(count) if times[other] <= until]
        known = [outcome for outcome in said if outcome[1] < until]
        alone = of([*seen, row], known)
        (wanted,) = PointInTimeReplay(alone, engine(), RATES).chunks(first=len(seen))
        assert found[row].tobytes() == wanted.vectors[0].tobytes()
    plain = PointInTimeReplay(whole, engine(), RATES)
    list(plain.chunks())
    plain.finish()
    assert replay.profiles == plain.profiles


def test_a_lag_of_nothing_is_none() -> None:
    assert Staleness.read("0") is None
    assert Staleness.read("0ms") is None


def trace(folder: Path, *lines: str) -> str:
    path = folder / "lags.csv"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    return str(path)


def test_a_trace_says_how_old_profiles_were_and_a_gap_stops_them(tmp_path: Path) -> None:
    far = 10 * GAP_MS
    lag = Staleness.read(trace(tmp_path, "time_ms,lag_ms", "10000,100", "20000,15000", "21000,50", f"{far},70"))
    assert lag is not None
    times = np.array([5000, 10_000, 19_999, 20_000, 20_500, 21_000, 21_000 + GAP_MS + 5, far - 1, far, 2 * far])
    assert lag.frontier_ms(times).tolist() == [
        *(4900, 9900, 19_899),
        # Profiles do not lose what they have seen.
        *(19_899, 19_899),
        *(20_950, 20_950 + GAP_MS, 20_950 + GAP_MS, far - 70, 2 * far - 70),
    ]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], r"lags.csv:1: wanted the header time_ms,lag_ms"),
        (["time,lag"], r"lags.csv:1: wanted the header time_ms,lag_ms"),
        (["time_ms,lag_ms"], r"lags.csv: the trace has no line"),
        (["time_ms,lag_ms", "1,2", "1,2"], r"lags.csv:3: time_ms must be later"),
        (["time_ms,lag_ms", "1,-2"], r"lags.csv:2: wanted two whole numbers"),
        (["time_ms,lag_ms", "1,2,3"], r"lags.csv:2: wanted two whole numbers"),
        (["time_ms,lag_ms", "1,99999999999"], r"lags.csv:2: lag_ms: wanted at most"),
    ],
)
def test_a_wrong_trace_is_refused_with_its_line(tmp_path: Path, lines: list[str], reason: str) -> None:
    with pytest.raises(Misconfigured, match=reason):
        Staleness.read(trace(tmp_path, *lines))


@pytest.mark.parametrize("text", ["1", "ms", "-1s", "1.5", "1w", "9999d", "", "nowhere.csv"])
def test_a_wrong_lag_is_refused(text: str) -> None:
    with pytest.raises(Misconfigured, match="lag: "):
        Staleness.read(text)
