"""Bundles that consist of a manifest only: a rollout reads nothing else of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from paywarden.models.bundle.bundle import FORMAT, MANIFEST, Manifest
from paywarden.models.bundle.version import Version
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.models.policy.text import policy_text
from paywarden.models.registry.registry import BundleFacts, PolicyFacts


def manifest_in(folder: Path) -> Version:
    """Make a folder with the manifest of a bundle that is named after it, and return its version."""
    manifest = Manifest(
        format=FORMAT, model_version=folder.name, catalogue_digest="1" * 16, feature_names=[], importance_gain=[],
        importance_split=[], train_from="2026-01-01", train_to="2026-02-01", training_payments=1, training_frauds=0,
        parameters={}, validation={}, calibration_slope=1.0, calibration_intercept=0.0, review_at=0.1, decline_at=0.5,
        metrics={}, reliability=[], score_edges=[], score_counts=[], files={},
    )  # fmt: skip
    folder.mkdir()
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Version(manifest.digest, model=folder.name)


def bundle_to_register(folder: Path) -> BundleFacts:
    """Make such a bundle, and return what a registry takes of it: a host would refuse it, but it may be promoted."""
    version = manifest_in(folder)
    files = {MANIFEST: (folder / MANIFEST).read_bytes()}
    return BundleFacts(version.bundle, folder.name, "1" * 16, "", files)


def policy_to_register(decline_at: float, lists: Mapping[str, frozenset[str]] | None = None) -> PolicyFacts:
    """Returns a policy with this threshold and these lists, for a registry."""
    entries = lists or {}
    named = {name: tuple(sorted(of_list)) for name, of_list in entries.items()}
    settings = PolicySettings(review_at=0.1, decline_at=decline_at, lists=named)
    return PolicyFacts(policy_digest(settings, entries), policy_text(settings, entries))
