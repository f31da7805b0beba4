"""Payments joined by column give what the same payments give one by one, and records have protobuf's own bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import row_width
from paywarden.schemas.payment_fields import Form, PaymentField, PaymentFields
from paywarden.schemas.proto.store_pb2 import PaymentRecord
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.events import Joined, OutcomeEvent, RecordLayout, record_key
from paywarden.streams.profiles.payment_columns import PaymentColumns, PaymentEvent, Position

NUMBERS = st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1))
KEYS = st.sampled_from([b"", b"card:c", "card:\u00fc".encode(), b"card:" + b"x" * 300])
FIELDS = PaymentFields(
    (
        PaymentField("shipping", Form.MONEY, "an amount", number=1),
        PaymentField("mail", Form.EMAIL, "an address", number=3),
    )
)
LAYOUTS = (RecordLayout(), RecordLayout(FIELDS))


@st.composite
def payments(draw: st.DrawFn, layout: RecordLayout) -> list[PaymentEvent]:
    ids = draw(st.lists(st.sampled_from(["a", "b", "\u00fc", "long" * 9, "d", "e"]), max_size=9))
    rows = []
    for _ in ids:
        row = [0] * layout.width
        for column, number in draw(st.dictionaries(st.integers(0, layout.width - 1), NUMBERS, max_size=6)).items():
            row[column] = number
        row[kernel.DECLINED] = draw(st.integers(0, 2))
        rows.append(row)
    return [
        PaymentEvent(Position(draw(st.integers(0, 300)), offset), name, row, (draw(KEYS), draw(KEYS)), draw(NUMBERS))
        for offset, (name, row) in enumerate(zip(ids, rows, strict=True))
    ]


def columns_of(payments: Sequence[PaymentEvent], width: int) -> PaymentColumns:
    def numbers(of: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(of, dtype=np.int64)

    return PaymentColumns(
        [record_key(payment.payment_id) for payment in payments],
        numbers([payment.position.source for payment in payments]),
        numbers([payment.position.offset for payment in payments]),
        numbers([payment.arrived_ms for payment in payments]),
        np.array([payment.attributes for payment in payments], dtype=np.int64).reshape(-1, width),
        [[payment.keys[entity] for payment in payments] for entity in range(2)],
    )


def content(joined: Joined) -> tuple[object, ...]:
    events = [(part.keys, part.rows.tolist()) for part in joined.of_entities()]
    return joined.records, events, +joined.later, joined.orphans, joined.refused


@given(st.data(), st.sampled_from(LAYOUTS), st.sampled_from([None, len]))
def test_columns_join_as_single_payments_do(data: st.DataObject, layout: RecordLayout, tag_of: None) -> None:
    before, now = data.draw(payments(layout)), data.draw(payments(layout))
    known = batch.join(before, [], {}, 2, layout).records
    known |= {record_key("e"): b"\xff damaged"} if data.draw(st.booleans()) else {}
    # Some payments are read again at the place where they were read first.
    now += data.draw(st.lists(st.sampled_from(before), max_size=2)) if before else []
    outcomes = [OutcomeEvent(Position(1, at), name, is_fraud=True) for at, name in enumerate(("a", "d", "nobody"))]
    by_column = batch.join(columns_of(now, layout.width), outcomes, known, 2, layout, tag_of)
    assert content(by_column) == content(batch.join(now, outcomes, known, 2, layout, tag_of))


@given(st.data(), st.sampled_from(LAYOUTS))
def test_new_records_have_the_bytes_that_protobuf_writes(data: st.DataObject, layout: RecordLayout) -> None:
    made = data.draw(payments(layout))
    columns = columns_of(made, layout.width)
    written = columns.records(layout.columns, layout.besides(columns.rows), layout.beside_fields)
    for payment, value in zip(made, written, strict=True):
        record = PaymentRecord(
            source=payment.position.source,
            offset=payment.position.offset,
            keys=[key.decode() for key in payment.keys],
            attributes=layout.codes_of(payment.attributes),
        )
        if layout.beside_fields:
            record.beside, record.beside_fields = layout.beside(payment.attributes), layout.beside_fields
        assert value == record.SerializeToString()
    assert list(columns) == made
    assert columns[1:] == made[1:]
    assert layout.width == row_width(FIELDS) or layout is LAYOUTS[0]
