"""Workers that run in a thread of the test, and the Kafka clients that they make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import ModuleType
from typing import Any, Protocol

import pytest
from confluent_kafka import Consumer

from paywarden.streams.kafka.reading import make_consumer


class Runs(Protocol):
    def run(self, stop: Event) -> None: ...


@contextmanager
def running(worker: Runs) -> Iterator[None]:
    """The worker runs in a thread until the block ends."""
    stop = Event()
    thread = Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def remembered_clients(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Consumer]:
    """The consumers that `module` makes from now on, one after the other."""
    clients: list[Consumer] = []

    def remember(*arguments: Any, **options: Any) -> Consumer:
        clients.append(make_consumer(*arguments, **options))
        return clients[-1]

    monkeypatch.setattr(module, "make_consumer", remember)
    return clients
