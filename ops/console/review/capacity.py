"""Estimates the worth of one more analyst a day: the money that reviews of the next payments would save.

    a day's payments that were not declined, by amount x probability:   400 300 220 | 150 90 | 40 …
    reviewed today, 3 a day                                             400 300 220
    one more analyst, 2 a day                                                       150 90
    each review costs 5                                                             145 85     worth 230 a day

A review is taken to save the amount times the calibrated probability, as often as analysts are sure in their verdicts.
The estimate is as good as the calibration, which docs/concepts/outcomes.md says how to measure.
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

    `reviews_a_day`: of one analyst. `analysts`: how many gave verdicts. `at_stake_minor`: the least amount x
    probability that the team would look at; `at_stake_with_one_more_minor`: the same with one more analyst. None with
    fewer payments than reviews.
    """

    days: int
    analysts: int
    reviews_a_day: int
    worth_minor: int
    at_stake_minor: int | None
    at_stake_with_one_more_minor: int | None


def worth_of_one_more(
    index: DecisionIndex, now_ms: int, *, analysts: int, reviews_a_day: int, review_cost_minor: int, sure_share: float
) -> AnalystWorth:
    """Return the estimate from the decisions of the last days. Raises TemporaryFailure."""
    first_ms = now_ms - DAYS * _DAY_MS
    most = (analysts + 1) * reviews_a_day
    with index.database.reading() as transaction:
        rows = transaction.execute(
            "SELECT day, stake, decision_id FROM (SELECT day, stake, decision_id, row_number() OVER "
            "(PARTITION BY day ORDER BY stake DESC) AS place FROM (SELECT decision_id, "
            "floor((? - decided_time_ms) / CAST(? AS DOUBLE PRECISION)) AS day, worth_minor * score AS stake "
            "FROM decisions WHERE decided_time_ms > ? AND decided_time_ms <= ? AND action < ? "
            "AND worth_minor IS NOT NULL) AS each_) AS ranked WHERE place <= ?",
            (now_ms, _DAY_MS, first_ms, now_ms, _DECLINE, _REPEATED_MAX * most),
        )
    # A decision that came twice is in DuckDB twice.
    found = {decision_id: (int(day), float(stake)) for day, stake, decision_id in rows}
    days: dict[int, list[float]] = {}
    for day, stake in found.values():
        days.setdefault(day, []).append(stake)
    total, ends, more_ends = 0.0, [], []
    for stakes in days.values():
        stakes.sort(reverse=True)
        del stakes[most:]
        now, more = stakes[: analysts * reviews_a_day], stakes[analysts * reviews_a_day :]
        total += sum(max(0.0, stake * sure_share - review_cost_minor) for stake in more)
        if len(stakes) == most:
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
