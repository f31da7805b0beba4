"""Builds the parts of `paywarden stream`: the workers of profile sets, and the parts of its process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from threading import Event
from typing import TYPE_CHECKING

from paywarden.ops.wiring import stores
from paywarden.ops.wiring.drift_parts import drift_parts, outcome_parts
from paywarden.schemas.errors import StoreUnavailable
from paywarden.schemas.settings import Source

_log = logging.getLogger(__name__)
_ASK_STORE_EVERY_S = 1.0

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from paywarden.streams.health.process_end import ProcessEnd
    from paywarden.streams.profiles.pipeline import Pipeline


class StreamParts:
    """The parts that the stream workers of a process share, made once."""

    def __init__(self, source: Source, registry: CollectorRegistry | None = None) -> None:
        """Raises Misconfigured, BrokerUnavailable."""
        from prometheus_client import CollectorRegistry

        from paywarden.features.profiles.overlay_settings import OverlaySettings
        from paywarden.streams.kafka.admin import require_broker
        from paywarden.streams.kafka.clients import KafkaClients
        from paywarden.streams.profiles.guards.broker_clock import BrokerClock
        from paywarden.streams.profiles.stream_settings import StreamSettings, stream_metrics

        self._source, self.kafka = source, stores.kafka_settings(source)
        self.settings = source.section("stream", StreamSettings)
        self._names_payments = source.section("overlay", OverlaySettings).enabled
        self._rates = stores.rate_table(source)
        require_broker(self.kafka)
        self.clients = KafkaClients.of(self.kafka)
        self.ids = stores.schema_ids(source)
        self._engine = stores.feature_engine(source)
        self._engine.warm_up()
        self.entities = self._engine.plan.entity_names
        self._registry = registry or CollectorRegistry()
        self._metrics = stream_metrics(self.settings, self.entities, self._registry)
        self.clock = BrokerClock(self._metrics)

    @contextmanager
    def open_pipeline(self, profile_set: str, *, publish: bool = True, drain: bool = False) -> Iterator[Pipeline]:
        """Give the worker of a profile set, ready to run; close its store afterwards. Raises StoreUnavailable."""
        from paywarden.streams.profiles.pipeline import Pipeline
        from paywarden.streams.profiles.stream_settings import PipelineOptions

        stores.check_identity_key(self._source, claims=True)
        opened = stores.open_store(self._source, profile_set=profile_set, registry=self._registry)
        with closing(opened) as store:
            yield Pipeline(
                clients=self.clients,
                settings=self.settings,
                store=store,
                engine=self._engine,
                rates=self._rates,
                ids=self.ids,
                metrics=self._metrics,
                options=PipelineOptions(
                    profile_set=profile_set,
                    publish=publish,
                    drain=drain,
                    names_payments=self._names_payments,
                    clock=self.clock,
                ),
            )


def await_store(source: Source, stop: Event) -> None:
    """Wait until the store answers, or `stop` is set. Raises Misconfigured."""
    seen = ""
    while not stop.is_set():
        try:
            stores.live_set(source)
        except StoreUnavailable as error:
            if str(error) != seen:
                _log.warning("the worker waits for the store: %s", error)
            seen = str(error)
            stop.wait(_ASK_STORE_EVERY_S)
        else:
            return


def run_stream(source: Source, announce: Callable[[str], object], end: ProcessEnd) -> None:
    """Run the stream until `end.stop` is set: the worker of the live set, and the parts beside it.

    Calls `announce` with the address of health and metrics. Raises Misconfigured, BrokerUnavailable, or the first error
    of a part.
    """
    from paywarden.ops.wiring.counts import counting_parts
    from paywarden.streams.counts.partition_worker import GroupMember
    from paywarden.streams.faust.app import FaustAgents
    from paywarden.streams.faust.dead_letter_watch import dead_letter_watch
    from paywarden.streams.health.gc_tuning import settle_collection
    from paywarden.streams.health.health import metrics_registry
    from paywarden.streams.health.parts import Parts, Periodic
    from paywarden.streams.health.server import serving_health
    from paywarden.streams.kafka.admin import partitions_of
    from paywarden.streams.kafka.stalls.open_transactions import ASK_EVERY_S, TransactionWatch
    from paywarden.streams.kafka.topic_names import repartition_topic
    from paywarden.streams.maintenance.live_set_watch import LiveWorker

    registry = metrics_registry()
    shared = StreamParts(source, registry)
    settings = shared.settings
    # A missing topic raises here; Faust would wait for it.
    for topic in ("dead-letters", "decisions", "outcomes", "drift-alerts", "drift-acknowledgements", "outcome-metrics"):
        partitions_of(shared.kafka, topic)
    counting = counting_parts(
        ids=shared.ids,
        registry=registry,
        member=GroupMember(
            shared.clients, settings.counts_group, settings.session_timeout_ms, settings.stall_timeout_s
        ),
        now_ms=shared.clock.now_ms,
        drift=drift_parts(source, shared.kafka, shared.ids, registry),
        outcomes=outcome_parts(source),
    )
    agents = FaustAgents(shared.kafka, settings, [dead_letter_watch(shared.kafka, shared.ids, registry)])
    live = stores.live_set(source)
    repartition = [repartition_topic(entity, live.name) for entity in shared.entities]
    read = ("payments", "outcomes", "decisions", "dead-letters", *repartition)
    parts = Parts(
        {
            "pipeline": LiveWorker(lambda: stores.live_set(source, registry), shared.open_pipeline),
            **counting,
            "agents": agents,
            "watch of transactions": Periodic(ASK_EVERY_S, TransactionWatch(shared.clients, read, registry).look),
        }
    )
    settle_collection()
    with serving_health(parts, registry, host=settings.http_host, port=settings.http_port, section="stream") as address:
        announce(address)
        parts.run(end)


def stream_stop_timeout_s(source: Source) -> float:
    """Returns how many seconds a stop of the stream may take."""
    from paywarden.streams.profiles.stream_settings import StreamSettings

    return source.section("stream", StreamSettings).stop_timeout_s
