"""The index of decisions: its tables, and the search in them.

    decisions   a row for each decision, in the order of arrival          read for the rows of one page alone
    keys        (hash, time, payment's hash, score, action)               the way to them: see search.py
    bodies      each decision as it was on its topic, Avro                what `recompute` and the page of one read
    outcomes    what became of payments
    hours       how many decisions each hour had
    sources     how far each partition of each topic is in
    tallies     payments by day and segment                               what charts add up (tallies.py)
    episodes, episode_payments, merchant_days                             enumeration (episodes.py, ledger.py)
    reviews, verdicts                                                     the review queue (reviews.py)
    forgotten   hashes of what was erased                                 compared with what comes in (erasure.py)

A search goes one of two ways:

1. With a key, the keys give the places of the newest decisions, score and action checked on the way; then the rows of
   one page are fetched by their places. The cost grows with the decisions of that key, not with all.
2. Without one, it goes back through all decisions, the newest first, and looks at no more than the database's
   `scan_rows_max`. The page says how far back that was, and the next one goes on there.

Both look at the newest decisions first, and further back only where these are too few for a page (`window_rows`).

Decisions come at least once. Rows that repeat one are dropped when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.decision_index import episodes
from paywarden.streams.decision_index.database import ERASED_FACT, Database, Transaction
from paywarden.streams.decision_index.episodes import NO_EPISODES, EpisodeFeatures
from paywarden.streams.decision_index.erasure import Erasure, note_erasure, pass_over
from paywarden.streams.decision_index.ledger import forget_merchant
from paywarden.streams.decision_index.outcome_counts import PeriodCounts, period_counts
from paywarden.streams.decision_index.queries import by_keys, conditions_of, distinct_places, fits, places_of_few
from paywarden.streams.decision_index.rows import (
    COLUMNS,
    LINKED,
    PLACE_COLUMNS,
    fields_of,
    linked_of,
    newest_outcomes,
    row_of,
)
from paywarden.streams.decision_index.rule_catches import RuleCatch, rule_catch, rule_weeks
from paywarden.streams.decision_index.search import (
    ACTIONS,
    PAGE_ROWS_MAX,
    FoundRow,
    Known,
    LinkedPayment,
    Place,
    Search,
    SearchPage,
    decision_keys,
    distinct,
    is_finite_score,
    key_hash,
    listed,
)
from paywarden.streams.decision_index.tallies import DAY_MS, tallied

HOUR_MS = 3_600_000
_FIRST = Place(1 << 62, (1 << 63) - 1)
_LOWEST_HASH = -(1 << 63)
# Decisions whose outcomes are looked up for an entity: a busy merchant has millions.
SHARED_DECISIONS_MAX = 10_000
_ERASED_AT_ONCE = 500
# The newest places of a key. A decision that came twice has two: DISTINCT would read all decisions of a busy merchant.
_NEWEST_PLACES = (
    "SELECT decided_time_ms, payment_hash FROM (SELECT decided_time_ms, payment_hash FROM keys WHERE hash = ? {since}"
    "ORDER BY decided_time_ms DESC, payment_hash DESC LIMIT {count}) AS p{number}"
)

_Made = TypeVar("_Made")
Worth = Callable[[int, str, int], int | None]
"""Converts an amount in minor units, a currency and a time to the reference currency; None without a rate."""


@dataclass(frozen=True)
class SourcePlace:
    """The progress of a partition in the index. `missing`: records that had expired before they were read."""

    topic: str
    partition: int
    next_offset: int
    topic_id: str = ""
    missing: int = 0
    newest_ms: int = 0


@dataclass(frozen=True)
class Stored:
    """A decision as it was on its topic: the decoded record, the bytes it was decoded from, and Kafka's own time."""

    decision: Mapping[str, Any]
    body: bytes


@dataclass(frozen=True)
class SharedEntity:
    """An entity of a payment, its newest decisions, and payments of it that are known frauds, the newest first.

    `decisions` were looked at. `is_all` is False where the entity has more than SHARED_DECISIONS_MAX.
    """

    kind: str
    value: str
    decisions: int
    frauds: list[LinkedPayment]
    fraud_count: int
    is_all: bool
    newest: list[LinkedPayment]


