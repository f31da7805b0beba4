"""The counts of the charts: they equal a plain count, on both databases."""

from __future__ import annotations

import random
from collections import defaultdict
from statistics import median
from typing import Any

from paywarden.streams.decision_index.database import Database
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from paywarden.streams.decision_index.outcome_counts import PeriodCounts, period_begin
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
from paywarden.streams.decision_index.search import key_hash
from paywarden.streams.decision_index.tallies import DAY_MS
from tests.unit.streams.decision_index.test_episodes import START_MS, made

FIRST_MS = period_begin(START_MS, "week")
END_MS = FIRST_MS + 30 * DAY_MS
Record = dict[str, Any]


def filled(database: Database) -> tuple[DecisionIndex, list[Record], list[Record], list[Record]]:
    """Returns an index, and its decisions, outcomes and verdicts."""
    chance = random.Random(5)
    decisions, outcomes, verdicts = list[Record](), list[Record](), list[Record]()
    for number in range(400):
        place: Record = {
            "decided_time_ms": FIRST_MS + chance.randrange(30 * DAY_MS),
            "country": chance.choice(("BR", "DE", None)),
            "amount_minor": chance.randrange(1, 90_000),
            "action": chance.choice(("approve", "review", "decline")),
        }
        # Some payments are decided again: at the same time, or days later.
        for later_ms in chance.choice(((0,), (0, 0), (0, 60_000), (0, 3 * DAY_MS))):
            one = made(number, 0, **place | {"decided_time_ms": place["decided_time_ms"] + later_ms})
            decisions.append(one | {"decision_id": f"d{number}-{later_ms}"})
        for at in range(chance.choice((0, 1, 2))):
            told: Record = {"payment_id": f"p{number}", "outcome_time_ms": END_MS + at, "label": chance.choice(LABELS)}
            outcomes.append(told | {"source": "chargeback"})
        if place["action"] == "review":
            said: Record = {"verdict_id": f"v{number}", "decision_id": f"d{number}-0", "payment_id": f"p{number}"}
            said |= {"payment_hash": key_hash("payment_id", f"p{number}"), "analyst": "ann", "turn": 1}
            said |= {"verdict": chance.choice(("fraud", "genuine", "unsure")), "reason": "", "note": ""}
            verdicts.append(said | {"claimed_ms": END_MS, "time_ms": END_MS + chance.randrange(90_000)})
    index = DecisionIndex(database, worth=lambda minor, _currency, _time: minor)
    with database.transaction() as transaction:
        index.add_decisions(transaction, [Stored(one, b"") for one in decisions])
        index.add_outcomes(transaction, outcomes)
        ReviewQueue(database, ReviewRules()).add_decisions(transaction, decisions, [0] * len(decisions))
        columns = {name: [one[name] for one in verdicts] for name in verdicts[0]}
        transaction.append("verdicts", columns | {"is_sent": [True] * len(verdicts)})
    return index, decisions, outcomes, verdicts


LABELS = ("fraud", "genuine")


def plainly(period: str, decisions: list[Record], outcomes: list[Record], verdicts: list[Record]) -> list[PeriodCounts]:
    """Returns the counts of these records, one after the other. A payment counts once a day."""
    labels = {one["payment_id"]: one["label"] for one in sorted(outcomes, key=lambda one: one["outcome_time_ms"])}
    periods: dict[int, dict[tuple[int, str], Record]] = defaultdict(dict)
    of_decision = {}
    for one in decisions:
        begin = period_begin(one["decided_time_ms"], period)
        periods[begin][one["decided_time_ms"] // DAY_MS, one["payment_id"]] = one
        of_decision[one["decision_id"]] = begin
    counted = []
    for begin, payments in sorted(periods.items()):
        paid = [one for one in payments.values() if one["action"] != "decline"]
        stopped = [labels.get(one["payment_id"]) for one in payments.values() if one["action"] == "decline"]
        said = [one for one in verdicts if of_decision.get(one["decision_id"]) == begin]
        counted.append(
            PeriodCounts(
                begin,
                payments=len(payments),
                declined=len(stopped),
                taken_minor=sum(one["amount_minor"] for one in paid),
                frauds=sum(labels.get(payment_id) == "fraud" for _, payment_id in payments),
                lost_minor=sum(one["amount_minor"] for one in paid if labels.get(one["payment_id"]) == "fraud"),
                declined_known=sum(label is not None for label in stopped),
                declined_genuine=stopped.count("genuine"),
                verdicts=len(said),
                fraud_verdicts=sum(one["verdict"] == "fraud" for one in said),
                review_s=median(one["time_ms"] - one["claimed_ms"] for one in said) / 1000 if said else None,
            )
        )
    return counted


def test_counts_equal_a_plain_count(database: Database) -> None:
    index, decisions, outcomes, verdicts = filled(database)
    for period in ("day", "week"):
        for segment in ({}, {"country": "BR"}, {"merchant_id": "m1", "country": "DE"}):
            kept = [
                one
                for one in decisions
                if one["decided_time_ms"] < END_MS and all(one[name] == text for name, text in segment.items())
            ]
            counted = index.period_counts(period, FIRST_MS, END_MS, segment)
            assert counted == plainly(period, kept, outcomes, verdicts)
    assert index.period_counts("day", FIRST_MS, END_MS, {"currency": "' OR 1=1 --"}) == []
