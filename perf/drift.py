"""How rarely drift detection gives a false alarm, how soon it finds a change, and whether it names the cause.

Measured, on a seeded stream of decisions (perf/worlds/drift_world.py): without a change the alerts a month, compared
with the setting; with each of five changes the minutes until the first alert, and whether the alert names the change.
Used for: whether an analyst can trust an alert.

With `--tools` the same is measured for the defaults of Evidently and NannyML, on the same decisions in blocks of an
hour, each in an environment of its own in .perf/.

    python -m perf.drift [--days N] [--cards N] [--tools] [--json FILE]

Most of the time is evaluation, which costs the same however many cards there are: with --cards 1500 --days 60 the
program takes less than four minutes of CPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from paywarden.models.drift.counts import DecisionRows, count_rows
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS, LENGTHS_MS, DetectorSettings
from paywarden.models.drift.reference import load_reference
from paywarden.streams.alerts.alerts import Alert, AlertSettings, State
from paywarden.streams.drift.backtest import PastHours, VirtualDetection
from perf.peers.drift_tools import TOOLS, Tool, tool
from perf.tools.measuring import arguments_of, finish
from perf.worlds.drift_world import (
    Change,
    Decisions,
    DriftWorld,
    changed_from,
    feature_at_default,
    fraud_moved,
    profiles_stale,
    scores_rescaled,
    simulated_world,
    traffic_doubled,
)

FIVE_MS = LENGTHS_MS[0]
_MONTH_DAYS = 30.0
# Days of a stream before its change, in which sums and averages fill, and after it.
_BEFORE_DAYS, _AFTER_DAYS = 2, 3
# Changes begin at an odd moment, in the afternoon.
_AT_MS = 14 * HOUR_MS + 23 * 60_000
# Days of the other tools' reference.
_TOOLS_DAYS = 28
# Evidently takes seconds for an hour of decisions. False alarms are therefore counted on this many days after the
# reference, and a change is looked for in this many hours after it.
_TOOLS_WATCHED_DAYS = 3
_TOOLS_HOURS = 12

FEATURE = "card_amount_mean_30d"
CHANGES: Mapping[str, tuple[Change, Callable[[Alert], bool]]] = {
    "scores_rescaled": (scores_rescaled, lambda alert: alert.subject in ("score", "action")),
    "feature_at_default": (feature_at_default(FEATURE), lambda alert: alert.subject == f"feature:{FEATURE}"),
    "traffic_doubled": (
        traffic_doubled("country", "FR"),
        lambda alert: (alert.subject, alert.segment) == ("traffic", "country=FR"),
    ),
    "fraud_moved": (fraud_moved, lambda alert: alert.subject in ("score", "action")),
    "profiles_stale": (profiles_stale, lambda alert: alert.subject == "profile_age"),
}


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--days", {"type": int, "default": 90, "help": "without a change"}),
        ("--cards", {"type": int, "default": 15_000, "help": "of the simulation; two payments a day each"}),
        ("--tools", {"action": "store_true", "help": "install Evidently and NannyML beside, and measure them"}),
    )
    with tempfile.TemporaryDirectory(prefix="paywarden-drift-") as folder:
        world = simulated_world(Path(folder) / "bundle", cards=arguments.cards, live_days=arguments.days)
        finish(_measure(world, with_tools=arguments.tools), arguments.json)


def _measure(world: DriftWorld, *, with_tools: bool) -> dict[str, float]:
    settings = DetectorSettings()
    replay = Replay(world, settings)
    live = world.live
    days = (int(live.time_ms[-1]) - int(live.time_ms[0])) / DAY_MS
    print(f"{len(live):,} decisions of {days:.0f} days, {len(replay.reference.layout.signals):,} signals", flush=True)
    started = time.perf_counter()
    raised = [alert for alert in replay.alerts(live) if alert.state is State.RAISED]
    seconds = time.perf_counter() - started
    for alert in raised:
        print(f"false alarm: {alert.severity} {alert.subject} {alert.statistic} {alert.segment} {alert.effect:.3f}")
    figures = {
        "false_alarms_per_month": len(raised) * _MONTH_DAYS / days,
        "setting_per_month": _MONTH_DAYS / settings.false_alarm_days,
        "days": days,
        "decisions": float(len(live)),
        "decisions_per_second": len(live) / seconds,
    }
    baseline = live.cut_at(int(live.time_ms[0]) + _TOOLS_DAYS * DAY_MS)
    names = replay.reference.feature_names
    tools = [tool(name, live.rows(slice(0, baseline)), names) for name in TOOLS] if with_tools else []
    for one in tools:
        # Alarms within the tools' own reference do not count.
        end = live.cut_at(int(live.time_ms[0]) + (_TOOLS_DAYS + _TOOLS_WATCHED_DAYS) * DAY_MS)
        alarms = one.alarms(live.rows(slice(baseline, end)))
        figures[f"{one.name}_false_alarms_per_month"] = len(alarms) * _MONTH_DAYS / _TOOLS_WATCHED_DAYS
    return figures | _of_changes(world, replay, tools)


def _of_changes(world: DriftWorld, replay: Replay, tools: list[Tool]) -> dict[str, float]:
    """Measure each change, on its own part of the stream."""
    figures: dict[str, float] = {}
    first_day = int(world.live.time_ms[0]) // DAY_MS + _TOOLS_DAYS + 1
    for number, (name, (change, is_named)) in enumerate(CHANGES.items()):
        start_ms = (first_day + number * (_BEFORE_DAYS + _AFTER_DAYS)) * DAY_MS
        at_ms = start_ms + _BEFORE_DAYS * DAY_MS + _AT_MS
        end_ms = at_ms + _AFTER_DAYS * DAY_MS
        part = world.live.rows(slice(world.live.cut_at(start_ms), world.live.cut_at(end_ms)))
        stream = changed_from(world, part, at_ms, change)
        alerts = [one for one in replay.alerts(stream) if one.time_ms > at_ms and one.state is not State.CLEARED]
        figures[f"delay_minutes_{name}"] = minutes = _minutes_to(alerts, at_ms)
        figures[f"named_minutes_{name}"] = named = _minutes_to(list(filter(is_named, alerts)), at_ms)
        seen = stream.rows(slice(stream.cut_at(at_ms - 2 * HOUR_MS), stream.cut_at(at_ms + _TOOLS_HOURS * HOUR_MS)))
        for one in tools:
            alarms = [end for end in one.alarms(seen) if end > at_ms]
            figures[f"{one.name}_delay_minutes_{name}"] = (alarms[0] - at_ms) / 60_000 if alarms else float("nan")
        first = f"{alerts[0].subject} {alerts[0].statistic} {alerts[0].segment}" if alerts else "nothing"
        print(f"{name}: {first} after {minutes:.0f} minutes, rightly after {named:.0f}", flush=True)
    return figures


def _minutes_to(alerts: list[Alert], at_ms: int) -> float:
    return (alerts[0].time_ms - at_ms) / 60_000 if alerts else float("nan")


class Replay:
    """Runs decisions through drift detection as it runs live, with lists instead of Kafka and the store."""

    def __init__(self, world: DriftWorld, settings: DetectorSettings) -> None:
        reference = load_reference(world.folder)
        assert reference is not None, "a bundle that was trained from a history has a reference"
        self.reference, self._settings = reference, settings
        # The sums that evaluation keeps for every hour, of the first stream.
        self._past: PastHours = {}

    def alerts(self, decisions: Decisions) -> list[Alert]:
        """Return the alerts of a stream from its first whole day on. Later ones begin with the first one's hours."""
        version = self.reference.model_version
        detection = VirtualDetection(
            {version: self.reference}, detectors=self._settings, alerts=AlertSettings(), past=self._past
        )
        _, binning = detection.binnings.of(version)
        first = -(-int(decisions.time_ms[0]) // DAY_MS) * DAY_MS
        starts = np.arange(first, int(decisions.time_ms[-1]) - FIVE_MS, FIVE_MS)
        cuts = np.searchsorted(decisions.time_ms, np.append(starts, starts[-1:] + FIVE_MS))
        for start_ms, begin, end in zip(starts.tolist(), cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            counts = count_rows(binning, _rows(decisions.rows(slice(begin, end))))
            detection.take(start_ms, FIVE_MS, {version: counts})
        self._past = self._past or detection.past
        return detection.told.alerts


def _rows(decisions: Decisions) -> DecisionRows:
    return DecisionRows(
        decisions.score,
        decisions.action,
        decisions.vectors,
        [()] * len(decisions),
        (decisions.profile_age_s * 1000).astype(np.int64),
        [column.tolist() for column in decisions.dimensions],
    )


if __name__ == "__main__":
    main()
