"""What is put together from parts, byte for byte what protobuf writes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.outbox_pb2 import OutboxRecord
from schemas.scoring_pb2 import ScoreResponse
from scoring.encoding import Records, age_part, common_part, response

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=300)
few_texts = st.lists(texts, max_size=3)
sizes = st.sampled_from([0, 1, 127, 128, 4095, 4096, 20_000])


@given(
    payment_id=texts.filter(bool),
    decision_id=texts.filter(bool),
    score=st.none() | st.sampled_from([0.0, 1.0, 5e-324]) | st.floats(0, 1),
    action=st.sampled_from(["approve", "review", "decline"]),
    reasons=few_texts,
    version=texts,
    flags=few_texts,
    age_ms=st.none() | st.integers(0, 2**62),
)
def test_a_response_is_as_protobuf_writes_it(
    payment_id: str,
    decision_id: str,
    score: float | None,
    action: str,
    reasons: list[str],
    version: str,
    flags: list[str],
    age_ms: int | None,
) -> None:
    whole = ScoreResponse(
        payment_id=payment_id,
        decision_id=decision_id,
        score=score,
        action=action,
        reasons=reasons,
        model_version=version,
        flags=flags,
        profile_age_ms=age_ms,
    )
    common = common_part(action, reasons, version, flags)
    parts = response(payment_id.encode(), decision_id.encode(), score, common, age_part(age_ms))
    assert parts == whole.SerializeToString()


@given(request=sizes, answer=sizes, features=st.integers(1, 200), time_ms=st.integers(1, 2**62), digest=texts)
def test_a_record_is_as_protobuf_writes_it(request: int, answer: int, features: int, time_ms: int, digest: str) -> None:
    parts = bytes(request), bytes(answer), bytes(4 * features)
    whole = OutboxRecord(
        request=parts[0], response=parts[1], decided_time_ms=time_ms, vector=parts[2], catalogue_digest=digest
    )
    record = Records(4 * features, digest).at(time_ms)(*parts)
    assert OutboxRecord.FromString(record) == whole
    if request and answer:
        assert record == whole.SerializeToString()
