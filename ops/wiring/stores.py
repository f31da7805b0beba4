"""Builds the profile store, and parts that several processes share: Kafka settings, exchange rates and schema ids."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from paywarden.features.catalogue.entity import Catalogue
    from paywarden.features.catalogue.identity import IdentityKey
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.profiles.money import RateTable
    from paywarden.features.stores.aerospike.cluster_check import ClusterLook
    from paywarden.features.stores.aerospike.metrics import AerospikeMetrics
    from paywarden.features.stores.aerospike.store import AerospikeSettings
    from paywarden.features.stores.base import ProfileStore
    from paywarden.features.stores.lmdb_sets import LmdbSets
    from paywarden.features.stores.memory import MemorySets
    from paywarden.features.stores.profile_sets import LiveSet, SetStores
    from paywarden.schemas.avro import SchemaIds
    from paywarden.schemas.erasure_keys import ErasureKeys
    from paywarden.schemas.payment_fields import PaymentFields
    from paywarden.scoring.state.shards import CardShards
    from paywarden.streams.kafka.client import KafkaSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreSettings:
    """The kind of profile store: lmdb (embedded, one machine), aerospike, or memory (keeps nothing)."""

    kind: str = "lmdb"


@dataclass(frozen=True)
class FeatureSettings:
    """`rates` is a CSV file of exchange rates; empty takes the example that comes with Paywarden."""

    rates: str = ""
    # A file of 32 hex digits: the secret with which profiles hash ids. Empty: a public key, for laptops.
    identity_key_file: str = ""
    # A file that sets CATALOGUE: a project's own features, and its payment's own fields. The path starts at the folder
    # of the configuration file. Empty: the catalogue that comes with Paywarden.
    catalogue: str = ""


@dataclass(frozen=True)
class ErasureSettings:
    """The file of keys that archives are sealed with; empty: archives are not sealed."""

    keys: str = ""
    # A KMS or HSM that wraps the file's master secret when the file is made: `package.module:name`. Empty: none.
    key_service: str = ""


def erasure_keys(source: Source, archive: Path | None = None) -> ErasureKeys | None:
    """Returns the keys that archives are sealed with; None if archives are not sealed.

    Makes the file for the first archive that is sealed. Raises Misconfigured for a file that is missing or damaged.
    """
    from paywarden.schemas.erasure_keys import ErasureKeys

    settings = source.section("erasure", ErasureSettings)
    if not settings.keys:
        return None
    path = Path(settings.keys)
    if archive is not None and not path.exists():
        from paywarden.streams.archive.files import has_sealed_files

        # A file that is not mounted must not be made again: the archive's rows need the old one.
        if not has_sealed_files(archive):
            return ErasureKeys.create(path, settings.key_service)
    return ErasureKeys(path)


def kafka_settings(source: Source) -> KafkaSettings:
    """Returns where Kafka is. Raises Misconfigured."""
    from paywarden.streams.kafka.client import KafkaSettings

    return source.section("kafka", KafkaSettings)


def payment_fields(source: Source) -> PaymentFields:
    """Returns the fields of a payment in this deployment: those that its catalogue declares among them."""
    return catalogue(source).payment.fields


def schema_ids(source: Source) -> SchemaIds:
    """Returns the ids of the schema registry if one is configured, else fingerprints of the schemas."""
    from paywarden.streams.kafka.schemas.registry import RegistrySettings
    from paywarden.streams.kafka.schemas.registry import schema_ids as from_settings
    from paywarden.streams.kafka.schemas.remembered_schemas import KafkaRememberedSchemas

    kafka = kafka_settings(source)
    registry = source.section("registry", RegistrySettings)
    remembered, fields = KafkaRememberedSchemas(kafka), payment_fields(source)
    return from_settings(registry, remembered, topic_prefix=kafka.topic_prefix, fields=fields)


def late_schema_ids(source: Source) -> SchemaIds:
    """Returns the ids of `schema_ids`, for a process that must start without registry and Kafka."""
    from paywarden.streams.kafka.schemas.late_schema_ids import LateSchemaIds
    from paywarden.streams.kafka.schemas.registry import FingerprintSchemaIds
    from paywarden.streams.kafka.schemas.remembered_schemas import KafkaRememberedSchemas

    reading = FingerprintSchemaIds(KafkaRememberedSchemas(kafka_settings(source)))
    return LateSchemaIds(lambda: schema_ids(source), reading, payment_fields(source))


def rate_table(source: Source) -> RateTable:
    """Returns the exchange rates. Raises Misconfigured."""
    from paywarden.features.profiles.money import load_rates

    return load_rates(source.section("features", FeatureSettings).rates)


def catalogue(source: Source) -> Catalogue:
    """Returns the catalogue of the settings: a process reads its file once. Raises Misconfigured."""
    from paywarden.features.catalogue.catalogue import CATALOGUE

    path = catalogue_file(source)
    return CATALOGUE if path is None else _loaded_catalogue(path)


def catalogue_file(source: Source) -> Path | None:
    """Returns the file of the settings' catalogue; None for the packaged one. Raises Misconfigured."""
    path = source.section("features", FeatureSettings).catalogue
    # Links stay as they are: the loader looks at each of them.
    return Path(os.path.abspath(source.folder / path)) if path else None


@cache
def _loaded_catalogue(path: Path) -> Catalogue:
    from paywarden.features.catalogue.loading import load_catalogue

    return load_catalogue(path)


