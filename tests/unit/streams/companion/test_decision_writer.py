"""The writer of decisions writes the bytes of the general encoder."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.policy.policy import ACTIONS
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.companion import decision_writer
from paywarden.streams.companion.decision_writer import DecisionWriter
from paywarden.streams.companion.shipping import decision_of

ENCODER = Encoder("decisions", LocalSchemaIds().id_of("decisions"))
# Sizes around 64 bytes, where a size takes a second byte, and letters of several bytes.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
LONGS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**34 - 1, 2**34, 2**41 - 1, 2**41, 1_700_000_000_000])
)
DOUBLES = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0]))
DIGESTS = st.sampled_from([b"", b"\1" * 32, b"\2" * 32])


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


REQUESTS = st.builds(
    ScoreRequest,
    payment_id=TEXTS,
    event_time_ms=LONGS,
    card_id=TEXTS,
    merchant_id=TEXTS,
    device_id=maybe(TEXTS),
    ip=maybe(TEXTS),
    amount_minor=maybe(LONGS),
    currency=TEXTS,
    mcc=maybe(TEXTS),
    country=maybe(TEXTS),
    channel=maybe(TEXTS),
    utc_offset_minutes=maybe(st.integers(-(2**31), 2**31 - 1)),
)
RESPONSES = st.builds(
    ScoreResponse,
    decision_id=TEXTS,
    score=DOUBLES,
    action=st.sampled_from(ACTIONS),
    reasons=st.lists(TEXTS, max_size=3),
    model_version=TEXTS,
    flags=st.lists(TEXTS, max_size=3),
    profile_age_ms=maybe(LONGS),
)
ENTRIES = st.builds(
    OutboxEntry,
    request=REQUESTS,
    response=RESPONSES,
    decided_time_ms=LONGS,
    vector=st.binary(max_size=300),
    catalogue_digest=TEXTS,
    caller=TEXTS,
    bundle_digest=DIGESTS,
    policy_digest=DIGESTS,
    rollout=TEXTS,
    arm=st.sampled_from(["", "candidate"]),
    propensity=maybe(DOUBLES),
    profile_set=st.sampled_from(["", "main"]),
    latency_us=maybe(LONGS),
    trace=st.sampled_from([b"", bytes(range(25)), b"short"]),
)


def writer(variant: str = "") -> DecisionWriter:
    return DecisionWriter(ENCODER, variant, lambda entry: ENCODER.encode(decision_of(entry, variant)))


@given(st.lists(ENTRIES, min_size=1, max_size=4), TEXTS)
def test_the_bytes_are_those_of_the_general_encoder(entries: list[OutboxEntry], variant: str) -> None:
    """One writer for all of them: what it keeps of one decision must not get into the next."""
    own = writer(variant)
    for entry in [*entries, *entries]:
        assert own.write(entry) == ENCODER.encode(decision_of(entry, variant))


def test_propensities_that_are_equal_and_not_the_same_are_told_apart() -> None:
    own = writer()
    for propensity in (0.0, -0.0, 0.0):
        entry = OutboxEntry(response=ScoreResponse(action="approve"), propensity=propensity)
        assert own.write(entry) == ENCODER.encode(decision_of(entry))
        assert struct.pack("<d", propensity) in own.write(entry)


def test_an_action_that_the_schema_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(InvalidEvent, match="action"):
        writer().write(OutboxEntry(response=ScoreResponse(action="maybe")))


def test_what_is_kept_stays_bounded() -> None:
    own = writer()
    for number in range(3_000):
        entry = OutboxEntry(response=ScoreResponse(action="approve"), caller=f"c-{number}")
        assert own.write(entry) == ENCODER.encode(decision_of(entry))
    assert len(own._kept) <= decision_writer._KEPT_MAX
