"""The inputs in the repository, and the seeds that they began with."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz import console_targets, file_targets, table_targets, topic_targets

CORPUS = Path(__file__).parent / "corpus"


def inputs(name: str) -> list[Path]:
    """Return the inputs of a target, sorted by name."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())


def add(name: str, data: bytes, label: str = "") -> Path:
    """Add an input to the repository, named after its content or a label."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (label or hashlib.sha256(data).hexdigest()[:12])
    path.write_bytes(data)
    return path


def seeds(name: str) -> Iterator[bytes]:
    """Yield good inputs of a target, and some that are nearly so."""
    make = {
        "http": _http,
        "http_one_call": _http_one_call,
        "http2": _http2,
        "request_protobuf": _request_protobuf,
        "request_json": _request_json,
        "avro_payment": _avro_payment,
        "avro_schema": _avro_schema,
        "dead_letter": _dead_letter,
        "repartition_frame": _repartition_frame,
        "profile": _profile,
        "profile_set_aside": _profile_set_aside,
        "payment_record": _payment_record,
        "drift_and_outcome_state": _state,
        "outbox": _outbox,
        "outbox_records": _outbox_records,
        "changelog": _changelog,
        "register": _register,
        "policy_rule": _policy_rule,
        "configuration": _configuration,
        "times_and_keys": _times_and_keys,
    }
    make |= topic_targets.SEEDS | file_targets.SEEDS | table_targets.SEEDS | console_targets.SEEDS
    yield from make[name]()


def _http() -> Iterator[bytes]:
    from tests.worlds.endpoint.http_world import get, payment, post, post_json

    whole = post_json(payment())
    yield b"\0" + whole
    yield b"\3" + whole * 2
    yield b"\1" + get("/livez") + get("/readyz", headers="Connection: close\r\n") + whole
    yield b"\2" + post(b"x", headers="Expect: 100-continue\r\n")
    yield b"\0" + post_json({"requests": [payment(), payment("p2")]}, path="/v1/score:batch")
    head = b"POST /v1/score HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield b"\2" + head + b"2\r\n{}\r\n0\r\nTrailer: x\r\n\r\n"
    yield b"\1GET / HTTP/1.0\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n\r\n"


def _http_one_call() -> Iterator[bytes]:
    from tests.fuzz.two_fronts import READ_END, usual
    from tests.worlds.endpoint.http_world import get, post

    first, second, third = (usual(number) for number in range(3))
    head, _, body = second.partition(b"\r\n\r\n")
    yield b"\xff" + READ_END.join([first, second, usual(2, place=1), usual(3, place=1), second])
    # A request, and the beginning of the next one before the answer; then its rest.
    yield b"\x09" + READ_END.join([first, second, third[:60], third[60:] + get("/livez")])
    # No deadline: it would pass on one of the two sides alone.
    for line in (b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: close"):
        yield b"\xff" + READ_END.join([first, head + b"\r\n" + line + b"\r\n\r\n" + body, third])
    yield b"\xff" + READ_END.join([first, second + third, usual(3) + get("/livez") + usual(4)])
    currencies = (body.replace(b"EUR", currency) for currency in (b"EU\0", b"eur", b"XXX"))
    for changed in (body[:-1] + b"\xff", *currencies, body[1:] + body[:1]):
        yield b"\xff" + READ_END.join([first, head + b"\r\n\r\n" + changed, third])
    # The length of the first text in ten bytes, an unknown field, a field that comes twice.
    for wrong in (body[:1] + bytes([body[1] | 0x80]) + b"\x80" * 8 + b"\0" + body[2:], body + b"\x68\x01", body + body):
        sent = post(wrong, content_type="application/x-protobuf")
        yield b"\xff" + READ_END.join([sent, sent, third])


def _http2() -> Iterator[bytes]:
    from tests.unit.scoring.grpc.test_abuse import BROKEN_CONNECTIONS, CALL_1, GREETING

    yield b"\0" + GREETING + CALL_1
    yield b"\3" + GREETING + CALL_1
    for sent, _ in list(BROKEN_CONNECTIONS.values())[::3]:
        yield b"\1" + sent


def _request_protobuf() -> Iterator[bytes]:
    from tests.worlds.endpoint.grpc_served import payment

    yield payment().SerializeToString()
    yield payment("é", country="NO", mcc="5411", utc_offset_minutes=-60).SerializeToString()
    usual = payment().SerializeToString()
    # The length of the first text in ten bytes: protobuf refuses that.
    yield usual[:1] + bytes([usual[1] | 0x80]) + b"\x80" * 8 + b"\0" + usual[2:]
    yield payment().SerializeToString() + b"\xa3\x06\xa4\x06"


def _request_json() -> Iterator[bytes]:
    from tests.worlds.endpoint.http_world import payment

    yield json.dumps(payment()).encode()
    yield json.dumps({"requests": [payment(), payment("\ud800")]}).encode()
    yield b'{"payment_id":"p","payment_id":"q","amount_minor":1e2}'
    yield b"[" * 200


def _avro_payment() -> Iterator[bytes]:
    from tests.parity.readers.test_payment_readers import ENCODER
    from tests.unit.schemas.test_avro_wire import PAYMENT

    body = ENCODER.encode(PAYMENT)[5:]
    yield body
    yield body[:-3]
    yield body.replace(b"EUR", b"E\xffR")


def _avro_schema() -> Iterator[bytes]:
    from paywarden.schemas.avro import schema_text
    from tests.unit.schemas.test_schema_limits import HOSTILE, payment_with

    one_line = json.dumps(json.loads(schema_text("outcomes")))
    yield one_line.encode() + b"\0\x04p1\x02\x00\x00\x00\x00"
    for name in ("a record of type error that contains itself", "a fixed of size abc", "a union in a union"):
        yield json.dumps(payment_with(HOSTILE[name])).encode() + b"\0" * 9
    fields = [{"name": "a", "type": {"type": "array", "items": ["null", {"type": "map", "values": "long"}]}}]
    yield json.dumps({"type": "record", "name": "Payment", "fields": fields}).encode() + b"\0\x04\0\x02\0\0"


def _dead_letter() -> Iterator[bytes]:
    from paywarden.streams.kafka.client import KafkaSettings
    from tests.worlds.stream.topics import letter

    yield letter(KafkaSettings(), "payments", "currency: no", 1)[5:]
    yield b"\x10payments\0\0\0\0\0\x04\x0e" + b"paywarden-retry-count"[:7] + b"\x02\x02" + b"9\0\0\0"


def _repartition_frame() -> Iterator[bytes]:
    from paywarden.streams.profiles.repartition import encode_frame
    from tests.unit.streams.profiles.test_updater import card_events

    events = card_events()
    yield encode_frame(events, 6)
    yield encode_frame(events, 6)[:-2]


def _profile() -> Iterator[bytes]:
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.streams.profiles.events import apply
    from tests.unit.streams.profiles.test_updater import card_events

    states = apply(0, card_events(), {}, FeatureEngine()).profiles
    yield from list(states.values())[:2]
    # The example of the codec's documentation: another shape, which is migrated.
    yield bytes.fromhex("068daa3a04060001901c010000261010000068e5cf8b0160ea000102" + "572d4df25fec0391")


def _profile_set_aside() -> Iterator[bytes]:
    from paywarden.streams.profiles.set_aside_profile import SetAsideEvents, set_aside
    from tests.unit.streams.profiles.test_updater import card_events

    yield set_aside(b"profile").encode()
    yield SetAsideEvents(b"", card_events().rows).encode()
    yield b"\xff\x01\x00\x00\x00\x00\x03\x00" + zlib.compress(bytes(48))


def _payment_record() -> Iterator[bytes]:
    from paywarden.schemas.proto.store_pb2 import LabelChange, PaymentRecord

    changes = [LabelChange(source=1, offset=2, weight=1), LabelChange(source=1, offset=4, weight=-1)]
    yield PaymentRecord(offset=5, attributes=[1] * 13, keys=["card:c"], label_changes=changes).SerializeToString()
    yield PaymentRecord(source=2, attributes=[1] * 14, keys=["a"] * 5).SerializeToString()


def _state() -> Iterator[bytes]:
    from paywarden.streams.drift.drift_evaluation import EvaluatedUpTo
    from paywarden.streams.drift.drift_state import CountTile, DriftHead
    from paywarden.streams.outcomes.outcome_state import Day, OutcomeHead
    from paywarden.streams.outcomes.payments import Arm, CountedDecision, JoinedPayment, Outcome, SourcePartition

    yield DriftHead("owner").encode()
    yield CountTile(5).encode()
    yield OutcomeHead("owner").encode()
    yield Day(5).encode()
    yield EvaluatedUpTo(5).encode()
    yield JoinedPayment(waiting=(Outcome(5, 1),)).to_bytes()
    decided = CountedDecision(Arm("m1", ""), 5, 1, 500_000, 1_050)
    payment, _ = JoinedPayment().join(decided, SourcePartition("d", 0), 1, 1_000)
    payment, _ = payment.join(Outcome(7, 1), SourcePartition("o", 0), 1, 1_000)
    yield payment.to_bytes()


def _outbox() -> Iterator[bytes]:
    import tempfile

    from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
    from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
    from tests.worlds.endpoint.grpc_served import payment

    entry = OutboxEntry(decided_time_ms=5, request=payment()).SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        writer = OutboxWriter(OutboxSettings(directory=folder), "w")
        writer.append(entry)
        writer.append(entry)
        writer.close()
        (segment,) = [path for path in (Path(folder) / "w").iterdir() if path.stat().st_size]
        yield segment.read_bytes()
        yield segment.read_bytes()[:-3]
    yield entry


def with_checksums(segment: bytes) -> bytes:
    """Returns the bytes of a segment with the right checksum in each head, as far as records follow each other."""
    from paywarden.scoring.state.outbox.files import RECORD

    repaired, at = bytearray(segment), 0
    while at + RECORD.size <= len(repaired):
        size, _ = RECORD.unpack_from(repaired, at)
        payload = repaired[at + RECORD.size : at + RECORD.size + size]
        if not size or len(payload) < size:
            break
        RECORD.pack_into(repaired, at, size, zlib.crc32(payload))
        at += RECORD.size + size
    return bytes(repaired)


def _outbox_records() -> Iterator[bytes]:
    from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
    from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
    from paywarden.scoring.state.outbox import framed

    def plain(**more: Any) -> OutboxEntry:
        fields: dict[str, Any] = {"vector": bytes(60), "bundle_digest": b"\1" * 32, "policy_digest": b"\2" * 32} | more
        return OutboxEntry(
            request=ScoreRequest(payment_id="p-1", card_id="c-1"),
            response=ScoreResponse(decision_id="d-1", score=0.01, action="approve", flags=["unknown_device"]),
            decided_time_ms=1_700_000_000_000,
            catalogue_digest="c" * 64,
            **fields,
        )

    usual = plain()
    flagged, long, other = plain(), plain(), plain(bundle_digest=b"\3" * 32, caller="a", profile_set="main")
    flagged.response.flags.append("unknown_card")
    flagged.response.reasons.append("rule:a")
    long.request.payment_id, long.request.card_id = "p" * 70, "é" * 40
    other.trace, other.propensity, other.latency_us = b"\xff" * 25, 0.5, 1 << 40
    other.response.profile_age_ms, other.request.amount_minor = 1 << 40, -1
    records = [framed(one.SerializeToString()) for one in (usual, flagged, long, other)]
    for record in records:
        yield b"\1" + record
    yield b"\1" + b"".join(records)
    # Cut in the second record, zeros as a failed write leaves them, a size that no record has.
    yield b"\0" + b"".join(records)[: len(records[0]) + 40]
    yield b"\0" + records[0] + bytes(64) + records[1]
    yield b"\1" + records[0] + b"\xff\xff\xff\x7f" + records[1][4:]
    whole = usual.SerializeToString()
    # A payment's id of 2^63 bytes, a vector longer than the record, and a field that comes twice.
    request = ScoreRequest(payment_id="p-1").SerializeToString()
    yield b"\1" + framed(whole.replace(request, request[:1] + b"\xff" * 9 + b"\1" + request[11:], 1))
    yield b"\1" + framed(b"\x22\xff\xff\xff\xff\x07" + whole)
    yield b"\1" + framed(whole + ScoreResponse(score=2.0).SerializeToString()) + records[0]


def _changelog() -> Iterator[bytes]:
    from paywarden.schemas.avro import Encoder, LocalSchemaIds

    encoder = Encoder("profiles", LocalSchemaIds().id_of("profiles"))
    fields = {"entity": "card", "state": b"s", "written_time_ms": 1, "complete_to_time_ms": 7, "arrived_time_ms": 2}
    value = encoder.encode(fields)
    yield b"\x06card:c" + value
    yield b"\x06card:c" + value[5:]
    yield b"\x10progress:card:00" + value[5:]


def _register() -> Iterator[bytes]:
    from paywarden.features.stores.profile_sets import Register

    yield Register().encode("begun")
    yield b"[" * 3_000
    yield b'{"format": 1, "live": {"name": 7}, "sets": [{"name": "a"}, 3]}'


def _policy_rule() -> Iterator[bytes]:
    yield b"mcc in lists.gambling and amount > 499_99 and card_count_1h >= 5"
    yield b"'new_card' in flags or not (score >= 0.9 and country != 'NO')"
    yield b"min(amount / 100, abs(score)) ** 2 == 1_0e3 and missing(card_count_1h)"
    yield b"().__class__.__bases__[0]"


def _configuration() -> Iterator[bytes]:
    yield b'[kafka]\nbootstrap = "a:1"\ntopic_prefix = "x-"\n[stream]\nbatch_max = 5\nfreshness_exceptions = ["a=1"]\n'
    yield b"[http]\nport = -1\n[grpc]\nlibrary = 7\n[limits]\nbatch_size_max = true\n"
    yield b"stream = 7\n[nowhere]\na = 1\n"


def _times_and_keys() -> Iterator[bytes]:
    yield from (b"2024-05-01T12:00:00Z", b"90s", b"0-17", b"card:C1", b"card_merchant:C1,M1", b"first", b"\xff")
