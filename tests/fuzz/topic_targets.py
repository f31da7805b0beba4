"""Targets for those who use records of topics after they were decoded: any value of a field's type may be in them.

Every writer of a topic can write such a record, and a process that ends by it would end at each start.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

NOW_MS = 1_760_000_000_000


class _TakenBack(Exception):
    """Ends a transaction without a trace: the next input finds the database as this one did."""


def decided() -> Target:
    """A record of topic decisions: in the index and its review queue, as spans, in the counts of drift and outcomes."""
    from paywarden.features.profiles.money import load_rates
    from paywarden.features.stores.memory import MemoryStore
    from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.decision_index.database import DuckDbDatabase
    from paywarden.streams.decision_index.filler import TOPICS, add_all
    from paywarden.streams.decision_index.index import DecisionIndex
    from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
    from paywarden.streams.drift.drift_counts import Binnings, CountingProgress, PartitionCounts, counted
    from paywarden.streams.drift.drift_settings import DriftSettings
    from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
    from paywarden.streams.outcomes.outcome_state import DECISIONS, OutcomeWork, StateReading, take_over
    from paywarden.streams.outcomes.payments import SourcePartition
    from paywarden.streams.traces.spans import request_of, spans_of
    from tests.worlds.drift.drifting import small_binning

    ids, rates = LocalSchemaIds(), load_rates()
    header = Encoder("decisions", ids.id_of("decisions")).header
    decoder = Decoder("decisions", ids)

    database = DuckDbDatabase(Path(tempfile.mkdtemp(prefix="paywarden-fuzz-")) / "index", threads=1)
    index, queue = DecisionIndex(database, worth=rates.convert), ReviewQueue(database, ReviewRules())
    binnings = Binnings({"m1": small_binning()})

    def target(data: bytes) -> None:
        try:
            decision = decoder.decode(header + data)
        except InvalidEvent:
            return
        with suppress(_TakenBack), database.transaction() as transaction:
            add_all(index, queue, transaction, {name: [] for name in TOPICS} | {"decisions": [(decision, data)]})
            raise _TakenBack
        request_of(spans_of(decision, NOW_MS)).SerializeToString()
        counts = PartitionCounts(CountingProgress(), binnings, DriftSettings())
        counts.add(0, decision)
        counts.hand_over()
        for cell, rows in counts.take(NOW_MS).items():
            binning = binnings.binning_of(cell.model)
            assert binning is not None
            counted(binning, rows)
        store, settings = MemoryStore(), OutcomeSettings()
        source = SourcePartition(DECISIONS, 0)
        work = OutcomeWork(
            store,
            source,
            take_over(store, source, settings),
            reading=StateReading(DECISIONS, settings, rates),
            settings=settings,
        )
        work.add(0, decision)
        work.hand_over(0)
        work.save(0)

    return target


def _decided() -> Iterator[bytes]:
    from paywarden.schemas.avro import Encoder, LocalSchemaIds
    from tests.worlds.stream.decision_records import decision

    encoder = Encoder("decisions", LocalSchemaIds().id_of("decisions"))
    usual = {"decided_time_ms": NOW_MS, "event_time_ms": NOW_MS, "model_version": "m1"}
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    declined = {"action": "decline", "score": 0.9, "reasons": ["rule:a"], "flags": ["unknown_card"], "latency_us": 5}
    for record in (
        decision("p1", **usual),
        decision("p2", **usual, **declined, traceparent=trace, device_id="d", amount_minor=1 << 40),
        decision("p3", **usual | {"decided_time_ms": (1 << 63) - 1}, action="review", traceparent=trace, score=1e300),
        decision("", **usual),
        decision("p4", **usual | {"decided_time_ms": -(1 << 62), "amount_minor": (1 << 63) - 1}, traceparent=trace),
    ):
        yield encoder.encode(record)[5:]


def reported() -> Target:
    """A record of outcomes or verdicts, which the first byte says: in the index, the review queue and the tallies."""
    from paywarden.features.profiles.money import load_rates
    from paywarden.features.stores.memory import MemoryStore
    from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.decision_index.database import DuckDbDatabase
    from paywarden.streams.decision_index.filler import TOPICS, add_all
    from paywarden.streams.decision_index.index import DecisionIndex
    from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
    from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
    from paywarden.streams.outcomes.outcome_state import OUTCOMES, OutcomeWork, StateReading, take_over
    from paywarden.streams.outcomes.payments import SourcePartition

    ids, rates = LocalSchemaIds(), load_rates()
    names = ("outcomes", "verdicts")
    readers = [(name, Decoder(name, ids), Encoder(name, ids.id_of(name)).header) for name in names]
    database = DuckDbDatabase(Path(tempfile.mkdtemp(prefix="paywarden-fuzz-")) / "index", threads=1)
    index, queue = DecisionIndex(database), ReviewQueue(database, ReviewRules())

    def target(data: bytes) -> None:
        name, decoder, header = readers[data[0] % len(readers) if data else 0]
        try:
            record = decoder.decode(header + data[1:])
        except InvalidEvent:
            return
        with suppress(_TakenBack), database.transaction() as transaction:
            add_all(index, queue, transaction, {topic: [] for topic in TOPICS} | {name: [(record, data)]})
            raise _TakenBack
        if name == "outcomes":
            store, settings = MemoryStore(), OutcomeSettings()
            source = SourcePartition(OUTCOMES, 0)
            reading = StateReading(OUTCOMES, settings, rates)
            work = OutcomeWork(store, source, take_over(store, source, settings), reading=reading, settings=settings)
            work.add(0, record)
            work.hand_over(0)
            work.save(0)

    return target


def _reported() -> Iterator[bytes]:
    from paywarden.schemas.avro import Encoder, LocalSchemaIds
    from tests.unit.streams.decision_index.test_erasure import outcome, verdict

    ids = LocalSchemaIds()
    for number, (name, record) in enumerate((outcome(1), verdict(1))):
        yield bytes([number]) + Encoder(name, ids.id_of(name)).encode(record)[5:]
        yield bytes([number]) + Encoder(name, ids.id_of(name)).encode(record | {"payment_id": ""})[5:]


def console_event() -> Target:
    """Records of console-events, as JSON in a list: what consoles, cases and the index make of them.

    The bytes of each as Avro are read first, as of any topic (`dead_letter`): here any text may be in any field.
    """
    from paywarden.ops.console.database import ConsoleDatabase
    from paywarden.ops.console.inbox.alert_store import TABLES, AlertStore
    from paywarden.ops.console.webhooks import TABLES as QUEUE
    from paywarden.ops.console.webhooks import Webhooks
    from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.alerts.alert_events import EVENTS_TOPIC
    from paywarden.streams.alerts.feed import FeedBatch, FeedRecord
    from paywarden.streams.decision_index.database import DuckDbDatabase
    from paywarden.streams.decision_index.filler import TOPICS, add_all
    from paywarden.streams.decision_index.index import DecisionIndex
    from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules

    ids = LocalSchemaIds()
    encoder, decoder = Encoder(EVENTS_TOPIC, ids.id_of(EVENTS_TOPIC)), Decoder(EVENTS_TOPIC, ids)
    folder = Path(tempfile.mkdtemp(prefix="paywarden-fuzz-"))
    database = ConsoleDatabase(folder / "console.sqlite", (*TABLES, *QUEUE))
    webhooks = Webhooks(database, ["https://hook"], b"k" * 32, lambda: "https://console")
    store = AlertStore(database, webhooks.queue, webhooks.queue_case, large_case_minor=1000)
    filled = DuckDbDatabase(folder / "index", threads=1)
    index, queue = DecisionIndex(filled), ReviewQueue(filled, ReviewRules())

    def target(data: bytes) -> None:
        records = list(_events_in(data, encoder, decoder))
        store.begin_again([EVENTS_TOPIC], NOW_MS)
        feed = tuple(FeedRecord(EVENTS_TOPIC, offset, record) for offset, record in enumerate(records))
        store.take(FeedBatch(feed))
        for row in store.cases("all", "", limit=20)[0]:
            assert store.case(row["case_id"]) is not None
        with suppress(_TakenBack), filled.transaction() as transaction:
            add_all(index, queue, transaction, {t: [] for t in TOPICS} | {EVENTS_TOPIC: [(r, b"") for r in records]})
            raise _TakenBack

    def _events_in(data: bytes, encoder: Encoder, decoder: Decoder) -> Iterator[dict[str, Any]]:
        try:
            listed = json.loads(data)
        except (ValueError, RecursionError):
            return
        for one in (listed if isinstance(listed, list) else [listed])[:20]:
            fields = one if isinstance(one, dict) else {}
            what = fields.get("what")
            told = {str(k): str(v) for k, v in what.items()} if isinstance(what, dict) else {}
            subject = str(fields.get("subject", ""))
            record = {name: str(fields.get(name, "")) for name in ("event_id", "by", "kind")}
            time_ms = fields.get("time_ms")
            try:
                encoded = encoder.encode(
                    record | {"subject": subject, "what": told, "time_ms": time_ms if type(time_ms) is int else 0}
                )
                yield decoder.decode(encoded)
            except (InvalidEvent, ValueError, OverflowError):
                continue

    return target


def _console_event() -> Iterator[bytes]:
    def event(number: int, subject: str, kind: str, **what: str) -> dict[str, Any]:
        return {
            "event_id": f"e{number}",
            "by": "ann",
            "kind": kind,
            "time_ms": NOW_MS,
            "subject": subject,
            "what": what,
        }

    opened = event(1, "case:1", "opened", title="t")
    yield json.dumps([opened, event(2, "case:1", "linked", item="alert:a"), event(3, "case:1", "closed")]).encode()
    changed = event(2, "case:1", "changed", field="money_minor", before="0", after="5000")
    proposed = event(3, "case:1", "proposed", verdict="fraud", note="n")
    closed = event(4, "case:1", "closed", verdict="fraud")
    yield json.dumps([opened, changed, proposed, closed | {"by": "ben"}]).encode()
    attached = event(2, "case:1", "attached", file="f" * 64, name="a.pdf", size="17")
    yield json.dumps([opened, attached, event(3, "case:1", "reopened")]).encode()
    yield json.dumps([event(1, "alert:a", "snoozed", until_ms="9"), event(2, "alert:a", "assigned", to="b")]).encode()
    yield json.dumps([event(1, "erased:1", "erased", card_id="5f0c5f0c5f0c5f0c")]).encode()
    wrong = [event(2, "case:1", kind) for kind in ("linked", "unlinked", "attached", "changed", "closed", "noted")]
    yield json.dumps([opened, *wrong, event(3, "case:1", "attached", file="f", name="n", size="x")]).encode()
    yield json.dumps([event(1, "alert:a", "snoozed", until_ms="soon"), event(2, "erased:1", "erased")]).encode()
    yield json.dumps(
        [event(1, "erased:1", "erased", card_id="f" * 40, ip="-5"), event(1, "alert:a", "snoozed")]
    ).encode()


def drift_alert() -> Target:
    """A record of drift-alerts or drift-acknowledgements, which the first byte says, in a console's inbox."""
    from paywarden.ops.console.database import ConsoleDatabase
    from paywarden.ops.console.inbox.alert_store import TABLES, AlertStore
    from paywarden.ops.console.webhooks import TABLES as QUEUE
    from paywarden.ops.console.webhooks import Webhooks
    from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.alerts.feed import FEED_TOPICS, FeedBatch, FeedRecord

    ids = LocalSchemaIds()
    readers = [(name, Decoder(name, ids), Encoder(name, ids.id_of(name)).header) for name in FEED_TOPICS]
    folder = Path(tempfile.mkdtemp(prefix="paywarden-fuzz-"))
    database = ConsoleDatabase(folder / "console.sqlite", (*TABLES, *QUEUE))
    webhooks = Webhooks(database, ["https://hook"], b"k" * 32, lambda: "https://console")
    store = AlertStore(database, webhooks.queue, webhooks.queue_case, large_case_minor=1000)

    def target(data: bytes) -> None:
        name, decoder, header = readers[data[0] % len(readers) if data else 0]
        try:
            record = decoder.decode(header + data[1:])
        except InvalidEvent:
            return
        store.begin_again(FEED_TOPICS, NOW_MS)
        store.take(FeedBatch((FeedRecord(name, 5, record), FeedRecord(name, 6, record))))
        store.page({"state": "all"}, NOW_MS, limit=10)

    return target


