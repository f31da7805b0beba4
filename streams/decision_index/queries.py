"""The SQL of a search: the places of the newest decisions that have all keys, and the other conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paywarden.streams.decision_index.database import Transaction
from paywarden.streams.decision_index.search import ACTIONS, FoundRow, Place, Search, listed

# If a card is looked for together with something else, more decisions than this are joined in the database.
_FEW_MAX = 1_000


def distinct_places(transaction: Transaction, sql: str, values: Sequence[Any], count: int) -> list[Place]:
    """Returns the first `count` places of a query, the newest first.

    A repeated decision has the same place as the first. DISTINCT would read all places, not only the newest.
    """
    limit = count
    while True:
        limited = f"{sql} ORDER BY k.decided_time_ms DESC, k.payment_hash DESC LIMIT {limit}"
        rows = transaction.execute(limited, values)
        places = [Place(*row) for row in dict.fromkeys(rows)]
        if len(places) >= count or len(rows) < limit:
            return places[:count]
        limit *= 2


def places_of_few(
    transaction: Transaction, search: Search, after: Place | None, keys: Sequence[tuple[int, ...]]
) -> list[Place] | None:
    """Returns the places that have all keys, looked up from those of the first; None if that one has too many.

    A join would read all decisions of the other keys: those of the busiest merchant, for a card that was there once.
    """
    sql, values = by_keys(keys[:1])
    sql += conditions_of(search, after, None, values)
    places = distinct_places(transaction, sql, values, _FEW_MAX + 1)
    if len(places) > _FEW_MAX:
        return None
    for hashes in keys[1:]:
        if not places:
            break
        times = listed({place.time_ms for place in places})
        payments = listed({place.payment_hash for place in places})
        rows = transaction.execute(
            f"SELECT k.decided_time_ms, k.payment_hash FROM keys k WHERE {_hash_in('k', hashes)} "
            f"AND k.decided_time_ms IN ({times}) AND k.payment_hash IN ({payments})",
            hashes,
        )
        there = {Place(*row) for row in rows}
        places = [place for place in places if place in there]
    return places


def by_keys(keys: Sequence[tuple[int, ...]]) -> tuple[str, list[Any]]:
    """Returns the SQL for the places that have a hash of each tuple, and its values."""
    first, *others = keys
    sql = f"SELECT k.decided_time_ms, k.payment_hash FROM keys k WHERE {_hash_in('k', first)}"
    values: list[Any] = list(first)
    for number, hashes in enumerate(others):
        other = f"k{number}"
        sql += (
            f" AND EXISTS (SELECT 1 FROM keys {other} WHERE {_hash_in(other, hashes)} AND "
            f"{other}.decided_time_ms = k.decided_time_ms AND {other}.payment_hash = k.payment_hash)"
        )
        values += hashes
    return sql, values


def _hash_in(table: str, hashes: Sequence[int]) -> str:
    if len(hashes) == 1:
        return f"{table}.hash = ?"
    return f"{table}.hash IN ({', '.join('?' * len(hashes))})"


def conditions_of(search: Search, after: Place | None, from_ms: int | None, values: list[Any]) -> str:
    """Returns conditions on time, score and action; appends their values."""
    conditions: list[tuple[str, Any]] = []
    if after is not None:
        conditions += [("k.decided_time_ms <= ?", after.time_ms)]
    if search.last_ms is not None:
        conditions += [("k.decided_time_ms <= ?", search.last_ms)]
    lowest = [time_ms for time_ms in (search.first_ms, from_ms) if time_ms is not None]
    if lowest:
        conditions += [("k.decided_time_ms >= ?", max(lowest))]
    if search.score_min > 0.0:
        conditions += [("k.score >= ?", search.score_min)]
    if search.score_max < 1.0:
        conditions += [("k.score <= ?", search.score_max)]
    if search.action:
        conditions += [("k.action = ?", ACTIONS.index(search.action))]
    values += [value for _, value in conditions]
    sql = "".join(f" AND {condition}" for condition, _ in conditions)
    if after is not None:
        sql += " AND (k.decided_time_ms < ? OR k.payment_hash < ?)"
        values += [after.time_ms, after.payment_hash]
    return sql


def fits(row: FoundRow, search: Search) -> bool:
    """Whether a decision meets a search: also where two texts have the same hash."""
    texts = all(
        getattr(row, name) == wanted
        for name in ("payment_id", "card_id", "merchant_id", "device_id", "ip")
        if (wanted := getattr(search, name))
    )
    return (
        texts
        and search.action in ("", row.action)
        and search.score_min <= row.score <= search.score_max
        and (not search.rule or f"rule:{search.rule}" in row.reasons)
        and (not search.flag or search.flag in row.flags)
        and (not search.segment or any(reason.endswith(f":{search.segment}") for reason in row.reasons))
    )
