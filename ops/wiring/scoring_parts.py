"""Builds the parts that the scoring workers use. Nothing here may load a client of Kafka or Aerospike."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.wiring import stores
from paywarden.ops.wiring.serve_settings import ServeSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.ops.wiring.releases import HostReleases
    from paywarden.scoring.server.context import ExplorationContext, ServerContext
    from paywarden.scoring.server.deployment.deployment_file import ReleasePaths

_log = logging.getLogger(__name__)

EXPLORATION_LEDGER = "exploration.spent"
"""The file of the exploration money that this host has spent today, below `[serve] runtime`."""


def scoring_host(source: Source, bundle_path: str | None) -> ServerContext:
    """Returns the parts that the scoring workers share. Imports no client of Kafka or Aerospike.

    Builds native libraries that are missing. Raises Misconfigured, BundleRefused.
    """
    from paywarden.features.profiles.overlay_settings import OverlaySettings
    from paywarden.ops.wiring.releases import HostReleases
    from paywarden.schemas.request_proto import request_class
    from paywarden.scoring.engine.batching.batcher import AdmissionSettings
    from paywarden.scoring.grpc.grpc_settings import GrpcSettings
    from paywarden.scoring.http.http_settings import HttpSettings
    from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
    from paywarden.scoring.net.tls import TlsSettings
    from paywarden.scoring.net.tokens import AuthSettings
    from paywarden.scoring.requests.validation import RequestLimits
    from paywarden.scoring.server.context import ServerContext
    from paywarden.scoring.state.mirror_file import MirrorSettings
    from paywarden.scoring.state.outbox import OutboxSettings

    settings = source.section("serve", ServeSettings)
    engine = stores.feature_engine(source)
    # Made once, before any worker: it may refuse the names of fields.
    request_class(engine.plan.fields)
    releases = HostReleases(source, engine, bundle_path)
    _require_allowed(source, releases, engine.plan.digest)
    return ServerContext(
        engine=engine,
        rates=stores.rate_table(source),
        release=releases.load(served_release(source, engine.plan.digest, bundle_path)),
        http=replace(source.section("http", HttpSettings), drain_delay_ms=settings.drain_delay_ms),
        grpc=replace(source.section("grpc", GrpcSettings), drain_delay_ms=settings.drain_delay_ms),
        admission=source.section("admission", AdmissionSettings),
        auth=source.section("auth", AuthSettings),
        tls=source.section("tls", TlsSettings),
        limits=source.section("limits", RequestLimits),
        mirror=source.section("mirror", MirrorSettings),
        outbox=source.section("outbox", OutboxSettings),
        answered=source.section("answered", DecisionCacheSettings),
        overlay=source.section("overlay", OverlaySettings),
        shards=stores.card_shards(source),
        metrics_directory=Path(settings.metrics),
        catalogue=stores.catalogue(source),
        releases=releases,
        runtime=Path(settings.runtime),
        exploration=_exploration(source, Path(settings.runtime)),
        hang_timeout_s=settings.hang_timeout_s,
        admin_host=settings.admin_host,
        admin_port=settings.admin_port,
    )


def _require_allowed(source: Source, releases: HostReleases, catalogue: str) -> None:
    """Raises Misconfigured if the registry does not allow the releases in the deployment file of this catalogue.

    A log that cannot be read decides nothing: a host that starts again goes on with the releases of its file.
    """
    from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, read_deployment

    path = Path(source.section("serve", ServeSettings).runtime) / DEPLOYMENT
    deployment = read_deployment(path)
    if deployment is None or deployment.catalogue not in ("", catalogue):
        return
    try:
        refusal = releases.refusal_of(deployment)
    except Misconfigured as error:
        _log.warning("the registry cannot say whether %s is allowed, which is served all the same: %s", path, error)
        return
    if refusal:
        raise Misconfigured(f"{path}: {refusal}")


def _exploration(source: Source, runtime: Path) -> ExplorationContext | None:
    """Returns the parts of the workers' exploration; None where the share is 0. Raises Misconfigured."""
    from paywarden.models.policy.exploration import ExplorationSettings, read_exploration_key
    from paywarden.scoring.server.context import ExplorationContext

    settings = source.section("exploration", ExplorationSettings)
    if not settings.share:
        return None
    return ExplorationContext(settings, read_exploration_key(settings.key_file), runtime / EXPLORATION_LEDGER)


def served_release(source: Source, catalogue: str, bundle_path: str | None = None) -> ReleasePaths:
    """Returns the active release of the deployment file, if it is for this catalogue, else that of the configuration.

    `catalogue` is the digest. Raises Misconfigured.
    """
    from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, ReleasePaths, read_deployment

    settings = source.section("serve", ServeSettings)
    deployment = read_deployment(Path(settings.runtime) / DEPLOYMENT)
    if deployment is None or deployment.catalogue not in ("", catalogue):
        return ReleasePaths(bundle_path or settings.bundle)
    return deployment.active
