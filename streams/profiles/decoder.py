"""Decode and check payments and outcomes. A refused record goes to the dead letters with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import DeclaredRow, row_of
from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import key_maker
from paywarden.features.profiles.money import RateTable
from paywarden.schemas.avro import Decoder, SchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import FIELD, FIELDS, PaymentFields, PaymentRules, TimeBounds
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.events import OutcomeEvent, payments_source
from paywarden.streams.profiles.fast_intake import FastIntake
from paywarden.streams.profiles.payment_columns import PaymentColumns, PaymentEvent, Position

# An operator can retry a dead letter for 30 days ([topics] dead_letters_days), and its payment may have been days old
# at its first arrival. A payment dated into the future, by more than clocks differ, would push all real tiles out of
# its profiles.
TIMES = TimeBounds(past_ms_max=40 * 86_400_000, future_ms_max=60_000)


class EventDecoder:
    """Decodes and checks payments and outcomes."""

    def __init__(self, engine: FeatureEngine, rates: RateTable, ids: SchemaIds, times: TimeBounds = TIMES) -> None:
        self._payments = Decoder("payments", ids)
        self._outcomes = Decoder("outcomes", ids)
        plan = engine.plan
        written = {field["name"] for field in ids.current_schema("payments")["fields"]}
        assert written >= plan.fields.by_name.keys(), "the schema of payments lacks declared fields of the catalogue"
        self._rates, self._key = rates, plan.key
        self._rules = PaymentRules(plan.fields.all, times)
        self._fast = FastIntake(plan, rates, ids, times)
        self._declared = DeclaredRow(plan.fields, self._converted) if plan.row_width > kernel.ATTRIBUTE_COUNT else None
        self._keys = [
            _key_maker(name, keys, plan.fields, plan.key)
            for name, keys in zip(plan.entity_names, plan.entity_keys, strict=True)
        ]

    def _converted(self, amount_minor: int, payment: Mapping[str, Any]) -> int | None:
        return self._rates.convert(amount_minor, payment["currency"], payment["event_time_ms"])

    def columns(
        self, records: Sequence[Record], now_ms: int, base: int = 0
    ) -> tuple[PaymentColumns, dict[int, InvalidEvent]]:
        """Returns the payments in these records of topic payments, and by a record's number the error of any other.

        Most are decoded together; each result equals that of `payment`. `base` is added to their offsets.
        """
        return self._fast.columns(records, now_ms, lambda record: self._slowly(record, now_ms, base), base)

    def payments(self, records: Sequence[Record], now_ms: int, base: int = 0) -> list[PaymentEvent | InvalidEvent]:
        """Returns the result of `payment` for each record of topic payments: that of `columns` one by one."""
        return self._fast.payments(records, now_ms, lambda record: self._slowly(record, now_ms, base), base)

    def _slowly(self, record: Record, now_ms: int, base: int) -> PaymentEvent:
        position = Position(payments_source(record.partition), base + record.offset)
        return self.payment(record.value, position, record.timestamp_ms, now_ms)

    def payment(self, value: bytes | None, position: Position, arrived_ms: int, now_ms: int) -> PaymentEvent:
        """Returns the payment in a Kafka value. `arrived_ms` is Kafka's time. Raises InvalidEvent, naming the field."""
        record = self._payments.decode(_present(value))
        self._rules.check(record, arrived_ms=arrived_ms, now_ms=now_ms)
        event_time_ms, amount_minor = record["event_time_ms"], record["amount_minor"]
        amount = self._rates.convert(amount_minor, record["currency"], event_time_ms)
        keys = tuple([key_of(record) for key_of in self._keys])
        attributes = row_of(
            record,
            event_time_ms=event_time_ms,
            amount=amount,
            amount_minor=amount_minor,
            key=self._key,
            declared=self._declared,
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


def _key_maker(
    entity: str, names: tuple[str, ...], fields: PaymentFields, key: IdentityKey
) -> Callable[[Mapping[str, Any]], bytes]:
    """Returns a function that makes an entity's store key from a decoded payment; empty if it lacks a key field."""
    if len(names) > 1 or fields.by_name.get(names[0]) not in FIELDS:
        return key_maker(entity, names, fields, key)
    name = names[0]

    def key_of(record: Mapping[str, Any]) -> bytes:
        # The fast path: nearly all entities have one field, and a payment has three entities.
        identity = record[name]
        return b"" if identity is None else f"{entity}:{identity}".encode()

    return key_of
