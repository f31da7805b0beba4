"""Checks of the profile store: how its cluster is set up, and whether it has what the changelog has."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from paywarden.ops.wiring import stores
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.features.stores.aerospike.cluster_check import Finding
    from paywarden.streams.maintenance.verify import Verdicts

# As long as a stream worker takes to write what it has read, and more.
_SETTLE_S = 2.0


def check_store(source: Source, *, write: bool = True) -> list[Finding]:
    """Returns everything that is wrong with the store's setup, errors first. Raises Misconfigured for wrong settings.

    `write` tries whether the configured user can write, read and erase a record.
    """
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.stores.aerospike.cluster_check import ERROR, Finding, examine, try_to_write
    from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore

    kind = stores.store_kind(source)
    try:
        if kind != "aerospike":
            with closing(stores.open_live_store(source, readonly=True)) as opened:
                reason = opened.health().reason
            return [Finding(ERROR, reason, "nothing can be read or written", "a store that answers")] if reason else []
        # Not through the profile sets: with cluster_check = "require" these open only what has no finding.
        with closing(AerospikeStore(source.section("aerospike", AerospikeSettings))) as store:
            plan = FeatureEngine(stores.catalogue(source)).plan
            longest_s = max(plan.ttl_s(entity) for entity in range(plan.entity_count))
            found = examine(store.reports(), store.settings, longest_ttl_s=longest_s)
            return [*(try_to_write(store) if write else ()), *found]
    except StoreUnavailable as error:
        return [Finding(ERROR, str(error), "nothing can be read or written", "a store that answers")]


def verify_store(source: Source, *, since_ms: int | None = None, repair: bool = False) -> Verdicts:
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
            repair=repair,
        )
        ends: dict[int, int] = {}
        for partition in partitions:
            ends |= verification.compare(records_to_end(consumer, topic, [partition]))
            advance(1)
        time.sleep(_SETTLE_S)
        verification.look_again(keys_after(consumer, topic, partitions, ends))
        return verification.verdicts