def _drift_alert() -> Iterator[bytes]:
    from paywarden.schemas.avro import Encoder, LocalSchemaIds
    from paywarden.streams.alerts.alert_records import Acknowledgement
    from tests.worlds.drift.alerts_on_topics import alert_record

    ids = LocalSchemaIds()
    yield b"\0" + Encoder("drift-alerts", ids.id_of("drift-alerts")).encode(alert_record(1))[5:]
    name = "drift-acknowledgements"
    said = Acknowledgement("alert-00001", NOW_MS, "ann", until_ms=NOW_MS + 1, note="n").to_record()
    yield b"\1" + Encoder(name, ids.id_of(name)).encode(said)[5:]


def registry_line() -> Target:
    """Lines of the registry's log: read, and those that are entries by the rules of registry and rollouts.

    Each line that has all fields gets its place in the chain and a signature, so that the rules look at what it says.
    """
    from paywarden.models.registry.entries import FORM, signed_entry
    from paywarden.models.registry.model_log import log_of
    from paywarden.models.registry.registry_rules import Rules, state_of
    from paywarden.models.rollout.registry_log import folded
    from paywarden.schemas.errors import PaywardenError, RegistryRefused
    from paywarden.schemas.signed_lines import FIRST
    from tests.worlds.rollout.registry import NAMES, key_of, people_of

    people = people_of()

    def target(data: bytes) -> None:
        with suppress(RegistryRefused):
            log_of(data)
        head, lines = FIRST, []
        for line in data.split(b"\n")[:10]:
            with suppress(ValueError):
                assert FORM.read(line).line == line
            try:
                fields = json.loads(line)
                by = fields["by"] if fields["by"] in NAMES else NAMES[0]
                entry = signed_entry(
                    key_of(by),
                    registry="paywarden",
                    previous=head,
                    time_ms=fields["time_ms"],
                    kind=fields["kind"],
                    by=by,
                    why=fields["why"],
                    what=fields["what"],
                )
            except (PaywardenError, ValueError, KeyError, TypeError, RecursionError):
                continue
            head = entry.digest
            lines.append(entry.line)
        log = log_of(b"\n".join([*lines, b""]) if lines else b"")
        log.check_signatures(people)
        folded(log, state_of(log, people, Rules(approvals=1)))

    return target


