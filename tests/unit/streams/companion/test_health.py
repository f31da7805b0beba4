"""A companion's health and metrics, without Kafka."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry

from paywarden.streams.companion.changelog_reader import ProfileChanges
from paywarden.streams.companion.companion_health import CompanionHealth
from paywarden.streams.companion.companion_metrics import CompanionMetrics


class World:
    """A companion's health with clocks that the test sets."""

    def __init__(self) -> None:
        self.now_ms, self.now_s = 1_000_000, 50.0
        self.health = CompanionHealth(30_000, now_ms=lambda: self.now_ms, clock=lambda: self.now_s)
        self.registry = CollectorRegistry()
        self.metrics = CompanionMetrics(self.registry, {"card": 1500, "merchant": 5000}, self.health)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"paywarden_companion_{name}", labels)


@pytest.fixture
def world() -> World:
    return World()


def test_a_companion_is_not_ready_before_its_mirror_is_complete(world: World) -> None:
    health = world.health
    assert health.problems() == ["it has not started"]
    health.obstacle = "the mirror is being filled from the store"
    assert health.problems() == ["the mirror is being filled from the store"]
    health.follow(partitions_to_reach=2, complete_to_ms=0)
    assert [problem.partition(":")[0] for problem in health.problems()] == ["the mirror is catching up"]
    health.partitions_to_reach = 0
    assert health.problems() == ["the mirror is not complete: the stream has not said how far it is"]
    health.complete_to_ms = world.now_ms - 30_000
    assert health.problems() == []


def test_a_companion_is_not_ready_while_its_mirror_is_too_old(world: World) -> None:
    world.health.follow(0, complete_to_ms=world.now_ms - 30_001)
    assert world.health.problems() == ["the mirror is 30.0 s old, 30 s are allowed"]


def test_an_existing_mirror_catches_up_before_it_is_ready(world: World) -> None:
    world.health.follow(1, complete_to_ms=world.now_ms)
    assert len(world.health.problems()) == 1


def test_a_companion_is_not_ready_without_kafka(world: World) -> None:
    world.health.follow(0, complete_to_ms=world.now_ms)
    world.health.kafka_trouble = "Kafka has not answered for 7 s: timed out"
    assert world.health.problems() == ["Kafka has not answered for 7 s: timed out"]


def test_a_companion_is_live_while_its_rounds_and_its_steps_to_the_first_end(world: World) -> None:
    """One that hung while it filled its mirror was live for ever."""
    for _ in range(10):
        world.now_s += 299
        assert world.health.live()
        world.health.note_round()
    world.now_s += 300
    assert not world.health.live()
    world.health.follow(0, 0)
    world.now_s += 59
    assert world.health.live()
    world.now_s += 1
    assert not world.health.live()
    world.health.note_round()
    assert world.health.live()
    world.now_s += 60
    world.health.obstacle = "the companion is stopping"
    assert world.health.live()
    # Shipping has a longer limit, independent of the mirror.
    world.health.note_shipping_round()
    world.now_s += 299
    world.health.note_round()
    assert world.health.live()
    world.now_s += 1
    assert not world.health.live()


def test_a_companion_whose_mirror_takes_no_changes_is_not_ready(world: World) -> None:
    world.health.follow(0, complete_to_ms=world.now_ms)
    assert world.value("mirror_refuses") == 0
    world.health.mirror_trouble = "the mirror is full: mirror.size_mb is 64"
    assert world.health.problems() == ["the mirror is full: mirror.size_mb is 64"]
    assert (world.value("mirror_refuses"), world.value("ready")) == (1, 0)


def test_ages_end_at_the_mirror_and_are_compared_with_the_objective(world: World) -> None:
    changes = ProfileChanges({"card": [world.now_ms - 40, world.now_ms - 1500, world.now_ms - 1501], "merchant": []})
    world.metrics.applied(changes, world.now_ms)
    assert world.value("event_to_mirror_seconds_count", entity="card") == 3
    assert world.value("event_to_mirror_seconds_bucket", entity="card", le="0.05") == 1
    assert world.value("event_to_mirror_seconds_sum", entity="card") == pytest.approx(3.041)
    assert world.value("over_objective_total", entity="card") == 1
    assert world.value("event_to_mirror_seconds_count", entity="merchant") == 0
    assert world.value("over_objective_total", entity="merchant") == 0
    assert world.value("freshness_objective_seconds", entity="merchant") == 5


def test_states_erasures_and_unreadable_records_are_counted(world: World) -> None:
    changes = ProfileChanges({}, profiles={b"card:1": b"s", b"card:2": None, b"card:3": b"s"}, unreadable=4)
    world.metrics.applied(changes, world.now_ms)
    assert world.value("profiles_applied_total") == 2
    assert world.value("profiles_erased_total") == 1
    assert world.value("unreadable_records_total") == 4


def test_the_age_of_the_mirror_is_computed_at_the_scrape(world: World) -> None:
    age = world.value("mirror_age_seconds")
    assert age is not None
    assert math.isnan(age)
    assert world.value("ready") == 0
    world.health.follow(0, world.now_ms - 250)
    assert world.value("mirror_age_seconds") == 0.25
    assert world.value("ready") == 1
    world.now_ms += 60_000
    assert world.value("mirror_age_seconds") == 60.25
    assert world.value("ready") == 0


def test_waiting_bytes_and_lag_are_shown_as_they_are(world: World) -> None:
    places = [("profiles", number) for number in range(3)]
    world.metrics.lag(dict(zip(places, (10, 7, 3), strict=True)), dict(zip(places, (4, 8), strict=False)))
    assert [world.value("changelog_lag", partition=str(number)) for number in range(3)] == [6, 0, 3]
    before = {"worker-0": 900}
    world.metrics.shipping(shipped=5, under_way=2, waiting_bytes=before, set_aside={}, set_aside_counts={})
    world.metrics.shipping(
        shipped=8,
        under_way=0,
        waiting_bytes={"worker-0": 0, "worker-1": 30},
        set_aside={"worker-0": (0, 0), "worker-1": (2, 700)},
        set_aside_counts={"worker-1": 3},
    )
    assert world.value("decisions_shipped_total") == 8
    assert world.value("decisions_under_way") == 0
    assert world.value("outbox_waiting_bytes", worker="worker-0") == 0
    assert world.value("outbox_waiting_bytes", worker="worker-1") == 30
    assert world.value("outbox_set_aside_entries", worker="worker-0") == 0
    assert world.value("outbox_set_aside_entries", worker="worker-1") == 2
    assert world.value("outbox_set_aside_bytes", worker="worker-1") == 700
    assert world.value("outbox_set_aside_total", worker="worker-1") == 3
    world.metrics.mirror(4096, 1 << 20)
    assert (world.value("mirror_bytes"), world.value("mirror_limit_bytes")) == (4096, 1 << 20)
