"""Releases: a bundle and a policy that decide together, as files ready for the workers, and in a worker's memory.

    RUNTIME/
      deployment.json    what should be served (deployment_file.py); written by an operator's command
      ready/KEY/         a release that was checked: models/bundle/prepared_bundle.py, models/policy/prepared_policy.py
      orders-PID.json    what the workers of the supervisor PID take up; written by that supervisor

A release's key is made of the digests of its bundle and its policy. Equal keys mean equal decisions, so a folder that
is there is never written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from paywarden.features.catalogue.entity import Catalogue
from paywarden.models.bundle.bundle import Bundle
from paywarden.models.bundle.prepared_bundle import load_prepared, no_rest
from paywarden.models.policy.prepared_policy import PreparedPolicy, SharedList, load_policy
from paywarden.models.rollout.shares import BASIS_POINTS
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.scoring.engine.records import Origin
from paywarden.scoring.metrics.release import ShownRelease
from paywarden.scoring.server.deployment.deployment_file import Deployment, ReleasePaths, release_key

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class ReleaseSource(Protocol):
    """Finds and checks the releases to serve. Every method reads the configuration anew."""

    config: Path
    """The configuration file, whether it exists or not."""

    def wanted(self) -> Deployment:
        """Returns the deployment of the configuration, without a deployment file. Raises Misconfigured."""

    def refusal_of(self, deployment: Deployment) -> str:
        """Returns why the registry does not allow a deployment file; empty if it does, or there is none.

        Raises Misconfigured if its log cannot be read.
        """

    def load(self, paths: ReleasePaths) -> Release:
        """Load a release in this process. Raises Misconfigured, BundleRefused."""

    def files_of(self, paths: ReleasePaths) -> list[Path]:
        """Returns the files on which a release's key depends. Raises Misconfigured."""

    def prepare(self, paths: ReleasePaths, ready: Path) -> str:
        """Check a release and write it below `ready`, unless it is there. Returns its key.

        It loads the bundle's native code, so it runs in a process of its own. Raises Misconfigured, BundleRefused,
        OSError.
        """


@dataclass(frozen=True)
class ReleaseOrders:
    """The keys of the releases that workers load. A higher generation replaces a lower one.

    `lists`: where the long lists of their policies are, by digest (scoring/server/deployment/shared_lists.py).
    """

    generation: int
    active: str
    previous: str = ""
    candidate: str = ""
    rollout: str = ""
    share: int = 0
    salt: str = ""
    lists: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def keys(self) -> list[str]:
        """The keys of all releases that stay in memory, each once."""
        return [key for key in dict.fromkeys((self.active, self.previous, self.candidate)) if key]

    def role_of(self, key: str) -> str:
        """Returns the first role that a release has."""
        return next(role for role in ("active", "previous", "candidate") if getattr(self, role) == key)


@dataclass(frozen=True)
class Release:
    """A release in memory. `bundles`: those of the chain, the primary one first."""

    key: str
    bundles: Sequence[Bundle]
    policy: PreparedPolicy
    origins: tuple[Origin, ...]

    def origins_in(self, rollout: str, arm: str, share: int) -> tuple[Origin, ...]:
        """Returns its origins as an arm of a rollout that has `share` basis points of the cards; "" is no rollout."""
        if not rollout:
            return self.origins
        return tuple(
            replace(origin, rollout=rollout, arm=arm, propensity=share / BASIS_POINTS) for origin in self.origins
        )

    @property
    def model_version(self) -> str:
        return self.bundles[0].manifest.model_version

    def shown(self, role: str) -> ShownRelease:
        """Returns the release as the metrics show it."""
        origin = self.origins[0]
        return ShownRelease(role, origin.bundle_digest, origin.policy_digest, self.model_version)


def release_of(bundles: Sequence[Bundle], digests: Sequence[str], policy: PreparedPolicy) -> Release:
    """Returns a release of bundles with these digests. The bundles behind the first one are fallbacks."""
    origins = tuple(Origin(digest, policy.digest) for digest in (*digests, ""))
    return Release(release_key(digests[0], policy.digest), bundles, policy, origins)


def load_release(
    key: str,
    ready: Path,
    catalogue: Catalogue,
    *,
    fallbacks: Sequence[Bundle],
    fallback_digests: Sequence[str],
    earlier: PreparedPolicy,
    rest: Callable[[], object] = no_rest,
    shared: SharedList = lambda _: None,
) -> Release:
    """Load a prepared release: a few milliseconds, in steps of some tenths of one. `rest` is called between two steps.

    `shared` gives the long lists that processes of this host share. Raises BundleRefused, Misconfigured.
    """
    prepared = load_prepared(ready / key, rest)
    policy = load_policy(ready / key, catalogue, earlier, rest, shared)
    return release_of((prepared.bundle, *fallbacks), (prepared.digest, *fallback_digests), policy)


def orders_path(runtime: Path, supervisor: int) -> Path:
    """Returns the file of a supervisor's orders."""
    return runtime / f"orders-{supervisor}.json"


def read_orders(path: Path) -> ReleaseOrders:
    """Returns the orders. Raises Misconfigured if the file is gone or damaged."""
    try:
        content: dict[str, Any] = json.loads(read_regular(path))
        orders = ReleaseOrders(**content)
        texts = (orders.active, orders.previous, orders.candidate, orders.rollout, orders.salt)
        numbers = (orders.generation, orders.share, *orders.lists.values())
        is_right = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Misconfigured(f"{path} cannot be read: {error}") from error
    if not is_right:
        raise Misconfigured(f"{path} cannot be read: a field has another type")
    return orders


def write_orders(path: Path, orders: ReleaseOrders) -> None:
    """Replace the file in one step. Raises OSError."""
    unfinished = path.with_suffix(".unfinished")
    # An earlier write may have left anything there.
    unfinished.unlink(missing_ok=True)
    # Private from the start. To take permissions away later changes the file, as if somebody had damaged it.
    with open(os.open(unfinished, _NEW, 0o600), "w", encoding="utf-8") as file:
        json.dump(asdict(orders), file)
    os.replace(unfinished, path)
