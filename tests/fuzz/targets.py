"""The targets. Each imports and builds what it needs when it is made, once."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz import console_targets, file_targets, table_targets, topic_targets

Target = Callable[[bytes], object]
"""Reads any bytes. Raises only if something is wrong."""

# Each record of ours on a topic begins with a zero and the id of a schema.
_AVRO_HEADER = b"\0\0\0\0\7"
_CHUNKS = 4
# The largest number of records of a segment.
_RECORDS_MAX = 64


def _in_loop(handle: Callable[[bytes], Any]) -> Target:
    """Return a target that runs `handle` in an event loop, and raises what a callback of the loop raised."""
    loop = asyncio.new_event_loop()
    errors: list[BaseException] = []

    def note(_: object, context: dict[str, Any]) -> None:
        errors.append(context.get("exception") or AssertionError(context["message"]))

    loop.set_exception_handler(note)

    async def run(data: bytes) -> None:
        handle(data)
        # Answers are made in later turns of the loop.
        for _ in range(4):
            await asyncio.sleep(0)

    def target(data: bytes) -> None:
        loop.run_until_complete(run(data))
        if errors:
            raise errors.pop()

    return target


def _chunks(data: bytes) -> Iterator[bytes]:
    """Yield the bytes behind the first, in as many reads as the first says."""
    if data:
        count = 1 + data[0] % _CHUNKS
        size = max(1, math.ceil((len(data) - 1) / count))
        for at in range(1, len(data), size):
            yield data[at : at + size]


def http() -> Target:
    """The HTTP/1.1 front: one connection."""
    from tests.fakes.http_memory import MemoryWorld
    from tests.worlds.endpoint.http_world import PATIENT

    worlds: list[MemoryWorld] = []

    def handle(data: bytes) -> None:
        if not worlds:
            worlds.append(MemoryWorld(PATIENT))
        connection, transport = worlds[0].connect()
        for chunk in _chunks(data):
            if not transport.ended:
                connection.data_received(chunk)
        connection.connection_lost(None)

    return _in_loop(handle)


def http_one_call() -> Target:
    """The HTTP/1.1 front with the one call and without: replies and records are equal."""
    from tests.fuzz.two_fronts import READ_END, TwoFronts, usual

    fronts = TwoFronts()
    fronts.compare(b"\xff" + READ_END.join([usual(0), usual(1)]))
    return fronts.compare


def http2() -> Target:
    """The gRPC front: one connection."""
    from paywarden.scoring.engine.batching.batcher import MicroBatcher
    from paywarden.scoring.grpc.grpc_connection import GrpcConnection
    from paywarden.scoring.grpc.grpc_front import GrpcServer
    from paywarden.scoring.grpc.grpc_settings import GrpcSettings
    from paywarden.scoring.grpc.metrics import GrpcMetrics
    from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
    from tests.fakes.http_memory import FakeTransport
    from tests.worlds.endpoint.grpc_served import NOW_MS, PATIENT, FakeScorer
    from tests.worlds.endpoint.payments import euro_intake

    class Transport(FakeTransport):
        def abort(self) -> None:
            self.ended = True

        def get_write_buffer_size(self) -> int:
            return 0

    servers: list[GrpcServer] = []

    def handle(data: bytes) -> None:
        if not servers:
            batcher = MicroBatcher(FakeScorer(), intake=euro_intake(), settings=PATIENT, now_ms=lambda: NOW_MS)
            metrics = GrpcMetrics.declare(MetricsRegistry())
            servers.append(GrpcServer(batcher, settings=GrpcSettings(), metrics=metrics))
        connection, transport = GrpcConnection(servers[0]), Transport()
        connection.connection_made(transport)
        for chunk in _chunks(data):
            if not transport.ended:
                connection.data_received(chunk)
        connection.connection_lost(None)

    return _in_loop(handle)


def request_protobuf() -> Target:
    """A request in protobuf: the compiled reader and the parser agree."""
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.scoring.requests.protobuf_form import parse
    from tests.parity.readers.test_payment_readers import ENDPOINT, NOW_MS, ROWS, RULES

    def target(data: bytes) -> None:
        payments, wrong = ENDPOINT.read([data], NOW_MS)
        try:
            message = parse(data)
            RULES.check(message, NOW_MS)
            ROWS.write(0, message)
        except InvalidEvent as error:
            expected = str(error)
        else:
            expected = ""
        assert [str(error) for error in wrong.values()] == ([expected] if expected else [])
        if expected:
            return
        assert payments.ids == [message.payment_id.encode()]
        assert payments.rows[0].tolist() == ROWS.attributes[0].tolist()
        assert list(payments.keys) == ROWS.keys_of(message)

    return target


def request_json() -> Target:
    """A request and a batch in JSON."""
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.scoring.requests.json_form import JSON
    from tests.parity.readers.test_payment_readers import ENDPOINT, NOW_MS

    def target(data: bytes) -> None:
        with suppress(InvalidEvent):
            ENDPOINT.read([JSON.take(data)], NOW_MS)
        with suppress(InvalidEvent):
            ENDPOINT.read(JSON.take_batch(data, 8), NOW_MS)

    return target


def avro_payment() -> Target:
    """A record of topic payments: the compiled reader and the other agree."""
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.kafka.reading import Record
    from paywarden.streams.profiles.payment_columns import Position
    from tests.parity.readers.test_payment_readers import ENCODER, NOW_MS, STREAM

    header = ENCODER.header

    def target(data: bytes) -> None:
        value = header + data
        (read,) = STREAM.payments([Record("payments", 0, 0, b"k", value, NOW_MS, ())], NOW_MS)
        try:
            event = STREAM.payment(value, Position(0, 0), NOW_MS, NOW_MS)
        except InvalidEvent as error:
            expected = str(error)
        else:
            expected = ""
        assert (str(read) if isinstance(read, InvalidEvent) else "") == expected
        if isinstance(read, InvalidEvent):
            return
        assert (read.payment_id, list(read.attributes), read.keys) == (
            event.payment_id,
            list(event.attributes),
            event.keys,
        )

    return target


def avro_schema() -> Target:
    """A writer's schema, a zero, and a record of it."""
    from paywarden.schemas.avro import TOPICS, Decoder, writer_schema
    from paywarden.schemas.errors import InvalidEvent
    from tests.unit.schemas.test_schema_limits import OneSchema

    def target(data: bytes) -> None:
        text, _, body = data.partition(b"\0")
        try:
            ids = OneSchema(writer_schema(text.decode(errors="replace")))
        except InvalidEvent:
            return
        for topic in TOPICS:
            with suppress(InvalidEvent):
                Decoder(topic, ids).decode(_AVRO_HEADER + body)

    return target


