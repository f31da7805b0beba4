"""The cost of declared fields in the stream worker: `python -m perf.pipeline --fields`.

Measured: the CPU time of one thread for each step of a payment, without Kafka's clients. Batches of 500 payments from a
memory store, through decoding, payment records, frames and profiles. Three worlds:

    packaged      the catalogue that comes with Paywarden
    fields        the same features, and sixteen declared fields in every payment: two of most kinds
    features      these fields, five entities and 120 features

Each figure is the smallest of several passes: others may use the machine meanwhile. Every pass checks that each event
was applied once, and that all worlds decode all payments in compiled code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from paywarden.features.catalogue import fields as words
from paywarden.features.catalogue.attributes import Attribute, ip
from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.kafka.reading import Record
from paywarden.streams.kafka.topic_names import repartition_topic
from paywarden.streams.profiles.decoder import TIMES, EventDecoder
from paywarden.streams.profiles.fast_intake import FastIntake
from paywarden.streams.profiles.guards.broker_clock import BrokerClock
from paywarden.streams.profiles.router import Router
from paywarden.streams.profiles.settings import StreamSettings, stream_metrics
from paywarden.streams.profiles.updater import Updater

NOW_MS = 1_760_000_000_000
PAYMENTS, BATCH, PASSES = 5_000, 500, 7
FEATURES = 120
STEPS = ("decode", "keep", "route", "update")

MAIL = words.email("buyer_email", 4)
DELIVERY = words.address("delivery_ip", 5)
HOME = words.coordinates("home", 12)
DECLARED: tuple[Attribute, ...] = (
    words.text("customer_id", 1, required=True),
    words.text("account_id", 2),
    words.category("product", 3, ["book", "game", "food"]),
    MAIL,
    DELIVERY,
    words.bin_number("card_bin", 6),
    words.country("billing_country", 7),
    words.country("card_country", 8),
    words.integer("account_age", 9, unit="days", least=0, most=20_000),
    words.decimal("basket_weight", 10, unit="kg", least=0, most=500, decimals=3),
    words.money("shipping", 11),
    HOME.latitude,
    HOME.longitude,
    words.time("account_opened", 14),
    words.flag("is_gift", 15),
    words.flag("three_ds", 16),
)
NEAR, DOMAIN = words.network("near", 17, of=ip), words.email_domain("buyer_domain", 18, of=MAIL)


class _Sender:
    """Takes frames, and gives them to the updater in place of Kafka."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def send(
        self, topic: str, value: bytes, *, key: bytes | None, partition: int, on_sent: Callable[[int, int], object]
    ) -> None:
        del key
        on_sent(len(self.records), 0)
        self.records.append(Record(topic, partition, len(self.records), None, value, NOW_MS, ()))


def measured() -> dict[str, float]:
    """Prints the table; returns microseconds of CPU a payment, by world and step."""
    payment = words.Payment(*DECLARED)
    worlds = {
        "packaged": CATALOGUE,
        "fields": Catalogue(CATALOGUE.entities, CATALOGUE.features, payment),
        "features": _many_features(words.Payment(*DECLARED, NEAR, DOMAIN)),
    }
    figures: dict[str, float] = {}
    table = {name: _passes(catalogue) for name, catalogue in worlds.items()}
    print(f"{'µs of CPU a payment':<22}" + "".join(f"{name:>12}" for name in table))
    for step in STEPS:
        print(f"{step:<22}" + "".join(f"{costs[step]:>12.2f}" for costs in table.values()))
    totals = {name: sum(costs.values()) for name, costs in table.items()}
    print(f"{'all':<22}" + "".join(f"{total:>12.2f}" for total in totals.values()))
    for name, costs in table.items():
        figures |= {f"fields_{name}_{step}_us_per_payment": cost for step, cost in costs.items()}
        figures[f"fields_{name}_us_per_payment"] = totals[name]
    figures["fields_decode_us_per_field"] = (table["fields"]["decode"] - table["packaged"]["decode"]) / len(DECLARED)
    figures["fields_us_per_field"] = (totals["fields"] - totals["packaged"]) / len(DECLARED)
    decode, whole = figures["fields_decode_us_per_field"], figures["fields_us_per_field"]
    print(f"a field more: {decode:.3f} µs to decode, {whole:.3f} µs in all")
    return figures


