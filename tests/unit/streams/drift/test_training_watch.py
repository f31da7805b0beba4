"""A move away from the training window raises an alert, however slow it is and even if the baseline follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS, DetectorSettings
from paywarden.models.drift.reference import Reference
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.alerts.alert_records import record_of
from paywarden.streams.alerts.alerts import Alert, AlertSettings, Comparison, Severity, State
from paywarden.streams.alerts.book import AlertBook
from paywarden.streams.drift.backtest import RememberedAlerts
from paywarden.streams.drift.detection import DriftDetection, DriftWatches
from paywarden.streams.drift.drift_counts import Binnings
from paywarden.streams.drift.drift_metrics import DetectionMetrics
from paywarden.streams.drift.drift_settings import TrainingComparisonSettings
from paywarden.streams.drift.learning import LiveReferences, counted_binning
from paywarden.streams.drift.training_watch import TrainingWatch, pack, unpack
from tests.worlds.drift.made_decisions import SMALL, VERSION, MadeWorld, Shares, ms_of, quiet_reference, ramp

SETTINGS = TrainingComparisonSettings()


def falling(day: float) -> Shares:
    """The web's share falls from 74 % to 3 % in two months, in favour of the other two."""
    return {"web": ramp(day, 0.74, 0.03, 60), "pos": ramp(day, 0.2, 0.5, 60), "app": ramp(day, 0.06, 0.47, 60)}


def unlisted(day: float) -> Shares:
    """A channel that training never saw takes 68 % in two months."""
    return {"web": ramp(day, 0.74, 0.12, 60), "pos": 0.2, "app": 0.06, "wallet": ramp(day, 0.0, 0.68, 60)}


class Watched:
    """A watch, and the alerts it returned."""

    def __init__(self, world: MadeWorld, settings: TrainingComparisonSettings = SETTINGS) -> None:
        self.world, self.reference = world, quiet_reference(world.seed)
        self.watch = TrainingWatch(VERSION, self.reference, settings)
        self.book = AlertBook()
        self.told: list[Alert] = []

    def run(self, days: range) -> list[Alert]:
        """Return the alerts of these live days."""
        found = [
            alert
            for day in days
            for alert in self.watch.step(ms_of(day), self.world.day(self.reference.binning, day), self.book)
        ]
        self.told += found
        return found

    @property
    def open(self) -> dict[str, Alert]:
        return self.watch.by_group(self.book)


def names(alerts: Sequence[Alert]) -> list[tuple[str, str]]:
    return [(alert.subject, alert.segment) for alert in alerts]


def changed(**fields: object) -> MadeWorld:
    return replace(MadeWorld(1, SMALL), **fields)  # type: ignore[arg-type]


def test_a_category_that_falls_for_two_months_is_told_and_becomes_critical() -> None:
    watched = Watched(changed(channel=falling))
    told = watched.run(range(60))
    assert [alert.state for alert in told][:2] == [State.RAISED, State.ESCALATED]
    assert {alert.subject for alert in told} == {"traffic"}
    assert all(alert.comparison is Comparison.TRAINING for alert in told)
    first = told[0]
    assert first.time_ms <= ms_of(21)
    assert (first.severity, told[-1].severity) == (Severity.INFO, Severity.CRITICAL)
    assert min(alert.time_ms for alert in told if alert.severity is Severity.CRITICAL) <= ms_of(45)
    # The named share moved from what it was in training, and both sides have their counts.
    assert abs(first.value - first.expected) > 0.05
    assert first.count > 7 * SMALL // 2
    assert first.window_end_ms - first.window_start_ms == 7 * DAY_MS


