"""Counts decisions by day or week for charts: frauds, losses, declines, false positives, and the work of reviewers.

The counts of decisions are sums of the tallies of their days (tallies.py). Verdicts are few: they count one by one, in
the period of their decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paywarden.streams.decision_index.database import Transaction
from paywarden.streams.decision_index.tallies import DAY_MS, SEGMENTS, SUMS

# The length of each period, and when one of them began: the first Monday of 1970 was the fifth of January.
PERIODS = {"day": (DAY_MS, 0), "week": (7 * DAY_MS, 4 * DAY_MS)}


@dataclass(frozen=True)
class PeriodCounts:
    """The counts of a day or a week (UTC) that begins at `begin_ms`.

    Money in minor units of the reference currency, without payments that have no rate. `lost_minor` is the money of
    known frauds that were not declined. `declined_known`: declined payments with an outcome. `review_s` is the median
    time from claim to verdict, None without verdicts.
    """

    begin_ms: int
    payments: int
    declined: int
    taken_minor: int
    frauds: int
    lost_minor: int
    declined_known: int
    declined_genuine: int
    verdicts: int = 0
    fraud_verdicts: int = 0
    review_s: float | None = None


def period_begin(time_ms: int, period: str) -> int:
    """Returns when the day or week of a time began; weeks begin on Monday (UTC)."""
    length, first = PERIODS[period]
    return time_ms - (time_ms - first) % length


def period_counts(
    transaction: Transaction, period: str, first_ms: int, end_ms: int, segment: Mapping[str, str]
) -> list[PeriodCounts]:
    """Returns the counts of the days that begin in a time, by period, the oldest first.

    `segment`: values of SEGMENTS, for the payments that have them all.
    """
    length, first = PERIODS[period]
    narrowed = "".join(f" AND {name} = ?" for name in SEGMENTS if name in segment)
    values = [segment[name] for name in SEGMENTS if name in segment]
    merchants = "" if "merchant_id" in segment else " AND merchant_id = ''"
    rows = transaction.execute(
        f"SELECT begin_ms - (begin_ms - {first}) % {length} AS period_ms, {', '.join(f'sum({name})' for name in SUMS)} "
        f"FROM tallies WHERE begin_ms >= ? AND begin_ms < ?{narrowed}{merchants} GROUP BY 1 ORDER BY 1",
        (first_ms, end_ms, *values),
    )
    reviews = transaction.execute(
        f"SELECT r.decided_time_ms - (r.decided_time_ms - {first}) % {length} AS period_ms, count(*), "
        "count(CASE WHEN v.verdict = 'fraud' THEN 1 END), "
        "percentile_cont(0.5) WITHIN GROUP (ORDER BY v.time_ms - v.claimed_ms) FROM verdicts v JOIN reviews r "
        f"ON r.decision_id = v.decision_id WHERE r.decided_time_ms >= ? AND r.decided_time_ms < ?{narrowed} GROUP BY 1",
        (first_ms, end_ms, *values),
    )
    worked = {at: (int(count), int(frauds), float(median_ms) / 1000) for at, count, frauds, median_ms in reviews}
    return [PeriodCounts(*map(int, row), *worked.get(row[0], ())) for row in rows]
