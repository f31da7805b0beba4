"""A new kind of fraud in a simulated world: cards pay once each at game shops, at amounts between EUR 60 and 90.

No earlier fraud looks like it, so a model that was trained before approves it. Banks report each fraud after two hours.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

HOUR_MS = 3_600_000
MCC = "5816"
_REPORTED_MS = 2 * HOUR_MS


def with_attack(
    payments: pa.Table, outcomes: pa.Table, *, first_ms: int, last_ms: int, frauds_a_day: int, seed: int
) -> tuple[pa.Table, pa.Table]:
    """Returns both tables with the attack in them."""
    rng = np.random.default_rng(seed)
    count = round(frauds_a_day * (last_ms - first_ms) / (24 * HOUR_MS))
    # Most of a genuine payment stays: its card, device, address and country.
    online = np.flatnonzero(pc.equal(payments["channel"], "ecom").to_numpy(zero_copy_only=False))
    copied = payments.take(rng.choice(online, count))
    time_ms = np.sort(rng.integers(first_ms, last_ms, count))
    ids = [f"attack-{number:06d}" for number in range(count)]
    columns = {
        "payment_id": ids,
        "event_time_ms": time_ms,
        "amount_minor": rng.integers(60_00, 90_00, count),
        "currency": ["EUR"] * count,
        "mcc": [MCC] * count,
        "declined": [False] * count,
        "utc_offset_minutes": copied["utc_offset_minutes"],
    }
    table = pa.table([columns.get(name, copied[name]) for name in payments.column_names], payments.column_names)
    known = {
        "payment_id": ids,
        "outcome_time_ms": time_ms + _REPORTED_MS,
        "label": ["fraud"] * count,
        "source": ["issuer"] * count,
    }
    both = [
        (_plain(payments), _plain(table), "event_time_ms"),
        (
            _plain(outcomes),
            _plain(pa.table([known[name] for name in outcomes.column_names], outcomes.column_names)),
            "outcome_time_ms",
        ),
    ]
    first, second = (pa.concat_tables([old, new.cast(old.schema)]).sort_by(time) for old, new, time in both)
    return first, second


def known_by(payments: pa.Table, outcomes: pa.Table, time_ms: int) -> tuple[pa.Table, pa.Table]:
    """Returns what is known at a time: the payments until then, and the outcomes that have arrived."""
    before = payments.filter(pc.less(payments["event_time_ms"], time_ms))
    arrived = outcomes.filter(pc.less(outcomes["outcome_time_ms"], time_ms))
    return before, arrived.filter(pc.is_in(arrived["payment_id"], before["payment_id"].combine_chunks()))


def _plain(table: pa.Table) -> pa.Table:
    columns = [column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column for column in table.columns]
    return pa.table(columns, table.column_names)
