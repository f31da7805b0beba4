"""Watch whether the decisions of one version and variant have become worse: precision, recall and average precision.

1. The reference of each share is its value in the first `reference_days` days of mature labels, or in as many days as
   it takes to have `reference_frauds_min` frauds (for precision: flagged payments). Later days are expected to be at
   the lower end of its 95 % interval, so luck in the reference does not look like a drop later.
2. Later days are evaluated as they mature. With fewer than `frauds_min` frauds they are taken together with the days
   that follow.
3. Each evaluation is a block of models/drift/signals.py. The drift detectors and alerts do the rest
   (streams/alerts/alert_watch.py), and look for falls alone. They have one cause: at most one alert is open.
"""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from paywarden.models.drift.binning import OVERALL
from paywarden.models.drift.detectors import DetectorSettings
from paywarden.models.drift.signals import Block, Signal
from paywarden.models.metrics.outcome_measures import SHARES, shares_of
from paywarden.models.metrics.outcome_tally import OutcomeTally, total
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.alerts.alert_watch import DriftWatch
from paywarden.streams.alerts.alerts import Alert, AlertSettings
from paywarden.streams.alerts.causes import OUTCOME_PREFIX
from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
from paywarden.streams.outcomes.payments import DAY_MS, Arm

_log = logging.getLogger(__name__)

# Days with few frauds are taken together, at most over the 28 days of tallies a step gets. Without anything to count
# for longer than that, an alert is over.
_GONE_AFTER_MS = 28 * DAY_MS


@dataclass(frozen=True)
class ShareReference:
    """A share in the reference days, the lower end of its interval, and the number it is a share of."""

    value: float
    low: float
    whole: int


class OutcomeWatch:
    """Watches one version and variant. Days come in order, each once. Not thread-safe."""

    def __init__(self, arm: Arm, first_day: int, settings: OutcomeSettings) -> None:
        self.arm, self._settings = arm, settings
        self.first_day = first_day
        self.references: dict[str, ShareReference] = {}
        # The first day that is not evaluated yet, by the name of a share.
        self._since: dict[str, int] = {}
        segment = f"variant={arm.variant}" if arm.variant else OVERALL
        self._signals = tuple(Signal(f"{OUTCOME_PREFIX}{name}", "share", segment) for name in SHARES)
        self._watch = self._new_watch()

    @property
    def open_alerts(self) -> list[Alert]:
        return self._watch.open_alerts

    def reference_count(self, alert: Alert) -> int:
        """Return the number of payments in the reference of the share an alert is named after."""
        reference = self.references.get(alert.subject.removeprefix(OUTCOME_PREFIX))
        return 0 if reference is None else reference.whole

    def step(self, day: int, tallies: Mapping[int, OutcomeTally]) -> list[Alert]:
        """Evaluate a day that has matured; return the alerts that were raised, escalated or cleared.

        `tallies`: tallies by day for the four weeks that end with it. Days without payments are left out.
        """
        observed = [self._seen(name, day, tallies) for name in SHARES]
        value, expected, deviation, effect = np.array([columns[:4] for columns in observed], dtype=np.float64).T
        return self._watch.step(
            Block(
                start_ms=day * DAY_MS,
                length_ms=DAY_MS,
                signals=self._signals,
                value=value,
                expected=expected,
                sd=deviation,
                count=np.array([columns[4] for columns in observed], dtype=np.int64),
                effect=effect,
            )
        )

    def close(self, day: int) -> list[Alert]:
        """Clear the open alerts because this version and variant is no longer watched; return them."""
        return self._watch.book.close((day + 1) * DAY_MS)

    def to_dict(self) -> dict[str, Any]:
        """Return the watch for JSON and `from_dict`."""
        return {
            "version": self.arm.version,
            "variant": self.arm.variant,
            "first_day": self.first_day,
            "references": {name: astuple(reference) for name, reference in self.references.items()},
            "since": self._since,
            "watch": base64.b64encode(self._watch.to_bytes()).decode(),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], settings: OutcomeSettings) -> OutcomeWatch:
        """Return the watch that `to_dict` was called on. A damaged state of the detectors starts again."""
        watch = cls(Arm(fields["version"], fields["variant"]), fields["first_day"], settings)
        watch.references = {name: ShareReference(*values) for name, values in fields["references"].items()}
        watch._since = dict(fields["since"])
        try:
            watch._watch.restore(base64.b64decode(fields["watch"]))
        except InvalidEvent as error:
            _log.warning("watching the outcomes of model %s starts again: %s", watch.arm.version, error)
            watch._watch = watch._new_watch()
        return watch

    def _new_watch(self) -> DriftWatch:
        settings = self._settings
        detectors = DetectorSettings(
            false_alarm_days=settings.false_alarm_days,
            payments_min=settings.frauds_min,
            share_change_min=settings.drop_min,
        )
        alerts = AlertSettings(share_change_warning=settings.drop_warning, share_change_critical=settings.drop_critical)
        return DriftWatch(
            self.arm.version, self._signals, detectors, alerts, falls_only=True, gone_after_ms=_GONE_AFTER_MS
        )

    def _seen(self, name: str, day: int, tallies: Mapping[int, OutcomeTally]) -> tuple[float, float, float, float, int]:
        """Return a share's value, expected value, standard deviation, effect and count; NaN and count 0 if too few."""
        nothing = math.nan, math.nan, math.nan, math.nan, 0
        reference = self.references.get(name)
        if reference is None:
            self._learn(name, day, tallies)
            return nothing
        share = shares_of(_span(tallies, self._since[name], day))[name]
        if share.value is None or share.whole < self._settings.frauds_min or reference.low <= 0:
            return nothing
        self._since[name] = day + 1
        deviation = math.sqrt(reference.low * (1 - reference.low) / share.whole)
        effect = abs(share.value - reference.low) / reference.low
        return share.value, reference.low, deviation, effect, share.whole

    def _learn(self, name: str, day: int, tallies: Mapping[int, OutcomeTally]) -> None:
        """Take all days so far as the reference, once they are enough."""
        if day - self.first_day + 1 < self._settings.reference_days:
            return
        share = shares_of(_span(tallies, self.first_day, day))[name]
        if share.value is None or share.low is None or share.whole < self._settings.reference_frauds_min:
            return
        self.references[name] = ShareReference(share.value, share.low, share.whole)
        self._since[name] = day + 1


def _span(tallies: Mapping[int, OutcomeTally], first_day: int, last_day: int) -> OutcomeTally:
    """Return the sum of the tallies from `first_day` to `last_day`."""
    return total(tally for day, tally in tallies.items() if first_day <= day <= last_day)
