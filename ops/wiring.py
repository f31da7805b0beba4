"""The one place that builds real parts from settings. Each function imports only what its process needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import Misconfigured
from schemas.settings import Source

if TYPE_CHECKING:
    from features.money import RateTable
    from features.store import ProfileStore
    from schemas.avro import SchemaIds
    from scoring.policy import Policy
    from scoring.serve import Host
    from streams.app import StreamApp
    from streams.companion import Companion
    from streams.kafka import KafkaSettings


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
    # Counts of all workers; on a memory file system, see scoring/metrics.py.
    metrics: str = "/dev/shm/paywarden/metrics" if Path("/dev/shm").is_dir() else ".paywarden/metrics"


def kafka_settings(source: Source) -> KafkaSettings:
    from streams.kafka import KafkaSettings

    return source.section("kafka", KafkaSettings)


def rate_table(source: Source) -> RateTable:
    from features.money import load_rates

    return load_rates(source.section("features", FeatureSettings).rates)


def open_store(source: Source, *, readonly: bool = False) -> ProfileStore:
    """The profile store. Raises Misconfigured, StoreUnavailable."""
    kind = source.section("store", StoreSettings).kind
    if kind == "memory":
        from features.memory_store import MemoryStore

        return MemoryStore()
    if kind == "lmdb":
        from features.lmdb_store import LmdbSettings, LmdbStore

        return LmdbStore.from_settings(source.section("lmdb", LmdbSettings), readonly=readonly)
    if kind == "aerospike":
        from features.aerospike_store import AerospikeSettings, AerospikeStore

        return AerospikeStore(source.section("aerospike", AerospikeSettings))
    raise Misconfigured(f"[store] kind: wanted lmdb, aerospike or memory, got {kind!r}")


def schema_ids(source: Source) -> SchemaIds:
    """Ids from the schema registry where one is configured, else derived from the schemas themselves."""
    from streams.registry import RegistrySettings
    from streams.registry import schema_ids as from_settings

    return from_settings(source.section("registry", RegistrySettings))


def stream_app(source: Source, announce: Callable[[str], object]) -> StreamApp:
    """The stream processors, ready to run: the pipeline, and the Faust app around it with its agents."""
    from features.engine import FeatureEngine
    from streams.agents import add_agents
    from streams.app import StreamApp, StreamAppSettings
    from streams.kafka import partitions_of, require_broker
    from streams.pipeline import Pipeline
    from streams.web import metrics_registry

    kafka = kafka_settings(source)
    settings = source.section("stream", StreamAppSettings)
    rates = rate_table(source)
    require_broker(kafka)
    # Faust would wait for a topic that is not there.
    partitions_of(kafka, "dead-letters")
    ids = schema_ids(source)
    store = open_store(source)
    engine = FeatureEngine()
    engine.warm_up()
    pipeline = Pipeline(kafka=kafka, settings=settings, store=store, engine=engine, rates=rates, ids=ids)
    registry = metrics_registry()
    app = StreamApp(pipeline, kafka=kafka, settings=settings, registry=registry, announce=announce)
    add_agents(app, kafka=kafka, ids=ids, registry=registry)
    return app


def companion(source: Source) -> Companion:
    """A scoring host's companion, ready to run."""
    from features.catalogue import CATALOGUE
    from ops.progress import scan_bar
    from scoring.mirror import MirrorSettings
    from scoring.outbox import OutboxSettings
    from streams.companion import Companion, CompanionSettings
    from streams.kafka import require_broker

    kafka = kafka_settings(source)
    settings = source.section("companion", CompanionSettings)
    mirror = source.section("mirror", MirrorSettings)
    outbox = source.section("outbox", OutboxSettings)
    require_broker(kafka)
    return Companion(
        kafka=kafka,
        settings=settings,
        mirror=mirror,
        outbox=outbox,
        ids=schema_ids(source),
        entities=tuple(entity.name for entity in CATALOGUE.entities),
        open_store=lambda: open_store(source, readonly=True),
        watch_scan=scan_bar,
    )


def policy(source: Source, *, review_at: float, decline_at: float) -> Policy:
    """The policy by the settings, with a bundle's thresholds where they set none."""
    from scoring.policy import Policy, PolicySettings

    return Policy(source.section("policy", PolicySettings), review_at=review_at, decline_at=decline_at)


def scoring_host(source: Source, bundle_path: str | None) -> Host:
    """What the scoring workers work with. Imports no Kafka and no Aerospike client."""
    from features.engine import FeatureEngine
    from models.bundle import load_bundle
    from scoring.http import HttpSettings
    from scoring.mirror import MirrorSettings
    from scoring.outbox import OutboxSettings
    from scoring.serve import Host
    from scoring.wire import RequestLimits

    settings = source.section("serve", ServeSettings)
    engine = FeatureEngine()
    bundle = load_bundle(Path(bundle_path or settings.bundle), catalogue_digest=engine.plan.digest)
    manifest = bundle.manifest
    return Host(
        engine=engine,
        rates=rate_table(source),
        bundle=bundle,
        policy=policy(source, review_at=manifest.review_at, decline_at=manifest.decline_at),
        http=source.section("http", HttpSettings),
        limits=source.section("limits", RequestLimits),
        mirror=source.section("mirror", MirrorSettings),
        outbox=source.section("outbox", OutboxSettings),
        metrics_directory=Path(settings.metrics),
    )
