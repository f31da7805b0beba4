"""Prints decisions as they come: python consume.py BOOTSTRAP SCHEMAS GROUP."""

import json
import math
import struct
import sys
from io import BytesIO
from pathlib import Path

import fastavro
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

bootstrap, folder, group = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
index = json.loads((folder / "schemas.json").read_text())
topics = {entry["file"]: entry["topic"] for entry in index}


def schema_of(file: str):
    return fastavro.parse_schema(json.loads((folder / file).read_text()))


# By the id in a record's header: what it was written with.
writers = {number: entry["file"] for entry in index for number in (entry["fingerprint"], *entry["registry_ids"])}


def decode(value: bytes, file: str) -> dict:
    """The record as today's schema has it, whichever schema it was written with."""
    _, schema_id = struct.unpack_from(">bI", value)
    return fastavro.schemaless_reader(BytesIO(value[5:]), schema_of(writers[schema_id]), schema_of(file))


def read_catalogues() -> dict[str, list[str]]:
    """The names of features by digest, from the whole topic."""
    topic = topics["catalogues.avsc"]
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.partition.eof": True})
    unread = set(consumer.list_topics(topic, 10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in unread])
    names = {}
    while unread:
        message = consumer.poll(10)
        if message is None:
            sys.exit("the topic of catalogues does not answer")
        if message.error() is None:
            record = decode(message.value(), "catalogues.avsc")
            names[record["digest"]] = [feature["name"] for feature in record["features"]]
        elif message.error().code() == KafkaError._PARTITION_EOF:
            unread.discard(message.partition())
    consumer.close()
    return names


names = read_catalogues()
consumer = Consumer(
    {
        "bootstrap.servers": bootstrap,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
    }
)
consumer.subscribe([topics["decisions.avsc"]])
while True:
    message = consumer.poll(1.0)
    if message is None or message.error() is not None:
        continue
    decision = decode(message.value(), "decisions.avsc")
    if decision["catalogue_digest"] not in names:
        names = read_catalogues()
    vector = [number for (number,) in struct.iter_unpack("<f", decision["vector"])]
    named = zip(names.get(decision["catalogue_digest"], []), vector)
    shown = {name: decision[name] for name in ("payment_id", "action", "score", "reasons")}
    shown["features"] = {name: number for name, number in named if not math.isnan(number)}
    print(json.dumps(shown), flush=True)
