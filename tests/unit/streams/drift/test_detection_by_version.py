"""Several model versions are watched apart and stored together. The alerts of a version end with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from paywarden.models.drift.detectors import DAY_MS, LENGTHS_MS, DetectorSettings
from paywarden.models.drift.signals import Block, Signal
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.alerts.alert_records import Acknowledgement
from paywarden.streams.alerts.alerts import Alert, AlertSettings, State
from paywarden.streams.drift.detection import DriftWatches
from paywarden.streams.drift.drift_settings import TrainingComparisonSettings
from tests.worlds.drift.drift_world import SIGNALS, World

FIVE_MS = LENGTHS_MS[0]
BOTH = {"model-1": SIGNALS, "model-2": SIGNALS}


def watches_of(signals: Mapping[str, Sequence[Signal]] = BOTH) -> DriftWatches:
    return DriftWatches(
        lambda version: signals.get(version, ()), DetectorSettings(), AlertSettings(), TrainingComparisonSettings()
    )


def run(watches: DriftWatches, worlds: Mapping[str, World], blocks: int) -> list[Alert]:
    told = []
    for _ in range(blocks):
        found = {version: world.block() for version, world in worlds.items()}
        told += watches.step(found, next(iter(found.values())).end_ms)
    return told


def with_an_open_alert() -> tuple[DriftWatches, dict[str, World]]:
    watches, worlds = watches_of(), {"model-1": World(1), "model-2": World(2)}
    assert run(watches, worlds, 20) == []
    worlds["model-2"].missing = {"distance"}
    assert [alert.model_version for alert in run(watches, worlds, 5)] == ["model-2"]
    return watches, worlds


def test_a_new_version_in_the_middle_of_an_hour_has_its_own_alerts() -> None:
    watches, worlds = watches_of(), {"model-1": World(1)}
    run(watches, worlds, 7)
    # The new model scores another way than its own training says; the old one goes on unchanged.
    worlds["model-2"] = replace(World(2, now_ms=7 * FIVE_MS), score_added=0.05)
    raised = [alert for alert in run(watches, worlds, 5) if alert.state is State.RAISED]
    assert [(alert.model_version, alert.subject) for alert in raised] == [("model-2", "score")]


def test_a_day_that_had_begun_before_a_version_did_counts_nothing() -> None:
    """The first midnight of a demonstration raised a critical alert: its payments were those of late hours alone."""
    watches, evening_ms = watches_of(), DAY_MS - 2 * FIVE_MS
    evening = World(1, now_ms=evening_ms)
    assert run(watches, {"model-1": evening}, 2) == []
    for begun_ms, alerts in ((0, 0), (DAY_MS, 1)):
        day = World(1, now_ms=begun_ms, length_ms=DAY_MS, added={"amount": 0.2})
        raised = [alert for alert in run(watches, {"model-1": day}, 1) if alert.subject == "feature:amount"]
        assert len(raised) == alerts


def test_the_state_of_all_versions_comes_back_as_it_was() -> None:
    watches, worlds = with_an_open_alert()
    other = watches_of()
    other.restore(watches.to_bytes(), lambda _: None)
    assert other.to_bytes() == watches.to_bytes()
    assert other.open_alerts == watches.open_alerts
    worlds["model-2"].missing = set()
    blocks = [{version: world.block() for version, world in worlds.items()} for _ in range(20)]
    told = [alert for found in blocks for alert in watches.step(found, found["model-1"].end_ms)]
    assert [alert.state for alert in told] == [State.CLEARED]
    assert [alert for found in blocks for alert in other.step(found, found["model-1"].end_ms)] == told


def test_without_a_state_all_watches_begin_anew() -> None:
    watches, _ = with_an_open_alert()
    watches.restore(b"", lambda _: None)
    assert watches.open_alerts == []
    assert watches.to_bytes() == watches_of().to_bytes()


@pytest.mark.parametrize("signals", [{"model-1": SIGNALS}, {"model-1": SIGNALS, "model-2": SIGNALS[:-1]}])
def test_alerts_of_a_version_that_is_no_longer_watched_are_cleared(signals: Mapping[str, Sequence[Signal]]) -> None:
    watches, worlds = with_an_open_alert()
    other = watches_of(signals)
    other.restore(watches.to_bytes(), lambda _: None)
    found = {"model-1": worlds["model-1"].block()}
    told = other.step(found, found["model-1"].end_ms)
    assert [(alert.model_version, alert.state) for alert in told] == [("model-2", State.CLEARED)]
    assert run(other, {"model-1": worlds["model-1"]}, 3) == []


def test_a_version_without_a_decision_for_a_day_has_no_open_alerts() -> None:
    watches, worlds = with_an_open_alert()
    end_ms = worlds["model-2"].now_ms
    assert watches.step({}, end_ms + DAY_MS - FIVE_MS) == []
    assert [alert.state for alert in watches.step({}, end_ms + DAY_MS)] == [State.CLEARED]
    assert watches.open_alerts == []
    # Nothing is kept of either version.
    assert watches.to_bytes() == b""


def test_an_acknowledgement_finds_its_alert_in_any_version() -> None:
    watches, _ = with_an_open_alert()
    alert_id = watches.open_alerts[0].alert_id
    assert watches.acknowledge(Acknowledgement(alert_id, 5, "ana", 99))
    assert (watches.open_alerts[0].acknowledged_by, watches.open_alerts[0].snoozed_until_ms) == ("ana", 99)
    assert not watches.acknowledge(Acknowledgement("00", 5, "ana"))


@pytest.mark.parametrize("cut", [1, 7, 30, 200])
def test_a_damaged_state_is_refused_and_changes_nothing(cut: int) -> None:
    watches, _ = with_an_open_alert()
    state = watches.to_bytes()
    with pytest.raises(InvalidEvent, match="damaged"):
        watches.restore(state[:-cut], lambda _: None)
    assert watches.to_bytes() == state


def test_blocks_of_a_version_without_signals_are_ignored() -> None:
    world = World(1)
    block: Block = world.block()
    assert watches_of({}).step({"model-9": block}, block.end_ms) == []
