"""Builds the index of decisions and its filler."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.extras import require
from paywarden.ops.times import now_ms
from paywarden.ops.wiring import stores
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.private_files import private_new_files
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.decision_index.episodes import EpisodeFeatures
    from paywarden.streams.decision_index.filler import IndexFiller, VerdictSender
    from paywarden.streams.decision_index.index import DecisionIndex
    from paywarden.streams.decision_index.reviews import ReviewQueue

_log = logging.getLogger(__name__)


@contextmanager
def decision_index(source: Source) -> Iterator[tuple[DecisionIndex, ReviewQueue]]:
    """Give the index of [decision_index] and its review queue, and close its database when the block ends.

    Raises Misconfigured for a database that cannot be used, TemporaryFailure if PostgreSQL does not answer.
    """
    from paywarden.models.metrics.costs import CostSettings
    from paywarden.streams.decision_index.database import Database, DuckDbDatabase, PostgresDatabase
    from paywarden.streams.decision_index.index import DecisionIndex
    from paywarden.streams.decision_index.index_settings import DecisionIndexSettings
    from paywarden.streams.decision_index.reviews import ReviewQueue

    settings = source.section("decision_index", DecisionIndexSettings)
    rates = stores.rate_table(source)

    def opened() -> Database:
        if settings.address:
            require("[decision_index] address", ("postgres",))
            return PostgresDatabase(settings.address, schema=settings.schema, timeout_ms=settings.timeout_ms)
        require("[decision_index] path", ("index",))
        return DuckDbDatabase(Path(settings.path), memory_mb=settings.memory_mb, threads=settings.threads)

    with private_new_files() if not settings.address else nullcontext(), closing(opened()) as database:
        index = DecisionIndex(database, worth=rates.convert, features=episode_features(source))
        yield index, ReviewQueue(database, settings.reviews(source.section("costs", CostSettings)))


def episode_features(source: Source) -> EpisodeFeatures:
    """Return the `episode` features of the settings' catalogue; none while it cannot be read."""
    from paywarden.streams.decision_index.episodes import NO_EPISODES, EpisodeFeatures

    try:
        return EpisodeFeatures.of(stores.catalogue(source), stores.feature_engine(source).plan.digest)
    except Misconfigured as error:
        # An index or evidence without them is of use. Other parts of the console show the error of the catalogue.
        _log.warning("no episodes are found: %s", error)
        return NO_EPISODES


def index_filler(source: Source, index: DecisionIndex, queue: ReviewQueue) -> tuple[IndexFiller, VerdictSender]:
    """Returns the filler of an index, and the sender of its verdicts. No server has to answer for that yet."""
    from paywarden.streams.alerts.publisher import KafkaAlerts
    from paywarden.streams.decision_index.episodes import EpisodeAlerts
    from paywarden.streams.decision_index.filler import IndexFiller, VerdictSender
    from paywarden.streams.decision_index.index_settings import DecisionIndexSettings
    from paywarden.streams.decision_index.ledger import MerchantLedger
    from paywarden.streams.kafka.clients import KafkaClients

    kafka, ids = stores.kafka_settings(source), stores.late_schema_ids(source)
    clients = KafkaClients.of(kafka)
    keep_ms = source.section("decision_index", DecisionIndexSettings).keep_days * 86_400_000
    alerts = EpisodeAlerts(index.database, index.features, KafkaAlerts(kafka, ids), now_ms=now_ms)
    ledger = MerchantLedger(index.database, now_ms=now_ms)
    upkeep = alerts.step, ledger.step
    filler = IndexFiller(index, queue, clients, ids, now_ms=now_ms, keep_ms=keep_ms, upkeep=upkeep)
    return filler, VerdictSender(queue, clients, ids)
