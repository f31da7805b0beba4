"""A stranger who leaves a transaction open on a topic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Producer

from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.stalls import open_transactions
from tests.patience import PATIENCE_S


@contextmanager
def left_open(settings: KafkaSettings, topic: str, partitions: Iterable[int] = (0,)) -> Iterator[None]:
    """A transaction with a record on these partitions of the topic, which is aborted when the block ends."""
    stranger = Producer(
        {
            "bootstrap.servers": settings.bootstrap,
            "transactional.id": f"{settings.topic_prefix}stranger",
            "transaction.timeout.ms": 900_000,
        }
    )
    stranger.init_transactions(PATIENCE_S)
    stranger.begin_transaction()
    for partition in partitions:
        stranger.produce(settings.topic(topic), b"never committed", partition=partition)
    assert stranger.flush(PATIENCE_S) == 0
    yield
    stranger.abort_transaction(PATIENCE_S)


def look_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a transaction count as left open after 200 ms."""
    defaults = open_transactions.OpenTransactions.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "ask_every_s", 0.1)
    monkeypatch.setitem(defaults, "told_after_ms", 200)
