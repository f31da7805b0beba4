"""A drop of precision, recall or average precision is one alert, which clears after the recovery. Chance is no drop."""

from __future__ import annotations

import json

import pytest

from paywarden.models.metrics.outcome_tally import OutcomeTally
from paywarden.streams.alerts.alert_records import record_of
from paywarden.streams.alerts.alerts import Alert, Severity, State
from paywarden.streams.alerts.causes import Cause
from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
from paywarden.streams.outcomes.outcome_watch import OutcomeWatch
from paywarden.streams.outcomes.payments import DAY_MS, Arm
from tests.worlds.drift.outcome_days import Days

ARM = Arm("m1", "")
SETTINGS = OutcomeSettings()
FIRST_DAY = 20_000


class World:
    """Days one after the other, and the watch that evaluates them."""

    def __init__(self, days: Days, settings: OutcomeSettings = SETTINGS, arm: Arm = ARM) -> None:
        self.days, self.settings, self.day = days, settings, FIRST_DAY
        self.watch = OutcomeWatch(arm, FIRST_DAY, settings)
        self.tallies: dict[int, OutcomeTally] = {}

    def pass_days(self, count: int) -> list[Alert]:
        told = []
        for _ in range(count):
            self.tallies[self.day] = self.days.next()
            self.tallies.pop(self.day - 28, None)
            told += self.watch.step(self.day, self.tallies)
            self.day += 1
        return told


def test_a_drop_is_one_alert_that_clears_after_the_recovery() -> None:
    world = World(Days(1))
    assert world.pass_days(40) == []
    world.days.recall = 0.3
    raised = world.pass_days(3)
    assert raised[0].state is State.RAISED
    assert len(world.watch.open_alerts) == 1
    alert = world.watch.open_alerts[0]
    assert alert.subject in ("outcome:recall", "outcome:average_precision")
    assert (alert.segment, alert.severity, alert.cause) == ("overall", Severity.CRITICAL, Cause.OUTCOME)
    assert alert.value < alert.expected
    assert {alert.alert_id for alert in raised} == {alert.alert_id}
    assert {moved.subject for moved in alert.attached} <= {"outcome:recall", "outcome:average_precision"}
    world.days.recall = 0.8
    cleared = world.pass_days(30)
    assert [one.state for one in cleared] == [State.CLEARED]
    assert cleared[0].alert_id == alert.alert_id
    assert world.watch.open_alerts == []


def test_a_drop_of_precision_is_named_precision() -> None:
    world = World(Days(2))
    world.pass_days(30)
    world.days.wrongly_declined = 0.05
    raised = world.pass_days(4)
    assert raised
    assert world.watch.open_alerts[0].subject in ("outcome:precision", "outcome:average_precision")


def test_a_drop_too_small_to_matter_raises_no_alert() -> None:
    world = World(Days(4, payments=100_000))
    world.pass_days(30)
    world.days.recall = 0.77
    assert world.pass_days(40) == []


def test_days_with_few_frauds_are_evaluated_together() -> None:
    world = World(Days(5, payments=300))
    assert world.pass_days(60) == []
    world.days.recall = 0.1
    raised = world.pass_days(20)
    assert raised
    assert raised[0].count >= SETTINGS.frauds_min


def test_an_alert_stays_open_while_days_are_gathered() -> None:
    world = World(Days(15, payments=120))
    world.pass_days(80)
    world.days.recall = 0.0
    told = world.pass_days(100)
    assert [alert.state for alert in told if alert.state is not State.ESCALATED] == [State.RAISED]


def test_no_alert_is_raised_before_there_is_a_reference() -> None:
    world = World(Days(6), OutcomeSettings(reference_days=20))
    world.pass_days(10)
    world.days.recall = 0.1
    assert world.pass_days(9) == []


def test_a_variant_becomes_the_segment_of_its_alerts() -> None:
    world = World(Days(7), arm=Arm("m1", "b"))
    world.pass_days(30)
    world.days.recall = 0.1
    alert = world.pass_days(3)[0]
    record = record_of(alert, reference_count=world.watch.reference_count(alert))
    assert (record["segment"], record["model_version"], record["cause"]) == ("variant=b", "m1", "outcome")
    assert record["reference_count"] > 0
    assert alert.raised_ms % DAY_MS == 0


@pytest.mark.parametrize("days_before", [10, 20, 33, 36])
def test_a_restored_watch_raises_the_same_alerts(days_before: int) -> None:
    one, other = World(Days(8)), World(Days(8))
    for world in (one, other):
        world.days.recall = 0.8
    told_before = [world.pass_days(days_before) for world in (one, other)]
    assert told_before[0] == told_before[1]
    other.watch = OutcomeWatch.from_dict(json.loads(json.dumps(other.watch.to_dict())), SETTINGS)
    told = []
    for world in (one, other):
        found = world.pass_days(max(0, 34 - days_before))
        world.days.recall = 0.3
        told.append(found + world.pass_days(5))
    assert told[0] == told[1]
    assert told[0]


def test_false_alarms_are_no_more_frequent_than_the_setting() -> None:
    settings = OutcomeSettings(false_alarm_days=30.0, drop_min=0.01, drop_warning=0.2)
    alarms, days = 0, 250
    for seed in range(8):
        world = World(Days(100 + seed), settings)
        alarms += sum(alert.state is State.RAISED for alert in world.pass_days(days))
    assert alarms <= 8 * days / settings.false_alarm_days
