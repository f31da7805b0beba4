"""The compiled loop writes the same bytes as protobuf and the outbox."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.schemas.proto.outbox_pb2 import OutboxRecord
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.engine.records import KEPT_TAILS_MAX, Origin, RecordWriter, tail
from paywarden.scoring.state.outbox import framed
from tests.oracles.step_records import RequestTexts, write

ROWS_MAX, FEATURES = 8, 5
TIME_MS = 1_700_000_000_000
VECTORS = np.random.default_rng(1).normal(size=(ROWS_MAX, FEATURES)).astype(np.float32)

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=200)
scores = st.none() | st.sampled_from([0.0, 1.0, 5e-324]) | st.floats(0, 1)
bodies = st.binary(min_size=1, max_size=300) | st.sampled_from([1, 127, 128, 16_384, 70_000]).map(
    lambda size: b"x" * size
)
decisions = st.fixed_dictionaries(
    {
        "body": bodies,
        "payment_id": texts.filter(bool),
        "caller": st.just("") | texts,
        "score": scores,
        "latency_us": st.integers(0, 2**40),
        "trace": st.just(b"") | st.binary(min_size=25, max_size=25),
        "action": st.sampled_from(["approve", "review", "decline"]),
        "reasons": st.lists(texts, max_size=3),
        "version": texts,
        "flags": st.lists(texts, max_size=3),
    }
)


digests = st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex)
origins = st.builds(
    Origin,
    bundle_digest=digests,
    policy_digest=digests,
    rollout=st.just("") | texts,
    arm=st.just("") | texts,
    propensity=st.floats(0, 1, exclude_min=True),
    profile_set=st.just("") | texts,
)


def expected(
    one: dict[str, Any],
    row: int,
    decision: str,
    age_ms: int | None,
    time_ms: int,
    digest: str,
    origin: Origin,
    *,
    is_timed: bool,
) -> bytes:
    """Returns the frame of one decision, made by protobuf alone."""
    response = ScoreResponse(
        payment_id=one["payment_id"],
        decision_id=decision,
        score=one["score"],
        action=one["action"],
        reasons=one["reasons"],
        model_version=one["version"],
        flags=one["flags"],
        profile_age_ms=age_ms,
    )
    record = OutboxRecord(
        request=one["body"],
        response=response.SerializeToString(),
        decided_time_ms=time_ms,
        vector=VECTORS[row].tobytes(),
        catalogue_digest=digest,
        caller=one["caller"],
        bundle_digest=bytes.fromhex(origin.bundle_digest),
        policy_digest=bytes.fromhex(origin.policy_digest),
        rollout=origin.rollout,
        arm=origin.arm,
        propensity=origin.propensity if origin.rollout or origin.propensity != 1.0 else None,
        profile_set=origin.profile_set,
        latency_us=one["latency_us"] if is_timed else None,
        trace=one["trace"],
    )
    return framed(record.SerializeToString())


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(
        st.tuples(st.lists(decisions, min_size=1, max_size=ROWS_MAX), st.none() | st.integers(0, 2**62)), max_size=4
    ),
    digest=texts,
    time_ms=st.integers(1, 2**62),
    known=st.lists(origins, min_size=1, max_size=3),
    is_timed=st.booleans(),
)
def test_every_record_of_every_chunk_is_as_protobuf_writes_it(
    chunks: list[tuple[list[dict[str, Any]], int | None]],
    digest: str,
    time_ms: int,
    known: list[Origin],
    is_timed: bool,
) -> None:
    writer = RecordWriter(VECTORS, digest, "prefix", known)
    kept = writer.keep_tail(tail("approve", (), "m-1", ("unknown_card",)))
    number = 0
    for chunk, age_ms in chunks:
        writer.begin()
        for one in chunk[::2]:
            one |= {"action": "approve", "reasons": [], "version": "m-1", "flags": ["unknown_card"]}
        tails = [
            kept
            if place % 2 == 0
            else writer.add_tail(tail(one["action"], one["reasons"], one["version"], one["flags"]), place % len(known))
            for place, one in enumerate(chunk)
        ]
        assert None not in tails
        texts = RequestTexts(
            [one["body"] for one in chunk],
            [one["payment_id"].encode() for one in chunk],
            [one["caller"].encode() for one in chunk],
            # Half a microsecond more: the loop rounds down.
            [-(one["latency_us"] + 0.5) / 1e6 for one in chunk] if is_timed else (),
            # As the batcher gives them: no items if no request of the chunk has one.
            [one["trace"] for one in chunk] if any(one["trace"] for one in chunk) else (),
        )
        numbers = [each for each in tails if each is not None]
        written = write(writer, texts, [one["score"] for one in chunk], numbers, age_ms, time_ms, 0.0)
        frames = []
        for row, one in enumerate(chunk):
            number += 1
            origin = known[0 if row % 2 == 0 else row % len(known)]
            frames.append(expected(one, row, f"prefix-{number:x}", age_ms, time_ms, digest, origin, is_timed=is_timed))
        assert written.frames == b"".join(frames)
        assert written.starts == [sum(map(len, frames[:row])) for row in range(len(frames))]
        responses = [OutboxRecord.FromString(frame[8:]).response for frame in frames]
        assert written.responses == responses


def test_no_more_tails_are_kept_than_there_is_room_for() -> None:
    writer = RecordWriter(VECTORS, "d", "p")
    kept = [writer.keep_tail(tail("approve", (), f"m-{number}", ())) for number in range(KEPT_TAILS_MAX + 1)]
    assert kept == [*range(KEPT_TAILS_MAX), None]
    # A chunk still has room for its own tails.
    own = [writer.add_tail(tail("review", ("x" * 5000,), "m", ())) for _ in range(ROWS_MAX)]
    texts = RequestTexts([b"b"] * ROWS_MAX, [b"i"] * ROWS_MAX, [b""] * ROWS_MAX)
    written = write(writer, texts, [0.5] * ROWS_MAX, own, 1, TIME_MS)
    assert {tuple(ScoreResponse.FromString(each).reasons) for each in written.responses} == {("x" * 5000,)}
