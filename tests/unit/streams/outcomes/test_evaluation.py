"""Mature days are measured once and in order, and sent before that is saved. Final days are measured again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from paywarden.features.stores.memory import MemoryStore
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.outcome_tally import OutcomeTally
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.alerts.alerts import Alert, State
from paywarden.streams.outcomes.outcome_evaluation import ARMS_MAX, OutcomeEvaluator, read_evaluated, sources_of
from paywarden.streams.outcomes.outcome_metrics import OutcomeMetrics
from paywarden.streams.outcomes.outcome_records import METRICS_TOPIC, MetricsRecord
from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
from paywarden.streams.outcomes.outcome_state import Day, JoinProgress, OutcomeHead, day_key, head_key
from paywarden.streams.outcomes.payments import DAY_MS, Arm, SourcePartition
from tests.worlds.drift.outcome_days import Days

SOURCES = sources_of(range(2), range(3))
SETTINGS = OutcomeSettings(label_delay_days=7, window_days=30)
FIRST_DAY = 20_000
ARM = Arm("m1", "")


class World:
    """The store as workers leave it, and what an evaluator sends."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.records: list[MetricsRecord] = []
        self.alerts: list[Alert] = []
        self.is_away = False
        self.quiet_ms = dict.fromkeys(SOURCES, 0)
        self.write_heads()

    def send(self, records: Sequence[MetricsRecord], alerts: Sequence[tuple[Alert, int]]) -> None:
        self.records += records
        self.alerts += [alert for alert, _ in alerts]
        if self.is_away:
            raise BrokerUnavailable("away")

    def evaluator(self) -> OutcomeEvaluator:
        return OutcomeEvaluator(self.store, SOURCES, settings=SETTINGS, costs=CostSettings(), send=self.send)

    def put(self, day: int, tally: OutcomeTally, *, arm: Arm = ARM, source: SourcePartition = SOURCES[0]) -> None:
        self.store.write({day_key(source, day): Day(1, {arm: tally}).encode()}, ttl_s=0)

    def pass_to(self, day: int, *, but: SourcePartition | None = None) -> None:
        """Set every head as if all that was on the topics when this day began were worked in."""
        for source in SOURCES:
            if source != but:
                self.quiet_ms[source] = day * DAY_MS
        self.write_heads()

    def write_heads(self) -> None:
        for source in SOURCES:
            head = OutcomeHead("owner", JoinProgress(first_ms=FIRST_DAY * DAY_MS + 5), self.quiet_ms[source])
            self.store.write({head_key(source): head.encode()}, ttl_s=0)

    def days(self) -> list[tuple[int, int]]:
        """Return the maturity and the day, relative to the first, of all records sent."""
        return [(one["maturity_days"], one["day_start_time_ms"] // DAY_MS - FIRST_DAY) for one in self.records]


def test_a_day_is_evaluated_once_all_partitions_are_past_its_delay() -> None:
    world, days = World(), Days(1)
    for day in range(3):
        world.put(FIRST_DAY + day, days.next())
    evaluator = world.evaluator()
    assert evaluator.step() == 0
    world.pass_to(FIRST_DAY + 7)
    assert evaluator.step() == 0
    world.pass_to(FIRST_DAY + 8, but=SOURCES[-1])
    assert evaluator.step() == 0
    world.pass_to(FIRST_DAY + 9)
    assert evaluator.step() == 2
    assert world.days() == [(7, 0), (7, 1)]
    assert evaluator.step() == 0


def test_a_window_covers_the_days_it_names() -> None:
    world, days = World(), Days(2, payments=100)
    for day in range(40):
        world.put(FIRST_DAY + day, days.next())
    world.pass_to(FIRST_DAY + 40)
    world.evaluator().step()
    record = next(one for one in world.records if one["day_start_time_ms"] == (FIRST_DAY + 30) * DAY_MS)
    assert {window["days"]: window["payments"] for window in record["windows"]} == {7: 700, 28: 2800}
    first = world.records[0]
    assert {window["days"]: window["payments"] for window in first["windows"]} == {7: 100, 28: 100}


def test_partitions_of_both_topics_make_one_tally() -> None:
    world = World()
    more, less = Days(3).next(), OutcomeTally()
    less.row[:] = more.row
    world.put(FIRST_DAY, more)
    world.put(FIRST_DAY, less, source=SOURCES[-1])
    world.pass_to(FIRST_DAY + 8)
    world.evaluator().step()
    assert world.records[0]["windows"][0]["payments"] == 4000


def test_a_final_day_is_sent_again_with_its_corrections() -> None:
    world, days = World(), Days(4)
    tally = days.next()
    world.put(FIRST_DAY, tally)
    world.pass_to(FIRST_DAY + 8)
    evaluator = world.evaluator()
    evaluator.step()
    days.recall = 0.1
    world.put(FIRST_DAY, days.next())
    world.pass_to(FIRST_DAY + 31)
    evaluator.step()
    assert world.days()[0] == (7, 0)
    assert world.days()[-1] == (30, 0)
    first, last = world.records[0]["windows"][0], world.records[-1]["windows"][0]
    assert first["recall"] > 0.5 > last["recall"]


def test_records_that_could_not_be_sent_are_sent_by_the_successor() -> None:
    world, days = World(), Days(5)
    for day in range(30):
        days.recall = 0.8 if day < 28 else 0.2
        world.put(FIRST_DAY + day, days.next())
    world.pass_to(FIRST_DAY + 36)
    world.evaluator().step()
    assert world.alerts == []
    before = len(world.records)
    world.pass_to(FIRST_DAY + 37)
    world.is_away = True
    with pytest.raises(BrokerUnavailable):
        world.evaluator().step()
    world.is_away = False
    assert world.evaluator().step() == 1 + 1
    told = world.records[before:]
    assert told[0] == told[1]
    assert len({alert.alert_id for alert in world.alerts}) == 1
    assert [alert.state for alert in world.alerts] == [State.RAISED, State.RAISED]
    assert read_evaluated(world.store, SETTINGS)[0].open_alerts[0].alert_id == world.alerts[0].alert_id


def test_two_evaluators_at_once_do_not_both_advance() -> None:
    world = World()
    world.put(FIRST_DAY, Days(6).next())
    world.pass_to(FIRST_DAY + 8)
    one, other = world.evaluator(), world.evaluator()
    sent = world.send

    def send(records: Sequence[MetricsRecord], alerts: Sequence[tuple[Alert, int]]) -> None:
        world.send = sent  # type: ignore[method-assign]
        assert other.step() == 1
        sent(records, alerts)

    world.send = send  # type: ignore[method-assign]
    one = world.evaluator()
    assert one.step() == 0
    assert one.step() == 0


def test_alerts_of_a_version_that_no_longer_decides_are_cleared() -> None:
    world, days = World(), Days(7)
    for day in range(30):
        days.recall = 0.8 if day < 28 else 0.1
        world.put(FIRST_DAY + day, days.next())
    world.pass_to(FIRST_DAY + 37)
    world.evaluator().step()
    assert [alert.state for alert in world.alerts] == [State.RAISED]
    world.pass_to(FIRST_DAY + 70)
    world.evaluator().step()
    assert world.alerts[-1].state is State.CLEARED
    assert read_evaluated(world.store, SETTINGS)[0].watches == {}


def test_the_first_evaluation_begins_no_further_back_than_windows_reach() -> None:
    world = World()
    world.put(FIRST_DAY + 998, Days(8).next())
    world.pass_to(FIRST_DAY + 1_010)
    assert world.evaluator().step() <= 2 * 57


def test_only_the_versions_with_the_most_payments_are_measured() -> None:
    world, days = World(), Days(10, payments=50)
    for number in range(ARMS_MAX + 5):
        days.payments = 50 + number
        source = SOURCES[number % len(SOURCES)]
        arms = {Arm(f"m{number}-{n}", ""): days.next() for n in range(2)}
        found = world.store.read([day_key(source, FIRST_DAY)])[0]
        day = Day(1) if found is None else Day.decode(found)
        day.tallies |= arms
        world.store.write({day_key(source, FIRST_DAY): day.encode()}, ttl_s=0)
    world.pass_to(FIRST_DAY + 8)
    world.evaluator().step()
    assert len(world.records) == ARMS_MAX
    assert min(one["windows"][0]["payments"] for one in world.records) >= 50 + 5 + ARMS_MAX // 2 - 1


def test_a_record_comes_back_from_its_topic_and_is_shown() -> None:
    world = World()
    world.put(FIRST_DAY, Days(9).next())
    world.put(FIRST_DAY, OutcomeTally(), arm=Arm("m2", "b"), source=SOURCES[1])
    world.pass_to(FIRST_DAY + 8)
    world.evaluator().step()
    ids = LocalSchemaIds()
    encoder, decoder = Encoder(METRICS_TOPIC, ids.id_of(METRICS_TOPIC)), Decoder(METRICS_TOPIC, ids)
    assert [decoder.decode(encoder.encode(record)) for record in world.records] == world.records
    assert world.records[1]["windows"][0]["recall"] is None
    registry = CollectorRegistry()
    metrics = OutcomeMetrics(registry)
    evaluated = read_evaluated(world.store, SETTINGS)[0]
    metrics.show(evaluated.latest, evaluated.open_alerts)
    labels = {"version": "m1", "variant": "", "days": "7"}
    assert registry.get_sample_value("paywarden_outcomes_recall", labels) == world.records[0]["windows"][0]["recall"]
    assert registry.get_sample_value("paywarden_outcomes_evaluated_timestamp_seconds") == (FIRST_DAY + 1) * 86_400
    metrics.show([], [])
    assert registry.get_sample_value("paywarden_outcomes_recall", labels) is None
