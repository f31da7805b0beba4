"""Builds real parts from settings, and is the only place that does.

    store_checks  whether the profile store is safe, and whole
    stores      the profile store, and what several processes share: Kafka's settings, rates, catalogue, schema ids
    stream      what `paywarden stream` runs
    companion   what `paywarden companion` runs
    scoring     what `paywarden serve` runs; serve_settings, policy and releases are parts of it
    shadow      what `paywarden shadow` runs
    decisions   the index of decisions, and what fills it
    drift       what `paywarden stream` watches decisions with
    counts      the parts of `paywarden stream` that count decisions and join outcomes

Each function imports its process's modules when it is called. Importing this package therefore loads no client of Kafka
or Aerospike, no Faust and no model.
"""

from __future__ import annotations

from paywarden.ops.wiring.companion import companion, companion_stop_timeout_s, fill_source
from paywarden.ops.wiring.decision_parts import decision_index, index_filler
from paywarden.ops.wiring.drift_parts import drift_references, referenced_versions
from paywarden.ops.wiring.policy_parts import bundle_thresholds, policy
from paywarden.ops.wiring.registry import (
    bundle_facts,
    deploy_here,
    following_registry,
    model_paper,
    model_registry,
    policy_facts,
    registered_deployment,
    registry_topic,
    shared_log,
    shared_registry,
    signer,
)
from paywarden.ops.wiring.scoring_parts import scoring_host
from paywarden.ops.wiring.serve_settings import ServeSettings
from paywarden.ops.wiring.shadow_parts import shadow_evaluator, shadow_host, shadow_tables
from paywarden.ops.wiring.store_checks import back_up_store, check_store, restore_store, verify_store
from paywarden.ops.wiring.stores import (
    ErasureSettings,
    FeatureSettings,
    StoreSettings,
    card_shards,
    catalogue,
    catalogue_file,
    check_identity_key,
    entity_names,
    erasure_keys,
    feature_engine,
    identity_key,
    kafka_settings,
    late_schema_ids,
    live_set,
    open_live_store,
    open_store,
    payment_fields,
    rate_table,
    schema_ids,
    set_stores,
    store_kind,
)
from paywarden.ops.wiring.stream_parts import StreamParts, await_store, run_stream, stream_stop_timeout_s

__all__ = [
    "ErasureSettings",
    "FeatureSettings",
    "ServeSettings",
    "StoreSettings",
    "StreamParts",
    "await_store",
    "back_up_store",
    "bundle_facts",
    "bundle_thresholds",
    "card_shards",
    "catalogue",
    "catalogue_file",
    "check_identity_key",
    "check_store",
    "companion",
    "companion_stop_timeout_s",
    "decision_index",
    "deploy_here",
    "drift_references",
    "entity_names",
    "erasure_keys",
    "feature_engine",
    "fill_source",
    "following_registry",
    "identity_key",
    "index_filler",
    "kafka_settings",
    "late_schema_ids",
    "live_set",
    "model_paper",
    "model_registry",
    "open_live_store",
    "open_store",
    "payment_fields",
    "policy",
    "policy_facts",
    "rate_table",
    "referenced_versions",
    "registered_deployment",
    "registry_topic",
    "restore_store",
    "run_stream",
    "schema_ids",
    "scoring_host",
    "set_stores",
    "shadow_evaluator",
    "shadow_host",
    "shadow_tables",
    "shared_log",
    "shared_registry",
    "signer",
    "store_kind",
    "stream_stop_timeout_s",
    "verify_store",
]
