"""Live decisions read from an archive, and compared with replayed ones."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pytest

from paywarden.models.metrics.evaluation import DAY_MS, Days
from paywarden.models.replay.live_comparison import FIELDS, LiveDecisions, compare_with_live
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.archive.archive import Archiver
from paywarden.streams.archive.live_decisions import archived_decisions
from tests.fakes.topic_memory import IDS, MemoryTopic
from tests.worlds.stream.decision_records import decision

MONDAY = 19_723
WINDOW = Days(MONDAY, MONDAY)


def archived(folder: Path, *decisions: dict[str, Any]) -> LiveDecisions:
    topic = MemoryTopic("decisions")
    for record in decisions:
        topic.append(0, record, MONDAY * DAY_MS)
    archiver = Archiver(topic, IDS, "decisions", folder)
    archiver.run(archiver.wanted(None, None), Event(), lambda _: None)
    return archived_decisions(folder, WINDOW)


def test_the_decisions_about_payments_of_the_window_are_read(tmp_path: Path) -> None:
    inside = [decision("p0", flags=["mirror_absent"]), decision("p1", score=0.25, action="review", model_version="b")]
    live = archived(tmp_path, *inside, decision("p2", event_time_ms=(MONDAY + 1) * DAY_MS))
    rows = sorted(live.table.to_pylist(), key=lambda row: str(row["payment_id"]))
    assert [{name: row[name] for name in FIELDS} for row in rows] == [
        {name: record[name] for name in FIELDS} for record in inside
    ]
    assert [[row[name] for name in live.order] for row in rows] == [[0, 0], [0, 1]]
    assert live.not_decoded == 0


def test_archived_decisions_can_be_compared_with_replayed_ones(tmp_path: Path) -> None:
    replayed = pa.table(
        {
            "payment_id": ["p0", "p1"],
            "score": [0.1, 0.25],
            "action": pa.array(["approve", "decline"]).dictionary_encode(),
        }
    )
    live = archived(
        tmp_path,
        decision("p0", decided_time_ms=MONDAY * DAY_MS + 60, action="decline"),
        decision("p0"),
        decision("p1", score=0.25, action="review", flags=["mirror_absent"]),
    )
    section = compare_with_live(live, replayed).to_dict()
    assert (section["decisions"], section["repeated"], section["payments"]) == (3, 1, 2)
    assert (section["equal_scores"], section["actions"]) == (1.0, [[1, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert section["flags_of_other_action"] == {"mirror_absent": 1}


def test_an_archive_without_a_decision_of_these_days_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="holds no decision about a payment of the days that are replayed"):
        archived(tmp_path, decision("p0", event_time_ms=(MONDAY + 1) * DAY_MS))