def dead_letter() -> Target:
    """A record of each other topic that we read."""
    from paywarden.schemas.avro import TOPICS, Decoder, Encoder, LocalSchemaIds
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.dead_letters.retry import outgoing_of
    from paywarden.streams.dead_letters.writer import Letter, LetterDecoder
    from paywarden.streams.kafka.reading import Record

    ids = LocalSchemaIds()
    headers = {topic: Encoder(topic, ids.id_of(topic)).header for topic in TOPICS}
    decoders = {topic: Decoder(topic, ids) for topic in TOPICS}
    letters = LetterDecoder(ids)

    def target(data: bytes) -> None:
        for topic, header in headers.items():
            with suppress(InvalidEvent):
                decoders[topic].decode(header + data)
        letter = letters.letter(Record("dead-letters", 0, 0, None, headers["dead-letters"] + data, 0, ()))
        if isinstance(letter, Letter):
            assert letter.size_bytes >= 0
            outgoing_of(letter)

    return target


def repartition_frame() -> Target:
    """A record of a repartition topic."""
    from paywarden.schemas.errors import InvalidEvent, Misconfigured
    from paywarden.streams.profiles.repartition import decode_frame

    def target(data: bytes) -> None:
        with suppress(InvalidEvent, Misconfigured):
            events = decode_frame(data, 6)
            assert len(events.keys) == len(events.rows)

    return target


def profile() -> Target:
    """A stored profile: migrated, rolled up, and with an event applied."""
    from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
    from paywarden.features.profiles.shape import decode_shape
    from paywarden.schemas.errors import Misconfigured
    from paywarden.streams.profiles.events import ROW_WIDTH, EntityEvents, apply

    engine = FeatureEngine()
    import numpy as np

    rows = np.ones((1, ROW_WIDTH), dtype=np.int64)
    rows[0, 0] = 0

    def target(data: bytes) -> None:
        for entity in range(engine.plan.entity_count):
            with suppress(UnreadableProfile):
                engine.migrated(entity, data)
            with suppress(UnreadableProfile):
                # No bytes are no profile.
                state = apply(entity, EntityEvents([b"k"], rows), {b"k": data} if data else {}, engine).profiles[b"k"]
                apply(entity, EntityEvents([b"k"], rows), {b"k": state}, engine)
        with suppress(Misconfigured):
            decode_shape(data)

    return target


