"""An archive of the small world's decisions over three days, for tests of drift references."""

from __future__ import annotations

from pathlib import Path
from threading import Event

from paywarden.models.bundle.bundle import Manifest
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS
from paywarden.streams.archive.archive import Archiver
from tests.fakes.topic_memory import IDS, MemoryTopic
from tests.worlds.small import small_world
from tests.worlds.small.small_decisions import SmallDecisions

FIRST_DAY = 19_730
DAYS, PER_HOUR = 3, 20


def manifest() -> Manifest:
    """Returns the manifest of the bundle that decided."""
    return small_world.loaded_bundle().manifest


def write_decision_archive(folder: Path) -> None:
    """Archive three days of decisions. Each hour has one twice, one of another model, and one that is too late."""
    topic, decisions = MemoryTopic("decisions", batch=500), SmallDecisions()
    for hour in range(DAYS * 24):
        start_ms = FIRST_DAY * DAY_MS + hour * HOUR_MS
        records = list(decisions.records(start_ms, PER_HOUR, HOUR_MS))
        # The payment was made the day before.
        records[0]["event_time_ms"] = records[0]["decided_time_ms"] - 10
        other = {**records[1], "decision_id": f"o{hour}", "model_version": "m-other", "vector": b""}
        late = {**records[2], "decision_id": f"l{hour}", "decided_time_ms": (FIRST_DAY + DAYS) * DAY_MS}
        for number, record in enumerate([*records, records[3], other, late]):
            topic.append(number % 2, record, start_ms)
    archiver = Archiver(topic, IDS, "decisions", folder)
    archiver.run(archiver.wanted(None, None), Event(), lambda _: None)
