"""Payments for benchmarks of the stream: seeded, with any number of entities, written to a real Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from confluent_kafka import Producer

from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer

_CHANNELS = ("ecom", "pos", "contactless", "atm")
_COUNTRIES = ("DE", "FR", "NL", "PL", "IT", "ES", "AT", "BE")


class PaymentMaker:
    """Encoded payments of this many cards, each with a merchant and one of the card's two devices.

    There are a tenth as many merchants. A few merchants have most payments, as in reality: shares fall with a power of
    their rank.
    """

    def __init__(self, *, cards: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._cards, self._merchants = cards, max(1, cards // 10)
        self._encoder = Encoder("payments", LocalSchemaIds().id_of("payments"))
        self._made = 0

    def take(self, count: int, *, last_ms: int, span_ms: int) -> Iterator[tuple[str, bytes]]:
        """Return (card, value) of payments made over `span_ms` up to `last_ms`, in no order within a second."""
        rng = self._rng
        cards = rng.integers(0, self._cards, count).tolist()
        merchants = (self._merchants * rng.random(count) ** 3).astype(int).tolist()
        amounts = np.exp(rng.normal(8.0, 1.2, count)).astype(int).tolist()
        steps_ms = np.arange(count) * span_ms // max(1, count) - rng.integers(0, 1000, count)
        kinds, places = rng.choice(_CHANNELS, count).tolist(), rng.choice(_COUNTRIES, count).tolist()
        columns = cards, merchants, amounts, (last_ms - span_ms + steps_ms).tolist(), kinds, places
        for card, merchant, amount, time_ms, kind, place in zip(*columns, strict=True):
            self._made += 1
            record = {
                "payment_id": f"pay-{self._made:012d}",
                "event_time_ms": time_ms,
                "card_id": f"card-{card:08d}",
                "merchant_id": f"merchant-{merchant:07d}",
                "device_id": f"device-{card:08d}-{amount % 2}",
                "ip": "192.0.2.1",
                "amount_minor": amount,
                "currency": "EUR",
                "mcc": "5411",
                "country": place,
                "channel": kind,
                "utc_offset_minutes": 60,
                "declined": False,
            }
            yield f"card-{card:08d}", self._encoder.encode(record)


def send_all(kafka: KafkaSettings, topic_name: str, records: Iterator[tuple[str, bytes]]) -> int:
    """Send keys and values as fast as possible; return how many, all acknowledged."""
    topic, count = kafka.topic(topic_name), 0
    producer: Producer = make_producer(kafka, linger_ms=20, compression=kafka.compression_of(topic))
    for key, value in records:
        while True:
            try:
                producer.produce(topic, value, key=key)
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
    assert producer.flush(60) == 0
    return count


def send_at_rate(kafka: KafkaSettings, maker: PaymentMaker, *, rate: float, seconds: float) -> int:
    """Send payments in an open loop: those of each tenth of a second leave when they are due."""
    producer: Producer = make_producer(kafka, linger_ms=5)
    topic, sent, started = kafka.topic("payments"), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        due = int(rate * elapsed) - sent
        now_ms = time.time_ns() // 1_000_000
        for key, value in maker.take(due, last_ms=now_ms, span_ms=10):
            producer.produce(topic, value, key=key)
        producer.poll(0)
        sent += due
        time.sleep(0.005)
    assert producer.flush(60) == 0
    return sent