def entity_names(source: Source) -> tuple[str, ...]:
    """Returns the names of the catalogue's entities. Raises Misconfigured."""
    return tuple(entity.name for entity in catalogue(source).entities)


def card_shards(source: Source) -> CardShards | None:
    """Returns the shards of cards; None where each mirror holds every profile. Raises Misconfigured."""
    from paywarden.features.catalogue.expressions import Neighbours, stored_values
    from paywarden.scoring.state.shards import ShardSettings
    from paywarden.scoring.state.shards import card_shards as of_settings

    settings, entities = source.section("shards", ShardSettings), catalogue(source).entities
    looked_at = {
        value.target: feature.name
        for feature in catalogue(source).features
        for value in stored_values(feature.value)
        if isinstance(value, Neighbours)
    }
    return of_settings(settings, {entity.name: entity.keys for entity in entities}, looked_at)


def feature_engine(source: Source) -> FeatureEngine:
    """Returns an engine of the settings' catalogue and key. Raises Misconfigured."""
    from paywarden.features.profiles.engine import FeatureEngine

    return FeatureEngine(catalogue(source), identity_key(source))


def identity_key(source: Source) -> IdentityKey:
    """Returns the key of identities (features/catalogue/identity.py). Raises Misconfigured."""
    from paywarden.features.catalogue.identity import LAPTOP_KEY, read_key

    path = source.section("features", FeatureSettings).identity_key_file
    return read_key(path) if path else LAPTOP_KEY


def check_identity_key(source: Source, *, claims: bool = False) -> None:
    """Compare the key with the key that the store's profiles were made with.

    A store that no key has claimed accepts any; with `claims` this key claims it. Raises Misconfigured if the keys
    differ, and StoreUnavailable.
    """
    from paywarden.features.stores.profile_sets import ProfileSets

    digest = identity_key(source).digest
    with closing(ProfileSets(set_stores(source).open_register())) as sets:
        if claims:
            sets.claim_identity(digest)
        else:
            sets.check_identity(digest)


def store_kind(source: Source) -> str:
    """Returns lmdb, aerospike or memory. Raises Misconfigured."""
    kind = source.section("store", StoreSettings).kind
    if kind not in ("lmdb", "aerospike", "memory"):
        raise Misconfigured(f"[store] kind: wanted lmdb, aerospike or memory, got {kind!r}")
    return kind


def set_stores(source: Source, registry: CollectorRegistry | None = None) -> SetStores:
    """Returns the profile store with all its profile sets. Opens nothing yet. Raises Misconfigured.

    `registry` shows the metrics of an Aerospike store. All stores of a process share them.
    """
    kind = store_kind(source)
    if kind == "memory":
        return _memory_sets()
    if kind == "lmdb":
        return _lmdb_sets(source)
    from paywarden.features.catalogue.entity import BESIDE_PROFILES
    from paywarden.features.stores.aerospike.sets import AerospikeSets
    from paywarden.features.stores.aerospike.store import AerospikeSettings
    from paywarden.streams.profiles.stream_settings import StreamSettings

    entities = (*entity_names(source), *BESIDE_PROFILES)
    settings = source.section("aerospike", AerospikeSettings)
    metrics = _aerospike_metrics(registry)
    lifetimes_s = {"payment": source.section("stream", StreamSettings).outcome_days * 86_400}
    look = _cluster_look(settings, metrics)
    return AerospikeSets(settings, entities, lifetimes_s=lifetimes_s, metrics=metrics, look=look)


@cache
def _aerospike_metrics(registry: CollectorRegistry | None) -> AerospikeMetrics:
    """Returns the metrics of a registry: it takes them once."""
    from paywarden.features.stores.aerospike.metrics import AerospikeMetrics

    return AerospikeMetrics(registry)


@cache
def _cluster_look(settings: AerospikeSettings, metrics: AerospikeMetrics) -> ClusterLook:
    """Returns the check of the cluster at each opening of a store. It logs each finding once."""
    from paywarden.features.stores.aerospike.cluster_check import ClusterLook

    return ClusterLook(settings, metrics)


def open_store(
    source: Source, *, readonly: bool = False, profile_set: str = "", registry: CollectorRegistry | None = None
) -> ProfileStore:
    """Open a profile set, the first if none is named. Raises Misconfigured, StoreUnavailable."""
    return set_stores(source, registry).open(profile_set, readonly=readonly)


def open_live_store(source: Source, *, readonly: bool = False) -> ProfileStore:
    """Open the profile set that is live now. It stays open when another set goes live. Raises as `open_store`."""
    return set_stores(source).open(live_set(source).name, readonly=readonly)


def live_set(source: Source, registry: CollectorRegistry | None = None) -> LiveSet:
    """Returns which profile set is live now. Raises StoreUnavailable or Misconfigured."""
    from paywarden.features.stores.profile_sets import ProfileSets

    with closing(ProfileSets(set_stores(source, registry).open_register())) as sets:
        return sets.read()


@cache
def _memory_sets() -> MemorySets:
    """Returns the sets of this process."""
    from paywarden.features.stores.memory import MemorySets

    return MemorySets()


def _lmdb_sets(source: Source) -> LmdbSets:
    """Returns the sets at `[lmdb] path`."""
    from paywarden.features.stores.lmdb import LmdbSettings
    from paywarden.features.stores.lmdb_sets import LmdbSets

    return LmdbSets(source.section("lmdb", LmdbSettings))