def _registry_line() -> Iterator[bytes]:
    from paywarden.models.registry import entries as kinds
    from tests.worlds.rollout.registry import Writer

    writer = Writer()
    proposal = writer.proposal("one")
    for by in ("ben", "cleo"):
        writer.add(kinds.APPROVED, by, proposal=proposal.digest)
    writer.add(kinds.PROMOTED, "ben", proposal=proposal.digest)
    yield writer.content
    other = writer.proposal("two", "cleo")
    writer.add(kinds.APPROVED, "anna", proposal=other.digest)
    writer.add(kinds.PROMOTED, "dora", proposal=other.digest)
    writer.add(kinds.ROLLED_BACK, "anna")
    writer.add(kinds.CLOCK_SET, "ben")
    writer.add(kinds.KEY_REVOKED, "ben", key="00" * 8)
    yield writer.content


def rollout_events() -> Target:
    """Events of rollouts, one a line, as entries of the registry's log have them: read, and folded."""
    from paywarden.models.rollout.rollout import after
    from paywarden.models.rollout.rollout_log import NO_EVENT, event_of
    from paywarden.schemas.errors import Misconfigured

    def target(data: bytes) -> None:
        rollout = None
        for line in data.split(b"\n")[:20]:
            try:
                event = event_of(json.loads(line))
            except (*NO_EVENT, Misconfigured):
                continue
            with suppress(Misconfigured):
                rollout = after(rollout, event)
        if rollout is not None:
            assert rollout.line

    return target


