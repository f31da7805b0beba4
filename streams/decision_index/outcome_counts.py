"""Counts decisions by day or week for charts: frauds, losses, declines, false positives, and the work of reviewers.

One look at the newest COUNTED_MAX decisions of a time. A payment counts once a period, whatever the number of decisions
about it, and by its newest outcome. Verdicts count in the period of their decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paywarden.streams.decision_index.database import Transaction
from paywarden.streams.decision_index.ledger import NEWEST_OUTCOMES

COUNTED_MAX = 400_000
"""The most decisions that are counted for a page, the newest ones. Two cores count them in about 0.2 s."""
SEGMENTS = ("merchant_id", "country", "currency", "channel")
"""The columns of decisions by which the counts may be narrowed."""
DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
# The length of each period, and when one of them began: the first Monday of 1970 was the fifth of January.
PERIODS = {"day": (DAY_MS, 0), "week": (7 * DAY_MS, 4 * DAY_MS)}
_SPAN = "decided_time_ms >= ? AND decided_time_ms < ?"


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
) -> tuple[int, list[PeriodCounts]]:
    """Returns the counts of a time, the oldest period first, and since when they are.

    `segment`: values of SEGMENTS, for the decisions that have them all. Where the time has more than COUNTED_MAX
    decisions, the counts begin later: with a whole period, if one is left.
    """
    since_ms = _since(transaction, period, first_ms, end_ms)
    length, first = PERIODS[period]
    begin = f"decided_time_ms - (decided_time_ms - {first}) % {length}"
    where = _SPAN + "".join(f" AND {name} = ?" for name in SEGMENTS if name in segment)
    values = (since_ms, end_ms, *(segment[name] for name in SEGMENTS if name in segment))
    rows = transaction.execute(
        "SELECT p.begin_ms, count(*), sum(p.declined), sum((1 - p.declined) * p.worth), "
        "count(CASE WHEN o.label = 'fraud' THEN 1 END), "
        "sum(CASE WHEN o.label = 'fraud' THEN (1 - p.declined) * p.worth ELSE 0 END), "
        "count(CASE WHEN p.declined = 1 THEN o.label END), "
        "count(CASE WHEN p.declined = 1 AND o.label = 'genuine' THEN 1 END) FROM ("
        f"SELECT payment_hash, {begin} AS begin_ms, coalesce(max(worth_minor), 0) AS worth, "
        f"CASE WHEN min(action) < 2 THEN 0 ELSE 1 END AS declined FROM decisions WHERE {where} GROUP BY 1, 2) AS p "
        f"LEFT JOIN ({NEWEST_OUTCOMES}) AS o ON o.payment_hash = p.payment_hash AND o.place = 1 "
        "GROUP BY p.begin_ms ORDER BY p.begin_ms",
        (*values, since_ms, end_ms),
    )
    reviews = transaction.execute(
        "SELECT p.begin_ms, count(*), count(CASE WHEN v.verdict = 'fraud' THEN 1 END), "
        "percentile_cont(0.5) WITHIN GROUP (ORDER BY v.time_ms - v.claimed_ms) FROM verdicts v JOIN ("
        f"SELECT DISTINCT decision_id, {begin} AS begin_ms FROM decisions WHERE {where}) AS p "
        "ON p.decision_id = v.decision_id GROUP BY p.begin_ms",
        values,
    )
    worked = {at: (int(count), int(frauds), float(median_ms) / 1000) for at, count, frauds, median_ms in reviews}
    return since_ms, [PeriodCounts(*map(int, row), *worked.get(row[0], ())) for row in rows]


def _since(transaction: Transaction, period: str, first_ms: int, end_ms: int) -> int:
    """Returns since when a time has at most about COUNTED_MAX decisions."""
    left = COUNTED_MAX
    for hour, decisions in transaction.execute(
        "SELECT hour, decisions FROM hours WHERE hour >= ? AND hour <= ? AND decisions > 0 ORDER BY hour DESC",
        (first_ms // _HOUR_MS, end_ms // _HOUR_MS),
    ):
        if decisions > left:
            since_ms = int(hour + 1) * _HOUR_MS - _HOUR_MS * left // int(decisions)
            whole_ms = period_begin(since_ms - 1, period) + PERIODS[period][0]
            return max(first_ms, whole_ms if whole_ms < end_ms else since_ms)
        left -= int(decisions)
    return first_ms
