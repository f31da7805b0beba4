"""Builds the log of rollouts, the leader of one, and the writer of this host's deployment file."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.wiring import registry, stores
from paywarden.ops.wiring.serve_settings import ServeSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.models.registry.registry import Registry
    from paywarden.models.registry.rules import RegistryState
    from paywarden.models.rollout.log import RolloutLog
    from paywarden.models.rollout.plan import RolloutPlan
    from paywarden.models.rollout.rollout import Agreed, Orders, Rollout, RolloutEvent, Start, Version
    from paywarden.scoring.server.deployment.deployment_file import ReleasePaths
    from paywarden.streams.rollouts.leader import RolloutLeader


_log = logging.getLogger(__name__)


def has_registry(source: Source) -> bool:
    """Returns whether rollouts are in the signed log of the registry, and not in a file of this host."""
    from paywarden.models.registry.settings import ModelRegistrySettings

    return bool(source.section("models", ModelRegistrySettings).people)


def read_rollouts(source: Source) -> RolloutLog:
    """Returns the log of rollouts, to be read. Raises Misconfigured."""
    from paywarden.models.rollout.registry_log import RegistryRolloutLog

    return RegistryRolloutLog(registry.model_registry(source), None) if has_registry(source) else _own_log(source)


def agreed(source: Source, rollout: str) -> list[Agreed] | None:
    """Returns who registered, proposed and approved the candidate of a rollout; None without a registry."""
    from paywarden.models.rollout.registry_log import approvals_of

    return approvals_of(registry.model_registry(source), rollout) if has_registry(source) else None


@contextmanager
def written_rollouts(
    source: Source, tell: Callable[[str], object], key: str | None
) -> Iterator[tuple[RolloutLog, str]]:
    """Yields the log of rollouts, and who writes to it: the owner of the key, or "" for the file of this host.

    When the block has ended, this host serves the releases of the registry's log, if it is a scoring host. `tell` gets
    a line if this host alone has the new entries. Raises Misconfigured.
    """
    if not has_registry(source):
        if key:
            raise Misconfigured("--key: rollouts are signed where there is a registry: set [models] people")
        yield _own_log(source), ""
        return
    from paywarden.models.rollout.registry_log import RegistryRolloutLog

    with registry.shared_registry(source, tell) as shared:
        signer = registry.signer(source, key, shared)
        yield RegistryRolloutLog(shared, signer), signer.name


def abort_unread(log: RolloutLog, event: RolloutEvent) -> str:
    """End a rollout whose start this release cannot read, and return its name; empty if there is none.

    Only a registry's log can have one. Raises RegistryRefused.
    """
    from paywarden.models.rollout.registry_log import RegistryRolloutLog

    return log.abort_unread(event) if isinstance(log, RegistryRolloutLog) else ""


def log_in_words(source: Source) -> str:
    """Returns where the log of rollouts is, for a page that shows none."""
    if has_registry(source):
        return "the registry's log"
    path = _log_path(source)
    return str(path) if path.exists() else f"{path}, which is not there"


def _own_log(source: Source) -> RolloutLog:
    from paywarden.models.rollout.log import FileRolloutLog

    return FileRolloutLog(_log_path(source))


def _log_path(source: Source) -> Path:
    """Returns the file that has the log of rollouts."""
    from paywarden.models.registry.settings import ModelRegistrySettings
    from paywarden.models.rollout.settings import RolloutSettings

    if has_registry(source):
        return source.section("models", ModelRegistrySettings).log_path
    return Path(source.section("rollout", RolloutSettings).log)


def registered_versions(source: Source, candidate: str) -> tuple[Version, Version]:
    """Returns the champion of the registry, and the open proposal that a text names, or that is of a bundle's folder.

    The candidate's files are checked. Raises RegistryRefused.
    """
    from paywarden.models.bundle.bundle import read_manifest

    return proposed(source, read_manifest(Path(candidate)).digest if Path(candidate).is_dir() else candidate)


def proposed(source: Source, named: str) -> tuple[Version, Version]:
    """Returns the champion of the registry, and the open proposal that a text names. See `registered_versions`."""
    from paywarden.models.rollout.registry_log import proposed_versions

    found = registry.model_registry(source)
    state = found.state()
    champion, candidate = proposed_versions(state, named)
    # A rollout of files that no host has stays pending, and keeps all others from starting.
    _require_files(found, state, candidate)
    return champion, candidate


def bundle_versions(bundles: Sequence[str], policies: Sequence[str] = ("", "")) -> tuple[Version, Version]:
    """Returns champion and candidate of two folders. Raises BundleRefused; Misconfigured if their catalogues differ."""
    from paywarden.models.bundle.bundle import read_manifest
    from paywarden.models.rollout.rollout import Version

    manifests = [read_manifest(Path(bundle)) for bundle in bundles]
    theirs, ours = (manifest.catalogue_digest for manifest in manifests)
    if ours != theirs:
        raise Misconfigured(
            f"--candidate: bundle {bundles[1]} is for the feature catalogue {ours}; the champion's is {theirs}"
        )
    first, second = (
        Version(manifest.digest, policy, str(Path(bundle).absolute()))
        for manifest, policy, bundle in zip(manifests, policies, bundles, strict=True)
    )
    return first, second


def start_of(name: str, versions: tuple[Version, Version], plan: RolloutPlan, *, shadow: bool, time_ms: int) -> Start:
    """Returns the first event of a rollout, with a salt of its own. Without a name it gets one by the time."""
    from paywarden.models.rollout.rollout import Start
    from paywarden.models.rollout.shares import SALT_BYTES

    return Start(name or f"r-{time_ms // 1000}", secrets.token_hex(SALT_BYTES), *versions, plan, shadow)


def require_candidate(source: Source, candidate: Version) -> None:
    """Raise Misconfigured if the files of a rollout's candidate are gone or have changed."""
    if has_registry(source):
        found = registry.model_registry(source)
        _require_files(found, found.state(), candidate)
    elif trouble := bundle_trouble(candidate):
        raise Misconfigured(trouble)


