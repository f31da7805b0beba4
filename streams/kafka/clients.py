"""Everything a worker needs to reach one Kafka cluster, in one object that its caller hands in.

ops/wiring    KafkaClients.of(settings)          the real clients
tests         FakeBroker().clients(...)          clients in memory (tests/fakes/kafka.py)
     │
     ▼
Pipeline, Companion, Rebuild                     ask it for consumers, senders and the numbers of partitions
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from paywarden.streams.kafka.admin import make_admin, partitions_in
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender, make_transactional_producer
from paywarden.streams.kafka.reading import make_consumer


class ConsumerFactory(Protocol):
    """Makes a consumer of a group. Raises Misconfigured for options that the client refuses."""

    def __call__(
        self, *, group_id: str, session_timeout_ms: int = ..., tells_lost_offsets: bool = ..., gather_ms: int = ...
    ) -> Consumer: ...


class SenderFactory(Protocol):
    """Makes a sender that collects records for `linger_ms` before it sends them."""

    def __call__(self, *, linger_ms: int) -> Sender: ...


class TransactionalProducerFactory(Protocol):
    """Makes a producer of transactions. Raises Misconfigured for options that the client refuses."""

    def __call__(self, transactional_id: str, *, linger_ms: int, transaction_timeout_ms: int) -> Producer: ...


@dataclass(frozen=True)
class KafkaClients:
    """The clients of one cluster. `admin` is shared; the factories make a new client at each call.

    `settings` gives the topics their names on the cluster.
    """

    settings: KafkaSettings
    admin: AdminClient
    consumer: ConsumerFactory
    sender: SenderFactory
    transactional_producer: TransactionalProducerFactory

    @classmethod
    def of(cls, settings: KafkaSettings) -> KafkaClients:
        """Returns the real clients. Raises Misconfigured for options that the client refuses."""
        return cls(
            settings,
            admin=make_admin(settings),
            consumer=partial(make_consumer, settings),
            sender=partial(Sender, settings),
            transactional_producer=partial(make_transactional_producer, settings),
        )

    def topic(self, name: str) -> str:
        """Returns the topic's name on the cluster."""
        return self.settings.topic(name)

    def partitions(self, name: str) -> list[int]:
        """Returns the partitions of a topic. Raises BrokerUnavailable, or Misconfigured if it does not exist."""
        return partitions_in(self.admin, self.settings, name)
