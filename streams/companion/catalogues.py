"""Publish the feature catalogue on the topic `catalogues`, so that readers of decisions can name the features.

    decisions     … catalogue_digest "bff90178b8db4d34"    vector 58 × float32
    catalogues    key "bff90178b8db4d34"                   58 names with units and meanings, in the same order

The topic is compacted, and a digest means the same features for ever. Every companion publishes its catalogue at its
start, before it ships a decision. A decision then only carries the digest.
"""

from __future__ import annotations

from dataclasses import asdict

from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.profiles.feature_docs import listed_features
from paywarden.features.profiles.plan import compile_plan
from paywarden.schemas.avro import Encoder, SchemaIds
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender

CATALOGUES_TOPIC = "catalogues"
_FLUSH_TIMEOUT_S = 30.0


def publish_catalogue(kafka: KafkaSettings, ids: SchemaIds, catalogue: Catalogue) -> None:
    """Write the catalogue to its topic; returns when Kafka has it.

    Raises BrokerUnavailable, or Misconfigured when the topic does not exist.
    """
    partitions_of(kafka, CATALOGUES_TOPIC)
    digest = compile_plan(catalogue).digest
    record = {"digest": digest, "features": [asdict(feature) for feature in listed_features(catalogue)]}
    sender = Sender(kafka, linger_ms=0)
    value = Encoder(CATALOGUES_TOPIC, ids.id_of(CATALOGUES_TOPIC)).encode(record)
    sender.send(kafka.topic(CATALOGUES_TOPIC), value, key=digest.encode())
    sender.flush(_FLUSH_TIMEOUT_S)
