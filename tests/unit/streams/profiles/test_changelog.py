from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.profiles.changelog import ChangelogEncoder

MOMENTS = st.integers(0, 2**60)
ENCODER = Encoder("profiles", LocalSchemaIds().id_of("profiles"))


def as_avro(entity: str, state: bytes, written_ms: int, arrived_ms: int | None) -> bytes:
    record = {"entity": entity, "state": state, "written_time_ms": written_ms, "arrived_time_ms": arrived_ms}
    return ENCODER.encode(record)


@given(st.text(max_size=80), st.dictionaries(st.binary(), st.binary(max_size=300)), MOMENTS, st.none() | MOMENTS)
def test_changelog_records_equal_those_of_the_avro_encoder(
    entity: str, states: dict[bytes, bytes], written_ms: int, arrived_ms: int | None
) -> None:
    encoded = dict(ChangelogEncoder(ENCODER, entity).encode(states, written_ms, arrived_ms))
    assert encoded == {key: as_avro(entity, state, written_ms, arrived_ms) for key, state in states.items()}


@pytest.mark.parametrize("size", [0, 63, 64, 8191, 8192, 1_048_575, 1_048_576])
def test_states_at_the_edges_of_a_lengths_bytes_are_encoded_alike(size: int) -> None:
    state = b"\x81" * size
    assert dict(ChangelogEncoder(ENCODER, "card").encode({b"k": state}, 5, None)) == {
        b"k": as_avro("card", state, 5, None)
    }
