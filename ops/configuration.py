"""The whole configuration at once: the settings of each section, and everything that is wrong with them.

A process reads only the sections that it uses, and stops at the first error. `problems_of` reads all sections and
collects every error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from paywarden.models.policy.policy import PolicySettings
from paywarden.ops import wiring
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import ENVIRONMENT_PREFIX, Source, nearest, setting_fields

# PAYWARDEN_PORT_8080_TCP_ADDR, PAYWARDEN_SERVICE_HOST, and variables of our own tools outside the settings.
_OF_A_SERVICE = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_(TCP|UDP).*)?$")


def settings_types() -> dict[str, type[Any]]:
    """Returns the dataclass of each section's settings."""
    from paywarden.features.profiles.overlay_settings import OverlaySettings
    from paywarden.features.stores.aerospike.store import AerospikeSettings
    from paywarden.features.stores.lmdb import LmdbSettings
    from paywarden.models.bundle.signature import BundleSettings
    from paywarden.models.drift.detectors import DetectorSettings
    from paywarden.models.metrics.costs import CostSettings
    from paywarden.models.policy.exploration import ExplorationSettings
    from paywarden.models.registry.registry_settings import ModelRegistrySettings
    from paywarden.models.rollout.rollout_settings import RolloutSettings
    from paywarden.models.training.training_settings import TrainingSettings
    from paywarden.ops.console.console_settings import ConsoleSettings
    from paywarden.scoring.engine.batching.batcher import AdmissionSettings
    from paywarden.scoring.grpc.grpc_settings import GrpcSettings
    from paywarden.scoring.http.http_settings import HttpSettings
    from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
    from paywarden.scoring.net.tls import TlsSettings
    from paywarden.scoring.net.tokens import AuthSettings
    from paywarden.scoring.requests.validation import RequestLimits
    from paywarden.scoring.state.mirror_file import MirrorSettings
    from paywarden.scoring.state.outbox import OutboxSettings
    from paywarden.scoring.state.shards import ShardSettings
    from paywarden.streams.alerts.alerts import AlertSettings
    from paywarden.streams.companion.companion import CompanionSettings
    from paywarden.streams.decision_index.index_settings import DecisionIndexSettings
    from paywarden.streams.drift.drift_settings import DriftSettings, TrainingComparisonSettings
    from paywarden.streams.kafka.client import KafkaSettings
    from paywarden.streams.kafka.schemas.registry import RegistrySettings
    from paywarden.streams.kafka.topics import TopicSettings
    from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
    from paywarden.streams.profiles.stream_settings import StreamSettings
    from paywarden.streams.shadow.shadow_settings import ShadowSettings
    from paywarden.streams.traces.trace_settings import TracingSettings

    return {
        "admission": AdmissionSettings,
        "aerospike": AerospikeSettings,
        "answered": DecisionCacheSettings,
        "auth": AuthSettings,
        "bundles": BundleSettings,
        "companion": CompanionSettings,
        "console": ConsoleSettings,
        "costs": CostSettings,
        "decision_index": DecisionIndexSettings,
        "drift": DriftSettings,
        "drift_alerts": AlertSettings,
        "drift_detection": DetectorSettings,
        "drift_training": TrainingComparisonSettings,
        "erasure": wiring.ErasureSettings,
        "exploration": ExplorationSettings,
        "features": wiring.FeatureSettings,
        "grpc": GrpcSettings,
        "http": HttpSettings,
        "kafka": KafkaSettings,
        "limits": RequestLimits,
        "lmdb": LmdbSettings,
        "mirror": MirrorSettings,
        "models": ModelRegistrySettings,
        "outbox": OutboxSettings,
        "outcomes": OutcomeSettings,
        "overlay": OverlaySettings,
        "policy": PolicySettings,
        "registry": RegistrySettings,
        "rollout": RolloutSettings,
        "serve": wiring.ServeSettings,
        "shadow": ShadowSettings,
        "shards": ShardSettings,
        "store": wiring.StoreSettings,
        "stream": StreamSettings,
        "tls": TlsSettings,
        "topics": TopicSettings,
        "tracing": TracingSettings,
        "training": TrainingSettings,
    }


def problems_of(source: Source, bundle: str | None) -> list[str]:
    """Returns everything that is wrong, one line for each problem with its section and setting.

    `bundle` has the thresholds that no setting has; None takes that of `[serve]`, if it exists. The check reads these
    files that settings name: the catalogue, the policy's lists, the exchange rates, the bundle's manifest and drift
    references. It
    reads no certificate and no token, which are on the host that uses them.
    """
    found = source.unknown_sections()
    for section, settings_type in settings_types().items():
        found += section_problems(source, section, settings_type)
    # The checks of three sections read the catalogue.
    return list(dict.fromkeys(found + _policy_problems(source, bundle)))


