"""Kafka records to events: decode, check, and say why not. What is refused here goes to the dead letters."""

from __future__ import annotations

from typing import Any

from features.engine import FeatureEngine
from features.money import AMOUNT_MINOR_MAX, RateTable
from features.store import KEY_BYTES_MAX
from schemas.avro import Decoder, SchemaIds
from schemas.errors import InvalidEvent
from streams.batch import OutcomeEvent, PaymentEvent, Position, record_key

# A payment dated further ahead than clocks differ would push every real tile out of its profiles.
FUTURE_MS_MAX = 60_000


class Intake:
    """Decodes and checks payments and outcomes."""

    def __init__(self, engine: FeatureEngine, rates: RateTable, ids: SchemaIds) -> None:
        self._payments = Decoder("payments", ids)
        self._outcomes = Decoder("outcomes", ids)
        self._rates = rates
        self._entities = [
            (f"{name}:".encode(), key)
            for name, key in zip(engine.plan.entity_names, engine.plan.entity_keys, strict=True)
        ]

    def payment(self, value: bytes | None, position: Position, now_ms: int) -> PaymentEvent:
        """A payment from its Kafka value. Raises InvalidEvent naming the field."""
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
        keys = tuple(_key(record, prefix, name) for prefix, name in self._entities)
        return PaymentEvent(position, record["payment_id"], event_time_ms, amount, keys)

    def outcome(self, value: bytes | None, position: Position) -> OutcomeEvent:
        """An outcome from its Kafka value. Raises InvalidEvent naming the field."""
        record = self._outcomes.decode(_present(value))
        _check_id("payment_id", record["payment_id"])
        return OutcomeEvent(position, record["payment_id"], record["label"] == "fraud")


def _present(value: bytes | None) -> bytes:
    if value is None:
        raise InvalidEvent("the record has no value")
    return value


def _key(record: dict[str, Any], prefix: bytes, name: str) -> bytes:
    identity = record[name]
    if identity is None:
        return b""
    if not identity:
        raise InvalidEvent("must not be empty", field=name)
    key: bytes = prefix + identity.encode()
    if len(key) > KEY_BYTES_MAX:
        raise InvalidEvent(f"is longer than {KEY_BYTES_MAX - len(prefix)} bytes", field=name)
    return key


def _check_id(name: str, identity: str) -> None:
    if not identity:
        raise InvalidEvent("must not be empty", field=name)
    if len(record_key(identity)) > KEY_BYTES_MAX:
        raise InvalidEvent(f"is longer than {KEY_BYTES_MAX - len(record_key(''))} bytes", field=name)
