"""The value of one more analyst, by the worked example of the module."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from paywarden.models.metrics.costs import CostSettings
from paywarden.ops.console.review.review_capacity import worth_of_one_more
from paywarden.streams.decision_index.database import DuckDbDatabase
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from paywarden.streams.decision_index.routing import PRIOR, MeasuredAnalysts, gain_sql
from tests.unit.streams.decision_index.test_index import made

_NOW_MS, _DAY_MS = 1_760_000_000_000, 86_400_000
_STAKES = (400, 300, 220, 150, 90, 40)


def test_one_more_analyst_is_worth_what_the_next_payments_save(tmp_path: Path) -> None:
    decisions = [
        made(0, payment_id=f"p{day}-{stake}", score=0.5, amount_minor=2 * stake, action="approve")
        | {"decided_time_ms": _NOW_MS - day * _DAY_MS - 1000, "decision_id": f"{day}-{stake}"}
        for day in range(2)
        for stake in _STAKES
    ]
    # Declined, too old, and without a rate: nobody would review them. And one that came twice.
    others = [
        {**decisions[0], "payment_id": "d", "decision_id": "d", "action": "decline"},
        {**decisions[0], "payment_id": "o", "decision_id": "o", "decided_time_ms": _NOW_MS - 8 * _DAY_MS},
        {**decisions[0], "payment_id": "r", "decision_id": "r", "currency": "XXX"},
        decisions[3],
    ]
    with closing(DuckDbDatabase(tmp_path / "index.duckdb", memory_mb=64, threads=1)) as database:
        index = DecisionIndex(database, worth=lambda amount, currency, _: None if currency == "XXX" else amount)
        with database.transaction() as transaction:
            index.add_decisions(transaction, [Stored(each, b"") for each in [*decisions, *others]])

        def gain(sure: float) -> str:
            """The gain of a look by analysts who are sure and right, or unsure."""
            looks = {each: sure if each[0] == each[1] else (each[1] == "unsure") * (1 - sure) for each in PRIOR}
            costs = CostSettings(declined_margin_share=1.0)
            return gain_sql(costs, "approve", MeasuredAnalysts(looks))

        def worth(**changes: int | str) -> tuple[int, int | None, int | None]:
            asked = {"analysts": 1, "reviews_a_day": 2, "review_cost_minor": 5, "gain": gain(1.0), **changes}
            found = worth_of_one_more(index, _NOW_MS, **asked)  # type: ignore[arg-type]
            assert found.days == 2
            return found.worth_minor, found.gain_minor, found.gain_with_one_more_minor

        # The first two are reviewed anyhow; the next two save 220 and 150, and each costs 5.
        assert worth() == (220 - 5 + 150 - 5, 300, 150)
        # Half of the verdicts are sure.
        assert worth(gain=gain(0.5)) == (110 - 5 + 75 - 5, 150, 75)
        # A review that costs more than it saves is not made.
        assert worth(review_cost_minor=200) == (20, 300, 150)
        # Everything is reviewed already.
        assert worth(analysts=3) == (0, None, None)
