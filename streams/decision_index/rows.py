"""Rows of the index as decisions, and the newest outcomes of payments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from paywarden.streams.decision_index.database import Rows, Transaction
from paywarden.streams.decision_index.erasure import FIELDS
from paywarden.streams.decision_index.search import ACTIONS, FoundRow, Known, LinkedPayment, Place, listed

PLACE_COLUMNS = ("decided_time_ms", "payment_hash", "decision_id")
LINKED = ("payment_id", "card_id", "merchant_id", "device_id", "ip")
COLUMNS = (
    *PLACE_COLUMNS, *LINKED, "event_time_ms", "amount_minor", "currency", "worth_minor", "country", "channel", "score",
    "action", "reasons", "flags", "model_version",
)  # fmt: skip
_WORTH_MINOR_MAX = 10**12
COUNTED_WORTH = f"greatest(least(coalesce(max(worth_minor), 0), {_WORTH_MINOR_MAX}), -{_WORTH_MINOR_MAX})"
"""The money of one payment's decisions, as counts of a day add it up: bounded, so that the sums fit into 64 bits."""


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
        f"SELECT payment_hash, label, outcome_time_ms, source FROM outcomes WHERE payment_hash IN ({listed(hashes)})"
    )
    newest = sorted(rows, key=lambda row: (row[2], row[1]))
    return {row[0]: Known(row[1], row[2], row[3]) for row in newest}


def outcomes_sql(payments: str) -> str:
    """Returns the query of the outcomes of some payments. The newest of each payment has the place 1.

    `payments` are the payments' hashes, as SQL.
    """
    return f"""
        SELECT payment_hash, label,
            row_number() OVER (PARTITION BY payment_hash ORDER BY outcome_time_ms DESC, label DESC) AS place,
            max(CASE WHEN source = 'chargeback' THEN 1 ELSE 0 END) OVER (PARTITION BY payment_hash) AS disputed
        FROM outcomes WHERE payment_hash IN ({payments})"""


def linked_of(row: tuple[Any, ...], known: Known | None) -> LinkedPayment:
    """Returns a decision from PLACE_COLUMNS and LINKED."""
    time_ms, payment_hash, *texts = row
    return LinkedPayment(Place(time_ms, payment_hash), known, *texts)


def row_of(row: tuple[Any, ...], known: Known | None) -> FoundRow:
    """Returns a decision from its COLUMNS."""
    values = dict(zip(COLUMNS, row, strict=True))
    place = Place(values.pop("decided_time_ms"), values.pop("payment_hash"))
    values["action"] = ACTIONS[values["action"]]
    for name in ("reasons", "flags"):
        values[name] = tuple(json.loads(values[name]))
    return FoundRow(place=place, outcome=known, **values)
