"""The settings for reaching Kafka, and the options that all of our clients share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from confluent_kafka import KafkaError, KafkaException

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal

_log = logging.getLogger(__name__)

# A topic and the number of one of its partitions.
PartitionId: TypeAlias = tuple[str, int]

# A broker that has not answered after this long at the start is an error.
REACH_TIMEOUT_S = 5.0
# Our topics keep Kafka's default limit of 1 MiB. A dead letter wraps such a record, so it needs more.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024

COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
# The topics that payment systems write.
_SOURCE_TOPICS = ("payments", "outcomes")
# The names of internal topics begin with one of these.
_INTERNAL_TOPICS = ("profiles", "repartition-")
# zlib's fastest level. On decisions it takes less than half the time of the default level, for a tenth more bytes.
_GZIP_LEVEL = 1


@dataclass(frozen=True)
class KafkaSettings:
    """Kafka's address and login. An empty value means that the option is not used."""

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
    # That of `payments` and `outcomes`, if they are another deployment's on the cluster. "=": as topic_prefix.
    source_prefix: str = "="
    # How our producers compress: none, gzip, snappy, lz4 or zstd. Every Kafka client reads gzip without a plug-in.
    compression: str = "gzip"
    # The same for `profiles` and `repartition-…`, which only Paywarden reads. They carry most of the bytes; gzip there
    # would halve the throughput of a stream worker.
    internal_compression: str = internal("lz4")
    # Whether the agents of `paywarden stream` verify the checksums of the records they read. Set it to false only with
    # the embedded broker for demonstrations: it writes transaction markers with a wrong checksum.
    check_crcs: bool = True

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if self.compression not in COMPRESSIONS:
            raise Misconfigured(
                f"[kafka] compression: wanted one of {', '.join(COMPRESSIONS)}, got {self.compression!r}"
            )

    def compression_of(self, topic: str) -> str:
        """Returns the compression for a topic, given its name on the cluster."""
        is_internal = topic.removeprefix(self.topic_prefix).startswith(_INTERNAL_TOPICS)
        return self.internal_compression if is_internal else self.compression

    def topic(self, name: str) -> str:
        """Returns the topic's name on the cluster."""
        if name in _SOURCE_TOPICS and self.source_prefix != "=":
            return self.source_prefix + name
        return self.topic_prefix + name

    def connection(self) -> dict[str, Any]:
        """Returns librdkafka's options for reaching the cluster."""
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
        # The client reconnects within a second, so profiles stay fresh when a broker restarts.
        options["reconnect.backoff.max.ms"] = 1000
        return options


def compressing(compression: str) -> dict[str, Any]:
    """Returns librdkafka's options for a compression."""
    options: dict[str, Any] = {"compression.type": compression}
    if compression == "gzip":
        options["compression.level"] = _GZIP_LEVEL
    return options


def reason_of(error: KafkaException) -> str:
    """Returns librdkafka's description of the error."""
    inner = error.args[0] if error.args else error
    return inner.str() if isinstance(inner, KafkaError) else str(inner)


@contextmanager
def named_options() -> Iterator[None]:
    """Turns librdkafka's refusal of an option, when a client is made, into Misconfigured."""
    try:
        yield
    except KafkaException as error:
        raise Misconfigured(f"kafka: {reason_of(error)}") from error


def broker_urls(kafka: KafkaSettings) -> list[str]:
    """Return the URLs of the brokers to ask first. Raises Misconfigured for anything but host:port."""
    urls = []
    for server in filter(None, map(str.strip, kafka.bootstrap.split(","))):
        try:
            parts = urlsplit(f"kafka://{server}")
            complete = bool(parts.hostname and parts.port) and parts.netloc == server and "@" not in server
        except ValueError:
            complete = False
        if not complete:
            raise Misconfigured(f"[kafka] bootstrap: wanted host:port, got {server!r}")
        urls.append(f"kafka://{server}")
    if not urls:
        raise Misconfigured("[kafka] bootstrap: wanted host:port, got nothing")
    return urls
