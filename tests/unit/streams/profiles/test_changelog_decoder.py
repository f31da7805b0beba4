"""The changelog's own decoder equals Avro's decoder for any bytes, regardless of earlier ones."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.profiles.changelog import ChangelogDecoder

IDS = LocalSchemaIds()
MOMENTS = st.sampled_from([0, 1, 1_700_000_000_000, -1])
RECORDS = st.fixed_dictionaries(
    {
        "entity": st.sampled_from(["card", "merchant", "progress", "", "\u00fc", "e" * 63, "e" * 64]),
        "state": st.binary(max_size=3) | st.integers(60, 70).map(bytes) | st.just(b"\x80" * 9000),
        "written_time_ms": MOMENTS,
        "complete_to_time_ms": st.none() | MOMENTS,
        "arrived_time_ms": st.none() | MOMENTS,
    }
)
ENCODER = Encoder("profiles", IDS.id_of("profiles"))


def result(decoder: Decoder, value: bytes) -> dict[str, Any] | str:
    try:
        return decoder.decode(value)
    except InvalidEvent as error:
        return str(error)


@given(st.lists(st.tuples(RECORDS, st.integers(0, 3), st.data()), min_size=1, max_size=6))
def test_records_are_read_as_avro_reads_them(written: list[tuple[dict[str, Any], int, st.DataObject]]) -> None:
    ours, avros = ChangelogDecoder(IDS), Decoder("profiles", IDS)
    for record, damage, data in written:
        value = bytearray(ENCODER.encode(record))
        if damage == 1:
            value[data.draw(st.integers(0, min(len(value) - 1, 20)))] ^= data.draw(st.integers(1, 255))
        elif damage == 2:
            del value[data.draw(st.integers(0, len(value))) :]
        elif damage == 3:
            value += data.draw(st.binary(max_size=2))
        # The second time the decoder knows the record's beginning and end.
        for _ in range(2):
            assert result(ours, bytes(value)) == result(avros, bytes(value))
