from __future__ import annotations

import pytest

from paywarden.features.profiles.payment_tags import MARK_DTYPE
from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.streams.companion.changelog_reader import ProfileChanges, read_changes
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.changelog import PAYMENTS_HEADER
from paywarden.streams.profiles.progress.watermarks import CLAIM_KEY, Claim

IDS = LocalSchemaIds()
ENCODER = Encoder("profiles", IDS.id_of("profiles"))
ENTITIES = ("card", "merchant")


def record(key: bytes | None, value: bytes | None, offset: int = 0, partition: int = 0) -> Record:
    return Record("profiles", partition, offset, key, value, 0, ())


def state(
    key: bytes, content: bytes = b"s", *, arrived_ms: int | None = None, offset: int = 0, partition: int = 0
) -> Record:
    entity = key.partition(b":")[0].decode()
    value = ENCODER.encode({"entity": entity, "state": content, "written_time_ms": 1, "arrived_time_ms": arrived_ms})
    return record(key, value, offset, partition)


def claim(moment_ms: int, offset: int) -> Record:
    value = {"entity": "progress", "state": b"", "written_time_ms": 1, "complete_to_time_ms": moment_ms}
    return record(CLAIM_KEY, ENCODER.encode(value), offset)


def changes(*records: Record, ageless_before: dict[int, int] | None = None) -> ProfileChanges:
    return read_changes(records, Decoder("profiles", IDS), ENTITIES, ageless_before or {})


def test_the_last_record_of_a_key_counts_and_positions_follow_it() -> None:
    got = changes(
        state(b"card:1", b"old", offset=3),
        state(b"card:1", b"new", offset=4),
        state(b"card:2", offset=9, partition=1),
        record(b"card:2", None, 10, 1),
    )
    assert got.profiles == {b"card:1": b"new", b"card:2": None}
    assert got.erased_count() == 1
    assert got.positions == {0: 5, 1: 11}


def test_claims_are_read_and_those_of_another_format_left_out() -> None:
    claims = [Claim(5, {0: 7, 1: 9}), Claim(6, {0: 8})]
    states = [claims[0].encoded_ends(), b"\xff", claims[1].encoded_ends()]
    values = [
        ENCODER.encode({"entity": "progress", "state": state, "written_time_ms": 1, "complete_to_time_ms": moment_ms})
        for state, moment_ms in zip(states, (5, 5, 6), strict=True)
    ]
    got = changes(*(record(CLAIM_KEY, value, offset) for offset, value in enumerate(values)))
    assert (got.claims, got.profiles) == (claims, {})


@pytest.mark.parametrize("key", [None, b"", b"c" * (KEY_BYTES_MAX + 1), b"\0shards"])
def test_a_record_without_a_usable_key_is_counted_and_skipped(key: bytes | None) -> None:
    got = changes(record(key, None, 4))
    assert (got.unreadable, got.profiles, got.positions) == (1, {}, {0: 5})


def test_a_record_that_is_no_avro_is_counted_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    got = changes(record(b"card:1", b"secret", 4), state(b"card:2", offset=5))
    assert (got.unreadable, list(got.profiles), got.positions) == (1, [b"card:2"], {0: 6})
    assert "card:1" not in caplog.text
    assert "secret" not in caplog.text


def test_every_state_of_an_event_has_an_age_by_kind_of_entity() -> None:
    got = changes(
        state(b"card:1", arrived_ms=5),
        state(b"card:1", arrived_ms=6),
        state(b"merchant:1", arrived_ms=7),
        state(b"card:2", arrived_ms=None),
        state(b"elsewhere:1", arrived_ms=8),
        record(b"card:3", None),
    )
    assert got.arrived_ms == {"card": [5, 6], "merchant": [7]}


def test_records_from_before_the_start_have_no_age() -> None:
    got = changes(
        state(b"card:1", arrived_ms=1, offset=9),
        state(b"card:2", arrived_ms=2, offset=10),
        state(b"card:3", arrived_ms=3, offset=0, partition=1),
        ageless_before={0: 10},
    )
    assert got.arrived_ms["card"] == [2, 3]
    assert len(got.profiles) == 3


def named(record: Record, payments: bytes) -> Record:
    return record._replace(headers=((PAYMENTS_HEADER, payments),))


def test_payments_are_named_and_a_change_without_them_is_counted() -> None:
    mark = bytes(MARK_DTYPE.itemsize)
    got = changes(
        named(state(b"card:1", offset=3), mark),
        named(state(b"card:2", offset=4), b""),
        claim(7, 5),
        record(b"card:1", None, 6),
    )
    assert (got.named, got.unnamed) == ([mark, b""], 0)
    assert changes(state(b"card:1"), named(state(b"card:1", offset=1), mark[1:])).unnamed == 2


def test_a_gap_in_the_changelog_may_hide_payments() -> None:
    first, second = (named(state(b"card:1", offset=offset), b"") for offset in (3, 5))
    assert changes(first, second).unnamed == 1
    decoder = Decoder("profiles", IDS)
    assert [read_changes([first], decoder, ENTITIES, {}, {0: read_to}).unnamed for read_to in (3, 2)] == [0, 1]


@pytest.mark.parametrize(
    "unusable", [record(b"card:1", b"no avro", 4), record(None, b"s", 4), record(b"\0shards", b"s", 4)]
)
def test_a_record_that_cannot_be_used_may_hide_payments(unusable: Record) -> None:
    """Its payments are not marked. The next state of the profile, which contains them, does not name them again."""
    got = changes(named(state(b"card:2", offset=3), b""), unusable, named(state(b"card:1", offset=5), b""))
    assert (got.unreadable, got.unnamed) == (1, 1)
