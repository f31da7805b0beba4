"""Care of the profile store: setup of its cluster, comparison with the changelog, backup and restore."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.times import now_ms
from paywarden.ops.wiring import stores
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.features.stores.aerospike.cluster_check import ClusterFinding
    from paywarden.streams.maintenance.backup import BackedUp, Backup
    from paywarden.streams.maintenance.verify import Verdicts

# Longer than a stream worker takes to write the records that it has read.
_SETTLE_S = 2.0


def check_store(source: Source, *, write: bool = True) -> list[ClusterFinding]:
    """Returns everything that is wrong with the store's setup, errors first. Raises Misconfigured for wrong settings.

    `write` tries whether the configured user can write, read and erase a record.
    """
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.stores.aerospike.cluster_check import ERROR, ClusterFinding, examine, try_to_write
    from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore

    kind = stores.store_kind(source)
    try:
        if kind != "aerospike":
            with closing(stores.open_live_store(source, readonly=True)) as opened:
                reason = opened.health().reason
            return (
                [ClusterFinding(ERROR, reason, "nothing can be read or written", "a store that answers")]
                if reason
                else []
            )
        # Not through the profile sets: with cluster_check = "require" these open only a cluster without a finding.
        with closing(AerospikeStore(source.section("aerospike", AerospikeSettings))) as store:
            plan = FeatureEngine(stores.catalogue(source)).plan
            longest_s = max(plan.ttl_s(entity) for entity in range(plan.entity_count))
            found = examine(store.reports(), store.settings, longest_ttl_s=longest_s)
            return [*(try_to_write(store) if write else ()), *found]
    except StoreUnavailable as error:
        return [ClusterFinding(ERROR, str(error), "nothing can be read or written", "a store that answers")]


def verify_store(
    source: Source, *, since_ms: int | None = None, until_ms: int | None = None, repair: bool = False
) -> Verdicts:
    """Compare the live profile set with the changelog. Raises Misconfigured, StoreUnavailable or BrokerUnavailable."""
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.stores.profile_sets import ProfileSets
    from paywarden.ops.progress import progress_bar
    from paywarden.schemas.avro import Decoder
    from paywarden.streams.kafka.admin import partitions_of, require_broker
    from paywarden.streams.kafka.reading import make_consumer, records_to_end
    from paywarden.streams.maintenance.verify import Verification, keys_after

    kafka = stores.kafka_settings(source)
    require_broker(kafka)
    partitions, topic = partitions_of(kafka, "profiles"), kafka.topic("profiles")
    plan = FeatureEngine(stores.catalogue(source)).plan
    sets = stores.set_stores(source)
    with closing(ProfileSets(sets.open_register())) as register:
        live = register.read()
    if live.next is not None:
        raise Misconfigured("a swap of profile sets is under way, and the changelog may be of either: end it first")
    ttls = {name: plan.ttl_s(entity) for entity, name in enumerate(plan.entity_names)}
    with (
        closing(sets.open(live.name, readonly=not repair)) as store,
        closing(make_consumer(kafka, group_id="paywarden-verify")) as consumer,
        progress_bar("partitions of the changelog", len(partitions)) as advance,
    ):
        verification = Verification(
            store,
            Decoder("profiles", stores.schema_ids(source)),
            # Kinds of entities that the catalogue no longer has may have expired at any time.
            ttl_s=lambda entity: ttls.get(entity, 0),
            now_ms=time.time_ns() // 1_000_000,
            since_ms=since_ms,
            until_ms=until_ms,
            repair=repair,
        )
        ends: dict[int, int] = {}
        for partition in partitions:
            ends |= verification.compare(records_to_end(consumer, topic, [partition]))
            advance(1)
        time.sleep(_SETTLE_S)
        verification.look_again(keys_after(consumer, topic, partitions, ends))
        return verification.verdicts


def back_up_store(source: Source, folder: Path) -> Backup:
    """Copy the embedded store into a folder. Raises Misconfigured, StoreUnavailable or BrokerUnavailable."""
    from paywarden.features.stores.profile_sets import ProfileSets
    from paywarden.streams.kafka.topic_names import repartition_topic
    from paywarden.streams.maintenance.backup import back_up
    from paywarden.streams.maintenance.rebuild import SOURCES

    _require_embedded(source)
    with closing(ProfileSets(stores.set_stores(source).open_register())) as register:
        live = register.read()
    if live.next is not None:
        raise Misconfigured("a swap of profile sets is under way: back up when it has ended")
    frames = [repartition_topic(entity, live.name) for entity in stores.entity_names(source)]
    return back_up(_backed_up(source, live.name, [*SOURCES, *frames]), folder, now_ms=now_ms())


def restore_store(source: Source, folder: Path) -> Backup:
    """Put a backup in place of a store that is gone. Raises Misconfigured, StoreUnavailable or BrokerUnavailable."""
    from paywarden.streams.maintenance.backup import read_backup, restore

    _require_embedded(source)
    backup = read_backup(folder)
    return restore(_backed_up(source, backup.profile_set, list(backup.offsets)), folder)


def _backed_up(source: Source, profile_set: str, topics: list[str]) -> BackedUp:
    from paywarden.features.stores.lmdb import LmdbSettings
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.maintenance.backup import BackedUp
    from paywarden.streams.profiles.stream_settings import StreamSettings

    kafka = stores.kafka_settings(source)
    require_broker(kafka)
    store = Path(source.section("lmdb", LmdbSettings).path)
    group = source.section("stream", StreamSettings).group_of(profile_set)
    return BackedUp(store, kafka, profile_set, group, topics)


def _require_embedded(source: Source) -> None:
    if (kind := stores.store_kind(source)) != "lmdb":
        raise Misconfigured(
            f"[store] kind is {kind}: wanted lmdb; docs/operate/backup.md says how Aerospike is backed up"
        )
