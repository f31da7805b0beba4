"""Run workers in a thread of the test, and keep hold of the Kafka clients that they make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Event, Thread
from typing import Any, Protocol

from confluent_kafka import Consumer

from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients


class Runs(Protocol):
    def run(self, stop: Event) -> None: ...


@contextmanager
def running(worker: Runs) -> Iterator[None]:
    """Run the worker in a thread until the block ends."""
    stop = Event()
    thread = Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def remembered_clients(settings: KafkaSettings) -> tuple[KafkaClients, list[Consumer]]:
    """Returns clients of a cluster, and a list to which each consumer that they make is added."""
    clients = KafkaClients.of(settings)
    consumers: list[Consumer] = []

    def remember(*, group_id: str, **options: Any) -> Consumer:
        consumers.append(clients.consumer(group_id=group_id, **options))
        return consumers[-1]

    return replace(clients, consumer=remember), consumers