def profile_set_aside() -> Target:
    """A profile that was set aside."""
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.profiles import set_aside_profile

    def target(data: bytes) -> None:
        with suppress(InvalidEvent):
            found = set_aside_profile.decode(data)
            assert set_aside_profile.decode(found.encode()).profile == found.profile

    return target


def payment_record() -> Target:
    """The stored record of a payment, with an outcome that comes for it."""
    from paywarden.features import kernel
    from paywarden.streams.profiles.events import OutcomeEvent, join, record_key
    from paywarden.streams.profiles.payment_columns import PaymentEvent, Position

    payment = PaymentEvent(Position(0, 5), "p", [1] * kernel.ATTRIBUTE_COUNT, (b"card:c", b"", b""), 1)
    outcome = OutcomeEvent(Position(1, 5), "p", is_fraud=True)

    def target(data: bytes) -> None:
        join([payment], [outcome], {record_key("p"): data}, 3).of_entities()

    return target


def drift_and_outcome_state() -> Target:
    """Records of the state of drift counts and outcomes."""
    from paywarden.models.metrics.outcome_tally import OutcomeTally
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.outcomes.payments import JoinedPayment, Outcome, SourcePartition
    from tests.unit.streams.counts.test_checked_state import CHECKS, World

    world = World()

    def target(data: bytes) -> None:
        for beginning in CHECKS:
            world.damage(beginning, data)
        world.store.read(list(CHECKS))
        with suppress(InvalidEvent):
            payment = JoinedPayment.from_bytes(data)
            assert JoinedPayment.from_bytes(payment.to_bytes()) == payment
            payment, _ = payment.join(Outcome(5, 1), SourcePartition("o", 0), 5, 1_000)
            tally = OutcomeTally()
            for mark in payment.marks:
                for change in payment.counted(mark):
                    decided = change.decided
                    tally.count(
                        score_units=decided.score_units,
                        action=decided.action,
                        amount_minor=decided.amount_minor % 2**32,
                        label=change.label,
                        lag_ms=change.lag_ms,
                    )

    return target


def outbox() -> Target:
    """A segment of an outbox, and its records as the shipper reads them."""
    from paywarden.schemas.errors import PaywardenError
    from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxWriter
    from paywarden.streams.companion.shipment import read_entry
    from paywarden.streams.companion.shipping import decision_of

    folder = Path(tempfile.mkdtemp(prefix="paywarden-fuzz-"))
    settings = OutboxSettings(directory=str(folder))
    writer = OutboxWriter(settings, "w")
    writer.append(b"x")
    writer.close()
    (segment,) = [path for path in (folder / "w").iterdir() if path.stat().st_size]

    def target(data: bytes) -> None:
        segment.write_bytes(data)
        with suppress(PaywardenError):
            records = OutboxReader(settings, "w").read(int(segment.stem) if segment.stem.isdigit() else 0, 64)
            for _, payload in records:
                decision_of(read_entry(payload))
        with suppress(PaywardenError):
            decision_of(read_entry(data))

    return target


