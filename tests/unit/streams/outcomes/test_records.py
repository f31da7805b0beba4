"""The variant in decisions, the settings of the join, and records of payments as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.companion.shipping import decision_of
from paywarden.streams.outcomes.payments import (
    Arm,
    CountedDecision,
    JoinedPayment,
    JoinMark,
    Outcome,
    RowEffect,
    SourcePartition,
    payment_key,
)

IDS = LocalSchemaIds()
ENTRY = OutboxEntry(request=ScoreRequest(payment_id="p1"), response=ScoreResponse(action="approve"))
times = st.integers(0, 2**50)
names = st.text(max_size=8)
known = st.builds(Outcome, times, st.integers(0, 1))
decided = st.builds(
    CountedDecision,
    st.builds(Arm, names, names),
    times,
    st.integers(0, 2),
    st.integers(-1, 2**30),
    st.integers(0, 2**50),
)
marks = st.builds(
    JoinMark,
    st.builds(SourcePartition, st.sampled_from("do"), st.integers(0, 65_535)),
    st.integers(0, 2**60),
    st.sampled_from(RowEffect),
    st.integers(0, 8),
    st.none() | known,
    st.none() | known,
)
payments = st.builds(
    JoinedPayment,
    st.lists(decided, max_size=3).map(tuple),
    st.none() | known,
    st.lists(known, max_size=3).map(tuple),
    st.lists(marks, max_size=3).map(tuple),
).map(lambda payment: consistent(payment))


def consistent(payment: JoinedPayment) -> JoinedPayment:
    """Return the payment with those marks that speak of decisions it has."""
    count = len(payment.decided)
    marks = [mark._replace(decided_count=min(mark.decided_count, count)) for mark in payment.marks]
    good = (mark for mark in marks if mark.kind is not RowEffect.DECIDED or mark.decided_count)
    return payment._replace(marks=tuple(good))


def test_a_decision_has_the_variant_of_its_host() -> None:
    record = decision_of(ENTRY, "arm-b")
    read = Decoder("decisions", IDS).decode(Encoder("decisions", IDS.id_of("decisions")).encode(record))
    assert (read["variant"], decision_of(ENTRY)["variant"]) == ("arm-b", "")


@given(payments)
def test_a_payment_is_read_back_from_its_bytes(payment: JoinedPayment) -> None:
    assert JoinedPayment.from_bytes(payment.to_bytes()) == payment


@given(payments, st.integers(0, 500), st.integers(0, 255))
def test_damaged_bytes_are_refused_or_are_another_payment(payment: JoinedPayment, place: int, value: int) -> None:
    damaged = bytearray(payment.to_bytes())
    damaged[place % len(damaged)] = value
    try:
        found = JoinedPayment.from_bytes(bytes(damaged[:place]))
    except InvalidEvent:
        return
    # The tallies can count it, with any value.
    for mark in found.marks:
        for change in found.counted(mark):
            assert change.label in (0, 1, 2)


@pytest.mark.parametrize(
    "damaged",
    [
        JoinedPayment(outcome=Outcome(5, 7)),
        JoinedPayment((CountedDecision(Arm("m", ""), 5, 3, 1, 1),)),
        JoinedPayment(marks=(JoinMark(SourcePartition("o", 0), 5, RowEffect.LABELLED, 1, None, None),)),
    ],
)
def test_a_record_that_tallies_cannot_count_is_refused(damaged: JoinedPayment) -> None:
    with pytest.raises(InvalidEvent):
        JoinedPayment.from_bytes(damaged.to_bytes())


@pytest.mark.parametrize("name", ["p", "p" * 503, "p" * 504, "ü" * 400])
def test_every_payment_id_has_a_key_that_stores_take(name: str) -> None:
    assert len(payment_key(name)) <= KEY_BYTES_MAX
    assert payment_key(name) != payment_key(name + "x")
