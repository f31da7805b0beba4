"""Builds the index of decisions and its filler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.extras import require
from paywarden.ops.wiring import stores
from paywarden.schemas.private_files import private_new_files
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.decision_index.filler import IndexFiller, VerdictSender
    from paywarden.streams.decision_index.index import DecisionIndex
    from paywarden.streams.decision_index.reviews import ReviewQueue


@contextmanager
def decision_index(source: Source) -> Iterator[tuple[DecisionIndex, ReviewQueue]]:
    """Give the index of [decision_index] and its review queue, and close its database when the block ends.

    Raises Misconfigured for a database that cannot be used, TemporaryFailure if PostgreSQL does not answer.
    """
    from paywarden.streams.decision_index.database import Database, DuckDbDatabase, PostgresDatabase
    from paywarden.streams.decision_index.index import DecisionIndex
    from paywarden.streams.decision_index.reviews import ReviewQueue
    from paywarden.streams.decision_index.settings import DecisionIndexSettings

    settings = source.section("decision_index", DecisionIndexSettings)
    rates = stores.rate_table(source)

    def opened() -> Database:
        if settings.address:
            require("[decision_index] address", ("postgres",))
            return PostgresDatabase(settings.address, schema=settings.schema, timeout_ms=settings.timeout_ms)
        require("[decision_index] path", ("index",))
        return DuckDbDatabase(Path(settings.path), memory_mb=settings.memory_mb, threads=settings.threads)

    with private_new_files() if not settings.address else nullcontext(), closing(opened()) as database:
        yield DecisionIndex(database, worth=rates.convert), ReviewQueue(database, settings.reviews)


def index_filler(source: Source, index: DecisionIndex, queue: ReviewQueue) -> tuple[IndexFiller, VerdictSender]:
    """Returns the filler of an index, and the sender of its verdicts. No server has to answer for that yet."""
    from paywarden.streams.decision_index.filler import IndexFiller, VerdictSender
    from paywarden.streams.decision_index.settings import DecisionIndexSettings
    from paywarden.streams.kafka.clients import KafkaClients

    clients, ids = KafkaClients.of(stores.kafka_settings(source)), stores.late_schema_ids(source)
    keep_ms = source.section("decision_index", DecisionIndexSettings).keep_days * 86_400_000
    filler = IndexFiller(index, queue, clients, ids, now_ms=lambda: int(time.time() * 1000), keep_ms=keep_ms)
    return filler, VerdictSender(queue, clients, ids)