def outbox_records() -> Target:
    """The records of a segment as compiled code reads them: heads, entries, and what is written of each.

    The first byte says whether the checksums behind it are repaired first: without that, damage ends at the head.
    Python's readers and writers say what is right.
    """
    import numpy as np

    from paywarden.schemas.avro import Encoder, LocalSchemaIds
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.scoring.state.outbox import Frames
    from paywarden.scoring.state.outbox.files import PAYLOAD_BYTES_MAX, parse
    from paywarden.scoring.state.outbox.frame_loop import HEAD_BYTES, fill_ends
    from paywarden.streams.companion.shipment import read_entry
    from paywarden.streams.companion.shipping import decision_of
    from tests.fuzz.corpus import with_checksums

    encoder = Encoder("decisions", LocalSchemaIds().id_of("decisions"))

    def target(data: bytes) -> None:
        segment = with_checksums(data[1:]) if data[:1] and data[0] & 1 else data[1:]
        records, end, _ = parse(segment, _RECORDS_MAX)
        ends = np.empty(min(_RECORDS_MAX, len(segment) // (HEAD_BYTES + 1)), dtype=np.int64)
        count = fill_ends(np.frombuffer(segment, dtype=np.uint8), ends, PAYLOAD_BYTES_MAX) if len(ends) else 0
        assert ends[:count].tolist() == [after for after, _ in records]
        frames = Frames(segment[:end], ends[:count], end)
        assert frames.payloads == [payload for _, payload in records]
        for payload in frames.payloads:
            with suppress(InvalidEvent):
                encoder.encode(decision_of(read_entry(payload), ""))

    return target


def changelog() -> Target:
    """A record of topic profiles as a companion reads it: a byte for the key's length, the key, the value."""
    from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
    from paywarden.streams.companion.changelog_reader import read_changes
    from paywarden.streams.kafka.reading import Record

    ids = LocalSchemaIds()
    decoder = Decoder("profiles", ids)
    header = Encoder("profiles", ids.id_of("profiles")).header

    def target(data: bytes) -> None:
        length = data[0] if data else 0
        key, value = data[1 : 1 + length], data[1 + length :]
        for whole in (value, header + value):
            changes = read_changes([Record("profiles", 0, 5, key, whole, 1, ())], decoder, ("card",), {})
            assert changes.positions == {0: 6}

    return target


def register() -> Target:
    """The register of profile sets."""
    from paywarden.features.stores.profile_sets import decode_register
    from paywarden.schemas.errors import Misconfigured

    def target(data: bytes) -> None:
        with suppress(Misconfigured):
            found = decode_register(data)
            assert decode_register(found.encode("again")).live == found.live

    return target


def policy_rule() -> Target:
    """A condition of a policy's rule: refused, or it answers with yes or no and reaches nothing."""
    from paywarden.schemas.errors import Misconfigured
    from tests.unit.models.policy.test_rules import NAMES, PAYMENT, compiled, vector_of

    vector = vector_of({name: number * 0.5 for number, name in enumerate(NAMES[::2])})

    def target(data: bytes) -> None:
        try:
            condition = compiled(data.decode(errors="surrogateescape"))
        except Misconfigured:
            return
        assert type(condition.applies(PAYMENT, 500, vector.item, 0.5, ())) is bool

    return target


def configuration() -> Target:
    """A configuration file, and a policy in it."""
    import tomllib

    from paywarden.ops.configuration import settings_types
    from paywarden.schemas.errors import Misconfigured
    from paywarden.schemas.settings import Source

    types = settings_types()

    def target(data: bytes) -> None:
        try:
            values = tomllib.loads(data.decode())
        except (ValueError, RecursionError):
            return
        source = Source(values, {})
        wrong = source.unknown_sections()
        for name, kind in types.items():
            if isinstance(values.get(name), dict):
                wrong += source.problems(name, kind)
                with suppress(Misconfigured):
                    source.section(name, kind)
        assert all(isinstance(line, str) and "\n" not in line for line in wrong)

    return target


def times_and_keys() -> Target:
    """Texts that an operator types: times, letters' ids, names of sets, keys."""
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.profiles.profile_view import typed_key
    from paywarden.features.stores.profile_sets import typed_name
    from paywarden.ops.times import time_ms_of
    from paywarden.schemas.durations import duration_ms_of
    from paywarden.schemas.errors import InvalidEvent, Misconfigured
    from paywarden.streams.dead_letters.writer import LetterId

    plan = FeatureEngine().plan

    def target(data: bytes) -> None:
        text = data.decode(errors="replace")
        for read in (time_ms_of, duration_ms_of, LetterId.of, typed_name, lambda text: typed_key(plan, text)):
            with suppress(Misconfigured, InvalidEvent, ValueError):
                read(text)

    return target


TARGETS: dict[str, Callable[[], Target]] = {
    make.__name__: make
    for make in (
        http,
        http_one_call,
        http2,
        request_protobuf,
        request_json,
        avro_payment,
        avro_schema,
        dead_letter,
        repartition_frame,
        profile,
        profile_set_aside,
        payment_record,
        drift_and_outcome_state,
        outbox,
        outbox_records,
        changelog,
        register,
        policy_rule,
        configuration,
        times_and_keys,
    )
}
TARGETS |= topic_targets.TARGETS | file_targets.TARGETS | table_targets.TARGETS | console_targets.TARGETS


@cache
def made(name: str) -> Target:
    """Return a target, made once a process."""
    return TARGETS[name]()
