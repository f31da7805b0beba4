"""The metrics of the newest rollout say what its log says."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry

from paywarden.models.rollout.judgement import Finding
from paywarden.models.rollout.rollout import EventKind, RolloutEvent
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.rollouts.rollout_metrics import RolloutCollector
from tests.unit.models.rollout.test_rollout import event, look, start_of
from tests.worlds.rollout.memory_log import MemoryRolloutLog


def shown(registry: CollectorRegistry) -> dict[str, float]:
    """Returns every number that is not 0, by its name without the prefix and its label."""
    samples = [sample for family in registry.collect() for sample in family.samples]
    return {
        " ".join([sample.name.removeprefix("paywarden_rollout_"), *sample.labels.values()]): sample.value
        for sample in samples
        if sample.value
    }


class Log(MemoryRolloutLog):
    trouble = ""

    def events(self) -> list[RolloutEvent]:
        if self.trouble:
            raise Misconfigured(self.trouble)
        return super().events()


def test_the_newest_rollout_is_shown_to_its_end_and_damage_is_a_number() -> None:
    log, registry = Log(), CollectorRegistry()
    registry.register(RolloutCollector(log))
    assert shown(registry) == {}
    keeper = RolloutKeeper(log)
    keeper.take(event(EventKind.STARTED, 1_000, start=start_of()))
    assert shown(registry) == {"phase pending": 1, "since_timestamp_seconds": 1, "event_timestamp_seconds": 1}
    keeper.take(event(EventKind.READY, 2_000))
    keeper.take(look(Finding.NO_DATA, 3_000))
    times = {"since_timestamp_seconds": 2, "event_timestamp_seconds": 3}
    assert shown(registry) == {"phase running": 1, "finding no_data": 1, "share": 0.1} | times
    keeper.take(look(Finding.MISMATCH, 4_000))
    times = {"since_timestamp_seconds": 4, "event_timestamp_seconds": 4}
    assert shown(registry) == {"phase rolled_back": 1, "finding mismatch": 1} | times
    log.trouble = "line 3 is damaged"
    assert shown(registry) == {"log_unreadable": 1}


def test_scrapes_at_the_same_time_read_the_log_one_after_the_other() -> None:
    class Slow(MemoryRolloutLog):
        readers = most = 0

        def events(self) -> list[RolloutEvent]:
            self.readers += 1
            self.most = max(self.most, self.readers)
            time.sleep(0.02)
            self.readers -= 1
            return super().events()

    log, registry = Slow(), CollectorRegistry(auto_describe=False)
    registry.register(RolloutCollector(log))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: shown(registry), range(8)))
    assert log.most == 1


def test_without_a_registry_every_number_is_zero() -> None:
    registry = CollectorRegistry()
    registry.register(RolloutCollector(None))
    assert shown(registry) == {}
