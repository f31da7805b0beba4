"""The one place that builds real parts from settings. Each function imports only what its process needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from paywarden.features.profiles.money import RateTable
    from paywarden.features.stores.base import ProfileStore
    from paywarden.features.stores.lmdb_sets import LmdbSets
    from paywarden.features.stores.memory import MemorySets
    from paywarden.features.stores.profile_sets import LiveSet, SetStores
    from paywarden.models.drift.reference import Reference
    from paywarden.models.policy.policy import Policy
    from paywarden.ops.wiring.agents import DriftParts, OutcomeParts
    from paywarden.schemas.avro import SchemaIds
    from paywarden.scoring.server.context import ServerContext
    from paywarden.streams.companion.companion import Companion, FillSource
    from paywarden.streams.drift.settings import DriftSettings
    from paywarden.streams.faust.app import StreamApp
    from paywarden.streams.kafka.client import KafkaSettings
    from paywarden.streams.kafka.clients import KafkaClients
    from paywarden.streams.profiles.pipeline import Pipeline


_log = logging.getLogger(__name__)

# Where an embedded store lay by default before: inside the folder that examples write histories to.
_FORMER_LMDB_PATH = "data/profiles"


@dataclass(frozen=True)
class StoreSettings:
    """Which profile store: lmdb (embedded, one machine), aerospike, or memory (nothing is kept)."""

    kind: str = "lmdb"


@dataclass(frozen=True)
class FeatureSettings:
    """`rates`: a CSV file of exchange rates; empty takes the example that comes with Paywarden."""

    rates: str = ""


@dataclass(frozen=True)
class ServeSettings:
    """What `paywarden serve` serves."""

    bundle: str = "bundle"
    # What scores while the bundle cannot: the previous one. Empty for none, then rules and flags decide.
    fallback_bundle: str = ""
    # A model that has failed so many times in a row is left out for the cool-down, then tried again.
    model_failure_count_max: int = 5
    model_cooldown_ms: int = 5000
    # How long a worker looks for the next request before it sleeps: scoring/engine/busy_poll.py. 0: not at all.
    busy_poll_us: int = 50
    # Counts of all workers; on a memory file system, see scoring/metrics/shared.py.
    metrics: str = "/dev/shm/paywarden/metrics" if Path("/dev/shm").is_dir() else ".paywarden/metrics"


def kafka_settings(source: Source) -> KafkaSettings:
    from paywarden.streams.kafka.client import KafkaSettings

    return source.section("kafka", KafkaSettings)


def rate_table(source: Source) -> RateTable:
    from paywarden.features.profiles.money import load_rates

    return load_rates(source.section("features", FeatureSettings).rates)


def set_stores(source: Source) -> SetStores:
    """The profile store with all its profile sets. Opens nothing. Raises Misconfigured."""
    kind = store_kind(source)
    if kind == "memory":
        return _memory_sets()
    if kind == "lmdb":
        return _lmdb_sets(source)
    from paywarden.features.catalogue.catalogue import CATALOGUE
    from paywarden.features.catalogue.entity import BESIDE_PROFILES
    from paywarden.features.stores.aerospike.sets import AerospikeSets
    from paywarden.features.stores.aerospike.store import AerospikeSettings

    entities = (*(entity.name for entity in CATALOGUE.entities), *BESIDE_PROFILES)
    return AerospikeSets(source.section("aerospike", AerospikeSettings), entities)


def store_kind(source: Source) -> str:
    """lmdb, aerospike or memory. Raises Misconfigured."""
    kind = source.section("store", StoreSettings).kind
    if kind not in ("lmdb", "aerospike", "memory"):
        raise Misconfigured(f"[store] kind: wanted lmdb, aerospike or memory, got {kind!r}")
    return kind


def _lmdb_sets(source: Source) -> LmdbSets:
    """At `[lmdb] path`; where nothing is said about it and nothing is there, a store at the former default."""
    from paywarden.features.stores.lmdb import LmdbSettings
    from paywarden.features.stores.lmdb_sets import LmdbSets

    settings = source.section("lmdb", LmdbSettings)
    sets = LmdbSets(settings)
    if source.has("lmdb", "path") or sets.is_there():
        return sets
    former = LmdbSets(replace(settings, path=_FORMER_LMDB_PATH))
    if not former.is_there():
        return sets
    _tell_former_path(settings.path)
    return former


@cache
def _tell_former_path(path: str) -> None:
    """Once in a process: the store is opened again and again."""
    _log.warning(
        'the store at %s, the former default, is used: set [lmdb] path = "%s" to keep it there, '
        "or stop all processes and move it and its .sets folder to %s",
        _FORMER_LMDB_PATH,
        _FORMER_LMDB_PATH,
        path,
    )


def open_store(source: Source, *, readonly: bool = False, profile_set: str = "") -> ProfileStore:
    """One set of the profile store, the first if no other is named. Raises Misconfigured, StoreUnavailable."""
    return set_stores(source).open(profile_set, readonly=readonly)


def open_live_store(source: Source, *, readonly: bool = False) -> ProfileStore:
    """The profile set that is live now; who has it keeps it when another goes live. Raises as `open_store`."""
    return set_stores(source).open(live_set(source).name, readonly=readonly)


@cache
def _memory_sets() -> MemorySets:
    """Those of this process."""
    from paywarden.features.stores.memory import MemorySets

    return MemorySets()


def schema_ids(source: Source) -> SchemaIds:
    """Ids from the schema registry where one is configured, else derived from the schemas themselves."""
    from paywarden.streams.kafka.registry import RegistrySettings
    from paywarden.streams.kafka.registry import schema_ids as from_settings
    from paywarden.streams.kafka.remembered_schemas import KafkaRememberedSchemas

    kafka = kafka_settings(source)
    registry = source.section("registry", RegistrySettings)
    return from_settings(registry, KafkaRememberedSchemas(kafka), topic_prefix=kafka.topic_prefix)


class StreamParts:
    """What stream workers of a process have in common, made once."""

    def __init__(self, source: Source, registry: CollectorRegistry | None = None) -> None:
        """Raises Misconfigured, BrokerUnavailable."""
        from prometheus_client import CollectorRegistry

        from paywarden.features.profiles.engine import FeatureEngine
        from paywarden.streams.kafka.admin import require_broker
        from paywarden.streams.kafka.clients import KafkaClients
        from paywarden.streams.profiles.pipeline import StreamSettings, stream_metrics

        self._source, self.kafka = source, kafka_settings(source)
        self.settings = source.section("stream", StreamSettings)
        self._rates = rate_table(source)
        require_broker(self.kafka)
        self.clients = KafkaClients.of(self.kafka)
        self.ids = schema_ids(source)
        self._engine = FeatureEngine()
        self._engine.warm_up()
        self.entities = self._engine.plan.entity_names
        self._metrics = stream_metrics(self.settings, self.entities, registry or CollectorRegistry())

    @contextmanager
    def open_pipeline(self, profile_set: str, *, publish: bool = True, drain: bool = False) -> Iterator[Pipeline]:
        """The worker of a profile set, ready to run; its store is closed afterwards. Raises StoreUnavailable, too."""
        from paywarden.streams.profiles.pipeline import Pipeline, PipelineOptions

        with closing(open_store(self._source, profile_set=profile_set)) as store:
            yield Pipeline(
                clients=self.clients,
                settings=self.settings,
                store=store,
                engine=self._engine,
                rates=self._rates,
                ids=self.ids,
                metrics=self._metrics,
                options=PipelineOptions(profile_set=profile_set, publish=publish, drain=drain),
            )


def live_set(source: Source) -> LiveSet:
    """Which profile set is live now. Raises StoreUnavailable or Misconfigured."""
    from paywarden.features.stores.profile_sets import ProfileSets

    with closing(ProfileSets(set_stores(source).open_register())) as sets:
        return sets.read()


def stream_stop_timeout_s(source: Source) -> float:
    from paywarden.streams.profiles.pipeline import StreamSettings

    return source.section("stream", StreamSettings).stop_timeout_s


def companion_stop_timeout_s(source: Source) -> float:
    from paywarden.streams.companion.companion import CompanionSettings

    return source.section("companion", CompanionSettings).stop_timeout_s


def stream_app(source: Source, announce: Callable[[str], object]) -> StreamApp:
    """The stream processors, ready to run: the worker of the live set, and the Faust app around it with its agents."""
    from paywarden.ops.wiring.agents import add_agents
    from paywarden.streams.faust.app import StreamApp
    from paywarden.streams.health.health import metrics_registry
    from paywarden.streams.kafka.admin import partitions_of
    from paywarden.streams.maintenance.live_set_watch import LiveWorker

    registry = metrics_registry()
    parts = StreamParts(source, registry)
    # Faust would wait for a topic that is not there.
    for topic in ("dead-letters", "decisions", "outcomes", "drift-alerts", "drift-acknowledgements", "outcome-metrics"):
        partitions_of(parts.kafka, topic)
    worker = LiveWorker(lambda: live_set(source), parts.open_pipeline)
    app = StreamApp(worker, kafka=parts.kafka, settings=parts.settings, registry=registry, announce=announce)
    add_agents(
        app,
        kafka=parts.kafka,
        ids=parts.ids,
        registry=registry,
        session_timeout_ms=parts.settings.session_timeout_ms,
        drift=drift_parts(source, parts, registry),
        outcomes=outcome_parts(source),
    )
    return app


def drift_parts(source: Source, parts: StreamParts, registry: CollectorRegistry) -> DriftParts:
    """What decisions are watched with. Raises Misconfigured, BundleRefused, StoreUnavailable."""
    from functools import partial

    from paywarden.models.drift.detectors import DetectorSettings
    from paywarden.ops.wiring.agents import DriftParts
    from paywarden.streams.alerts.alerts import AlertSettings
    from paywarden.streams.alerts.publisher import KafkaAcknowledgements, KafkaAlerts
    from paywarden.streams.drift.counts import Binnings
    from paywarden.streams.drift.detection import DriftDetection
    from paywarden.streams.drift.detection_metrics import DetectionMetrics
    from paywarden.streams.drift.evaluation import past_hours
    from paywarden.streams.drift.learning import LiveReferences, counted_binning
    from paywarden.streams.drift.settings import DriftSettings
    from paywarden.streams.drift.state import Adder

    settings = source.section("drift", DriftSettings)
    references = drift_references(source, settings)
    binnings = Binnings({version: counted_binning(reference) for version, reference in references.items()})
    store = set_stores(source).open_beside()
    past = partial(past_hours, store, adder=Adder(binnings))
    detection = DriftDetection(
        references,
        LiveReferences(references, binnings, past, days_min=settings.learning_days),
        detectors=source.section("drift_detection", DetectorSettings),
        alerts=source.section("drift_alerts", AlertSettings),
        teller=KafkaAlerts(parts.kafka, parts.ids),
        acknowledgements=KafkaAcknowledgements(parts.kafka, parts.ids),
        metrics=DetectionMetrics(registry),
    )
    return DriftParts(store=store, binnings=binnings, detection=detection, settings=settings)


def drift_references(source: Source, settings: DriftSettings) -> dict[str, Reference]:
    """What decisions are held against, by model version: of the bundles, or made of live decisions.

    Raises Misconfigured, BundleRefused.
    """
    from paywarden.models.drift.reference import load_reference, read_reference

    serve = source.section("serve", ServeSettings)
    served = [folder for folder in (serve.bundle, serve.fallback_bundle) if folder and Path(folder).is_dir()]
    found: dict[str, Reference] = {}
    for folder in settings.bundles or served:
        reference = load_reference(Path(folder))
        if reference is None:
            _log.warning("bundle %s has no reference: only what live decisions tell is watched of its model", folder)
        else:
            found[reference.model_version] = reference
    live = map(read_reference, map(Path, settings.references))
    return found | {reference.model_version: reference for reference in live}


def referenced_versions(source: Source) -> dict[str, bool]:
    """Model versions of the bundles and references that drift settings name, and whether there is a reference of each.

    Those that are on this host, as far as they can be read. Raises Misconfigured for settings that are wrong.
    """
    from paywarden.models.bundle.bundle import read_manifest
    from paywarden.models.drift.reference import REFERENCE, read_reference
    from paywarden.streams.drift.settings import DriftSettings

    settings = source.section("drift", DriftSettings)
    serve = source.section("serve", ServeSettings)
    found: dict[str, bool] = {}
    for folder in settings.bundles or filter(None, (serve.bundle, serve.fallback_bundle)):
        with suppress(Misconfigured):
            manifest = read_manifest(Path(folder))
            found[manifest.model_version] = REFERENCE in manifest.files
    for path in settings.references:
        with suppress(Misconfigured):
            found[read_reference(Path(path)).model_version] = True
    return found


def outcome_parts(source: Source) -> OutcomeParts:
    """What outcomes are joined and measured with. Raises Misconfigured."""
    from paywarden.models.metrics.costs import CostSettings
    from paywarden.ops.wiring.agents import OutcomeParts
    from paywarden.streams.outcomes.settings import OutcomeSettings

    return OutcomeParts(
        rates=rate_table(source),
        costs=source.section("costs", CostSettings),
        settings=source.section("outcomes", OutcomeSettings),
    )


@contextmanager
def companion(
    source: Source,
    announce: Callable[[str], object],
    *,
    clients: KafkaClients | None = None,
    fill: FillSource | None = None,
) -> Iterator[Companion]:
    """A scoring host's companion, ready to run; until the block ends its health and metrics are served.

    `announce` is called with the address. A test may hand in `clients` and `fill`; the settings say them otherwise.

    Raises Misconfigured, BrokerUnavailable.
    """
    from paywarden.features.catalogue.catalogue import CATALOGUE
    from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
    from paywarden.scoring.state.mirror import MirrorSettings
    from paywarden.scoring.state.outbox import OutboxSettings
    from paywarden.streams.companion.catalogues import publish_catalogue
    from paywarden.streams.companion.companion import Companion, CompanionSettings, HostFiles
    from paywarden.streams.health.health import metrics_registry
    from paywarden.streams.health.server import serving_health
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.kafka.clients import KafkaClients

    kafka = kafka_settings(source)
    settings = source.section("companion", CompanionSettings)
    files = HostFiles(
        mirror=source.section("mirror", MirrorSettings),
        outbox=source.section("outbox", OutboxSettings),
        outbox_keep_s=source.section("answered", DecisionCacheSettings).keep_s,
    )
    require_broker(kafka)
    ids = schema_ids(source)
    publish_catalogue(kafka, ids, CATALOGUE)
    registry = metrics_registry()
    built = Companion(
        clients=clients or KafkaClients.of(kafka),
        settings=settings,
        files=files,
        ids=ids,
        entities=tuple(entity.name for entity in CATALOGUE.entities),
        fill=fill or fill_source(source),
        registry=registry,
    )
    host, port = settings.http_host, settings.http_port
    with serving_health(built.health, registry, host=host, port=port, section="companion") as address:
        announce(address)
        yield built


def fill_source(source: Source) -> FillSource:
    """The profile store that a new mirror of this host is filled from."""
    from paywarden.ops.progress import scan_bar
    from paywarden.streams.companion.companion import FillSource

    return FillSource(
        look=lambda: live_set(source),
        open_store=lambda live: open_store(source, readonly=True, profile_set=live.name),
        watch_scan=scan_bar,
    )


def policy(source: Source, *, review_at: float, decline_at: float) -> Policy:
    """The policy by the settings, with a bundle's thresholds where they set none."""
    from paywarden.models.policy.lists import read_lists
    from paywarden.models.policy.policy import Policy, PolicySettings

    settings = source.section("policy", PolicySettings)
    return Policy(settings, review_at=review_at, decline_at=decline_at, lists=read_lists(settings.lists))