def _rollout_events() -> Iterator[bytes]:
    from paywarden.models.bundle.version import Version
    from paywarden.models.rollout.plan import RolloutPlan
    from paywarden.models.rollout.rollout import EventKind, RolloutEvent, Start
    from paywarden.models.rollout.rollout_log import event_record

    start = Start("r-1", "00" * 16, Version("a"), Version("b"), RolloutPlan())
    events = [
        RolloutEvent(EventKind.STARTED, NOW_MS, "ann", "why", start),
        RolloutEvent(EventKind.READY, NOW_MS + 1, "host", "", None),
        RolloutEvent(EventKind.PAUSED, NOW_MS + 2, "ann", "late", None),
    ]
    yield b"".join(json.dumps(event_record(event)).encode() + b"\n" for event in events)


def drift_watch() -> Target:
    """The stored state of a watch over drift, compressed here, so that what is in it gets other values."""
    import struct

    from paywarden.models.drift.detectors import DetectorSettings
    from paywarden.models.drift.signals import Signal
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.alerts.alert_watch import DriftWatch, open_alerts_in
    from paywarden.streams.alerts.alerts import AlertSettings

    signals = [Signal("score", "mean", "overall"), Signal("flag:a", "share", "overall")]

    def target(data: bytes) -> None:
        watch = DriftWatch("m1", signals, DetectorSettings(), AlertSettings())
        whole = watch.to_bytes()
        arrays = b"".join(kept.tobytes() for kept in watch.detectors.state)
        made = struct.pack("<BI", 1, len(data)) + whole[5:21] + zlib.compress(data + arrays, 1)
        for state in (data, whole[:21] + data, made):
            with suppress(InvalidEvent):
                open_alerts_in(state)
            with suppress(InvalidEvent):
                watch.restore(state)
                watch.to_bytes()

    return target


def _drift_watch() -> Iterator[bytes]:
    yield b'{"model_version": "m1", "seen_to_ms": [[60000, 5]], "open": []}'
    yield b'{"model_version": 7, "seen_to_ms": [["1", "2"]], "open": [{"alert_id": "a", "state": "raised"}]}'
    yield b"[" * 3000


TARGETS: dict[str, Callable[[], Target]] = {
    make.__name__: make
    for make in (decided, reported, console_event, drift_alert, registry_line, rollout_events, drift_watch)
}
SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "decided": _decided,
    "reported": _reported,
    "console_event": _console_event,
    "drift_alert": _drift_alert,
    "registry_line": _registry_line,
    "rollout_events": _rollout_events,
    "drift_watch": _drift_watch,
}
