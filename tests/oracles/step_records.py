"""Writes decisions from lists of Python: what the scorer's call does with the arrays that it has already."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from paywarden.scoring.engine import record_bytes as loop
from paywarden.scoring.engine.records import RecordWriter


class Written(NamedTuple):
    """The decisions of a chunk: serialised responses, and the outbox frames of all, one after the other.

    `starts`: the offset of each frame in `frames`.
    """

    responses: list[bytes]
    frames: bytes
    starts: list[int]


class RequestTexts(NamedTuple):
    """The parts of a chunk's requests that go into records. Texts are in UTF-8."""

    bodies: Sequence[bytes]
    ids: Sequence[bytes]
    callers: Sequence[bytes]
    arrivals: Sequence[float] = ()
    """When each request arrived, in seconds of one clock. Without arrivals the records have no latency."""
    traces: Sequence[bytes] = ()
    """The trace of each (trace_context.py of requests), empty where it has none; no items if none has."""


def write(
    writer: RecordWriter,
    requests: RequestTexts,
    scores: Sequence[float | None],
    tail_numbers: Sequence[int],
    profile_age_ms: int | None,
    decided_time_ms: int,
    decided_s: float = math.nan,
) -> Written:
    """Write the decisions about at most `rows_max` payments. Times are epoch milliseconds.

    `decided_s`: when they were decided, by the clock of their arrivals.
    """
    bodies, ids, arrays = requests.bodies, requests.ids, writer.arrays
    count = len(bodies)
    body_bytes, id_bytes = b"".join(bodies), b"".join(ids)
    writer.make_text_room(len(body_bytes), len(id_bytes))
    arrays["bodies"].data[: len(body_bytes)] = body_bytes
    arrays["ids"].data[: len(id_bytes)] = id_bytes
    arrays["body_sizes"][:count] = list(map(len, bodies))
    arrays["id_sizes"][:count] = list(map(len, ids))
    arrays["tail_numbers"][:count] = tail_numbers
    arrays["scores"][:count] = [math.nan if score is None else score for score in scores]
    writer.put_callers(count, requests.arrivals, requests.callers, requests.traces)
    writer.make_room(count, len(body_bytes) + len(id_bytes))
    size = loop.write_records(
        writer.frame_at,
        count,
        writer.vector_bytes,
        writer.decision,
        -1 if profile_age_ms is None else profile_age_ms,
        decided_time_ms,
        decided_s if requests.arrivals else math.nan,
    )
    frames = writer.frames(count, size)
    return Written(writer.responses(count), frames, arrays["bounds"][: 3 * count : 3].tolist())
