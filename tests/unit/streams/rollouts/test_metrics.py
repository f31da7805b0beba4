"""The metrics of the newest rollout say what its log says."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from paywarden.models.rollout.judgement import Finding
from paywarden.models.rollout.log import FileRolloutLog, RolloutKeeper
from paywarden.models.rollout.rollout import EventKind
from paywarden.streams.rollouts.metrics import RolloutCollector
from tests.unit.models.rollout.test_rollout import event, look, start_of


def shown(registry: CollectorRegistry) -> dict[str, float]:
    """Returns every number that is not 0, by its name without the prefix and its label."""
    samples = [sample for family in registry.collect() for sample in family.samples]
    return {
        " ".join([sample.name.removeprefix("paywarden_rollout_"), *sample.labels.values()]): sample.value
        for sample in samples
        if sample.value
    }


def test_the_newest_rollout_is_shown_from_its_start_to_its_end_and_damage_is_a_number(tmp_path: Path) -> None:
    path, registry = tmp_path / "rollouts.jsonl", CollectorRegistry()
    registry.register(RolloutCollector(FileRolloutLog(path)))
    assert shown(registry) == {}
    keeper = RolloutKeeper(FileRolloutLog(path))
    keeper.take(event(EventKind.STARTED, 1_000, start=start_of()))
    assert shown(registry) == {"phase pending": 1, "since_timestamp_seconds": 1, "event_timestamp_seconds": 1}
    keeper.take(event(EventKind.READY, 2_000))
    keeper.take(look(Finding.NO_DATA, 3_000))
    times = {"since_timestamp_seconds": 2, "event_timestamp_seconds": 3}
    assert shown(registry) == {"phase running": 1, "finding no_data": 1, "share": 0.1} | times
    keeper.take(look(Finding.MISMATCH, 4_000))
    times = {"since_timestamp_seconds": 4, "event_timestamp_seconds": 4}
    assert shown(registry) == {"phase rolled_back": 1, "finding mismatch": 1} | times
    path.write_bytes(path.read_bytes()[5:])
    assert shown(registry) == {"log_unreadable": 1}
