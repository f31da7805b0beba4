"""Read live decisions from an archive, to compare a replay with them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc

from paywarden.models.metrics.evaluation import DAY_MS, Days
from paywarden.models.replay.live_comparison import FIELDS, LiveDecisions
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.archive.files import read_archive
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, rows_schema


def archived_decisions(archive: Path, window: Days) -> LiveDecisions:
    """Returns live decisions about payments of these days.

    Raises Misconfigured if there are none, and the errors of `read_archive`.
    """
    first_ms, last_ms = window.first * DAY_MS, (window.last + 1) * DAY_MS - 1
    schema = rows_schema("decisions", columns=(*FIELDS, PARTITION, OFFSET))
    rows = read_archive(archive, "decisions", schema, times_ms=(first_ms, last_ms))
    time_ms = rows.table["event_time_ms"]
    table = rows.table.filter(pc.and_(pc.greater_equal(time_ms, first_ms), pc.less_equal(time_ms, last_ms)))
    if len(table) == 0:
        raise Misconfigured(f"{archive} holds no decision about a payment of the days that are replayed")
    return LiveDecisions(table, len(rows.undecoded), (PARTITION, OFFSET))