def test_a_value_that_training_never_saw_is_watched_as_other() -> None:
    world = changed(channel=unlisted, amount_by_channel={"wallet": 3.0})
    watched = Watched(world)
    told = watched.run(range(60))
    assert names(told[:1]) == [("traffic", "channel=other")]
    # Its PSI is large from the first payments on, but few payments are no warning yet.
    worse = [
        alert for place, alert in enumerate(told) if alert.severity not in [other.severity for other in told[:place]]
    ]
    assert [alert.severity for alert in worse] == [Severity.INFO, Severity.WARNING, Severity.CRITICAL]
    assert worse[0].effect > SETTINGS.psi_warning
    assert (
        worse[0].outside < 2 * SETTINGS.outside_min <= worse[1].outside < 4 * SETTINGS.outside_min <= worse[2].outside
    )
    last = watched.open["traffic:channel"]
    assert last.severity is Severity.CRITICAL
    assert (last.expected, round(last.value, 1)) == (0.0, 0.6)
    # Scores within it are higher than any that training had, and amounts move with it.
    moved = {(move.subject, move.segment) for move in last.attached}
    assert ("score", "channel=other") in moved
    assert ("feature:amount", "overall") in moved
    assert list(watched.open) == ["traffic:channel"]


def test_a_feature_that_is_a_clock_is_left_to_the_baseline() -> None:
    """Where cards grow older and nothing else moves, the time since each was first seen raised an alert every week."""
    world = changed(velocity_added=lambda day: ramp(day, 0, 4, 30))
    watched = Watched(world)
    natural = watched.reference.natural
    assert natural is not None
    place = 1 + watched.reference.feature_names.index("velocity")
    psi = natural.psi.copy()
    psi[place] = 1.5
    clock = replace(watched.reference, natural=replace(natural, psi=psi))
    watched.watch = TrainingWatch(VERSION, clock, SETTINGS)
    told = watched.run(range(40))
    assert "feature:velocity" not in {moved.subject for alert in told for moved in alert.attached}
    assert {alert.subject for alert in told} <= {"score"}


def more(day: float) -> float:
    return 1 + day / 20


def holiday(day: float) -> float:
    return 0.3 if 20 <= day < 22 else 1.0


def launch(day: float) -> float:
    return 2.0 if day >= 10 else 1.0


@pytest.mark.parametrize("growth", [None, more, holiday, launch])
def test_quiet_worlds_raise_no_alert_in_two_months(growth: Callable[[float], float] | None) -> None:
    world = MadeWorld(1, SMALL) if growth is None else MadeWorld(1, SMALL, growth=growth)
    assert Watched(world).run(range(42)) == []


def test_a_score_that_fades_is_told_after_the_score() -> None:
    told = Watched(changed(score_added=lambda day: ramp(day, 0, -1.5, 30))).run(range(30))
    assert names(told[:1]) == [("score", "overall")]
    assert told[0].statistic == "distribution"
    # The share of payments that would have to move, beside none in training.
    assert told[0].value == told[0].outside > 0.05


def test_a_feature_that_creeps_is_told_and_explains_the_score() -> None:
    told = Watched(changed(velocity_added=lambda day: ramp(day, 0, 4, 30))).run(range(30))
    assert names(told[:1]) == [("feature:velocity", "overall")]
    assert {alert.subject for alert in told} == {"feature:velocity"}
    assert "score" in {move.subject for alert in told for move in alert.attached}


def test_a_number_whose_weeks_wandered_must_go_twice_as_far_and_is_then_told() -> None:
    """A merchant with two fifths of all payments had 3 % fewer of them in a week: a critical alert about its count."""
    watched = Watched(changed(velocity_added=lambda day: ramp(day, 0, 4, 30)))
    natural = watched.reference.natural
    assert natural is not None
    psi = natural.psi.copy()
    psi[1 + watched.reference.feature_names.index("velocity")] = 0.4
    watched.watch = TrainingWatch(VERSION, replace(watched.reference, natural=replace(natural, psi=psi)), SETTINGS)
    told = [alert for alert in watched.run(range(40)) if alert.subject == "feature:velocity"]
    assert told[0].effect >= told[0].effect_min >= 2 * 0.4 + SETTINGS.psi_info
    assert told[-1].severity is Severity.CRITICAL


def test_a_feature_that_moves_by_the_mix_alone_is_attached_to_the_traffic() -> None:
    watched = Watched(changed(channel=falling, amount_by_channel={"web": 0.0, "pos": 2.0, "app": -2.0}))
    watched.reference = watched.world.reference_like(quiet_reference())
    watched.watch = TrainingWatch(VERSION, watched.reference, SETTINGS)
    watched.run(range(40))
    assert list(watched.open) == ["traffic:channel"]
    assert "feature:amount" in {move.subject for move in watched.open["traffic:channel"].attached}


