"""The document of a model: one Markdown file with the known facts about a version, for those who have to judge it.

Everything in it comes from the bundle's manifest, the policy's file and the log. The person who proposes a bundle
wrote its manifest: no text of it becomes a line, a heading or a tag of the document. The same three give the same
bytes: no clock is read, and the document shows the state after the last entry of the log.

The sections follow what model risk guidance asks a bank to have on paper (SR 26-2 of the Federal Reserve, OCC
Bulletin 2026-13): purpose, data, method, performance, calibration, limits, changes and who approved them. The document
is material for that judgement. It says nothing about a bank's own thresholds and reviews.

The words are in document.md.jinja, which escapes each value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from math import isnan
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from paywarden.models.bundle.bundle import Manifest
from paywarden.models.bundle.version import Version
from paywarden.models.metrics.intervals import (
    FRAUDS_FEW,
    Interval,
    auc_interval,
    average_precision_interval,
    wilson_interval,
)
from paywarden.models.policy.policy import FLAGS, PolicySettings, unknown_flag
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.entries import Entry
from paywarden.models.registry.model_log import RegistryLog
from paywarden.models.registry.registry_rules import RegistryState, Rules

# More drifting features than this are counted, and the manifest has them.
_FEATURES_SHOWN = 20


@dataclass(frozen=True)
class Paper:
    """The sources of a document. `meanings`: the meaning of each feature; empty if the catalogue is not at hand.

    `list_sizes`: how many entries each list of the policy has.
    """

    version: Version
    manifest: Manifest
    policy: PolicySettings
    list_sizes: Mapping[str, int]
    log: RegistryLog
    state: RegistryState
    rules: Rules
    meanings: Mapping[str, str]

    def text(self) -> str:
        """Returns the document in Markdown."""
        manifest, evidence = self.manifest, self.manifest.evidence
        ignored = {one.number: one.reason for one in self.state.ignored}
        return _template().render(
            vars(self),
            paper=self,
            validation=manifest.validation,
            labels=evidence.get("labels") or {},
            promise=evidence.get("promise") or {},
            drifting=evidence.get("drifting") or [],
            used=[row for row in manifest.most_important(len(manifest.feature_names)) if row[2]],
            review_at=self.policy.review_at or manifest.review_at,
            decline_at=self.policy.decline_at or manifest.decline_at,
            flags=(*FLAGS, unknown_flag("other")),
            entries=[
                (entry, ignored.get(number, ""))
                for number, entry in enumerate(self.log.entries, 1)
                if entry.digest in self._about
            ],
        )

    @property
    def status(self) -> str:
        """Whether the version decides."""
        if self.state.champion == self.version:
            since = [decided.time_ms for decided in self.state.history if decided.version == self.version]
            return f"champion since {_time(since[-1])}"
        if self.version in self.state.way_back:
            return "the way back: it was champion, and a rollback may lead to it"
        if any(proposal.version == self.version for proposal in self.state.proposals.values()):
            return "proposed"
        return "it does not decide"

    def interval_of(self, name: str, value: float) -> str:
        """Returns the 95 % interval of a measure of the manifest; empty where it has none."""
        frauds = self.manifest.training_frauds
        genuine = self.manifest.training_payments - frauds
        if name == "auc_roc" and frauds and genuine:
            # Without the interval of these scores, that of areas of this size in general, which is wider.
            stored = self.manifest.evidence.get("auc_roc_interval")
            return _interval(tuple(stored) if stored else auc_interval(value, frauds, genuine))
        return _interval(average_precision_interval(value, frauds)) if name == "average_precision" else ""

    def folds(self) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Returns the days and the measures of each fold of the chosen settings."""
        validation = self.manifest.validation
        tried = validation.get("tried") or []
        return zip(validation.get("days") or [], tried[validation["chosen"]]["folds"] if tried else [], strict=False)

    @property
    def _about(self) -> set[str]:
        """The digests of the entries that are about the version or a part of it."""
        mine = {entry.digest for entry in self.log.entries if _proposes(entry, self.version)}
        rollouts = {
            entry.text("rollout")
            for entry in self.log.entries
            if entry.kind == kinds.ROLLOUT_STARTED and entry.text("proposal") in mine
        }
        return mine | {
            entry.digest
            for entry in self.log.entries
            if entry.text("proposal") in mine
            or (entry.kind == kinds.REGISTERED_BUNDLE and entry.text("bundle") == self.version.bundle)
            or (entry.kind == kinds.REGISTERED_POLICY and entry.text("policy") == self.version.policy)
            or (entry.kind == kinds.ROLLED_BACK and self.version.digest in (entry.text("from"), entry.text("to")))
            or (entry.text("rollout") in rollouts and entry.kind.startswith("rollout_"))
        }


def _proposes(entry: Entry, version: Version) -> bool:
    return entry.kind == kinds.PROPOSED and version == Version(entry.text("bundle"), entry.text("policy"))


@cache
def _template() -> Template:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        finalize=_plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(code=_code, time=_time)
    made.globals.update(
        frauds_few=FRAUDS_FEW,
        features_shown=_FEATURES_SHOWN,
        rolled_back=kinds.ROLLED_BACK,
        wilson=lambda share, count: _interval(wilson_interval(share, count)),
    )
    return made.get_template("document.md.jinja")


class _Code(str):
    """A text that is escaped already."""

    __slots__ = ()


def _interval(interval: Interval) -> str:
    low, high = interval
    return "" if isnan(low) else f"{low:.4f} to {high:.4f}"


def _plain(value: Any) -> str:
    """Returns a value as Markdown and HTML take it, on one line."""
    if isinstance(value, _Code):
        return value
    text = f"{value:.6g}" if isinstance(value, float) else value
    text = text if isinstance(text, str) else json.dumps(text, sort_keys=True)
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("\n", " ")):
        text = text.replace(character, entity)
    return text


def _code(text: str) -> _Code:
    """Returns a condition or a name as code in a table. A backtick or line end cannot be part of one."""
    return _Code(f"`{' '.join(text.replace('`', ' ').replace('|', chr(92) + '|').split())}`")


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