class DecisionIndex:
    """Reads and writes an index. Thread-safe, as its database is."""

    def __init__(
        self,
        database: Database,
        *,
        worth: Worth = lambda _amount, _currency, _time: None,
        features: EpisodeFeatures = NO_EPISODES,
    ) -> None:
        """`features`: the `episode` features of the settings' catalogue."""
        self.database, self._worth, self.features = database, worth, features

    # Writing

    def add_decisions(self, transaction: Transaction, stored: Sequence[Stored]) -> None:
        """Adds decisions in the form of their topic. Their order does not matter."""
        rows = {name: list[Any]() for name in COLUMNS}
        keys = {name: list[Any]() for name in ("hash", "decided_time_ms", "payment_hash", "score", "action")}
        hours: dict[int, int] = {}
        for each in stored:
            row = self._row(each.decision)
            for name in COLUMNS:
                rows[name].append(row[name])
            hours[row["decided_time_ms"] // HOUR_MS] = hours.get(row["decided_time_ms"] // HOUR_MS, 0) + 1
            for hash_ in distinct((row["payment_hash"], *decision_keys(each.decision))):
                keys["hash"].append(hash_)
                for name in ("decided_time_ms", "payment_hash", "score", "action"):
                    keys[name].append(row[name])
        added = [Place(*place) for place in zip(rows["decided_time_ms"], rows["payment_hash"], strict=True)]
        with tallied(self.database, transaction, set(rows["payment_hash"]), added):
            transaction.append("decisions", rows)
        transaction.append("keys", keys)
        transaction.append(
            "bodies",
            {
                **{name: rows[name] for name in ("decided_time_ms", "payment_hash", "decision_id")},
                "body": [each.body for each in stored],
            },
        )
        self._count_hours(transaction, hours)
        if self.features.features:
            worths = zip((each.decision for each in stored), rows["worth_minor"], strict=True)
            episodes.add(transaction, self.features, list(worths))

    def _row(self, decision: Mapping[str, Any]) -> dict[str, Any]:
        row = {name: decision.get(name) for name in COLUMNS}
        for name in ("device_id", "ip", "country", "channel"):
            row[name] = row[name] or ""
        row["payment_hash"] = key_hash("payment_id", decision["payment_id"])
        row["action"] = ACTIONS.index(decision["action"])
        row["worth_minor"] = self._worth(decision["amount_minor"], decision["currency"], decision["event_time_ms"])
        row["reasons"], row["flags"] = (json.dumps(list(decision[name])) for name in ("reasons", "flags"))
        return row

    @staticmethod
    def _count_hours(transaction: Transaction, hours: Mapping[int, int]) -> None:
        for hour, count in hours.items():
            transaction.execute(
                "INSERT INTO hours (hour, decisions) VALUES (?, ?) "
                "ON CONFLICT (hour) DO UPDATE SET decisions = hours.decisions + excluded.decisions",
                (hour, count),
            )

    @staticmethod
    def takes(decision: Mapping[str, Any]) -> bool:
        """Whether a decision can be in the index: its score is a number from 0 to 1."""
        return is_finite_score(decision["score"])

    def worth(self, decision: Mapping[str, Any]) -> int:
        """Returns the amount of a decision in the reference currency, 0 without a rate."""
        return self._worth(decision["amount_minor"], decision["currency"], decision["event_time_ms"]) or 0

    def add_outcomes(self, transaction: Transaction, outcomes: Iterable[Mapping[str, Any]]) -> None:
        """Adds outcomes in the form of their topic, in any order. The newest outcome of a payment counts."""
        told = list(outcomes)
        hashes = [key_hash("payment_id", outcome["payment_id"]) for outcome in told]
        with tallied(self.database, transaction, set(hashes)):
            transaction.append(
                "outcomes",
                {
                    "payment_hash": hashes,
                    "outcome_time_ms": [outcome["outcome_time_ms"] for outcome in told],
                    "label": [outcome["label"] for outcome in told],
                    "source": [outcome["source"] or "" for outcome in told],
                },
            )

    def erase(self, transaction: Transaction, erasure: Erasure) -> int:
        """Takes out the decisions of an erasure with everything about their payments, and remembers it.

        Verdicts that are not on their topic yet stay until they are. Returns how many decisions there were.
        """
        note_erasure(transaction, erasure)
        # Also without rows: those that were deleted for their age are still in the file.
        self._note_erased(transaction)
        first = min(erasure.hashes.values())
        rows = transaction.execute(
            f"SELECT {', '.join(COLUMNS)} FROM decisions WHERE (decided_time_ms, payment_hash) IN "
            "(SELECT decided_time_ms, payment_hash FROM keys WHERE hash = ? AND decided_time_ms <= ?)",
            (first, erasure.until_ms),
        )
        found = [row for row in (row_of(one, None) for one in rows) if erasure.holds(fields_of(row))]
        for start in range(0, len(found), _ERASED_AT_ONCE):
            some = found[start : start + _ERASED_AT_ONCE]
            with tallied(self.database, transaction, {row.place.payment_hash for row in some}):
                self._take_out(transaction, some)
        episodes.drop_empty(transaction)
        if "merchant_id" in erasure.hashes:
            forget_merchant(transaction, erasure.hashes["merchant_id"], erasure.until_ms // DAY_MS)
        return len(found)

    def _take_out(self, transaction: Transaction, rows: Sequence[FoundRow]) -> None:
        payments = sorted({row.place.payment_hash for row in rows})
        hashes = {row.place.payment_hash for row in rows}
        hours: dict[int, int] = {}
        for row in rows:
            hashes |= set(decision_keys(fields_of(row)))
            hours[row.decided_time_ms // HOUR_MS] = hours.get(row.decided_time_ms // HOUR_MS, 0) + 1
        times = listed({row.decided_time_ms for row in rows})
        of_payments = f"payment_hash IN ({listed(payments)})"
        ids = [row.decision_id for row in rows]
        of_ids = f"decision_id IN ({', '.join('?' * len(ids))})"
        for table in self.database.tables_by_time():
            if table.startswith("keys"):
                where, values = f"hash IN ({listed(hashes)}) AND decided_time_ms IN ({times}) AND {of_payments}", []
            elif table in ("decisions", "bodies"):
                where, values = f"decided_time_ms IN ({times}) AND {of_payments} AND {of_ids}", ids
            elif table == "reviews":
                where, values = of_ids, ids
            else:
                where, values = of_payments, []
            transaction.execute(f"DELETE FROM {table} WHERE {where}", values)
        transaction.execute(f"DELETE FROM verdicts WHERE is_sent AND {of_ids}", ids)
        for hour, count in hours.items():
            transaction.execute("UPDATE hours SET decisions = greatest(0, decisions - ?) WHERE hour = ?", (count, hour))
        pass_over(transaction, payments)

    def take_out_payments(self, transaction: Transaction, payment_hashes: Sequence[int]) -> None:
        """Takes out outcomes and sent verdicts of erased payments, and remembers these payments."""
        where = f"payment_hash IN ({listed(payment_hashes)})"
        with tallied(self.database, transaction, payment_hashes):
            for table in self.database.tables_by_time():
                if table.startswith("outcomes"):
                    transaction.execute(f"DELETE FROM {table} WHERE {where}")
        self._take_out_verdicts(transaction, where)
        pass_over(transaction, payment_hashes)

    def forget_sent_verdicts(self, transaction: Transaction) -> None:
        """Takes out verdicts about erased payments that have been sent meanwhile."""
        self._take_out_verdicts(transaction, "payment_hash IN (SELECT payment_hash FROM forgotten_payments)")

    def _take_out_verdicts(self, transaction: Transaction, where: str) -> None:
        if transaction.execute(f"DELETE FROM verdicts WHERE is_sent AND {where} RETURNING verdict_id"):
            self._note_erased(transaction)

    @staticmethod
    def _note_erased(transaction: Transaction) -> None:
        """Note that `purge` has work to do."""
        transaction.append("facts", {"name": [ERASED_FACT], "value": [""]})

    def sources(self, topic: str) -> dict[int, SourcePlace]:
        """Returns by partition how far a topic is in."""
        with self.database.reading() as transaction:
            return self.sources_in(transaction, topic)

    @staticmethod
    def sources_in(transaction: Transaction, topic: str) -> dict[int, SourcePlace]:
        """Returns the same as a transaction sees it."""
        rows = transaction.execute(
            "SELECT kafka_partition, next_offset, topic_id, missing, newest_ms FROM sources WHERE topic = ?", (topic,)
        )
        return {row[0]: SourcePlace(topic, *row) for row in rows}

    @staticmethod
    def set_source(transaction: Transaction, place: SourcePlace) -> None:
        """Notes how far a partition was read, in the transaction that adds its records."""
        transaction.execute(
            "INSERT INTO sources (topic, kafka_partition, next_offset, topic_id, missing, newest_ms) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (topic, kafka_partition) DO UPDATE SET "
            "next_offset = excluded.next_offset, topic_id = excluded.topic_id, missing = excluded.missing, "
            "newest_ms = excluded.newest_ms",
            (place.topic, place.partition, place.next_offset, place.topic_id, place.missing, place.newest_ms),
        )

    def expire(self, before_ms: int) -> None:
        """Deletes decisions, reviews and sent verdicts that are older than a time, and outcomes reported before it.

        A day (UTC) goes as a whole: its tallies have all of its decisions, or none.
        """
        before_ms -= before_ms % DAY_MS
        tables = self.database.tables_by_time()
        with self.database.transaction() as transaction:
            for table, column in tables.items():
                transaction.execute(f"DELETE FROM {table} WHERE {column} < ?", (before_ms,))
            transaction.execute("DELETE FROM verdicts WHERE time_ms < ? AND is_sent", (before_ms,))
            transaction.execute("DELETE FROM hours WHERE hour < ?", (before_ms // HOUR_MS,))
            transaction.execute("DELETE FROM merchant_days WHERE day < ?", (before_ms // DAY_MS,))
            transaction.execute("DELETE FROM tallies WHERE begin_ms < ?", (before_ms,))
            episodes.drop_empty(transaction)
            self.forget_sent_verdicts(transaction)

    def empty(self) -> None:
        """Takes everything out that the topics have. Claims, verdicts and erasures stay."""
        with self.database.transaction() as transaction:
            self.database.drop_decisions(transaction)
            transaction.execute("DELETE FROM sources")

    # Reading

    def count(self) -> int:
        """Returns how many decisions came, repeated ones included."""
        with self.database.reading() as transaction:
            ((count,),) = transaction.execute("SELECT coalesce(sum(decisions), 0) FROM hours")
        return int(count)

    def newest_ms(self) -> int:
        """Returns when the newest decision came onto its topic; 0 without any. It reads a row for each partition."""
        with self.database.reading() as transaction:
            ((newest_ms,),) = transaction.execute(
                "SELECT coalesce(max(newest_ms), 0) FROM sources WHERE topic = 'decisions'"
            )
        return int(newest_ms)

    def search(self, search: Search, *, after: Place | None = None, count: int = 25) -> SearchPage:
        """Returns the next page of a search, at most `count` decisions, the newest first.

        Raises InvalidEvent for a `count` beyond PAGE_ROWS_MAX, TemporaryFailure if the database does not answer.
        """
        if not 1 <= count <= PAGE_ROWS_MAX:
            raise InvalidEvent(f"wanted 1 to {PAGE_ROWS_MAX}", field="count")
        with self.database.reading() as transaction:
            keys, places = search.keys(), list[Place]()
            if len(keys) > 1 and search.is_of_few:
                few = places_of_few(transaction, search, after, keys)
                if few is not None:
                    rows = [row for row in self._rows_at(transaction, few[:count]) if fits(row, search)]
                    return SearchPage(rows, few[count - 1] if len(few) > count else None)
            for from_ms in self._windows(transaction, search, after):
                if keys:
                    sql, values = by_keys(keys)
                else:
                    sql, values = "SELECT k.decided_time_ms, k.payment_hash FROM decisions k WHERE true", []
                sql += conditions_of(search, after, from_ms, values)
                # One place more tells whether there is a next page.
                places = distinct_places(transaction, sql, values, count + 1)
                if len(places) > count:
                    break
            rows = self._rows_at(transaction, places[:count])
        # Another decision about the same payment in the same millisecond comes along: it must meet the search, too.
        rows = [row for row in rows if fits(row, search)]
        if len(places) > count:
            return SearchPage(rows, places[count - 1])
        if from_ms is not None:
            return SearchPage(rows, Place(from_ms, _LOWEST_HASH), from_ms)
        return SearchPage(rows)

    def _windows(self, transaction: Transaction, search: Search, after: Place | None) -> list[int | None]:
        """Returns from which time on to look: first at the newest decisions, then further back. None: to the beginning.

        The newest decisions answer most searches, and older ones are not read then: the smallest and largest time of a
        group of rows are known. A card has few decisions wherever they are, so its keys are all looked up at once.
        Without a key the last window ends after `scan_rows_max` decisions.
        """
        has_keys = bool(search.keys())
        if has_keys and search.is_of_few:
            return [None]
        top = min(_FIRST.time_ms if search.last_ms is None else search.last_ms, (after or _FIRST).time_ms)
        hours = transaction.execute(
            "SELECT hour, decisions FROM hours WHERE hour <= ? ORDER BY hour DESC", (top // HOUR_MS,)
        )
        sizes = list(self.database.window_rows)
        if not has_keys:
            sizes = [*(size for size in sizes if size < self.database.scan_rows_max), self.database.scan_rows_max]
        windows: list[int | None] = []
        seen = 0
        for place, (hour, decisions) in enumerate(hours):
            seen += decisions
            start_ms = int(hour) * HOUR_MS
            if (search.first_ms is not None and search.first_ms >= start_ms) or place + 1 == len(hours):
                break
            while sizes and seen >= sizes[0]:
                sizes.pop(0)
                if not windows or windows[-1] != start_ms:
                    windows.append(start_ms)
            if not sizes and not has_keys:
                return windows
        return [*windows, None]

    def at(self, *places: Place) -> list[FoundRow]:
        """Returns the decisions at places: one at each, as a rule."""
        with self.database.reading() as transaction:
            return self._rows_at(transaction, places)

    def about(self, payment_id: str) -> list[FoundRow]:
        """Returns all decisions about a payment, the newest first."""
        return self.search(Search(payment_id=payment_id), count=PAGE_ROWS_MAX).rows

    def bodies(self, places: Sequence[Place]) -> dict[str, bytes]:
        """Returns by decision id the records of the decisions at these places."""
        if not places:
            return {}
        with self.database.reading() as transaction:
            sql = self.database.at_places("SELECT decision_id, body FROM bodies", places)
            return {row[0]: bytes(row[1]) for row in transaction.execute(sql)}

    def hours_between(self, first_ms: int, last_ms: int) -> list[tuple[int, int]]:
        """Returns the hours, since the epoch, that a time touches and that have decisions, with how many came."""
        with self.database.reading() as transaction:
            rows = transaction.execute(
                "SELECT hour, decisions FROM hours WHERE hour >= ? AND hour <= ? AND decisions > 0 ORDER BY hour",
                (first_ms // HOUR_MS, last_ms // HOUR_MS),
            )
        return [(int(hour), int(count)) for hour, count in rows]

    def bodies_between(self, first_ms: int, last_ms: int, count: int) -> list[tuple[Place, bytes]]:
        """Returns the records of at most `count` decisions of a time, both ends included, each decision once."""
        with self.database.reading() as transaction:
            rows = transaction.execute(
                "SELECT decided_time_ms, payment_hash, decision_id, body FROM bodies WHERE decided_time_ms >= ? "
                f"AND decided_time_ms <= ? ORDER BY decided_time_ms, payment_hash LIMIT {int(count)}",
                (first_ms, last_ms),
            )
        found = {row[2]: (Place(row[0], row[1]), bytes(row[3])) for row in rows}
        return list(found.values())

    def known_frauds(self, first_ms: int, last_ms: int, count: int) -> list[Place]:
        """Returns at most `count` decisions of a time about payments with an outcome "fraud", the newest first."""
        with self.database.reading() as transaction:
            rows = transaction.execute(
                "SELECT DISTINCT decided_time_ms, payment_hash FROM decisions WHERE decided_time_ms >= ? AND "
                "decided_time_ms <= ? AND payment_hash IN (SELECT payment_hash FROM outcomes WHERE label = 'fraud') "
                f"ORDER BY decided_time_ms DESC, payment_hash LIMIT {int(count)}",
                (first_ms, last_ms),
            )
        return [Place(*row) for row in rows]

    def bodies_at(self, places: Sequence[Place]) -> list[tuple[Place, bytes]]:
        """Returns the records of the decisions at these places, each decision once."""
        if not places:
            return []
        select = "SELECT decided_time_ms, payment_hash, decision_id, body FROM bodies"
        with self.database.reading() as transaction:
            rows = transaction.execute(self.database.at_places(select, places))
        return list({row[2]: (Place(row[0], row[1]), bytes(row[3])) for row in rows}.values())

    def outcomes_of(self, payment_hashes: Iterable[int]) -> dict[int, Known]:
        """Returns the newest outcome of each of these payments that has one."""
        with self.database.reading() as transaction:
            return newest_outcomes(transaction, payment_hashes)

    def rule_catch(self, rule: str, since_ms: int) -> RuleCatch:
        """Returns the catches of a rule since a time, from its newest RULE_DECISIONS_MAX decisions."""
        with self.database.reading() as transaction:
            return rule_catch(transaction, rule, since_ms)

    def rule_weeks(self, rule: str, since_ms: int) -> list[RuleCatch]:
        """Returns the same by week, the newest first. `since_ms` of each is its Monday."""
        with self.database.reading() as transaction:
            return rule_weeks(transaction, rule, since_ms)

    def period_counts(self, period: str, first_ms: int, end_ms: int, segment: Mapping[str, str]) -> list[PeriodCounts]:
        """Returns the counts of a time by day or week (outcome_counts.py)."""
        with self.database.reading() as transaction:
            return period_counts(transaction, period, first_ms, end_ms, segment)

    def neighbours(self, row: FoundRow, before: int, after: int) -> tuple[list[FoundRow], list[FoundRow]]:
        """Returns the same card's last `before` decisions before this one and its next ones, the nearest first."""
        of_card = "SELECT k.decided_time_ms, k.payment_hash FROM keys k WHERE k.hash = ? AND k.decided_time_ms"
        of_card += " {sign}= ? AND (k.decided_time_ms {sign} ? OR k.payment_hash {sign} ?)"
        values = (key_hash("card_id", row.card_id), row.place.time_ms, row.place.time_ms, row.place.payment_hash)
        with self.database.reading() as transaction:
            places = distinct_places(transaction, of_card.format(sign="<"), values, before)
            next_ones = transaction.execute(
                f"SELECT DISTINCT * FROM ({of_card.format(sign='>')}) AS p "
                f"ORDER BY decided_time_ms, payment_hash LIMIT {after}",
                values,
            )
            rows = self._rows_at(transaction, [*places, *(Place(*place) for place in next_ones)])
        rows = [other for other in rows if other.card_id == row.card_id]
        later = [other for other in rows if other.place > row.place]
        return [other for other in rows if other.place < row.place], later[::-1]

    def newest_of(self, entities: Sequence[tuple[str, str]], count: int) -> list[LinkedPayment]:
        """Returns the newest decisions of each of these (kind, value), such as ("card_id", "card-7"), at most `count`.

        One read of the keys for all: the cost grows with `entities` and `count`, not with the index.
        """
        if not entities:
            return []
        parts = (_NEWEST_PLACES.format(since="", count=int(count), number=number) for number in range(len(entities)))
        with self.database.reading() as transaction:
            places = transaction.execute(" UNION ".join(parts), [key_hash(*one) for one in entities])
            rows = self._linked_at(transaction, [Place(*place) for place in places])
        return [row for row in rows if any(getattr(row, kind) == value for kind, value in entities)]

    def shared_with_frauds(self, row: FoundRow, shown: int = 5, newest: int = 8) -> list[SharedEntity]:
        """Returns the card, device, address and merchant of a decision with their known frauds and newest decisions."""
        kinds = ("card_id", "device_id", "ip", "merchant_id")
        entities = [(kind, value) for kind in kinds if (value := getattr(row, kind))]
        with self.database.reading() as transaction:
            looked = [self._looked(transaction, *one) for one in entities]
            called = [[place for place, is_called in each.items() if is_called] for each in looked]
            newest_of = [[Place(*place) for place in list(each)[:newest]] for each in looked]
            # An outcome "fraud" may have been corrected.
            asked = [
                *(hash_ for each in called for _, hash_ in each),
                *(p.payment_hash for each in newest_of for p in each),
            ]
            known = newest_outcomes(transaction, set(asked))
            frauds = [
                [Place(*p) for p in each if known[p[1]].label == "fraud" and p[1] != row.place.payment_hash]
                for each in called
            ]
            wanted = {place for each in frauds for place in each[:shown]}.union(*newest_of)
            linked = self._linked_at(transaction, sorted(wanted), known)
        return [
            SharedEntity(
                *one,
                decisions=len(looked[number]),
                frauds=[each for each in linked if each.place in frauds[number][:shown]],
                fraud_count=len(frauds[number]),
                is_all=len(looked[number]) < SHARED_DECISIONS_MAX,
                newest=[each for each in linked if each.place in newest_of[number] and getattr(each, one[0]) == one[1]],
            )
            for number, one in enumerate(entities)
        ]

    def _looked(self, transaction: Transaction, kind: str, value: str) -> dict[tuple[int, int], bool]:
        """Returns the places of an entity's newest decisions, and whether an outcome called each a fraud.

        A busy merchant has enough among the newest decisions. Plain pairs: a Place takes longer to make than to read.
        """
        is_busy = kind == "merchant_id"
        windows = self._windows(transaction, Search(merchant_id=value), None)[1:2] if is_busy else []
        for from_ms in dict.fromkeys((*windows, None)):
            since = "" if from_ms is None else f"AND decided_time_ms >= {from_ms} "
            places = _NEWEST_PLACES.format(since=since, count=SHARED_DECISIONS_MAX, number="")
            rows = transaction.execute(
                f"SELECT p.decided_time_ms, p.payment_hash, o.label FROM ({places}) AS p LEFT JOIN outcomes o "
                "ON o.payment_hash = p.payment_hash AND o.label = 'fraud' "
                "ORDER BY p.decided_time_ms DESC, p.payment_hash DESC",
                (key_hash(kind, value),),
            )
            if len(rows) >= SHARED_DECISIONS_MAX:
                break
        return {(time_ms, payment_hash): label is not None for time_ms, payment_hash, label in rows}

    def _linked_at(
        self, transaction: Transaction, places: Sequence[Place], known: Mapping[int, Known] | None = None
    ) -> list[LinkedPayment]:
        return self._made_at(transaction, places, (*PLACE_COLUMNS, *LINKED), linked_of, known)

    def _rows_at(self, transaction: Transaction, places: Sequence[Place]) -> list[FoundRow]:
        return self._made_at(transaction, places, COLUMNS, row_of, None)

    def _made_at(
        self,
        transaction: Transaction,
        places: Sequence[Place],
        columns: Sequence[str],
        make: Callable[[tuple[Any, ...], Known | None], _Made],
        known: Mapping[int, Known] | None,
    ) -> list[_Made]:
        """Returns what `make` makes of the columns and the newest outcome of each decision, the newest first.

        The columns begin with PLACE_COLUMNS. A column costs about a tenth of the search for the place. `known`: the
        outcomes, if they have been read.
        """
        if not places:
            return []
        sql = self.database.at_places(f"SELECT {', '.join(columns)} FROM decisions", places)
        wanted = set(places)
        found = {row[2]: row for row in transaction.execute(sql) if Place(row[0], row[1]) in wanted}
        if known is None:
            known = newest_outcomes(transaction, {row[1] for row in found.values()})
        rows = sorted(found.values(), key=lambda row: row[:3], reverse=True)
        return [make(row, known.get(row[1])) for row in rows]
