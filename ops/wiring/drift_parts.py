"""Builds the watches of decisions: drift detection with its references, and the evaluation of outcomes."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.wiring import stores
from paywarden.ops.wiring.serve_settings import ServeSettings
from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from paywarden.features.stores.base import ProfileStore
    from paywarden.models.drift.reference import Reference
    from paywarden.ops.wiring.counts import DriftParts, OutcomeParts
    from paywarden.schemas.avro import SchemaIds
    from paywarden.streams.drift.drift_settings import DriftSettings
    from paywarden.streams.kafka.client import KafkaSettings


_log = logging.getLogger(__name__)

# The most bundles of the folders of bundles that are looked at: reading a manifest takes a millisecond.
_FOLDERS_MAX = 500


def drift_parts(source: Source, kafka: KafkaSettings, ids: SchemaIds, registry: CollectorRegistry) -> DriftParts:
    """Returns the parts of drift detection. Raises Misconfigured, BundleRefused, StoreUnavailable."""
    from functools import partial

    from paywarden.models.drift.detectors import DetectorSettings
    from paywarden.ops.wiring.counts import DriftParts
    from paywarden.streams.alerts.alerts import AlertSettings
    from paywarden.streams.alerts.publisher import KafkaAcknowledgements, KafkaAlerts
    from paywarden.streams.drift.detection import DriftDetection
    from paywarden.streams.drift.drift_counts import Binnings
    from paywarden.streams.drift.drift_evaluation import past_hours
    from paywarden.streams.drift.drift_metrics import DetectionMetrics
    from paywarden.streams.drift.drift_search import ReferenceSearch
    from paywarden.streams.drift.drift_settings import DriftSettings, TrainingComparisonSettings
    from paywarden.streams.drift.drift_state import Adder
    from paywarden.streams.drift.learning import LiveReferences, counted_binning

    settings = source.section("drift", DriftSettings)
    references = drift_references(source, settings)
    binnings = Binnings({version: counted_binning(reference) for version, reference in references.items()})
    store = _checked(stores.set_stores(source, registry).open_beside(), source, registry)
    past = partial(past_hours, store, adder=Adder(binnings))
    detection = DriftDetection(
        references,
        LiveReferences(references, binnings, past, days_min=settings.learning_days),
        detectors=source.section("drift_detection", DetectorSettings),
        alerts=source.section("drift_alerts", AlertSettings),
        teller=KafkaAlerts(kafka, ids),
        acknowledgements=KafkaAcknowledgements(kafka, ids),
        metrics=DetectionMetrics(registry),
        training=source.section("drift_training", TrainingComparisonSettings),
    )

    def learn(reference: Reference) -> None:
        # One mapping for detection's live references and this one, and a binning for the counts.
        references[reference.model_version] = reference
        detection.learn(reference)
        binnings.learn(reference.model_version, counted_binning(reference))

    search = ReferenceSearch(partial(_found_references, source, settings), learn)
    binnings.missed = search.miss
    return DriftParts(
        store=store, binnings=binnings, detection=detection, settings=settings, look_for_models=search.look
    )


def _found_references(source: Source, settings: DriftSettings, versions: frozenset[str]) -> list[Reference]:
    """Returns the references of the bundles of these versions that can be read now."""
    from paywarden.models.bundle.bundle import read_manifest
    from paywarden.models.drift.reference import load_reference

    found: dict[str, Reference] = {}
    for folder in _bundle_folders(source, settings):
        try:
            version = read_manifest(folder).model_version
            if version not in versions or version in found:
                continue
            reference = load_reference(folder)
        except PaywardenError:
            # A bundle that is being copied, or a folder of something else.
            continue
        if reference is not None:
            found[version] = reference
    return list(found.values())


def _bundle_folders(source: Source, settings: DriftSettings) -> list[Path]:
    """Returns where bundles may be: those of the settings, and the newest in the folders of bundles."""
    serve = source.section("serve", ServeSettings)
    named = [Path(folder) for folder in settings.bundles or (serve.bundle, serve.fallback_bundle) if folder]
    inside = []
    for folder in map(Path, settings.bundle_folders):
        with suppress(OSError):
            inside += [(path.stat().st_mtime_ns, path) for path in folder.iterdir() if path.is_dir()]
    return named + [path for _, path in sorted(inside, reverse=True)[:_FOLDERS_MAX]]


def _checked(store: ProfileStore, source: Source, registry: CollectorRegistry) -> ProfileStore:
    """Returns the store of drift counts and outcomes with its damaged records set aside."""
    from functools import partial

    from paywarden.streams.counts.checked_state import Check, CheckedState, SetAsideState
    from paywarden.streams.drift.drift_evaluation import EVALUATION_CHECKS
    from paywarden.streams.drift.drift_state import DRIFT_CHECKS
    from paywarden.streams.outcomes.outcome_evaluation import EVALUATED_KEY, EvaluationState
    from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
    from paywarden.streams.outcomes.outcome_state import OUTCOME_CHECKS

    evaluated = partial(EvaluationState.decode, settings=source.section("outcomes", OutcomeSettings))
    checks: dict[bytes, Check] = {**DRIFT_CHECKS, **EVALUATION_CHECKS, **OUTCOME_CHECKS, EVALUATED_KEY: evaluated}
    return CheckedState(store, checks, SetAsideState(registry))


def outcome_parts(source: Source) -> OutcomeParts:
    """Returns the parts that join and evaluate outcomes. Raises Misconfigured."""
    from paywarden.models.metrics.costs import CostSettings
    from paywarden.ops.wiring.counts import OutcomeParts
    from paywarden.streams.outcomes.outcome_settings import OutcomeSettings

    return OutcomeParts(
        rates=stores.rate_table(source),
        costs=source.section("costs", CostSettings),
        settings=source.section("outcomes", OutcomeSettings),
    )


def drift_references(source: Source, settings: DriftSettings) -> dict[str, Reference]:
    """Returns the references that decisions are compared with, by model version.

    A reference made from live decisions replaces the bundle's. Raises Misconfigured, BundleRefused.
    """
    from paywarden.models.drift.reference import load_reference, read_reference

    serve = source.section("serve", ServeSettings)
    served = [folder for folder in (serve.bundle, serve.fallback_bundle) if folder and Path(folder).is_dir()]
    found: dict[str, Reference] = {}
    for folder in settings.bundles or served:
        reference = load_reference(Path(folder))
        if reference is None:
            _log.warning("bundle %s has no reference: its model is only compared with its own live decisions", folder)
        else:
            found[reference.model_version] = reference
    live = map(read_reference, map(Path, settings.references))
    return found | {reference.model_version: reference for reference in live}


def referenced_versions(source: Source) -> dict[str, bool]:
    """Returns the model versions of the bundles and references in the drift settings, and whether each has a reference.

    Files that are not on this host or cannot be read are left out. Raises Misconfigured for wrong settings.
    """
    from paywarden.models.bundle.bundle import read_manifest
    from paywarden.models.drift.reference import REFERENCE, read_reference
    from paywarden.streams.drift.drift_settings import DriftSettings

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
