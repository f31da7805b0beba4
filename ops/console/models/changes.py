"""The changes of a proposed version: the lines of its policy against the champion's, and its model's training data.

A person who approves a version by its digests alone approves unread rules. The page shows only how many
entries of a list come and go: entries may be ids of cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import unified_diff
from functools import lru_cache
from pathlib import Path
from typing import Literal

from paywarden.models.bundle.bundle import Manifest, read_manifest
from paywarden.models.bundle.version import Version
from paywarden.models.policy.lists import read_lists
from paywarden.models.policy.policy import PolicySettings
from paywarden.models.policy.text import policy_text
from paywarden.models.registry.artefacts import BUNDLES, POLICIES, POLICY_FILE
from paywarden.models.registry.registry import Registry
from paywarden.models.registry.registry_rules import RegistryState
from paywarden.schemas.errors import PaywardenError
from paywarden.schemas.settings import read_source

# Lines around a change, and at most in all.
_AROUND, _LINES_MAX = 2, 200
_LINE_CHARS_MAX = 300


@dataclass(frozen=True)
class PolicyLine:
    """A line of a policy. `kind`: it is in the champion's alone, in the proposed one alone, or in both."""

    kind: Literal["gone", "new", "same"]
    text: str


@dataclass(frozen=True)
class ModelFacts:
    """A model's training data, and its quality out of fold."""

    name: str
    train_from: str
    train_to: str
    payments: int
    frauds: int
    average_precision: float | None


@dataclass(frozen=True)
class Changes:
    """The changes of a version against the champion. `trouble`: why they are not known; empty if they are."""

    policy: tuple[PolicyLine, ...] = ()
    model: ModelFacts | None = None
    model_now: ModelFacts | None = None
    trouble: str = ""


@dataclass(frozen=True)
class _Policy:
    """The lines of a policy without its lists, and these."""

    lines: tuple[str, ...]
    lists: Mapping[str, frozenset[str]]


def changes_of(registry: Registry, state: RegistryState, version: Version) -> Changes:
    """Return the changes of a version against the champion; for the first version, its whole content."""
    champion = state.champion
    try:
        policy = _policy(registry, state, version.policy)
        now = _Policy((), {}) if champion is None else _policy(registry, state, champion.policy)
        same_model = champion is not None and champion.bundle == version.bundle
        model = None if same_model else _model(registry, state, version.bundle)
        model_now = None if same_model or champion is None else _model(registry, state, champion.bundle)
    except (PaywardenError, OSError) as error:
        return Changes(trouble=str(error))
    lines = [*_diff(now.lines, policy.lines), *_lists(now.lists, policy.lists)]
    return Changes(tuple(lines[:_LINES_MAX]), model, model_now)


def _diff(before: tuple[str, ...], after: tuple[str, ...]) -> list[PolicyLine]:
    found = []
    for line in unified_diff(before, after, n=_AROUND, lineterm=""):
        if not line.startswith(("---", "+++")):
            kind: Literal["gone", "new", "same"] = "gone" if line[0] == "-" else "new" if line[0] == "+" else "same"
            found.append(PolicyLine(kind, "…" if line.startswith("@@") else line[1:_LINE_CHARS_MAX]))
    return found[1:]


def _lists(before: Mapping[str, frozenset[str]], after: Mapping[str, frozenset[str]]) -> list[PolicyLine]:
    found = []
    for name in sorted(before.keys() | after.keys()):
        gone, new = before.get(name, frozenset()), after.get(name, frozenset())
        if gone - new:
            found.append(PolicyLine("gone", f"list {name}: {len(gone - new):,} entries"))
        if new - gone:
            found.append(PolicyLine("new", f"list {name}: {len(new - gone):,} entries"))
    return found


def _policy(registry: Registry, state: RegistryState, digest: str) -> _Policy:
    return _read_policy(registry.store.folder(POLICIES, digest, state.policies[digest].files) / POLICY_FILE)


# A folder of a registry is named after its digest, and never changes.
@lru_cache(64)
def _read_policy(path: Path) -> _Policy:
    settings = read_source(str(path), {}).section("policy", PolicySettings)
    return _Policy(tuple(policy_text(settings, {}).splitlines()), read_lists(settings.lists))


def _model(registry: Registry, state: RegistryState, digest: str) -> ModelFacts:
    return _read_model(registry.store.folder(BUNDLES, digest, state.bundles[digest].files))


@lru_cache(64)
def _read_model(folder: Path) -> ModelFacts:
    return facts_of(read_manifest(folder))


def facts_of(manifest: Manifest) -> ModelFacts:
    """Return the facts that people ask for first about a model."""
    return ModelFacts(
        manifest.model_version,
        manifest.train_from,
        manifest.train_to,
        manifest.training_payments,
        manifest.training_frauds,
        manifest.metrics.get("average_precision"),
    )
