"""Blocks of decisions are evaluated once they are complete: each once, in order, and no block is left out."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry

from paywarden.features.stores.memory import MemoryStore
from paywarden.models.drift.counts import Counts
from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.drift.drift_counts import MINUTE_MS, Binnings
from paywarden.streams.drift.drift_evaluation import DAY_MS, HOUR_MS, WEEK_MS, Evaluator, passed, past_hours, read_done
from paywarden.streams.drift.drift_metrics import DriftMetrics
from paywarden.streams.drift.drift_settings import DriftSettings
from paywarden.streams.drift.drift_state import FIVE_MS, Adder, DriftCounting, PartitionState, read_heads
from tests.worlds.drift.drifting import NOON_MS, decision, small_binning

BINNINGS = Binnings({"m1": small_binning()})
ADDER = Adder(BINNINGS)
SETTINGS = DriftSettings(grace_ms=MINUTE_MS)
Block = tuple[int, int, dict[str, int]]


class Watch:
    """A Detection that notes the payments of blocks. Its state is the number of blocks it has seen."""

    def __init__(self) -> None:
        self.seen: list[Block] = []
        self.count = 0
        self.fails_at = -1

    def restore(self, state: bytes) -> None:
        self.count = int(state or b"0")

    def evaluate(self, start_ms: int, length_ms: int, counts: Mapping[str, Counts]) -> None:
        self.count += 1
        if self.count == self.fails_at:
            raise StoreUnavailable("away")
        self.seen.append((start_ms, length_ms, {version: int(one.payments[0]) for version, one in counts.items()}))

    def state(self) -> bytes:
        return str(self.count).encode()

    def blocks(self, length_ms: int) -> list[tuple[int, dict[str, int]]]:
        return [(start_ms, counts) for start_ms, length, counts in self.seen if length == length_ms]


class World:
    """Two partitions and their owner."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.states = [self._taken(partition) for partition in (0, 1)]
        self.offsets = [0, 0]

    def _taken(self, partition: int) -> PartitionState:
        counting = DriftCounting(self.store, BINNINGS, SETTINGS, DriftMetrics(CollectorRegistry()))
        return counting.take_over(partition)

    def decide(self, partition: int, *times_ms: int, version: str = "m1") -> None:
        state = self.states[partition]
        for at in times_ms:
            state.counts.add(self.offsets[partition], decision(self.offsets[partition], at, version=version))
            self.offsets[partition] += 1
        state.counts.hand_over()
        while state.has_news:
            state.save(NOON_MS + 100 * DAY_MS)

    def be_quiet(self, partition: int, quiet_ms: int) -> None:
        state = self.states[partition]
        state.hand_over(quiet_ms)
        state.save(quiet_ms)

    def evaluator(self, watch: Watch) -> Evaluator:
        return Evaluator(self.store, watch, partitions=(0, 1), binnings=BINNINGS, settings=SETTINGS)


def at(minutes: float) -> int:
    return NOON_MS + int(minutes * MINUTE_MS)


def test_a_block_is_complete_when_every_partition_has_passed_it() -> None:
    world, watch = World(), Watch()
    evaluator = world.evaluator(watch)
    assert evaluator.step() == 0
    world.decide(0, at(1), at(2), at(6))
    assert evaluator.step() == 0
    world.decide(1, at(4.9))
    world.decide(1, at(5.9))
    assert evaluator.step() == 0
    world.decide(1, at(6.1))
    assert evaluator.step() == 1
    assert watch.seen == [(NOON_MS, FIVE_MS, {"m1": 3})]
    assert evaluator.step() == 0


def test_a_partition_without_decisions_has_passed_its_quiet_mark() -> None:
    world, watch = World(), Watch()
    evaluator = world.evaluator(watch)
    world.decide(0, at(1), at(20))
    assert evaluator.step() == 0
    world.be_quiet(1, at(11.5))
    assert evaluator.step() == 2
    assert watch.seen == [(NOON_MS, FIVE_MS, {"m1": 1}), (at(5), FIVE_MS, {})]


def test_a_partition_that_was_never_counted_holds_all_blocks_up() -> None:
    world = World()
    world.decide(0, at(1), at(20))
    assert passed(read_heads(world.store, (0, 1, 2)), (0, 1, 2), 0) == 0


def test_another_evaluator_continues_and_evaluates_nothing_twice() -> None:
    world, first, second = World(), Watch(), Watch()
    for partition in (0, 1):
        world.decide(partition, at(1), at(11.5))
    assert world.evaluator(first).step() == 2
    for partition in (0, 1):
        world.decide(partition, at(21.5))
    assert world.evaluator(second).step() == 2
    assert [start for start, _ in first.blocks(FIVE_MS)] == [NOON_MS, at(5)]
    assert [start for start, _ in second.blocks(FIVE_MS)] == [at(10), at(15)]
    assert second.count == 4


