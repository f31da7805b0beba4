"""Fills an index from the topics `decisions`, `outcomes` and `verdicts`, or from an archive.

From the topic `console-events` it takes the erasures (erasure.py).

1. look      the database says at which offset each partition goes on
2. read      a batch of records, of any of the topics
3. add       the records and the new offsets, in one transaction: nothing is lost or twice after a kill
4. tidy      from time to time the database puts its keys in order

    index   decisions/3 at 1,500        reads 1,500 and on
    topic   decisions/3 begins at 2,000: 500 records expired before they were read. The index says how many, for ever

Records that do not decode are counted and passed over: they are on their topic.

`FillState` has the state at any moment: a page that shows decisions of the index must also show that some are missing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds, SchemaIds, topic_schema
from paywarden.schemas.errors import BrokerUnavailable, InvalidEvent, Misconfigured, PaywardenError, TemporaryFailure
from paywarden.streams.alerts.alert_events import EVENTS_TOPIC
from paywarden.streams.archive.files import ArchiveFile, Opener, read_parts
from paywarden.streams.decision_index.database import IndexUnavailable, Transaction
from paywarden.streams.decision_index.erasure import Erasure, Erasures, passed_over, read_erasures
from paywarden.streams.decision_index.index import HOUR_MS, DecisionIndex, SourcePlace, Stored
from paywarden.streams.decision_index.reviews import AnalystVerdict, ReviewQueue
from paywarden.streams.decision_index.search import key_hash
from paywarden.streams.kafka.admin import watermarks
from paywarden.streams.kafka.client import reason_of
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import Consumed, Record, consume_when_there
from paywarden.streams.kafka.stalls.open_transactions import OpenTransactions
from paywarden.streams.kafka.topic_identity import IdentityWatch, topic_ids
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, TIMESTAMP

TOPICS = (EVENTS_TOPIC, "decisions", "outcomes", "verdicts")
"""The topics that fill an index."""
BATCH_RECORDS = 5_000
# Keys that wait unsorted. A search reads all of them; 2 million take DuckDB some 10 ms.
TIDY_KEYS = 2_000_000
# While an index is filled from the beginning nobody searches much, and longer runs make later searches faster.
FILL_TIDY_KEYS = 20_000_000
FRESH_MS = 5_000
"""An index whose newest records are younger than this does not count as behind."""
UPKEEP_EVERY_MS = 2_000
"""Alerts of episodes are raised, and a day of the ledger is counted, this often."""
ASK_EVERY_MS = 5_000
"""Kafka is asked for an end when it has given nothing for this long."""
VERDICTS_TOPIC = "verdicts"
_SEND_BATCH, _SEND_TIMEOUT_S = 500, 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FillState:
    """The state of an index's filling at a moment.

    `is_caught_up`: it had read all topics to their ends. `is_fresh`: to their ends, or to records of the last seconds.
    `read_ms`: when it last heard from Kafka, 0 if never.
    `trouble`: why it has not read since `trouble_since_ms`; "" if it reads. `is_index_away`: the database is away, and
    not Kafka. `undecoded`: records since the start that do not decode. `held`: the open transaction behind which
    records wait since `held_since_ms`; "" for none.
    """

    is_caught_up: bool = False
    is_fresh: bool = False
    read_ms: int = 0
    trouble: str = ""
    trouble_since_ms: int = 0
    undecoded: int = 0
    is_index_away: bool = False
    held: str = ""
    held_since_ms: int = 0

    def line(self) -> str:
        """Returns a sentence about records that may be missing; "" if none is."""
        if self.trouble:
            return f"the index does not follow the topics: {self.trouble}"
        if self.held:
            return f"the index lacks records that its topics hold back: {self.held}"
        return "" if self.is_fresh else "the index is being filled: the newest decisions are not in it yet"


class IndexFiller:
    """Follows the topics. Several consoles on one PostgreSQL take turns: each adds records that are not in yet."""

    def __init__(
        self,
        index: DecisionIndex,
        queue: ReviewQueue,
        clients: KafkaClients,
        ids: SchemaIds,
        *,
        now_ms: Callable[[], int],
        keep_ms: int = 400 * 86_400_000,
        upkeep: Sequence[Callable[[], object]] = (),
    ) -> None:
        """`keep_ms`: older decisions leave the index. `upkeep`: called every few seconds while the index is fresh."""
        self._upkeep, self._kept_up_ms, self._upkeep_trouble = upkeep, 0, ""
        self._keep_ms, self._expired_at_ms, self._purge_from_ms = keep_ms, 0, 0
        self._index, self._queue, self._clients, self._now_ms = index, queue, clients, now_ms
        self._decoders = {clients.topic(name): (name, Decoder(name, ids)) for name in TOPICS}
        self._places: dict[tuple[str, int], SourcePlace] = {}
        self._unread: set[tuple[str, int]] = set()
        self._consumer: Consumer | None = None
        self._identities: IdentityWatch | None = None
        self._heard_ms, self._asked = 0, 0
        self._transactions = OpenTransactions(clients.admin, lambda: self._places, now_ms=now_ms)
        self.state = FillState()

    def step(self, timeout_s: float = 0.5) -> int:
        """Reads and adds one batch; returns how many records it had.

        Raises BrokerUnavailable and TemporaryFailure, after which the next call begins again where the database is;
        Misconfigured for a topic that is not the one the index was filled from.
        """
        try:
            if self._consumer is None:
                self._start()
            assert self._consumer is not None
            self._require_same_topics()
            consumed = consume_when_there(self._consumer, BATCH_RECORDS, 0.05, timeout_s)
            self._find_begins(consumed)
            self._add(consumed.records)
            self._unread -= set(consumed.ended)
            self._unread |= {(record.topic, record.partition) for record in consumed.records} - set(consumed.ended)
            self._hear(consumed)
            self._transactions.look()
        except PaywardenError as error:
            self._fail(error)
            raise
        except KafkaException as error:
            self._fail(BrokerUnavailable(f"Kafka does not answer: {reason_of(error)}"))
            raise BrokerUnavailable(f"Kafka does not answer: {reason_of(error)}") from error
        now_ms = self._now_ms()
        # Where payments never pause, a reader is hardly ever at the very end.
        is_fresh = all(now_ms - self._places[place].newest_ms <= FRESH_MS for place in self._unread)
        self.state = replace(
            self.state,
            is_caught_up=not self._unread,
            is_fresh=is_fresh and not self._transactions.held,
            read_ms=self._heard_ms,
            trouble="",
            trouble_since_ms=0,
            is_index_away=False,
            held=self._transactions.line(),
            held_since_ms=self._transactions.since_ms(),
        )
        return len(consumed.records)

    def _hear(self, consumed: Consumed) -> None:
        """Asks Kafka for an end when nothing has come for a while: a client that reads nothing reports no outage.

        Raises BrokerUnavailable.
        """
        now_ms = self._now_ms()
        if not consumed.records and not consumed.ended:
            if now_ms - self._heard_ms < ASK_EVERY_MS:
                return
            assert self._consumer is not None
            # Partitions take turns: each may be on another broker.
            self._asked += 1
            watermarks(self._consumer, *list(self._places)[self._asked % len(self._places)])
        self._heard_ms = now_ms

    def run(self, stop: threading.Event, *, retry_s: float = 2.0) -> None:
        """Follows the topics until `stop`. An error is logged once and shown in `state`, then it tries again."""
        told = ""
        while not stop.is_set():
            try:
                # First: a topic without records must not hide that nothing can be written.
                self.expire()
                self._index.database.tidy(at_least=TIDY_KEYS)
                self.step()
                self.keep_up()
            except PaywardenError as error:
                self._fail(error)
                if str(error) != told:
                    _log.warning("index of decisions: %s", error)
                told = str(error)
                stop.wait(retry_s)
            else:
                if told:
                    _log.info("index of decisions: it is filled again")
                told = ""
        self.close()

    def expire(self) -> None:
        """Removes decisions that are too old, at most once an hour."""
        now_ms = self._now_ms()
        if now_ms - self._expired_at_ms >= HOUR_MS:
            self._index.expire(now_ms - self._keep_ms)
            self._expired_at_ms = now_ms

    def keep_up(self) -> None:
        """Does the upkeep, if the index is fresh. An error of it is logged once, and holds nothing else up."""
        now_ms = self._now_ms()
        if not self.state.is_fresh or now_ms - self._kept_up_ms < UPKEEP_EVERY_MS:
            return
        self._kept_up_ms, trouble = now_ms, ""
        for work in (self._purge, *self._upkeep):
            try:
                work()
            except PaywardenError as error:
                trouble = str(error)
        if trouble and trouble != self._upkeep_trouble:
            _log.warning("upkeep of the index: %s", trouble)
        self._upkeep_trouble = trouble

    def _purge(self) -> None:
        """Takes the bytes of erased rows out of the database's file: immediately, then at most once an hour."""
        now_ms = self._now_ms()
        if now_ms >= self._purge_from_ms:
            # After an error, too: a large file takes minutes.
            self._purge_from_ms = now_ms + HOUR_MS
            if not self._index.database.purge():
                self._purge_from_ms = 0

    def close(self) -> None:
        """Closes the consumer. Another `step` opens it again."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _fail(self, error: PaywardenError) -> None:
        since_ms = self.state.trouble_since_ms or self._now_ms()
        self.state = replace(
            self.state,
            trouble=str(error),
            trouble_since_ms=since_ms,
            is_index_away=isinstance(error, IndexUnavailable),
            is_caught_up=False,
            is_fresh=False,
        )
        self.close()

    def _start(self) -> None:
        ids = topic_ids(self._clients.admin, list(self._decoders))
        self._places = {}
        for full_name, (name, _) in self._decoders.items():
            known = self._index.sources(name)
            for partition in self._clients.partitions(name):
                place = known.get(partition, SourcePlace(name, partition, 0, ids[full_name]))
                _require_same(full_name, place, ids[full_name])
                self._places[full_name, partition] = replace(place, topic_id=ids[full_name])
        self._unread = set(self._places)
        self._identities = IdentityWatch(self._clients.admin, list(self._decoders))
        self._consumer = self._clients.consumer(group_id="paywarden-decision-index", tells_lost_offsets=True)
        self._consumer.incremental_assign(
            [TopicPartition(*place, known.next_offset) for place, known in self._places.items()]
        )

    def _require_same_topics(self) -> None:
        """Raise Misconfigured if a topic was created again: at the next offset it has another record or none.

        Records of it may be in the index by then. The rebuild that is asked for takes them out.
        """
        assert self._identities is not None
        ids = self._identities.look()
        if ids is not None:
            for (full_name, _), place in self._places.items():
                _require_same(full_name, place, ids[full_name])

    def _find_begins(self, consumed: Consumed) -> None:
        """Goes on at the begin of partitions whose next offset has expired, and counts the missing records."""
        assert self._consumer is not None
        for place in consumed.displaced:
            begin, end = watermarks(self._consumer, *place)
            known = self._places[place]
            if known.next_offset > end:
                raise Misconfigured(
                    f"{place[0]}/{place[1]} was read to offset {known.next_offset} and ends at {end}: it has lost "
                    "records; `paywarden decisions index --rebuild` creates the index again"
                )
            lost = max(0, begin - known.next_offset)
            if known.next_offset:
                _log.error("%s/%d: %d records expired before they were read", *place, lost)
            # Records that a topic had lost before the index began are no gap of the index.
            missing = known.missing + (lost if known.next_offset else 0)
            self._places[place] = replace(known, next_offset=begin, missing=missing)
            with self._index.database.transaction() as transaction:
                self._index.set_source(transaction, self._places[place])
            self._consumer.incremental_unassign([TopicPartition(*place)])
            self._consumer.incremental_assign([TopicPartition(*place, begin)])

    def _add(self, records: Sequence[Record]) -> None:
        if not records:
            return
        decoded: dict[str, list[tuple[dict[str, Any], bytes]]] = {name: [] for name in TOPICS}
        places, undecoded = dict(self._places), 0
        for record in records:
            name, decoder = self._decoders[record.topic]
            try:
                decoded[name].append((decoder.decode(record.value or b""), record.value or b""))
            except InvalidEvent:
                undecoded += 1
            place = record.topic, record.partition
            newest_ms = max(places[place].newest_ms, record.timestamp_ms)
            places[place] = replace(places[place], next_offset=record.offset + 1, newest_ms=newest_ms)
        with self._index.database.transaction() as transaction:
            self._index.database.fill_alone(transaction)
            if not self._is_ours(transaction):
                # Another console has added these records, or others. This one goes on where the database is.
                self.close()
                return
            add_all(self._index, self._queue, transaction, decoded)
            for place in {(record.topic, record.partition) for record in records}:
                self._index.set_source(transaction, places[place])
        self._places = places
        self.state = replace(self.state, undecoded=self.state.undecoded + undecoded)

    def _is_ours(self, transaction: Transaction) -> bool:
        """Whether the index is where this filler left it."""
        known = {name: self._index.sources_in(transaction, name) for name in TOPICS}
        return all(
            known[place.topic][place.partition].next_offset == place.next_offset
            if place.partition in known[place.topic]
            else place.next_offset == 0
            for place in self._places.values()
        )


def _require_same(full_name: str, place: SourcePlace, topic_id: str) -> None:
    """Raise Misconfigured if a topic is another one than the index was filled from."""
    if place.topic_id and topic_id and place.topic_id != topic_id:
        raise Misconfigured(
            f"topic {full_name} was deleted and created again since the index read it: "
            "`paywarden decisions index --rebuild` creates the index again"
        )


def add_all(
    index: DecisionIndex,
    queue: ReviewQueue,
    transaction: Transaction,
    decoded: dict[str, list[tuple[dict[str, Any], bytes]]],
) -> None:
    """Adds decoded records, by topic, each with its bytes. Erased records stay out, also if the erasure comes first."""
    for record, _ in decoded[EVENTS_TOPIC]:
        if (erasure := Erasure.of_event(record)) is not None:
            index.erase(transaction, erasure)
    if erasures := read_erasures(transaction):
        _leave_out(index, transaction, erasures, decoded)
    decisions = [Stored(record, body) for record, body in decoded["decisions"] if index.takes(record)]
    index.add_decisions(transaction, decisions)
    queue.add_decisions(
        transaction, [each.decision for each in decisions], [index.worth(each.decision) for each in decisions]
    )
    outcomes = [record for record, _ in decoded["outcomes"]]
    index.add_outcomes(transaction, outcomes)
    queue.add_outcomes(transaction, outcomes)
    queue.add_verdicts(transaction, [record for record, _ in decoded["verdicts"]])


def _leave_out(
    index: DecisionIndex,
    transaction: Transaction,
    erasures: Erasures,
    decoded: dict[str, list[tuple[dict[str, Any], bytes]]],
) -> None:
    """Leaves out erased decisions, and outcomes and verdicts about their payments."""
    gone = [record["payment_id"] for record, _ in decoded["decisions"] if erasures.hold(record)]
    hashes = sorted({key_hash("payment_id", payment_id) for payment_id in gone})
    if hashes:
        # Its outcome or verdict may have come before it.
        index.take_out_payments(transaction, hashes)
    decoded["decisions"] = [one for one in decoded["decisions"] if not erasures.hold(one[0])]
    for topic in ("outcomes", "verdicts"):
        of_payment = [(key_hash("payment_id", one[0]["payment_id"]), one) for one in decoded[topic]]
        out = passed_over(transaction, (hash_ for hash_, _ in of_payment))
        decoded[topic] = [one for hash_, one in of_payment if hash_ not in out]


class VerdictSender:
    """Sends verdicts from the database to their topic."""

    def __init__(
        self,
        queue: ReviewQueue,
        clients: KafkaClients,
        ids: SchemaIds,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._now_ms = now_ms
        self._queue, self._topic = queue, clients.topic(VERDICTS_TOPIC)
        self._clients, self._ids = clients, ids
        # Made with the first verdict: a registry may be away at the start.
        self._encoder: Encoder | None = None
        self._sender: Sender | None = None
        # Verdicts that Kafka has, and that the database still shows as unsent.
        self._on_topic: set[str] = set()
        self.trouble = ""
        """Why verdicts have not reached the topic since `trouble_since_ms`; "" if they do."""
        self.trouble_since_ms = 0
        self.is_index_away = False
        """Whether that is the database that they wait in, and not the topic."""

    def step(self) -> int:
        """Sends the waiting verdicts; returns how many. Raises TemporaryFailure; the next call sends them again."""
        waiting: list[AnalystVerdict] = self._queue.unsent(_SEND_BATCH)
        self._on_topic &= {said.verdict_id for said in waiting}
        if not waiting:
            return 0
        encoder = self._encoder = self._encoder or Encoder(VERDICTS_TOPIC, self._ids.id_of(VERDICTS_TOPIC))
        # A sender remembers a failure: each try after one has its own.
        sender = self._sender or self._clients.sender(linger_ms=5)
        self._sender = None
        for said in waiting:
            # One that could not be marked is not sent again and again.
            if said.verdict_id not in self._on_topic:
                sender.send(self._topic, encoder.encode(said.record()), key=said.payment_id.encode())
        sender.flush(_SEND_TIMEOUT_S)
        self._sender = sender
        self._on_topic |= {said.verdict_id for said in waiting}
        self._queue.mark_sent(waiting)
        return len(waiting)

    def run(self, stop: threading.Event, *, wait_s: float = 0.5) -> None:
        """Sends verdicts until `stop`. An error is logged and kept in `trouble`, and the work is tried again."""
        while not stop.is_set():
            try:
                while self.step():
                    pass
                self.trouble = ""
            except TemporaryFailure as error:
                self.trouble_since_ms = self.trouble_since_ms if self.trouble else self._now_ms()
                self.trouble, self.is_index_away = str(error), isinstance(error, IndexUnavailable)
                _log.warning("verdicts: %s", error)
            stop.wait(wait_s)


# From an archive


def fill_from_archive(
    index: DecisionIndex,
    queue: ReviewQueue,
    archive: Path,
    *,
    topic_ids_now: dict[str, str] | None = None,
    progress: Callable[[int], object] = lambda _count: None,
) -> int:
    """Adds an archive's `decisions` and `outcomes` that the index lacks; returns how many records.

    Each file and its offsets are one transaction. The files of all partitions go in by their days, so that the rows are
    nearly in the order of time. `topic_ids_now`: the ids of the topics, where Kafka is there to be followed afterwards.

    Raises the errors of `read_parts`, and Misconfigured for files of another topic than the index was filled from.
    """
    added = 0
    for topic in ("decisions", "outcomes"):
        parts = sorted(
            (part for files in read_parts(archive, topic).values() for part in files),
            key=lambda part: (part.path.parent.name, part.offsets.start, part.partition),
        )
        known, opener = index.sources(topic), Opener(archive, topic)
        for part in parts:
            now = (topic_ids_now or {}).get(topic, "")
            if now and part.topic_id and part.topic_id != now:
                raise Misconfigured(f"{part.path} has offsets of another topic {topic} than the one there is now")
            place = known.get(part.partition, SourcePlace(topic, part.partition, part.offsets.start, part.topic_id))
            if place.topic_id and part.topic_id and place.topic_id != part.topic_id:
                raise Misconfigured(f"{part.path} has offsets of another topic {topic} than the index was filled from")
            if part.offsets.stop <= place.next_offset:
                continue
            if part.offsets.start > place.next_offset:
                place = replace(place, missing=place.missing + part.offsets.start - place.next_offset)
            rows = [row for row in _rows_of(part, topic, opener) if row[OFFSET] >= place.next_offset]
            newest_ms = max([place.newest_ms, *(row[TIMESTAMP] for row in rows)])
            place = replace(place, next_offset=part.offsets.stop, newest_ms=newest_ms)
            decoded = {name: list[tuple[dict[str, Any], bytes]]() for name in TOPICS}
            decoded[topic] = [(row, b"") for row in map(_without_place, rows)]
            if topic == "decisions":
                encoder = Encoder(topic, LocalSchemaIds().id_of(topic))
                decoded[topic] = [(row, encoder.encode(row)) for row, _ in decoded[topic]]
            with index.database.transaction() as transaction:
                add_all(index, queue, transaction, decoded)
                index.set_source(transaction, place)
            known[part.partition] = place
            added += len(rows)
            progress(len(rows))
            index.database.tidy(at_least=FILL_TIDY_KEYS)
        opener.warn_of_erased()
    index.database.tidy(at_least=1)
    return added


def _rows_of(part: ArchiveFile, topic: str, opener: Opener) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file as records of the topic's current schema. Raises Misconfigured for other files."""
    import pyarrow.parquet as pq

    from paywarden.schemas import arrow_files

    defaults = {field["name"]: field["default"] for field in topic_schema(topic)["fields"] if "default" in field}
    names = [field["name"] for field in topic_schema(topic)["fields"]]
    path = part.path
    try:
        with closing(pq.ParquetFile(path)) as file:
            batches = file.iter_batches(10_000) if part.seal is None else opener.open(part).to_batches(10_000)
            for batch in batches:
                for row in batch.to_pylist():
                    for name in names:
                        if row.get(name) is None and name in defaults:
                            row[name] = defaults[name]
                    yield {name: row[name] for name in (*names, PARTITION, OFFSET, TIMESTAMP)}
    except arrow_files.UNREADABLE as error:
        raise Misconfigured(f"{path} cannot be read as Parquet: {(str(error).splitlines() or [''])[0]}") from error
    except KeyError as error:
        raise Misconfigured(f"{path}: column {error.args[0]} is missing") from error


def _without_place(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in (PARTITION, OFFSET, TIMESTAMP)}