def _require_files(found: Registry, state: RegistryState, version: Version) -> None:
    from paywarden.models.registry.artefacts import BUNDLES, POLICIES

    found.store.folder(BUNDLES, version.bundle_digest, state.bundles[version.bundle_digest].files)
    found.store.folder(POLICIES, version.policy_digest, state.policies[version.policy_digest].files)


@contextmanager
def rollout_leader(source: Source, *, look_every_s: float, key: str | None = None) -> Iterator[RolloutLeader]:
    """Yields the leader of the newest rollout, the only one of its log on this host while the context lasts.

    A registry's log is followed meanwhile. Raises Misconfigured, for another leader too, or BrokerUnavailable.
    """
    from prometheus_client import CollectorRegistry

    from paywarden.models.rollout.log import RolloutKeeper, only_leader
    from paywarden.streams.rollouts.leader import RolloutLeader

    with (
        only_leader(_log_path(source)),
        written_rollouts(source, _log.warning, key) as (log, _),
        registry.following_registry(source, CollectorRegistry()),
    ):
        yield RolloutLeader(
            stores.kafka_settings(source),
            stores.schema_ids(source),
            RolloutKeeper(log),
            deployment_writer(source),
            rates=stores.rate_table(source),
            gone=(lambda version: _registered_trouble(source, version)) if has_registry(source) else bundle_trouble,
            look_every_s=look_every_s,
        )


def _registered_trouble(source: Source, version: Version) -> str:
    """Returns the fault of a registered version's files; empty if there is none."""
    found = registry.model_registry(source)
    state = found.state()
    rollout = state.rollout
    if rollout is None or rollout.version.bundle != version.bundle_digest:
        return ""
    try:
        found.files_of(state, rollout.version, any_processor=True)
    except Misconfigured as error:
        return str(error)
    return ""


def bundle_trouble(version: Version) -> str:
    """Returns why the bundle of a version cannot be served any more; empty if it can."""
    from paywarden.models.bundle.bundle import read_manifest

    try:
        digest = read_manifest(Path(version.bundle)).digest
    except Misconfigured as error:
        return str(error)
    if digest != version.bundle_digest:
        return f"bundle {version.bundle} has the digest {digest[:16]}, not {version.bundle_digest[:16]}"
    return ""


def deployment_writer(source: Source) -> Callable[[Orders], None]:
    """Returns a function that makes the `serve` of this host, which shares the settings, serve orders.

    With a registry its log decides, and the orders only say that it has changed. The function raises Misconfigured if a
    policy cannot be found, or the file cannot be written.
    """
    if has_registry(source):
        registered = registry.registered_deployment(source)

        def update(_: Orders) -> None:
            try:
                registered.update()
            except Misconfigured as error:
                _log.error("this host's deployment file is not what its log says: %s", error)

        return update
    from paywarden.schemas.private_files import make_private_folder
    from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, write_deployment

    runtime = Path(source.section("serve", ServeSettings).runtime)

    def write(orders: Orders) -> None:
        try:
            make_private_folder(runtime)
        except OSError as error:
            raise Misconfigured(f"[serve] runtime: cannot make {runtime}: {error.strerror}") from error
        deployment = Deployment(
            active=_paths(source, orders.champion),
            candidate=None if orders.candidate is None else _paths(source, orders.candidate),
            rollout=orders.rollout if orders.candidate is not None else "",
            share=orders.share,
            salt=orders.salt if orders.candidate is not None else "",
        )
        write_deployment(runtime / DEPLOYMENT, deployment)

    return write


def deploy_here(source: Source, rollout: Rollout) -> bool:
    """Make the `serve` of this host act on the rollout's state now, if the host takes part in the rollout.

    No leader and no Kafka is needed. Returns whether the host takes part. Raises Misconfigured. With a registry
    there is nothing left to do: `written_rollouts` has done it.
    """
    if has_registry(source):
        return True
    from paywarden.models.rollout.rollout import orders_of
    from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, read_deployment

    deployed = read_deployment(Path(source.section("serve", ServeSettings).runtime) / DEPLOYMENT)
    if deployed is None or deployed.rollout != rollout.start.name:
        return False
    deployment_writer(source)(orders_of(rollout))
    return True


def _paths(source: Source, version: Version) -> ReleasePaths:
    from paywarden.scoring.server.deployment.deployment_file import ReleasePaths

    policy = _policy_file(source, version.policy_digest)
    return ReleasePaths(str(Path(version.bundle).absolute()), policy, version.bundle_digest, version.policy_digest)


def _policy_file(source: Source, digest: str) -> str:
    """Returns the registry's file of a policy; empty for the policy of the configuration."""
    from paywarden.models.registry.settings import ModelRegistrySettings

    if not digest:
        return ""
    folder = Path(source.section("models", ModelRegistrySettings).folder).absolute()
    path = folder / "policies" / digest / "policy.toml"
    if not path.exists():
        raise Misconfigured(f"there is no policy {digest} in {folder}: register it with `paywarden models register`")
    return str(path)