def test_a_failed_block_is_evaluated_again_from_the_state_before() -> None:
    world, watch = World(), Watch()
    for partition in (0, 1):
        world.decide(partition, at(1), at(11.5))
    evaluator = world.evaluator(watch)
    watch.fails_at = 2
    with pytest.raises(StoreUnavailable):
        evaluator.step()
    watch.fails_at = -1
    assert evaluator.step() == 1
    assert [start for start, _ in watch.blocks(FIVE_MS)] == [NOON_MS, at(5)]
    assert watch.count == 2


def test_two_evaluators_at_once_do_not_both_advance() -> None:
    world, watch = World(), Watch()
    for partition in (0, 1):
        world.decide(partition, at(1), at(16.5))
    other = world.evaluator(Watch())

    class Slow(Watch):
        def evaluate(self, start_ms: int, length_ms: int, counts: Mapping[str, Counts]) -> None:
            if not self.seen:
                assert other.step(blocks_max=1) == 1
            super().evaluate(start_ms, length_ms, counts)

    slow = Slow()
    assert world.evaluator(slow).step() == 0
    assert read_done(world.store)[0].done_ms == at(5)
    assert world.evaluator(watch).step() == 2


def test_after_an_outage_blocks_are_evaluated_in_order_with_hours_and_days() -> None:
    world, watch = World(), Watch()
    midnight = NOON_MS + 12 * HOUR_MS
    times = [NOON_MS + minute * MINUTE_MS for minute in range(0, 13 * 60, 3)]
    for partition in (0, 1):
        world.decide(partition, *times)
        world.be_quiet(partition, midnight + HOUR_MS)
    world.evaluator(watch).step()
    starts = [start for start, _ in watch.blocks(FIVE_MS)]
    assert starts == list(range(NOON_MS, midnight + HOUR_MS - FIVE_MS, FIVE_MS))
    for start_ms, counts in watch.blocks(FIVE_MS):
        wanted = 2 * sum(start_ms <= moment < start_ms + FIVE_MS for moment in times)
        assert counts == ({"m1": wanted} if wanted else {})
    assert watch.blocks(HOUR_MS) == [(NOON_MS + hour * HOUR_MS, {"m1": 40}) for hour in range(12)]
    assert watch.blocks(DAY_MS) == [(midnight - DAY_MS, {"m1": 480})]
    ends = [start + length for start, length, _ in watch.seen]
    assert ends == sorted(ends)


def test_a_decision_too_late_for_its_block_is_in_its_hour() -> None:
    world, watch = World(), Watch()
    evaluator = world.evaluator(watch)
    for partition in (0, 1):
        world.decide(partition, at(1), at(20))
    evaluator.step()
    world.decide(0, at(2))
    for partition in (0, 1):
        world.decide(partition, at(61.5))
    evaluator.step()
    assert watch.blocks(FIVE_MS)[0] == (NOON_MS, {"m1": 2})
    assert watch.blocks(HOUR_MS) == [(NOON_MS, {"m1": 5})]
    assert world.states[0].saved.totals.late == 1


def test_versions_are_apart_and_only_current_binnings_are_evaluated() -> None:
    world, watch = World(), Watch()
    world.decide(0, at(1), at(2))
    world.decide(0, at(1), at(6.5), version="new")
    world.be_quiet(1, at(7))
    changed = Binnings({"m1": small_binning(6)})
    assert Evaluator(world.store, watch, partitions=(0, 1), binnings=changed, settings=SETTINGS).step() == 1
    assert watch.seen == [(NOON_MS, FIVE_MS, {"new": 1})]


def test_hours_of_past_weeks_are_kept_with_their_scores_and_actions() -> None:
    world = World()
    for week in range(3):
        for partition in (0, 1):
            world.decide(partition, at(1) + week * WEEK_MS, at(3) + week * WEEK_MS)
            world.be_quiet(partition, at(70) + week * WEEK_MS)
        while world.evaluator(Watch()).step():
            pass
    hours = dict(past_hours(world.store, NOON_MS - HOUR_MS, NOON_MS + 2 * WEEK_MS + HOUR_MS, ADDER))
    assert list(hours) == list(range(NOON_MS - HOUR_MS, NOON_MS + 2 * WEEK_MS + HOUR_MS, HOUR_MS))
    counted = {hour: sum(int(one.payments[0]) for one in counts.values()) for hour, counts in hours.items() if counts}
    assert [counted[NOON_MS + week * WEEK_MS] for week in range(3)] == [4, 4, 4]
    assert len(counted) == 3
    (one,) = hours[NOON_MS].values()
    assert (one.scores[0].sum(), one.actions[0].sum(), one.features.sum(), one.payments[1:].sum()) == (4, 4, 0, 0)
