"""Rows of the index as decisions, and the newest outcomes of payments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from paywarden.streams.decision_index.database import Rows, Transaction
from paywarden.streams.decision_index.erasure import FIELDS
from paywarden.streams.decision_index.search import ACTIONS, FoundRow, Known, Place

COLUMNS = (
    "decided_time_ms", "payment_hash", "decision_id", "payment_id", "event_time_ms", "card_id", "merchant_id",
    "device_id", "ip", "amount_minor", "currency", "worth_minor", "country", "channel", "score", "action", "reasons",
    "flags", "model_version",
)  # fmt: skip


def listed(numbers: Iterable[int]) -> str:
    """Returns numbers as SQL lists them."""
    return ", ".join(map(str, sorted(numbers)))


def fields_of(row: FoundRow) -> dict[str, Any]:
    """Returns the fields of a decision that its keys come from."""
    names = (*FIELDS, "decided_time_ms", "reasons", "flags", "action", "score")
    return {name: getattr(row, name) for name in names}


def newest_outcomes(transaction: Transaction, payment_hashes: Iterable[int]) -> dict[int, Known]:
    """Returns the newest outcome of each of these payments that has one."""
    hashes = list(payment_hashes)
    if not hashes:
        return {}
    rows: Rows = transaction.execute(
        "SELECT payment_hash, label, outcome_time_ms, source FROM outcomes WHERE payment_hash IN "
        f"({', '.join(map(str, hashes))})"
    )
    newest = sorted(rows, key=lambda row: (row[2], row[1]))
    return {row[0]: Known(row[1], row[2], row[3]) for row in newest}


def row_of(row: tuple[Any, ...], known: Known | None) -> FoundRow:
    """Returns a decision from its COLUMNS."""
    values = dict(zip(COLUMNS, row, strict=True))
    place = Place(values.pop("decided_time_ms"), values.pop("payment_hash"))
    values["action"] = ACTIONS[values["action"]]
    for name in ("reasons", "flags"):
        values[name] = tuple(json.loads(values[name]))
    return FoundRow(place=place, outcome=known, **values)
