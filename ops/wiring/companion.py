"""Builds a scoring host's companion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from paywarden.ops.wiring import stores
from paywarden.ops.wiring.registry import following_registry
from paywarden.ops.wiring.rollouts import read_rollouts
from paywarden.schemas.settings import Source

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from paywarden.features.stores.profile_sets import LiveSet
    from paywarden.streams.companion.companion import Companion, FillSource
    from paywarden.streams.companion.host_shards import HostShards
    from paywarden.streams.kafka.clients import KafkaClients


@contextmanager
def companion(
    source: Source,
    announce: Callable[[str], object],
    *,
    clients: KafkaClients | None = None,
    fill: FillSource | None = None,
) -> Iterator[Companion]:
    """Give a scoring host's companion, ready to run, and serve its health and metrics until the block ends.

    Calls `announce` with the address. A test may hand in `clients` and `fill`; otherwise the settings decide them.

    Raises Misconfigured, BrokerUnavailable.
    """
    from paywarden.features.profiles.overlay_settings import OverlaySettings
    from paywarden.features.profiles.plan import compile_plan
    from paywarden.models.registry.registry_settings import ModelRegistrySettings
    from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
    from paywarden.scoring.state.identity_index import index_of
    from paywarden.scoring.state.mirror_file import MirrorSettings
    from paywarden.scoring.state.outbox import OutboxSettings
    from paywarden.streams.companion.catalogues import publish_catalogue
    from paywarden.streams.companion.companion import Companion, CompanionSettings, HostFiles
    from paywarden.streams.companion.overlay_marks import OverlayMarks
    from paywarden.streams.health.health import metrics_registry
    from paywarden.streams.health.server import serving_health
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.kafka.clients import KafkaClients
    from paywarden.streams.kafka.stalls.open_transactions import TransactionWatch
    from paywarden.streams.kafka.topic_names import CURSORS_TOPIC
    from paywarden.streams.registry.topic import REGISTRY_TOPIC
    from paywarden.streams.rollouts.rollout_metrics import RolloutCollector

    kafka = stores.kafka_settings(source)
    settings = source.section("companion", CompanionSettings)
    mirror = source.section("mirror", MirrorSettings)
    outbox = source.section("outbox", OutboxSettings)
    overlay = source.section("overlay", OverlaySettings)
    open_marks = None
    registry = metrics_registry()
    plan = compile_plan(stores.catalogue(source), stores.identity_key(source))
    if overlay.enabled:
        open_marks = partial(OverlayMarks, overlay, plan, mirror.path)
    shards = host_shards(source)
    require_broker(kafka)
    clients = clients or KafkaClients.of(kafka)
    ids = stores.schema_ids(source)
    publish_catalogue(kafka, ids, stores.catalogue(source))
    built = Companion(
        clients=clients,
        settings=settings,
        files=HostFiles(
            mirror=mirror,
            outbox=outbox,
            outbox_keep_s=source.section("answered", DecisionCacheSettings).keep_s,
            identity_digest=stores.identity_key(source).digest,
            open_marks=open_marks,
            shards=shards,
            index=index_of(plan),
        ),
        ids=ids,
        entities=stores.entity_names(source),
        fill=fill or fill_source(source, registry),
        registry=registry,
    )
    models = source.section("models", ModelRegistrySettings)
    registry.register(RolloutCollector(read_rollouts(source) if models.people else None))
    followed = (REGISTRY_TOPIC,) if models.topic else ()
    transactions = TransactionWatch(clients, ("profiles", CURSORS_TOPIC, *followed), registry)
    following = following_registry(source, registry)
    host, port = settings.http_host, settings.http_port
    with serving_health(built.health, registry, host=host, port=port, section="companion") as address:
        announce(address)
        with following, transactions.looking():
            yield built


def host_shards(source: Source) -> HostShards | None:
    """Returns which cards this host's mirror holds; None: all. Raises Misconfigured."""
    from paywarden.scoring.state.shards import ShardSettings
    from paywarden.streams.companion.host_shards import HostShards

    cards = stores.card_shards(source)
    if cards is None:
        return None
    shards = HostShards(source.section("shards", ShardSettings), cards)
    _log.info("%s holds %d of %d shards of cards", shards.settings.host, len(shards.wanted), cards.count)
    return shards


def fill_source(source: Source, registry: CollectorRegistry | None = None) -> FillSource:
    """Returns the profile store that a new mirror of this host is filled from."""
    from paywarden.ops.progress import scan_bar
    from paywarden.streams.companion.companion import FillSource

    def look() -> LiveSet:
        stores.check_identity_key(source)
        return stores.live_set(source, registry)

    return FillSource(
        look=look,
        open_store=lambda live: stores.open_store(source, readonly=True, profile_set=live.name, registry=registry),
        watch_scan=scan_bar,
    )


def companion_stop_timeout_s(source: Source) -> float:
    """Returns how many seconds a stop of the companion may take."""
    from paywarden.streams.companion.companion import CompanionSettings

    return source.section("companion", CompanionSettings).stop_timeout_s
