"""Drift detection from counts to alerts. An alert is sent before its state is saved, also after a restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS, LENGTHS_MS, DetectorSettings
from paywarden.models.drift.reference import Reference
from paywarden.models.drift.signal_layout import Kinds
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.alerts.alert_records import Acknowledgement
from paywarden.streams.alerts.alerts import Alert, AlertSettings, State
from paywarden.streams.drift.detection import DriftDetection
from paywarden.streams.drift.drift_counts import Binnings, Model
from paywarden.streams.drift.drift_evaluation import of_overall
from paywarden.streams.drift.drift_metrics import DetectionMetrics
from paywarden.streams.drift.learning import LiveReferences, counted_binning
from tests.worlds.small.small_decisions import FEATURE, SmallDecisions, reference

FIVE_MS = LENGTHS_MS[0]
# A Monday's noon.
NOON_MS = 19_730 * DAY_MS + 12 * HOUR_MS
LEARNING_DAYS = 2


class Told:
    """An AlertTeller that remembers alerts, and can be away."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.records: dict[str, dict[str, Any]] = {}
        self.flushed = 0
        self.is_away = False

    def send(self, alert: Alert, record: dict[str, Any]) -> None:
        self.alerts.append(alert)
        self.records[alert.alert_id] = record

    def flush(self) -> None:
        if self.is_away:
            raise BrokerUnavailable("away")
        self.flushed = len(self.alerts)


class World:
    """A detection, its past and the alerts it sends."""

    def __init__(self, *, known: bool = True) -> None:
        self.reference = reference()
        self.version = self.reference.model_version
        references = {self.version: self.reference} if known else {}
        self.binnings = Binnings({version: counted_binning(one) for version, one in references.items()})
        self.past: dict[int, dict[Model, Counts]] = {}
        self.told = Told()
        self.registry = CollectorRegistry()
        self.said: list[Acknowledgement] = []
        self.detection = self.restarted(references, self.told, self.registry)
        self.references = references
        self.decisions = SmallDecisions()
        self.now_ms = NOON_MS

    def restarted(self, references: Mapping[str, Reference], told: Told, registry: CollectorRegistry) -> DriftDetection:
        return DriftDetection(
            references,
            LiveReferences(references, self.binnings, self._hours, days_min=LEARNING_DAYS),
            detectors=DetectorSettings(),
            alerts=AlertSettings(),
            teller=told,
            acknowledgements=lambda: self.said,
            metrics=DetectionMetrics(registry),
        )

    def _hours(self, start_ms: int, end_ms: int) -> Iterator[tuple[int, dict[Model, Counts]]]:
        for hour in range(start_ms, end_ms, HOUR_MS):
            yield hour, self.past.get(hour, {})

    def learn(self, days: int) -> None:
        """Add quiet days before today."""
        model, binning = self.binnings.of(self.version)
        today = NOON_MS // DAY_MS * DAY_MS
        for hour in range(today - days * DAY_MS, today, HOUR_MS):
            self.past[hour] = {model: of_overall(self.decisions.counts(binning, hour, 300, HOUR_MS))}

    def block(self) -> tuple[int, int, dict[str, Counts]]:
        start_ms, self.now_ms = self.now_ms, self.now_ms + FIVE_MS
        _, binning = self.binnings.of(self.version)
        return start_ms, FIVE_MS, {self.version: self.decisions.counts(binning, start_ms)}

    def run(self, blocks: int) -> list[Alert]:
        """Return the alerts of the next blocks."""
        before = len(self.told.alerts)
        for _ in range(blocks):
            self.detection.evaluate(*self.block())
        assert self.told.flushed == len(self.told.alerts)
        return self.told.alerts[before:]


def test_a_quiet_stream_raises_no_alert() -> None:
    assert World().run(24) == []


def test_a_feature_stuck_at_its_default_raises_an_alert_with_histograms() -> None:
    world = World()
    world.run(6)
    world.decisions.gone = FEATURE
    world.decisions.flags = ["unknown_merchant"]
    first, *_ = told = world.run(6)
    assert [alert.subject for alert in told if alert.state is State.RAISED] == [f"feature:{FEATURE}"]
    assert world.told.records[first.alert_id]["flags"] == [{"flag": "unknown_merchant", "share": 1.0}]
    # All values are 0: below any mean of amounts.
    current, expected = (
        world.told.records[first.alert_id][f"{side}_histogram"]["counts"] for side in ("current", "reference")
    )
    assert current[0] == sum(current) > 0
    assert expected[0] < sum(expected) / 4
    assert world.registry.get_sample_value("paywarden_drift_open_alerts", {"severity": str(first.severity)}) == 1


