"""The clients of one simulated process."""

from __future__ import annotations

from typing import Any

from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import Sender
from tests.simulation.cluster.admin import SimulatedAdmin
from tests.simulation.cluster.broker import Broker
from tests.simulation.cluster.consumer import GroupConsumer
from tests.simulation.cluster.producers import TransactionalProducer
from tests.simulation.world import Actor


def clients_of(broker: Broker, actor: Actor, settings: KafkaSettings) -> KafkaClients:
    """Returns the clients of one process. Its sender is the real one, on a simulated producer (patches.py)."""
    admin: Any = SimulatedAdmin(broker, actor)

    def consumer(
        *, group_id: str, session_timeout_ms: int = 10_000, tells_lost_offsets: bool = False, gather_ms: int = 0
    ) -> Any:
        del gather_ms
        return GroupConsumer(broker, actor, group_id, session_timeout_ms, tells_lost_offsets=tells_lost_offsets)

    def transactional(transactional_id: str, *, linger_ms: int, transaction_timeout_ms: int) -> Any:
        del linger_ms
        return TransactionalProducer(broker, actor, transactional_id, transaction_timeout_ms)

    return KafkaClients(
        settings,
        admin=admin,
        consumer=consumer,
        sender=lambda *, linger_ms: Sender(settings, linger_ms=linger_ms),
        transactional_producer=transactional,
    )