def _many_features(payment: words.Payment) -> Catalogue:
    """Returns a catalogue of five entities and FEATURES features."""
    by_customer, by_network = Entity("customer", "customer_id"), Entity("network", "near")
    features = list(CATALOGUE.features)
    windows = ("1h", "6h", "1d", "7d", "30d")
    makers: list[Callable[[Entity, str, str], Any]] = [
        lambda entity, name, window: entity.count(f"{name}_count", window),
        lambda entity, name, window: entity.count(f"{name}_gifts", window, where=DECLARED[14]),
        lambda entity, name, window: entity.count(f"{name}_heavy", window, where=DECLARED[9] >= 20),
        lambda entity, name, window: entity.amount_sum(f"{name}_sum", window),
        lambda entity, name, window: entity.distinct(f"{name}_domains", DOMAIN, window),
        lambda entity, name, window: entity.distinct(f"{name}_bins", DECLARED[5], window),
        lambda entity, name, window: entity.distinct(f"{name}_customers", DECLARED[0], window),
    ]
    for make in makers:
        for entity in (by_customer, by_network):
            features += [make(entity, f"{entity.name}_{window}", window) for window in windows]
    assert len(features) >= FEATURES
    return Catalogue((*CATALOGUE.entities, by_customer, by_network), features[:FEATURES], payment)


def _payments(fields: Sequence[str]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    payments = []
    for number in range(PAYMENTS):
        card, merchant = int(rng.integers(0, 2_000)), int(200 * rng.random() ** 3)
        own: Mapping[str, Any] = {
            "customer_id": f"customer-{card // 2:07d}",
            "account_id": f"account-{card:08d}",
            "product": ("book", "game", "food")[number % 3],
            "buyer_email": f"someone.{card // 2}@Mail{card % 7}.example.com",
            "delivery_ip": f"198.51.{card % 256}.{number % 256}",
            "card_bin": f"4{card % 100_000:05d}",
            "billing_country": "DE",
            "card_country": "FR",
            "account_age": card,
            "basket_weight": card / 7,
            "shipping": 499,
            "home_latitude": 48.0 + card / 1e4,
            "home_longitude": 11.0 + card / 1e4,
            "account_opened": NOW_MS - card * 86_400_000,
            "is_gift": number % 2 == 0,
            "three_ds": True,
        }
        payments.append(
            {
                "payment_id": f"pay-{number:012d}",
                "event_time_ms": NOW_MS - PAYMENTS + number,
                "card_id": f"card-{card:08d}",
                "merchant_id": f"merchant-{merchant:07d}",
                "device_id": f"device-{card:08d}-0",
                "ip": f"192.0.2.{card % 256}",
                "amount_minor": 1000 + card,
                "currency": "EUR",
                "mcc": "5411",
                "country": "DE",
                "channel": "ecom",
                "utc_offset_minutes": 60,
                "declined": False,
                **{name: own[name] for name in fields},
            }
        )
    return payments


def _passes(catalogue: Catalogue) -> dict[str, float]:
    engine, rates = FeatureEngine(catalogue), load_rates()
    engine.warm_up()
    fields = engine.plan.fields
    ids = LocalSchemaIds(fields=fields)
    encoder = Encoder("payments", ids.id_of("payments"), schema=ids.current_schema("payments"))
    payments = _payments([field.name for field in fields.declared])
    records = [Record("payments", 0, at, b"k", encoder.encode(one), NOW_MS, ()) for at, one in enumerate(payments)]
    intake = EventDecoder(engine, rates, ids)
    FastIntake(engine.plan, rates, ids, TIMES).payments(records, NOW_MS, _not_usual)
    best = dict.fromkeys(STEPS, float("inf"))
    for _ in range(PASSES):
        costs = _pass(engine, intake, records)
        best = {step: min(best[step], costs[step] / PAYMENTS * 1e6) for step in STEPS}
    return best


def _not_usual(record: Record) -> Any:
    raise InvalidEvent(f"the payment at offset {record.offset} is not decoded in compiled code")


def _pass(engine: FeatureEngine, intake: EventDecoder, records: Sequence[Record]) -> dict[str, float]:
    """Returns the seconds of each step for all payments, from an empty store on."""
    store, sender = MemoryStore(), _Sender()
    routes = {name: (repartition_topic(name, ""), 1) for name in engine.plan.entity_names}
    given: Any = sender
    clock = BrokerClock(stream_metrics(StreamSettings(), engine.plan.entity_names, CollectorRegistry()))
    router = Router(
        intake=intake, store=store, sender=given, plan=engine.plan, routes=routes, outcome_days=1, clock=clock
    )
    updater = Updater(store=store, engine=engine, routes=routes, changelog=None)
    costs = dict.fromkeys(STEPS, 0.0)
    applied = 0

    def timed(step: str, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.thread_time()
        result = work(*arguments)
        costs[step] += time.thread_time() - started
        return result

    for first in range(0, len(records), BATCH):
        decoded = timed("decode", router.decode, records[first : first + BATCH], [], NOW_MS)
        assert not decoded.refused
        joined = timed("keep", router.keep, decoded)
        timed("route", router.send, joined)
        frames, sender.records = sender.records, []
        arrived = timed("update", updater.decode, frames)
        for each in timed("update", updater.update, arrived.events).values():
            assert each.replayed == 0
        applied += sum(len(events.keys) for events in arrived.events.values())
    assert applied == len(records) * engine.plan.entity_count
    return costs
