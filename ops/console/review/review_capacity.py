"""Estimates the worth of one more analyst a day: the money that reviews of the next payments would save.

    a day's payments that were not declined, by the gain of a look:   400 300 220 | 150 90 | 40 …
    reviewed today, 3 a day                                           400 300 220
    one more analyst, 2 a day                                                       150 90
    each review costs 5                                                             145 85     worth 230 a day

The gain of a look is that of the review queue (streams/decision_index/routing.py). The estimate is as good as the
calibration, which docs/concepts/outcomes.md says how to measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paywarden.streams.decision_index.index import DecisionIndex

_DAY_MS = 86_400_000
DAYS = 7
_DECLINE = 2
_REPEATED_MAX = 2


@dataclass(frozen=True)
class AnalystWorth:
    """The worth of one more analyst, in minor units of the reference currency a day.

    `reviews_a_day`: of one analyst. `analysts`: how many gave verdicts. `gain_minor`: the least gain of a look that the
    team makes; `gain_with_one_more_minor`: the same with one more analyst. None with fewer payments than reviews.
    """

    days: int
    analysts: int
    reviews_a_day: int
    worth_minor: int
    gain_minor: int | None
    gain_with_one_more_minor: int | None


def worth_of_one_more(
    index: DecisionIndex, now_ms: int, *, analysts: int, reviews_a_day: int, review_cost_minor: int, gain: str
) -> AnalystWorth:
    """Return the estimate from the decisions of the last days. `gain`: that of a look, as SQL.

    Raises TemporaryFailure.
    """
    first_ms = now_ms - DAYS * _DAY_MS
    most = (analysts + 1) * reviews_a_day
    with index.database.reading() as transaction:
        rows = transaction.execute(
            "SELECT day, gain, decision_id FROM (SELECT day, gain, decision_id, row_number() OVER "
            "(PARTITION BY day ORDER BY gain DESC) AS place FROM (SELECT decision_id, "
            f"floor((? - decided_time_ms) / CAST(? AS DOUBLE PRECISION)) AS day, {gain} AS gain "
            "FROM decisions WHERE decided_time_ms > ? AND decided_time_ms <= ? AND action < ? "
            "AND worth_minor IS NOT NULL) AS each_) AS ranked WHERE place <= ?",
            (now_ms, _DAY_MS, first_ms, now_ms, _DECLINE, _REPEATED_MAX * most),
        )
    # A decision that came twice is in DuckDB twice.
    found = {decision_id: (int(day), int(minor)) for day, minor, decision_id in rows}
    days: dict[int, list[int]] = {}
    for day, minor in found.values():
        days.setdefault(day, []).append(minor)
    total, ends, more_ends = 0, [], []
    for gains in days.values():
        gains.sort(reverse=True)
        del gains[most:]
        now, more = gains[: analysts * reviews_a_day], gains[analysts * reviews_a_day :]
        total += sum(max(0, minor - review_cost_minor) for minor in more)
        if len(gains) == most:
            ends += now[-1:]
            more_ends += more[-1:]
    count = max(1, len(days))
    return AnalystWorth(
        len(days),
        analysts,
        reviews_a_day,
        round(total / count),
        round(sum(ends) / len(ends)) if ends else None,
        round(sum(more_ends) / len(more_ends)) if more_ends else None,
    )