def scoring_host(source: Source, bundle_path: str | None) -> ServerContext:
    """What the scoring workers work with. Imports no Kafka and no Aerospike client."""
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.models.bundle.bundle import load_bundle
    from paywarden.ops.libraries import build_missing
    from paywarden.scoring.engine.batcher import AdmissionSettings
    from paywarden.scoring.engine.busy_poll import BusyPoll
    from paywarden.scoring.engine.model_chain import ChainSettings
    from paywarden.scoring.grpc.settings import GrpcSettings
    from paywarden.scoring.http.settings import HttpSettings
    from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
    from paywarden.scoring.net.tls import TlsSettings
    from paywarden.scoring.net.tokens import AuthSettings
    from paywarden.scoring.requests.validation import RequestLimits
    from paywarden.scoring.server.context import ServerContext
    from paywarden.scoring.state.mirror import MirrorSettings
    from paywarden.scoring.state.outbox import OutboxSettings

    settings = source.section("serve", ServeSettings)
    engine = FeatureEngine()
    paths = [bundle_path or settings.bundle, *filter(None, [settings.fallback_bundle])]
    for path in paths:
        build_missing(Path(path))
    bundles = [load_bundle(Path(path), catalogue_digest=engine.plan.digest) for path in paths]
    manifest = bundles[0].manifest
    return ServerContext(
        engine=engine,
        rates=rate_table(source),
        bundles=bundles,
        chain=ChainSettings(settings.model_failure_count_max, settings.model_cooldown_ms),
        policy=policy(source, review_at=manifest.review_at, decline_at=manifest.decline_at),
        http=source.section("http", HttpSettings),
        grpc=source.section("grpc", GrpcSettings),
        admission=source.section("admission", AdmissionSettings),
        auth=source.section("auth", AuthSettings),
        tls=source.section("tls", TlsSettings),
        limits=source.section("limits", RequestLimits),
        mirror=source.section("mirror", MirrorSettings),
        outbox=source.section("outbox", OutboxSettings),
        answered=source.section("answered", DecisionCacheSettings),
        metrics_directory=Path(settings.metrics),
        busy_poll=BusyPoll(settings.busy_poll_us),
    )
