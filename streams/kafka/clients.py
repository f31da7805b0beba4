"""Everything a worker needs to reach one Kafka cluster, in one object that its caller hands in.

ops/wiring    KafkaClients.of(settings)          the real clients
tests         FakeBroker().clients(...)          clients in memory (tests/fakes/kafka.py)
     │
     ▼
Pipeline, Companion, Rebuild                     ask it for consumers, senders and the numbers of partitions
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from paywarden.streams.kafka.admin import make_admin, partitions_in
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender, make_transactional_producer
from paywarden.streams.kafka.reading import make_consumer


@dataclass(frozen=True)
class KafkaClients:
    """The clients of one cluster. `admin` is shared; the factories make a new client at each call.

    `settings` gives the topics their names on the cluster. The factories take the options of `make_consumer`, `Sender`
    and `make_transactional_producer` by name.
    """

    settings: KafkaSettings
    admin: AdminClient
    consumer: Callable[..., Consumer]
    sender: Callable[..., Sender]
    transactional_producer: Callable[..., Producer]

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