def unknown_variables(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns variables that look like settings and are none, each with the setting that may be meant, or "".

    Those that Kubernetes makes of a service's name are left out.
    """
    known = [
        f"{ENVIRONMENT_PREFIX}{section}_{field.name}".upper()
        for section, settings_type in settings_types().items()
        for field in setting_fields(settings_type)
    ]
    unknown = sorted(
        name
        for name in environment
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known and not _OF_A_SERVICE.search(name)
    )
    return [(name, nearest(name, known, 0.8)) for name in unknown]


def section_problems(source: Source, section: str, settings_type: type[Any]) -> list[str]:
    """Returns everything that is wrong with one section, but for the policy's conditions and lists."""
    wrong = source.problems(section, settings_type)
    # The checks of a process need settings of the right types: they run only where the types are right.
    return wrong or [str(error) for check in _CHECKS.get(section, ()) if (error := _error_of(check, source))]


def _policy_problems(source: Source, bundle: str | None) -> list[str]:
    from paywarden.models.policy.lists import list_problems, read_lists
    from paywarden.models.policy.policy import policy_problems

    found: list[str] = []
    review_at, decline_at = 0.0, 0.0
    if bundle is not None or not source.problems("serve", wiring.ServeSettings):
        try:
            review_at, decline_at = wiring.bundle_thresholds(source, bundle)
        except Misconfigured as error:
            found.append(str(error))
    if source.problems("policy", PolicySettings):
        return found
    settings = source.section("policy", PolicySettings)
    wrong = {name: list_problems(name, entries) for name, entries in settings.lists.items()}
    found += [problem for problems in wrong.values() for problem in problems]
    # A condition may name a list that cannot be read. The error is reported once, for the list.
    lists = {
        name: frozenset[str]() if wrong[name] else read_lists({name: entries})[name]
        for name, entries in settings.lists.items()
    }
    if _error_of(wiring.catalogue, source):
        # Conditions name its features and fields. The section's own check reports it.
        return found
    return found + policy_problems(
        settings, review_at=review_at, decline_at=decline_at, lists=lists, catalogue=wiring.catalogue(source)
    )


def _error_of(check: Callable[[Source], object], source: Source) -> Misconfigured | None:
    try:
        check(source)
    except Misconfigured as error:
        return error
    return None


def _check_bootstrap(source: Source) -> None:
    from paywarden.streams.kafka.client import broker_urls

    broker_urls(wiring.kafka_settings(source))


def _check_credentials(source: Source) -> None:
    from paywarden.streams.faust.credentials import check_login

    check_login(wiring.kafka_settings(source))


def _check_aerospike(source: Source) -> None:
    from paywarden.features.stores.aerospike.client import check_settings
    from paywarden.features.stores.aerospike.store import AerospikeSettings

    try:
        check_settings(source.section("aerospike", AerospikeSettings))
    except Misconfigured as error:
        raise Misconfigured(f"[aerospike] {error}") from error


def _check_rates(source: Source) -> None:
    try:
        wiring.rate_table(source)
    except Misconfigured as error:
        raise Misconfigured(f"[features] rates: {str(error).removeprefix('rates: ')}") from error


def _check_catalogue(source: Source) -> None:
    from paywarden.features.profiles.engine import FeatureEngine

    FeatureEngine(wiring.catalogue(source))


def _check_stream(source: Source) -> None:
    from prometheus_client import CollectorRegistry

    from paywarden.streams.profiles.stream_settings import StreamSettings, stream_metrics

    stream_metrics(source.section("stream", StreamSettings), wiring.entity_names(source), CollectorRegistry())


def _check_companion(source: Source) -> None:
    from paywarden.streams.companion.companion import CompanionSettings, freshness_objectives_ms

    freshness_objectives_ms(source.section("companion", CompanionSettings), wiring.entity_names(source))


def _check_tls(source: Source) -> None:
    from paywarden.scoring.net.tls import TlsSettings, check_settings

    settings = source.section("tls", TlsSettings)
    if settings != TlsSettings():
        check_settings(settings)


def _check_drift(source: Source) -> None:
    from paywarden.streams.drift.drift_settings import DriftSettings

    settings = source.section("drift", DriftSettings)
    if settings.bundles or settings.references:
        wiring.drift_references(source, settings)


# The checks of each section that a process makes at its start, beyond the types of its settings.
_CHECKS: dict[str, tuple[Callable[[Source], object], ...]] = {
    "aerospike": (_check_aerospike,),
    "companion": (_check_companion,),
    "drift": (_check_drift,),
    "features": (_check_rates, _check_catalogue),
    "kafka": (_check_bootstrap, _check_credentials),
    "store": (wiring.store_kind,),
    "stream": (_check_stream,),
    "tls": (_check_tls,),
}
