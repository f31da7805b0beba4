"""Kafka records to events: decode, check, and say why not. What is refused here goes to the dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from features.attributes import row_of
from features.engine import FeatureEngine
from features.keys import entity_key
from features.money import AMOUNT_MINOR_MAX, RateTable
from features.store import KEY_BYTES_MAX
from schemas.avro import Decoder, SchemaIds
from schemas.errors import InvalidEvent
from streams.batch import OutcomeEvent, PaymentEvent, Position, payments_source, record_key
from streams.fast_intake import FastIntake
from streams.kafka import Record

# A payment dated further ahead than clocks differ would push every real tile out of its profiles.
FUTURE_MS_MAX = 60_000


class Intake:
    """Decodes and checks payments and outcomes."""

    def __init__(self, engine: FeatureEngine, rates: RateTable, ids: SchemaIds) -> None:
        self._payments = Decoder("payments", ids)
        self._outcomes = Decoder("outcomes", ids)
        self._rates = rates
        self._fast = FastIntake(engine.plan, rates, ids, future_ms_max=FUTURE_MS_MAX)
        self._entities = list(zip(engine.plan.entity_names, engine.plan.entity_keys, strict=True))

    def payments(self, records: Sequence[Record], now_ms: int) -> list[PaymentEvent | InvalidEvent]:
        """`payment` for each of these records of topic payments, most of them decoded together."""

        def slowly(record: Record) -> PaymentEvent:
            position = Position(payments_source(record.partition), record.offset)
            return self.payment(record.value, position, record.timestamp_ms, now_ms)

        return self._fast.payments(records, now_ms, slowly)

    def payment(self, value: bytes | None, position: Position, arrived_ms: int, now_ms: int) -> PaymentEvent:
        """A payment from its Kafka value. `arrived_ms`: Kafka's own time. Raises InvalidEvent naming the field."""
        record = self._payments.decode(_present(value))
        _check_id("payment_id", record["payment_id"])
        event_time_ms = record["event_time_ms"]
        if not 0 < event_time_ms <= now_ms + FUTURE_MS_MAX:
            raise InvalidEvent(
                f"must be after 1970 and at most {FUTURE_MS_MAX} ms in the future", field="event_time_ms"
            )
        amount_minor = record["amount_minor"]
        if not 0 <= amount_minor <= AMOUNT_MINOR_MAX:
            raise InvalidEvent(f"must be 0 to {AMOUNT_MINOR_MAX}", field="amount_minor")
        amount = self._rates.convert(amount_minor, record["currency"], event_time_ms)
        keys = tuple([_key(record, name, fields) for name, fields in self._entities])
        attributes = row_of(record, event_time_ms=event_time_ms, amount=amount, amount_minor=amount_minor)
        return PaymentEvent(position, record["payment_id"], attributes, keys, arrived_ms)

    def outcome(self, value: bytes | None, position: Position, arrived_ms: int) -> OutcomeEvent:
        """An outcome from its Kafka value, which reached Kafka then. Raises InvalidEvent naming the field."""
        record = self._outcomes.decode(_present(value))
        _check_id("payment_id", record["payment_id"])
        return OutcomeEvent(position, record["payment_id"], record["label"] == "fraud", arrived_ms)


def _present(value: bytes | None) -> bytes:
    if value is None:
        raise InvalidEvent("the record has no value")
    return value


def _key(record: dict[str, Any], entity: str, fields: tuple[str, ...]) -> bytes:
    """The store key of the entity these fields name; empty when one of them is not there."""
    if len(fields) == 1:
        # Nearly all are of one field, and there are three a payment.
        identity = record[fields[0]]
        if identity is None:
            return b""
        key: bytes = f"{entity}:{identity}".encode()
        if identity and len(key) <= KEY_BYTES_MAX:
            return key
    ids = [record[field] for field in fields]
    if None in ids:
        return b""
    if "" in ids:
        raise InvalidEvent("must not be empty", field=fields[ids.index("")])
    try:
        key = entity_key(entity, ids)
    except InvalidEvent as error:
        raise InvalidEvent(str(error), field=" and ".join(fields)) from None
    if len(key) > KEY_BYTES_MAX:
        raise InvalidEvent(f"is longer than {KEY_BYTES_MAX - len(entity) - 1} bytes", field=fields[0])
    return key


def _check_id(name: str, identity: str) -> None:
    if not identity:
        raise InvalidEvent("must not be empty", field=name)
    if len(record_key(identity)) > KEY_BYTES_MAX:
        raise InvalidEvent(f"is longer than {KEY_BYTES_MAX - len(record_key(''))} bytes", field=name)