def test_a_declared_category_that_the_model_uses_is_watched_and_its_new_value_named() -> None:
    def kinds(day: float) -> Shares:
        # No payment of training had a voucher, which is in no list.
        return {"gift": ramp(day, 0.74, 0.06, 40), "goods": 0.2, "travel": 0.06, "voucher": ramp(day, 0.0, 0.68, 40)}

    watched = Watched(changed(kind=kinds))
    told = watched.run(range(30))
    assert names(told[:1]) == [("feature:kind", "overall")]
    assert told[0].time_ms <= ms_of(15)
    assert told[-1].severity is Severity.CRITICAL
    assert record_of(told[-1], histograms=watched.watch.histograms(told[-1]))["severity"] == "critical"


def test_an_alert_clears_when_the_traffic_returns() -> None:
    watched = Watched(changed(channel=lambda day: falling(40 if day < 8 else 0)))
    assert [alert.state for alert in watched.run(range(8))] == [State.RAISED]
    cleared = watched.run(range(8, 20))
    assert [alert.state for alert in cleared] == [State.CLEARED]
    assert watched.open == {}


def test_an_open_alert_is_repeated_at_growing_distances_and_not_for_ever() -> None:
    watched = Watched(MadeWorld(1, SMALL))
    moved = replace(watched.world, channel=lambda _: falling(60)).day(watched.reference.binning, 0)
    told = [(alert, day) for day in range(300) for alert in watched.watch.step(ms_of(day), moved, watched.book)]
    assert [day for _, day in told] == [6, 13, 27, 55, 111]
    assert [alert.reminders for alert, _ in told] == [0, 1, 2, 3, 4]
    assert {alert.alert_id for alert, _ in told} == {told[0][0].alert_id}


def test_a_snoozed_alert_is_repeated_only_after_the_snooze() -> None:
    watched = Watched(MadeWorld(1, SMALL), replace(SETTINGS, psi_critical=90.0))
    moved = replace(watched.world, channel=lambda _: falling(60)).day(watched.reference.binning, 0)
    (first,) = [alert for day in range(7) for alert in watched.watch.step(ms_of(day), moved, watched.book)]
    assert watched.book.acknowledge(first.alert_id, by="ana", until_ms=ms_of(50))
    later = [(day, alert) for day in range(7, 60) for alert in watched.watch.step(ms_of(day), moved, watched.book)]
    assert [(day, alert.acknowledged_by) for day, alert in later] == [(49, "ana")]


@pytest.mark.parametrize(("severity", "is_held_back"), [(Severity.INFO, False), (Severity.CRITICAL, True)])
def test_no_second_alert_tells_what_an_alert_of_the_baseline_tells(severity: Severity, is_held_back: bool) -> None:
    watched = Watched(changed(channel=lambda _: falling(60)))
    (first,) = watched.run(range(7))
    again = Watched(watched.world)
    again.book.put(replace(first, segment="channel=web", comparison=Comparison.BASELINE, severity=severity))
    assert (again.run(range(7)) == []) is is_held_back


def test_a_day_that_comes_again_changes_nothing() -> None:
    watched = Watched(changed(channel=lambda _: falling(60)))
    watched.run(range(7))
    before = watched.watch.to_dict()
    assert watched.run(range(3, 7)) == []
    assert watched.watch.to_dict() == before


class Days:
    """A whole detection that gets days alone."""

    def __init__(self, of: Reference) -> None:
        self.told = RememberedAlerts()
        references = {VERSION: of}
        binnings = Binnings({VERSION: counted_binning(of)})
        _, self.binning = binnings.of(VERSION)
        self.detection = DriftDetection(
            references,
            LiveReferences(references, binnings, lambda _start_ms, _end_ms: (), days_min=7),
            detectors=DetectorSettings(),
            alerts=AlertSettings(),
            teller=self.told,
            acknowledgements=lambda: (),
            metrics=DetectionMetrics(CollectorRegistry()),
        )

    def day(self, day: int, counts: Counts) -> None:
        self.detection.evaluate(ms_of(day), DAY_MS, {VERSION: counts})


