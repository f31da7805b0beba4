"""Builds what leads a rollout: the reader of decisions, and the writer of this host's deployment file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.wiring import stores
from paywarden.ops.wiring.scoring import ServeSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.models.rollout.rollout import Orders, Rollout, Version
    from paywarden.scoring.server.deployment import ReleasePaths
    from paywarden.streams.rollouts.leader import RolloutLeader


@contextmanager
def rollout_leader(source: Source, *, look_every_s: float) -> Iterator[RolloutLeader]:
    """Yields the leader of the newest rollout, the only one of its log while the context lasts.

    Raises Misconfigured, for another leader too, or BrokerUnavailable.
    """
    from paywarden.models.rollout.log import FileRolloutLog, RolloutKeeper
    from paywarden.models.rollout.settings import RolloutSettings
    from paywarden.streams.rollouts.leader import RolloutLeader

    log = FileRolloutLog(Path(source.section("rollout", RolloutSettings).log))
    with log.leading():
        yield RolloutLeader(
            stores.kafka_settings(source),
            stores.schema_ids(source),
            RolloutKeeper(log),
            deployment_writer(source),
            rates=stores.rate_table(source),
            gone=bundle_trouble,
            look_every_s=look_every_s,
        )


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

    It raises Misconfigured if a policy cannot be found, or the file cannot be written.
    """
    from paywarden.schemas.private_files import make_private_folder
    from paywarden.scoring.server.deployment import DEPLOYMENT, Deployment, write_deployment

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

    No leader and no Kafka is needed. Returns whether the host takes part. Raises Misconfigured.
    """
    from paywarden.models.rollout.rollout import orders_of
    from paywarden.scoring.server.deployment import DEPLOYMENT, read_deployment

    deployed = read_deployment(Path(source.section("serve", ServeSettings).runtime) / DEPLOYMENT)
    if deployed is None or deployed.rollout != rollout.start.name:
        return False
    deployment_writer(source)(orders_of(rollout))
    return True


def _paths(source: Source, version: Version) -> ReleasePaths:
    from paywarden.scoring.server.deployment import ReleasePaths

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