def test_an_alert_that_could_not_be_sent_is_sent_again_word_for_word() -> None:
    world = World()
    world.run(6)
    world.decisions.gone = FEATURE
    world.told.is_away = True
    for _ in range(6):
        state, block = world.detection.state(), world.block()
        try:
            world.detection.evaluate(*block)
        except BrokerUnavailable:
            break
    (untold,) = world.told.alerts
    again = Told()
    other = world.restarted(world.references, again, CollectorRegistry())
    other.restore(state)
    other.evaluate(*block)
    assert again.alerts == [untold]
    # A detection whose state knows the alert does not send it again.
    other.evaluate(*world.block())
    assert [alert.state for alert in again.alerts].count(State.RAISED) == 1


def test_a_restarted_detection_continues_as_if_never_stopped() -> None:
    world, other = World(), World()
    world.learn(3)
    other.past = world.past
    world.run(3)
    world.decisions.gone = FEATURE
    for _ in range(8):
        block = world.block()
        other.detection = other.restarted(other.references, other.told, CollectorRegistry())
        other.detection.restore(world.detection.state())
        world.detection.evaluate(*block)
        other.detection.evaluate(*block)
        assert other.detection.state() == world.detection.state()
    assert other.told.alerts == world.told.alerts != []


def test_stale_profiles_raise_an_alert_once_their_usual_age_is_learnt() -> None:
    early, late = World(), World()
    late.learn(LEARNING_DAYS)
    for world in (early, late):
        world.run(3)
        world.decisions.age_ms = 60_000
    assert early.run(6) == []
    told = late.run(6)
    assert [(alert.subject, alert.state) for alert in told if alert.state is State.RAISED] == [
        ("profile_age", State.RAISED)
    ]
    assert late.told.records[told[0].alert_id]["reference_count"] == LEARNING_DAYS * 24 * 300


def test_a_model_without_a_bundle_is_compared_with_its_own_past() -> None:
    world = World(known=False)
    world.learn(LEARNING_DAYS)
    assert world.run(6) == []
    world.decisions.more_reviews = 0.3
    told = [alert for alert in world.run(6) if alert.state is State.RAISED]
    assert [(alert.subject, alert.statistic, alert.segment) for alert in told] == [("action", "review", "overall")]


def test_a_variant_is_compared_with_its_models_reference_and_named() -> None:
    world = World()
    world.version += "/b"
    world.run(3)
    world.decisions.gone = FEATURE
    told = [alert for alert in world.run(6) if alert.state is State.RAISED]
    assert [(alert.model_version, alert.subject) for alert in told] == [(world.version, f"feature:{FEATURE}")]


def test_a_snoozed_alert_stays_open_and_sends_nothing() -> None:
    world = World()
    world.decisions.gone = FEATURE
    first = world.run(6)[0]
    world.said = [Acknowledgement(first.alert_id, world.now_ms, "ana", world.now_ms + DAY_MS)]
    world.decisions.gone = ""
    told = world.run(30)
    assert [(alert.state, alert.acknowledged_by) for alert in told if alert.alert_id == first.alert_id] == [
        (State.CLEARED, "ana")
    ]


def test_a_state_of_another_release_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.decisions.gone = FEATURE
    world.run(6)
    world.detection.restore(world.detection.state()[:-3])
    assert "starts again" in caplog.text
    assert world.detection.state() == World().detection.state()


def test_a_day_moves_the_expected_features_and_not_the_scores() -> None:
    world = World()
    world.decisions.gone = FEATURE
    layout, start_ms = world.reference.layout, NOON_MS // DAY_MS * DAY_MS
    _, binning = world.binnings.of(world.version)
    before = np.array(world.detection._levels.of(world.reference))
    day = Counts.empty(binning)
    for hour in range(24):
        day.add(world.decisions.counts(binning, start_ms + hour * HOUR_MS, 100, HOUR_MS))
    small = Counts.empty(binning)
    # The larger variant counts, and no day counts twice.
    world.detection.evaluate(start_ms, DAY_MS, {world.version: day, f"{world.version}/b": small})
    moved = world.detection._levels.of(world.reference) - before
    assert {layout.signals[place].subject.partition(":")[0] for place in np.flatnonzero(moved)} <= {
        "feature",
        "traffic",
    }
    overall = next(
        place
        for place, signal in enumerate(layout.signals)
        if (signal.subject, signal.statistic, signal.segment) == (f"feature:{FEATURE}", "location", "overall")
    )
    assert -0.2 < moved[overall] < 0
    assert Kinds.INPUTS in world.reference.kinds