def test_the_baseline_follows_to_the_end_and_the_detection_tells_it_all_the_same() -> None:
    # It began to fall in the training window, so falling is what the baseline expects.
    def since_training(day: float) -> Shares:
        return {
            "web": ramp(day + 28, 0.85, 0.03, 88),
            "pos": ramp(day + 28, 0.1, 0.5, 88),
            "app": ramp(day + 28, 0.05, 0.47, 88),
        }

    world = MadeWorld(1, SMALL, channel=since_training)
    days = Days(world.reference())
    restored = Days(days_reference := days.detection._references[VERSION])
    assert days_reference.natural is not None
    for day in range(40):
        counts = world.day(days.binning, day)
        restored.detection.restore(days.detection.state())
        days.day(day, counts)
        restored.day(day, counts)
        # A restart changes nothing, to the bit.
        assert restored.detection.state() == days.detection.state()
    assert restored.told.records == days.told.records
    assert {alert.comparison for alert in days.told.alerts} == {Comparison.TRAINING}
    assert days.told.alerts[-1].severity is Severity.CRITICAL
    record = days.told.records[0]
    assert (record["comparison"], record["statistic"]) == ("training", "psi")
    assert record["reference_start_time_ms"] == ms_of(-28)
    assert record["reference_end_time_ms"] == ms_of(0)
    assert record["reference_count"] > 20 * SMALL


def of_day(watches: DriftWatches, day: int, counts: Mapping[str, tuple[Reference, Counts]]) -> list[Alert]:
    blocks = {version: reference.block(of, ms_of(day), DAY_MS) for version, (reference, of) in counts.items()}
    return [*watches.step(blocks, ms_of(day) + DAY_MS), *watches.compare(ms_of(day), counts)]


def watches_of(reference: Reference) -> DriftWatches:
    # No detector fires.
    quiet = DetectorSettings(psi_min=9.0, share_change_min=9.0)
    return DriftWatches(lambda _: reference.layout.signals, quiet, AlertSettings(), SETTINGS)


def weeks() -> tuple[DriftWatches, Alert]:
    """Return watches with one open alert, after a week."""
    watches, told = watches_of(quiet_reference()), []
    counts = changed(channel=lambda _: falling(60)).day(quiet_reference().binning, 0)
    for day in range(7):
        told += of_day(watches, day, {VERSION: (quiet_reference(), counts)})
    (raised,) = told
    return watches, raised


@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_new_reference_clears_the_alerts_of_the_old_one(is_restarted: bool) -> None:
    watches, raised = weeks()
    if is_restarted:
        restored = watches_of(quiet_reference(2))
        restored.restore(watches.to_bytes(), lambda _: quiet_reference(2))
        watches = restored
    counts = MadeWorld(1, SMALL).day(quiet_reference().binning, 7)
    cleared = of_day(watches, 7, {VERSION: (quiet_reference(2), counts)})
    assert [(alert.alert_id, alert.state) for alert in cleared] == [(raised.alert_id, State.CLEARED)]
    assert watches.open_alerts == []


def test_a_model_that_decides_no_longer_has_no_open_alert_and_is_forgotten() -> None:
    watches, raised = weeks()
    assert [alert.alert_id for alert in of_day(watches, 7, {})] == [raised.alert_id]
    for day in range(8, 16):
        assert of_day(watches, day, {}) == []
    assert watches.week_of(VERSION) is None


@pytest.mark.parametrize("damage", [lambda state: state[:-3], lambda state: b"\xff" + state[1:], lambda _: b"{}"])
def test_a_damaged_state_is_refused(damage: Callable[[bytes], bytes]) -> None:
    watched = Watched(MadeWorld(1, SMALL))
    watched.run(range(1))
    with pytest.raises(InvalidEvent):
        unpack(damage(pack({VERSION: watched.watch})), lambda _: watched.reference, SETTINGS)
