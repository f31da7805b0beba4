"""Make decisions and outcomes on two topics, and the tallies they should give, for tests of the join."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from paywarden.models.metrics.outcome_tally import UNLABELLED, OutcomeTally, units_of
from paywarden.models.metrics.tally import FRAUD, GENUINE
from paywarden.models.policy.policy import ACTIONS
from paywarden.streams.outcomes.payments import DAY_MS, Arm, TallyCell

FIRST_DAY = 20_000
HOUR_MS = 3_600_000
Record = dict[str, Any]
_LABELS = {"genuine": GENUINE, "fraud": FRAUD}


def decision(payment_id: str, decided_ms: int, **changes: Any) -> Record:
    """Return a decision with every field that the join reads."""
    fields: Record = {
        "payment_id": payment_id,
        "decided_time_ms": decided_ms,
        "model_version": "m1",
        "variant": "",
        "score": 0.25,
        "action": "approve",
        "amount_minor": 1_000,
        "currency": "EUR",
        "flags": [],
    }
    return {**fields, **changes}


def outcome(payment_id: str, time_ms: int, label: str) -> Record:
    return {"payment_id": payment_id, "outcome_time_ms": time_ms, "label": label, "source": None}


def random_records(seed: int, payments: int) -> tuple[list[Record], list[Record]]:
    """Return decisions and outcomes of `payments` payments, each topic in an order of its own.

    Some are repeated, corrected, late, or have no counterpart.
    """
    chance = random.Random(seed)
    decisions: list[Record] = []
    outcomes: list[Record] = []
    for number in range(payments):
        name = f"p{number}"
        decided_ms = FIRST_DAY * DAY_MS + chance.randrange(3 * DAY_MS)
        made = [
            decision(
                name,
                decided_ms + chance.randrange(HOUR_MS),
                variant=chance.choice(["", "b"]),
                model_version=chance.choice(["m1", "m2"]),
                score=chance.random(),
                action=chance.choice(ACTIONS),
                amount_minor=chance.randrange(10_000),
            )
            for _ in range(chance.choice([0, 1, 1, 1, 2]))
        ]
        decisions += made
        times = [decided_ms + chance.choice([1, 5, 60, 95]) * DAY_MS + chance.randrange(5) for _ in range(3)]
        known = [outcome(name, chance.choice(times), chance.choice(["fraud", "genuine"])) for _ in range(4)]
        outcomes += chance.choices(known, k=chance.choice([0, 0, 1, 2, 5]))
        # Sent again, as after a failure.
        decisions += made[: chance.choice([0, 0, 1])]
    chance.shuffle(decisions)
    chance.shuffle(outcomes)
    return decisions, outcomes


def recount(decisions: Iterable[Record], outcomes: Iterable[Record], window_days: int) -> dict[TallyCell, OutcomeTally]:
    """Return the tallies, computed from all records at once. Decisions are in the order of their topic."""
    labels: dict[str, list[tuple[int, int]]] = {}
    for one in outcomes:
        labels.setdefault(one["payment_id"], []).append((one["outcome_time_ms"], _LABELS[one["label"]]))
    first_ms: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    found: dict[TallyCell, OutcomeTally] = {}
    for one in decisions:
        name, decided_ms = one["payment_id"], one["decided_time_ms"]
        first_ms.setdefault(name, decided_ms)
        if (name, one["variant"]) in seen:
            continue
        seen.add((name, one["variant"]))
        until_ms = first_ms[name] + window_days * DAY_MS
        known = max((label for label in labels.get(name, []) if label[0] <= until_ms), default=None)
        cell = TallyCell(decided_ms // DAY_MS, Arm(one["model_version"], one["variant"]))
        found.setdefault(cell, OutcomeTally()).count(
            score_units=units_of(one["score"]),
            action=ACTIONS.index(one["action"]),
            amount_minor=one["amount_minor"],
            label=UNLABELLED if known is None else known[1],
            lag_ms=0 if known is None else max(0, known[0] - decided_ms),
        )
    return found


def assert_same(found: Mapping[TallyCell, OutcomeTally], wanted: Mapping[TallyCell, OutcomeTally]) -> None:
    """Compare tallies. A cell in which everything was taken away again equals no cell."""
    assert {cell for cell, tally in found.items() if tally.row.any()} == set(wanted)
    for cell, tally in wanted.items():
        np.testing.assert_array_equal(found[cell].row, tally.row, str(cell))


def by_partition(records: Sequence[Record], partitions: int) -> list[list[Record]]:
    """Return the records by partition, as on a topic that is keyed by payment."""
    return [[one for one in records if int(one["payment_id"][1:]) % partitions == p] for p in range(partitions)]


def kinds(totals: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Return the totals of several partitions together."""
    found: Counter[str] = Counter()
    for one in totals:
        found.update(one)
    return found
