"""Decode and check payments and outcomes. A refused record goes to the dead letters with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paywarden.features.catalogue.attributes import row_of
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import entity_key
from paywarden.features.profiles.money import RateTable
from paywarden.schemas.avro import Decoder, SchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import FIELD, FIELDS, PaymentRules, TimeBounds
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.events import OutcomeEvent, PaymentEvent, Position, payments_source
from paywarden.streams.profiles.fast_intake import FastIntake

# An operator can retry a dead letter for 30 days ([topics] dead_letters_days), and its payment may have been days old
# at its first arrival. A payment dated into the future, by more than clocks differ, would push all real tiles out of
# its profiles.
TIMES = TimeBounds(past_ms_max=40 * 86_400_000, future_ms_max=60_000)


class EventDecoder:
    """Decodes and checks payments and outcomes."""

    def __init__(self, engine: FeatureEngine, rates: RateTable, ids: SchemaIds, times: TimeBounds = TIMES) -> None:
        self._payments = Decoder("payments", ids)
        self._outcomes = Decoder("outcomes", ids)
        self._rates, self._key = rates, engine.plan.key
        self._rules = PaymentRules(FIELDS, times, rates.currencies)
        self._fast = FastIntake(engine.plan, rates, ids, times)
        self._entities = list(zip(engine.plan.entity_names, engine.plan.entity_keys, strict=True))

    def payments(self, records: Sequence[Record], now_ms: int, base: int = 0) -> list[PaymentEvent | InvalidEvent]:
        """Returns the result of `payment` for each record of topic payments. Most are decoded together.

        `base` is added to their offsets.
        """

        def slowly(record: Record) -> PaymentEvent:
            position = Position(payments_source(record.partition), base + record.offset)
            return self.payment(record.value, position, record.timestamp_ms, now_ms)

        return self._fast.payments(records, now_ms, slowly, base)

    def payment(self, value: bytes | None, position: Position, arrived_ms: int, now_ms: int) -> PaymentEvent:
        """Returns the payment in a Kafka value. `arrived_ms` is Kafka's time. Raises InvalidEvent, naming the field."""
        record = self._payments.decode(_present(value))
        self._rules.check(record, arrived_ms=arrived_ms, now_ms=now_ms)
        event_time_ms, amount_minor = record["event_time_ms"], record["amount_minor"]
        amount = self._rates.convert(amount_minor, record["currency"], event_time_ms)
        keys = tuple([_key(record, name, fields) for name, fields in self._entities])
        attributes = row_of(
            record, event_time_ms=event_time_ms, amount=amount, amount_minor=amount_minor, key=self._key
        )
        return PaymentEvent(position, record["payment_id"], attributes, keys, arrived_ms)

    def outcome(self, value: bytes | None, position: Position, arrived_ms: int) -> OutcomeEvent:
        """Returns the outcome in a Kafka value. `arrived_ms` is Kafka's time. Raises InvalidEvent, naming the field."""
        record = self._outcomes.decode(_present(value))
        if problem := FIELD["payment_id"].problem_of(record["payment_id"]):
            raise InvalidEvent(problem, field="payment_id")
        return OutcomeEvent(position, record["payment_id"], record["label"] == "fraud", arrived_ms)


def _present(value: bytes | None) -> bytes:
    if value is None:
        raise InvalidEvent("the record has no value")
    return value


def _key(record: dict[str, Any], entity: str, fields: tuple[str, ...]) -> bytes:
    """Returns the store key of the entity that these fields name; empty if one of them is missing."""
    if len(fields) == 1:
        # The fast path: nearly all entities have one field, and a payment has three entities.
        identity = record[fields[0]]
        return b"" if identity is None else f"{entity}:{identity}".encode()
    ids = [record[field] for field in fields]
    return b"" if None in ids else entity_key(entity, ids)
