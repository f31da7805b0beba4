"""How Paywarden talks to Kafka: the settings, and clients with every option that matters spelled out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from confluent_kafka import KafkaError, KafkaException

from paywarden.schemas.errors import Misconfigured

_log = logging.getLogger(__name__)

# A topic and a partition of it.
PartitionId: TypeAlias = tuple[str, int]

# How long a broker may take to answer at start before that is an error.
REACH_TIMEOUT_S = 5.0
# Kafka's own default is 1 MiB; our topics keep to it, and the dead letters of such records need more.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024


COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
# How their names begin.
_INTERNAL_TOPICS = ("profiles", "repartition-")
# zlib's quickest: on decisions it takes less than half the time of its usual level, and makes a tenth more bytes.
_GZIP_LEVEL = 1


@dataclass(frozen=True)
class KafkaSettings:
    """Where Kafka is and how to log in. Empty means not used."""

    bootstrap: str = "127.0.0.1:9092"
    security_protocol: str = "plaintext"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)
    ssl_ca_location: str = ""
    ssl_certificate_location: str = ""
    ssl_key_location: str = ""
    ssl_key_password: str = field(default="", repr=False)
    # Put before every topic's name, so that several deployments can share a cluster.
    topic_prefix: str = ""
    # How our producers compress: none, gzip, snappy, lz4 or zstd. Every Kafka client reads gzip without a plug-in.
    compression: str = "gzip"
    # The same on `profiles` and `repartition-…`, which only Paywarden reads. They carry most bytes, and gzip there
    # would halve what a stream worker gets done.
    internal_compression: str = "lz4"
    # Whether the agents of `paywarden stream` check the checksums of what they read. The embedded broker, which is for
    # demonstrations, writes the markers of transactions with a wrong one: false there, and nowhere else.
    check_crcs: bool = True

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        for name in ("compression", "internal_compression"):
            value = getattr(self, name)
            if value not in COMPRESSIONS:
                raise Misconfigured(f"[kafka] {name}: wanted one of {', '.join(COMPRESSIONS)}, got {value!r}")

    def compression_of(self, topic: str) -> str:
        """How records of a topic, by its name on the cluster, are compressed."""
        is_internal = topic.removeprefix(self.topic_prefix).startswith(_INTERNAL_TOPICS)
        return self.internal_compression if is_internal else self.compression

    def topic(self, name: str) -> str:
        """The topic's name on the cluster."""
        return self.topic_prefix + name

    def connection(self) -> dict[str, Any]:
        """librdkafka's options for reaching the cluster."""
        named = {
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password,
            "ssl.ca.location": self.ssl_ca_location,
            "ssl.certificate.location": self.ssl_certificate_location,
            "ssl.key.location": self.ssl_key_location,
            "ssl.key.password": self.ssl_key_password,
        }
        options: dict[str, Any] = {name: value for name, value in named.items() if value}
        options["bootstrap.servers"] = self.bootstrap
        options["client.id"] = "paywarden"
        options["logger"] = _log
        # Reconnecting within a second keeps freshness when a broker restarts.
        options["reconnect.backoff.max.ms"] = 1000
        return options


def compressing(compression: str) -> dict[str, Any]:
    """librdkafka's options."""
    options: dict[str, Any] = {"compression.type": compression}
    if compression == "gzip":
        options["compression.level"] = _GZIP_LEVEL
    return options


def reason_of(error: KafkaException) -> str:
    """librdkafka's own words for what went wrong."""
    inner = error.args[0] if error.args else error
    return inner.str() if isinstance(inner, KafkaError) else str(inner)


@contextmanager
def named_options() -> Iterator[None]:
    """librdkafka refuses options it cannot use when a client is made."""
    try:
        yield
    except KafkaException as error:
        raise Misconfigured(f"kafka: {reason_of(error)}") from error
