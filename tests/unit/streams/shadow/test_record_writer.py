"""The writer of shadow records writes the bytes of the general encoder."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.policy.policy import ACTIONS
from paywarden.models.rollout.shadow import ShadowRecord, ShadowSide
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.streams.shadow import record_writer
from paywarden.streams.shadow.record_writer import SHADOW_TOPIC, ShadowRecordWriter

ENCODER = Encoder(SHADOW_TOPIC, LocalSchemaIds().id_of(SHADOW_TOPIC))
RECORD = ShadowRecord(
    "d-1", "p-1", "C7", 1, "b-42", "c" * 16, ShadowSide(0.1, "approve", "a", "p"), ShadowSide(0.7, "decline", "b", "p")
)
# Sizes around 64 bytes, where a size takes a second byte, and letters of several bytes.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
SCORES = st.floats(0, 1)
RECORDS = st.builds(
    ShadowRecord,
    decision_id=TEXTS,
    payment_id=TEXTS,
    card_id=TEXTS,
    decided_time_ms=st.integers(-(2**63), 2**63 - 1),
    challenger_name=TEXTS.map(lambda text: text + "c"),
    catalogue_digest=TEXTS,
    champion=st.builds(ShadowSide, SCORES, st.sampled_from(ACTIONS), TEXTS, st.just("champion")),
    challenger=st.builds(ShadowSide, SCORES, st.sampled_from(ACTIONS), TEXTS, st.just("challenger")),
    challenger_reasons=st.lists(TEXTS, max_size=3).map(tuple),
    is_shadow_host=st.booleans(),
)


@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_the_bytes_are_those_of_the_general_encoder(records: list[ShadowRecord]) -> None:
    """One writer for all of them: what it keeps of one record must not get into the next."""
    writer = ShadowRecordWriter(ENCODER)
    for record in [*records, *records]:
        assert writer.write(record) == ENCODER.encode(record.value())


def test_records_of_two_hosts_that_differ_in_one_name_are_told_apart() -> None:
    writer = ShadowRecordWriter(ENCODER)
    others = [
        replace(RECORD, is_shadow_host=True),
        replace(RECORD, challenger_name="b-43"),
        replace(RECORD, champion=ShadowSide(0.1, "approve", "p", "a")),
        replace(RECORD, challenger=ShadowSide(0.7, "decline", "", "bp")),
    ]
    for record in (RECORD, *others, RECORD):
        assert Decoder(SHADOW_TOPIC, LocalSchemaIds()).decode(writer.write(record)) == record.value()


def test_what_is_kept_stays_bounded() -> None:
    writer = ShadowRecordWriter(ENCODER)
    for number in range(1_000):
        record = replace(RECORD, challenger_name=f"b-{number}")
        assert writer.write(record) == ENCODER.encode(record.value())
    assert len(writer._names) <= record_writer._KEPT_MAX
