"""Bundles and policies that this host can find by their digests, and decisions that they make again.

decision ──► bundle_digest, policy_digest ──► [serve], its releases, folders of options ──► decide_again ──► equal?
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paywarden.ops import wiring
from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.settings import Source, read_source

if TYPE_CHECKING:
    from paywarden.features.profiles.money import RateTable
    from paywarden.models.bundle.bundle import Bundle
    from paywarden.models.policy.policy import Policy
    from paywarden.ops.recomputation import DecisionResult

WHO = ("rollout", "arm", "propensity", "caller", "variant", "profile_set", "catalogue_digest")
"""Fields of a decision that name the version, the arm and the caller behind it."""
_TOLD = ("decision_id", "decided_time_ms", "model_version", "bundle_digest", "policy_digest", *WHO, "flags")


@dataclass(frozen=True)
class Recomputed:
    """A decision, and the same decision made again. `why`: the part that is not equal, or why it could not be made."""

    decision: Mapping[str, Any]
    stored: DecisionResult
    again: DecisionResult | None
    is_equal: bool
    why: str = ""
    folder: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the form of `decisions explain --json`."""
        told: dict[str, Any] = {name: self.decision[name] for name in _TOLD}
        told |= {"stored": vars(self.stored), "recomputed": None, "equal": self.is_equal, "why": self.why}
        if self.again is None:
            return told
        return told | {"recomputed": vars(self.again), "bundle": str(self.folder or "")}


class KnownDeciders:
    """Bundles and policies that this host can find, by digest."""

    def __init__(self, source: Source, bundles: Path | None, policies: Path | None) -> None:
        from paywarden.ops.wiring import ServeSettings
        from paywarden.scoring.server.deployment.deployment_file import READY

        self._source, self._policies = source, policies
        # A bundle takes a while to load, and is not thread-safe.
        self._bundles: dict[str, tuple[Bundle, Path]] = {}
        self._found_policies: dict[tuple[str, Path | None], Policy] = {}
        self._lock = threading.RLock()
        settings = source.section("serve", ServeSettings)
        self._ready = Path(settings.runtime) / READY
        self._served = [Path(settings.bundle), *map(Path, filter(None, [settings.fallback_bundle]))]
        self._more = bundles

    @cached_property
    def rates(self) -> RateTable:
        """The exchange rates of the settings."""
        return wiring.rate_table(self._source)

    def recomputed(self, decision: Mapping[str, Any]) -> Recomputed:
        """Decides again about a decision in the form of its topic. One thread at a time; others wait."""
        from paywarden.ops.recomputation import decide_again, outcome_of

        stored = outcome_of(decision)
        try:
            with self._lock:
                bundle, policy, folder = self.of(decision)
                again = decide_again(decision, bundle, policy, self.rates)
        except PaywardenError as error:
            return Recomputed(decision, stored, None, is_equal=False, why=str(error))
        if stored.is_equal(again):
            return Recomputed(decision, stored, again, is_equal=True, folder=folder)
        differ = [name for name in ("score", "action", "reasons") if getattr(stored, name) != getattr(again, name)]
        why = f"not the same: {', '.join(differ) or 'the last bits of the score'}"
        return Recomputed(decision, stored, again, is_equal=False, why=why, folder=folder)

    def of(self, decision: Mapping[str, Any]) -> tuple[Bundle | None, Policy, Path | None]:
        """Returns the bundle that decided, None if no model gave a score, the policy, and the bundle's folder.

        Raises Misconfigured for a bundle or policy that this host does not find, BundleRefused.
        """
        if not decision["policy_digest"]:
            raise Misconfigured("the decision names no policy")
        digest = decision["bundle_digest"]
        bundle, folder = self.bundle(digest, decision["catalogue_digest"]) if digest else (None, None)
        return bundle, self.policy(decision["policy_digest"], folder), folder

    @property
    def lock(self) -> threading.RLock:
        """The lock that a caller holds while it scores with a bundle from here."""
        return self._lock

    def bundle(self, digest: str, catalogue_digest: str) -> tuple[Bundle, Path]:
        """Returns the bundle of a manifest's digest, and its folder. Raises Misconfigured, BundleRefused."""
        with self._lock:
            if digest not in self._bundles:
                self._bundles[digest] = self._find_bundle(digest, catalogue_digest)
            return self._bundles[digest]

    def _find_bundle(self, digest: str, catalogue_digest: str) -> tuple[Bundle, Path]:
        from paywarden.models.bundle.bundle import load_bundle, read_manifest

        for folder in self._folders():
            try:
                if read_manifest(folder).digest != digest:
                    continue
            except PaywardenError:
                continue
            return load_bundle(folder, catalogue_digest=catalogue_digest), folder
        raise Misconfigured(f"there is no bundle of digest {digest}: name a folder that holds it with --bundles")

    def _folders(self) -> list[Path]:
        """Returns where bundles may be now: a host that runs gets new ones."""
        released = [folder / "bundle" for folder in _inside(self._ready)]
        return [*self._served, *released, *(_inside(self._more) if self._more is not None else [])]

    def policy(self, digest: str, bundle: Path | None) -> Policy:
        """Returns the policy of a digest, with the thresholds of the bundle. Raises Misconfigured."""
        with self._lock:
            if (digest, bundle) not in self._found_policies:
                self._found_policies[digest, bundle] = self._find_policy(digest, bundle)
            return self._found_policies[digest, bundle]

    def _find_policy(self, digest: str, bundle: Path | None) -> Policy:
        from paywarden.models.bundle.bundle import read_manifest
        from paywarden.models.policy.prepared_policy import load_policy

        thresholds = (0.5, 0.5) if bundle is None else _thresholds(read_manifest(bundle))
        for source in self._policy_sources():
            try:
                policy = wiring.policy(
                    source,
                    review_at=thresholds[0],
                    decline_at=thresholds[1],
                    catalogue=wiring.catalogue(self._source),
                )
            except PaywardenError:
                continue
            if policy.digest == digest:
                return policy
        for folder in _inside(self._ready):
            try:
                prepared = load_policy(folder, wiring.catalogue(self._source))
            except PaywardenError:
                continue
            if prepared.digest == digest and (bundle is None or _is_of(prepared.policy, thresholds)):
                return prepared.policy
        raise Misconfigured(f"there is no policy of digest {digest}: name a folder that holds it with --policies")

    def _policy_sources(self) -> Iterable[Source]:
        yield self._source
        if self._policies is not None:
            for path in sorted(self._policies.glob("**/*.toml")):
                yield read_source(str(path), {}, check_sections=False)


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        # There is none, or it was taken away meanwhile.
        return []


def _thresholds(manifest: Any) -> tuple[float, float]:
    return manifest.review_at, manifest.decline_at


def _is_of(policy: Policy, thresholds: tuple[float, float]) -> bool:
    """Whether a policy, whose settings may leave thresholds to the bundle, has those of this bundle."""
    own = (policy.settings.review_at or thresholds[0], policy.settings.decline_at or thresholds[1])
    return own == policy.thresholds
