"""Tallies: the payments of each day (UTC) by segment, with their declines, money and known outcomes, for charts.

    begin_ms    merchant_id  country  currency  channel   payments  declined  taken_minor  frauds  …
    2026-12-03  shop-3       BR       BRL       ecom      812       31        9,440,210    4
    2026-12-03               BR       BRL       ecom      20,455    660       230,118,400  61       all merchants

A row without a merchant holds the sums over all merchants, so that a chart of a year reads some thousand rows.

Every transaction that changes decisions or outcomes also changes the tallies (`tallied`): it counts its payments before
and after, and adds the difference. Repeated decisions, late outcomes and erasures therefore need no care of their own.
An erased payment leaves the tallies, too, and a rebuild, which passes it over, gives the same counts.

A payment counts once a day, whatever the number of decisions about it, and by its newest outcome. It is declined if all
its decisions of the day declined it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from paywarden.streams.decision_index.database import Database, Transaction
from paywarden.streams.decision_index.rows import COUNTED_WORTH, outcomes_sql
from paywarden.streams.decision_index.search import Place, listed

SEGMENTS = ("merchant_id", "country", "currency", "channel")
"""The columns of decisions by which the counts may be narrowed."""
DAY_MS = 86_400_000
SUMS = ("payments", "declined", "taken_minor", "frauds", "lost_minor", "declined_known", "declined_genuine")
"""The columns with counts: see PeriodCounts."""
_KEY = ("begin_ms", *SEGMENTS)
_COUNT = f"""
    SELECT p.begin_ms, {", ".join(f"p.{name}" for name in SEGMENTS)}, count(*), sum(p.declined),
        sum((1 - p.declined) * p.worth), count(CASE WHEN o.label = 'fraud' THEN 1 END),
        sum(CASE WHEN o.label = 'fraud' THEN (1 - p.declined) * p.worth ELSE 0 END),
        count(CASE WHEN p.declined = 1 THEN o.label END),
        count(CASE WHEN p.declined = 1 AND o.label = 'genuine' THEN 1 END)
    FROM (
        SELECT payment_hash, begin_ms, {", ".join(f"min({name}) AS {name}" for name in SEGMENTS)},
            {COUNTED_WORTH} AS worth,
            CASE WHEN min(action) < 2 THEN 0 ELSE 1 END AS declined
        FROM ({{decisions}}) AS d GROUP BY payment_hash, begin_ms
    ) AS p LEFT JOIN ({outcomes_sql("{payments}")}) AS o ON o.payment_hash = p.payment_hash AND o.place = 1
    GROUP BY p.begin_ms, {", ".join(f"p.{name}" for name in SEGMENTS)}"""
_DECISIONS = (
    f"SELECT payment_hash, decided_time_ms - decided_time_ms % {DAY_MS} AS begin_ms, {', '.join(SEGMENTS)}, "
    "worth_minor, action FROM decisions"
)
_SAME = " AND ".join(f"t.{name} = c.{name}" for name in _KEY)
_ADD = (
    f"UPDATE tallies AS t SET {', '.join(f'{name} = t.{name} + c.{name}' for name in SUMS)} FROM tally_changes c "
    f"WHERE {_SAME}",
    f"INSERT INTO tallies SELECT * FROM tally_changes c WHERE NOT EXISTS (SELECT 1 FROM tallies t WHERE {_SAME})",
)
_Key = tuple[int, str, str, str, str]


@contextmanager
def tallied(
    database: Database, transaction: Transaction, payment_hashes: Collection[int], added: Collection[Place] = ()
) -> Iterator[None]:
    """Bring the tallies in line with what the block changes about these payments.

    `added`: the places of the decisions, if all that the block does is to add some.
    """
    if not payment_hashes:
        yield
        return
    database.fill_alone(transaction)
    span = None
    if added:
        times = [place.time_ms for place in added]
        span = min(times) // DAY_MS * DAY_MS, (max(times) // DAY_MS + 1) * DAY_MS
    places = {Place(*row) for row in transaction.execute(database.places_of(payment_hashes, span))}
    before = _counted(database, transaction, places)
    yield
    _change(transaction, before, _counted(database, transaction, places | set(added)))


def _counted(database: Database, transaction: Transaction, places: Collection[Place]) -> dict[_Key, list[int]]:
    """Return the counts of the payments at these places by day and segment, and by day for all merchants."""
    counts: dict[_Key, list[int]] = {}
    if not places:
        return counts
    decisions = database.at_places(_DECISIONS, list(places))
    payments = listed({place.payment_hash for place in places})
    for begin_ms, merchant_id, *row in transaction.execute(_COUNT.format(decisions=decisions, payments=payments)):
        country, currency, channel, *sums = row
        for merchant in {merchant_id, ""}:
            total = counts.setdefault((begin_ms, merchant, country, currency, channel), [0] * len(SUMS))
            total[:] = (old + int(new) for old, new in zip(total, sums, strict=True))
    return counts


def _change(transaction: Transaction, before: dict[_Key, list[int]], after: dict[_Key, list[int]]) -> None:
    """Add the differences between two counts to the tallies."""
    nothing = [0] * len(SUMS)
    rows: list[tuple[int | str, ...]] = []
    for key in before.keys() | after.keys():
        was, now = before.get(key, nothing), after.get(key, nothing)
        if was != now:
            rows.append((*key, *(new - old for old, new in zip(was, now, strict=True))))
    if not rows:
        return
    transaction.append("tally_changes", dict(zip((*_KEY, *SUMS), map(list, zip(*rows, strict=True)), strict=True)))
    for statement in _ADD:
        transaction.execute(statement)
    if any(key not in after for key in before):
        # The id of a merchant must not outlive its last payment.
        days = listed({key[0] for key in before})
        transaction.execute(f"DELETE FROM tallies WHERE payments = 0 AND begin_ms IN ({days})")
    transaction.execute("DELETE FROM tally_changes")
