"""The document of a model: one Markdown file with the known facts about a version, for those who have to judge it.

Everything in it comes from the bundle's manifest, the policy's file and the log. The person who proposes a bundle
wrote its manifest: no text of it becomes a line, a heading or a tag of the document. The same three give the same
bytes: no clock is read, and the document shows the state after the last entry of the log.

The sections follow what model risk guidance asks a bank to have on paper (SR 26-2 of the Federal Reserve, OCC
Bulletin 2026-13): purpose, data, method, performance, calibration, limits, changes and who approved them. The document
is material for that judgement. It says nothing about a bank's own thresholds and reviews.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isnan
from typing import Any

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
        parts = (
            self._identity(),
            self._purpose(),
            self._data(),
            self._method(),
            self._performance(),
            self._calibration(),
            self._features(),
            self._policy(),
            self._limits(),
            self._approvals(),
            self._overrides(),
            self._evidence(),
        )
        return "\n".join(line for part in parts for line in part)

    def _identity(self) -> Iterator[str]:
        yield f"# Model {_cell(self.manifest.model_version)}\n"
        yield from _table(
            ("", ""),
            [
                ("version", f"`{self.version.digest}`"),
                ("bundle", f"`{self.version.bundle}`"),
                ("policy", f"`{self.version.policy}`"),
                ("feature catalogue", f"`{self.version.catalogue}`"),
                ("status", self._status()),
                ("registry", f"{self.rules.name}, head `{self.state.head}`"),
            ],
        )

    def _status(self) -> str:
        if self.state.champion == self.version:
            since = [decided.time_ms for decided in self.state.history if decided.version == self.version]
            return f"champion since {_time(since[-1])}"
        if self.version in self.state.way_back:
            return "the way back: it was champion, and a rollback may lead to it"
        if any(proposal.version == self.version for proposal in self.state.proposals.values()):
            return "proposed"
        return "it does not decide"

    def _purpose(self) -> Iterator[str]:
        yield "\n## Purpose\n"
        yield (
            "The model gives each payment a probability of fraud, at the moment of authorisation. The policy turns it "
            "into approve, review or decline. Features are computed from what was known before the payment."
        )

    def _data(self) -> Iterator[str]:
        manifest = self.manifest
        share = manifest.training_frauds / manifest.training_payments if manifest.training_payments else 0.0
        labels = manifest.evidence.get("labels") or {}
        counts, delay = labels.get("counts") or {}, labels.get("fraud_delay") or {}
        rows = [
            ("training window", _cell(f"{manifest.train_from} to {manifest.train_to}, both included")),
            ("payments", f"{manifest.training_payments}"),
            ("frauds", f"{manifest.training_frauds} ({share:.3%})"),
            *((_cell(f"labels: {name.replace('_', ' ')}"), _cell(f"{value}")) for name, value in counts.items()),
            *(
                (_cell(f"frauds known after: {name}"), _plain(value))
                for name, value in delay.items()
                if name != "frauds"
            ),
            ("label delay in training", _cell(f"{manifest.parameters.get('label_delay_days', 'not known')} days")),
            ("payments without a label", _cell(f"{manifest.parameters.get('unknown_labels', 'not known')}")),
        ]
        yield "\n## Data\n"
        yield from _table(("", ""), rows)

    def _method(self) -> Iterator[str]:
        manifest = self.manifest
        cascade = (
            "a small model answers clear payments first (cascade)" if manifest.cascade else "one model, no cascade"
        )
        yield "\n## Method\n"
        yield f"Gradient boosted trees (LightGBM), calibrated by Platt scaling; {cascade}.\n"
        rows = [(_cell(name), _plain(value)) for name, value in _sorted(manifest.parameters)]
        yield from _table(("setting", "value"), rows)
        left_out = manifest.validation.get("left_out")
        tried = manifest.validation.get("tried") or []
        yield (
            f"\nThe number of trees and the settings were not validated: {_cell(str(left_out))}."
            if left_out
            else f"\nThe settings were chosen of {len(tried)} on later days than each was trained on."
        )

    def _performance(self) -> Iterator[str]:
        frauds = self.manifest.training_frauds
        genuine = self.manifest.training_payments - frauds
        yield "\n## Performance\n"
        yield (
            "From the out-of-fold scores of the training window, with 95 % intervals. They take payments as "
            "independent; frauds of one card come together, so the true intervals are a little wider.\n"
        )
        rows = []
        for name, value in _sorted(self.manifest.metrics):
            interval = ""
            if name == "auc_roc":
                # Without the interval of these scores, that of areas of this size in general, which is wider.
                stored = self.manifest.evidence.get("auc_roc_interval")
                if frauds and genuine:
                    interval = _interval(tuple(stored) if stored else auc_interval(value, frauds, genuine))
            elif name == "average_precision":
                interval = _interval(average_precision_interval(value, frauds))
            rows.append((_cell(name.replace("_", " ")), _plain(value), interval))
        yield from _table(("measure", "value", "95 % interval"), rows)
        folds = [
            (
                _plain(days["test_from"]),
                _plain(days["test_to"]),
                *(_plain(fold[name]) for name in ("auc_roc", "average_precision")),
            )
            for days, fold in zip(self.manifest.validation.get("days") or [], self._chosen_folds(), strict=False)
        ]
        if folds:
            yield "\nOn days after those that the model of the fold was trained on:\n"
            yield from _table(("from", "to", "auc roc", "average precision"), folds)

    def _chosen_folds(self) -> Sequence[Mapping[str, Any]]:
        tried = self.manifest.validation.get("tried") or []
        folds: Sequence[Mapping[str, Any]] = tried[self.manifest.validation["chosen"]]["folds"] if tried else []
        return folds

    def _calibration(self) -> Iterator[str]:
        yield "\n## Calibration\n"
        yield "Out-of-fold scores in bins of equal size, and the share of frauds in each.\n"
        rows = [
            (
                f"{one['mean_score']:.6f}",
                f"{one['observed_rate']:.6f}",
                _interval(wilson_interval(one["observed_rate"], one["count"])) if one["count"] else "",
                f"{int(one['count'])}",
            )
            for one in self.manifest.reliability
        ]
        yield from _table(("mean score", "frauds", "95 % interval", "payments"), rows)
        promise = self.manifest.evidence.get("promise") or {}
        if promise.get("high"):
            yield (
                f"\nFrom {_cell(str(promise['first_day']))} to {_cell(str(promise['last_day']))} the fraud rate will "
                f"be {promise['low']:.2f} to {promise['high']:.2f} times the mean score (95 % interval)."
            )

    def _features(self) -> Iterator[str]:
        used = [row for row in self.manifest.most_important(len(self.manifest.feature_names)) if row[2]]
        yield "\n## Features\n"
        yield (
            f"{len(used)} of the {len(self.manifest.feature_names)} features of the catalogue are used. Gain is how "
            "much the splits by a feature reduce the loss.\n"
        )
        rows = [
            (_code(name), _plain(gain), f"{splits}", _cell(self.meanings.get(name, ""))) for name, gain, splits in used
        ]
        yield from _table(("feature", "gain", "splits", "meaning"), rows)

    def _policy(self) -> Iterator[str]:
        policy, manifest = self.policy, self.manifest
        yield "\n## Policy\n"
        review_at, decline_at = policy.review_at or manifest.review_at, policy.decline_at or manifest.decline_at
        rows = [
            (
                segment.name,
                _code(segment.when),
                _plain(segment.review_at or review_at),
                _plain(segment.decline_at or decline_at),
            )
            for segment in policy.segments
        ]
        rows.append(("all others", "", _plain(review_at), _plain(decline_at)))
        yield from _table(("segment", "when", "review at", "decline at"), rows)
        if policy.rules:
            yield ""
            rules = [
                (rule.name, _code(rule.when), rule.action, "decides alone" if rule.override else "at least", rule.until)
                for rule in policy.rules
            ]
            yield from _table(("rule", "when", "action", "", "until"), rules)
        yield ""
        flags = [(flag, getattr(policy, f"on_{flag}")) for flag in (*FLAGS, unknown_flag("other"))]
        yield from _table(("flag", "asks for"), [row for row in flags if row[1] != "approve"])
        if self.list_sizes:
            yield ""
            yield from _table(
                ("list", "entries"), [(_cell(name), f"{size}") for name, size in _sorted(self.list_sizes)]
            )

    def _limits(self) -> Iterator[str]:
        yield "\n## Limits\n"
        yield from (f"- {limit}" for limit in self._known_limits())

    def _known_limits(self) -> Iterator[str]:
        manifest, evidence = self.manifest, self.manifest.evidence
        yield (
            "Payments that were declined get no label. A new model learns only from the payments that the last one let "
            "through."
        )
        if manifest.training_frauds < FRAUDS_FEW:
            yield f"It was trained on {manifest.training_frauds} frauds: its figures say little."
        if not evidence:
            yield "The bundle does not say how far scores are off on later days."
            return
        promise = evidence.get("promise") or {}
        if promise.get("not_promised"):
            yield f"Nothing is promised about scores on later days: {_cell(str(promise['not_promised']))}."
        drifting = evidence.get("drifting") or []
        left_out = set(manifest.parameters.get("leave_out") or [])
        for one in drifting[:_FEATURES_SHOWN]:
            told = ", and is left out" if one["name"] in left_out else ""
            yield (
                f"{_code(str(one['name']))} leaves its training range in {one['outside']:.1%} of the newest payments; "
                f"it is missing in {one['missing_later']:.1%}, before in {one['missing_earlier']:.1%}{told}."
            )
        if len(drifting) > _FEATURES_SHOWN:
            yield f"{len(drifting) - _FEATURES_SHOWN} further features drift; the manifest has them."
        taken = ((evidence.get("labels") or {}).get("counts") or {}).get("taken_for_genuine")
        if taken:
            yield f"{taken} payments without an outcome were taken for genuine."

    def _approvals(self) -> Iterator[str]:
        wanted = self.rules.approvals
        yield "\n## Changes and approvals\n"
        yield (
            f"A promotion needs the approval of {wanted} besides the proposer. Entries of the log about this version:\n"
            if wanted
            else "No approval is asked for before a promotion. Entries of the log about this version:\n"
        )
        ignored = {one.number: one.reason for one in self.state.ignored}
        rows = [
            (
                _time(entry.time_ms),
                _cell(entry.by),
                entry.kind.replace("_", " "),
                _cell(entry.why),
                _cell(f"counts for nothing: {ignored[number]}" if number in ignored else ""),
                f"`{entry.digest[:12]}`",
            )
            for number, entry in enumerate(self.log.entries, 1)
            if entry.digest in self._about
        ]
        yield from _table(("time (UTC)", "by", "what", "why", "note", "entry"), rows)

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

    def _overrides(self) -> Iterator[str]:
        yield "\n## Overrides\n"
        yield "Rules that decide in place of the score, thresholds of the policy's own, and rollbacks by one person.\n"
        found = list(self._known_overrides())
        yield from (f"- {line}" for line in found or ["None."])

    def _known_overrides(self) -> Iterator[str]:
        for rule in self.policy.rules:
            if rule.override:
                yield f"The rule `{rule.name}` decides alone: {rule.action} when {_code(rule.when)}."
        for name, own, usual in (
            ("review_at", self.policy.review_at, self.manifest.review_at),
            ("decline_at", self.policy.decline_at, self.manifest.decline_at),
        ):
            if own and own != usual:
                yield f"The policy sets `{name}` to {_plain(own)}, the bundle's is {_plain(usual)}."
        about = self._about
        ignored = {one.number for one in self.state.ignored}
        for number, entry in enumerate(self.log.entries, 1):
            if entry.kind == kinds.ROLLED_BACK and entry.digest in about and number not in ignored:
                bad = "this version" if entry.text("from") == self.version.digest else _code(entry.text("from")[:12])
                yield f"{_time(entry.time_ms)} UTC: {_cell(entry.by)} rolled {bad} back alone: {_cell(entry.why)}."

    def _evidence(self) -> Iterator[str]:
        yield "\n## Files\n"
        bundle = self.state.bundles[self.version.bundle]
        policy = self.state.policies[self.version.policy]
        rows = [(_code(name), f"`{checksum}`") for part in (bundle, policy) for name, checksum in _sorted(part.files)]
        yield from _table(("file", "sha256"), rows)
        yield ""


def _proposes(entry: Entry, version: Version) -> bool:
    return entry.kind == kinds.PROPOSED and version == Version(entry.text("bundle"), entry.text("policy"))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _sorted(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(table.items())


def _interval(interval: Interval) -> str:
    low, high = interval
    return "" if isnan(low) else f"{low:.4f} to {high:.4f}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return _cell(value if isinstance(value, str) else json.dumps(value, sort_keys=True))


def _cell(text: str) -> str:
    """Returns a text that Markdown and HTML take as it is."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("\n", " ")):
        text = text.replace(character, entity)
    return text


def _code(text: str) -> str:
    """Returns a condition or a name as code in a table. A backtick or line end cannot be part of one."""
    return f"`{' '.join(text.replace('`', ' ').replace('|', chr(92) + '|').split())}`"


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
