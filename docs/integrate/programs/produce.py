"""Writes one payment: python produce.py BOOTSTRAP SCHEMAS."""

import json
import struct
import sys
import time
from io import BytesIO
from pathlib import Path

import fastavro
from confluent_kafka import Producer

bootstrap, folder = sys.argv[1], Path(sys.argv[2])
index = json.loads((folder / "schemas.json").read_text())
payments = next(entry for entry in index if entry["file"] == "payments.avsc")
schema = fastavro.parse_schema(json.loads((folder / "payments.avsc").read_text()))


def encode(payment: dict) -> bytes:
    value = BytesIO()
    value.write(struct.pack(">bI", 0, payments["fingerprint"]))
    fastavro.schemaless_writer(value, schema, payment)
    return value.getvalue()


def on_delivery(error, message) -> None:
    if error is not None:
        sys.exit(f"the payment was not written: {error}")


producer = Producer(
    {
        "bootstrap.servers": bootstrap,
        "acks": "all",
        "enable.idempotence": True,
        "compression.type": "gzip",
        "partitioner": "murmur2_random",
    }
)
payment = {
    "payment_id": "from-python-1",
    "event_time_ms": time.time_ns() // 1_000_000,
    "card_id": "card-1",
    "merchant_id": "merchant-1",
    "amount_minor": 1050,
    "currency": "EUR",
    "country": "DE",
    "channel": "ecom",
}
producer.produce(payments["topic"], encode(payment), key=payment["card_id"], on_delivery=on_delivery)
producer.flush()
