"""A dead letter holds any record in full, and a damaged record of the topic is a letter too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.avro import LocalSchemaIds
from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.dead_letters.writer import DamagedLetter, DeadLetters, Letter, LetterDecoder, LetterId
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import Record

IDS = LocalSchemaIds()
DECODER = LetterDecoder(IDS)

offsets = st.integers(0, 2**63 - 1)
contents = st.none() | st.binary(max_size=200)
names = st.text(st.characters(codec="utf-8"), max_size=20)
records = st.builds(
    Record,
    topic=names,
    partition=st.integers(0, 2**31 - 1),
    offset=offsets,
    key=contents,
    value=contents,
    timestamp_ms=offsets,
    # Few names, so that some occur more than once.
    headers=st.lists(st.tuples(st.sampled_from(["", "a", "b"]) | names, contents), max_size=6),
)


class FakeSender:
    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None, bytes | None]] = []

    def send(self, topic: str, value: bytes | None, *, key: bytes | None) -> None:
        self.sent.append((topic, value, key))


def sent_letter(record: Record, reason: str, now_ms: int) -> tuple[str, bytes | None, bytes | None]:
    sender = FakeSender()
    DeadLetters(cast(Sender, sender), KafkaSettings(topic_prefix="p-"), IDS).send(record, reason, now_ms)
    (sent,) = sender.sent
    return sent


def on_topic(value: bytes | None, **more: Any) -> Record:
    place: dict[str, Any] = {"partition": 0, "offset": 17, "timestamp_ms": 99, "key": None, "headers": [], **more}
    return Record(topic="p-dead-letters", value=value, **place)


@given(record=records, reason=names, now_ms=offsets)
def test_a_letter_keeps_every_part_of_its_record_bit_for_bit(record: Record, reason: str, now_ms: int) -> None:
    topic, value, key = sent_letter(record, reason, now_ms)
    assert (topic, key) == ("p-dead-letters", record.key)
    # The clock of a record's time matters only when the record is applied.
    kept = record._replace(is_broker_time=False)
    assert DECODER.letter(on_topic(value)) == Letter(LetterId(0, 17), 99, kept, reason, now_ms)


@given(value=contents)
def test_any_bytes_on_the_topic_are_a_letter_or_a_damaged_one(value: bytes | None) -> None:
    letter = DECODER.letter(on_topic(value))
    assert isinstance(letter, DamagedLetter)
    assert (letter.letter_id, letter.value, letter.failed_time_ms) == (LetterId(0, 17), value, 99)


def test_the_reason_of_a_damaged_letter_does_not_quote_it() -> None:
    whole = sent_letter(Record("t", 0, 0, b"4000123412341234", b"4000123412341234", 1, []), "why", 5)[1] or b""
    for cut in range(1, len(whole)):
        letter = DECODER.letter(on_topic(whole[:cut]))
        assert isinstance(letter, DamagedLetter)
        assert "4000" not in letter.reason


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        ([], 0),
        ([("paywarden-retry-count", b"3")], 3),
        ([("paywarden-retry-count", b"1"), ("paywarden-retry-count", b"2")], 2),
        ([("paywarden-retry-count", None)], 0),
        ([("paywarden-retry-count", b"many")], 0),
        ([("paywarden-retry-count", b"-1")], 0),
        ([("paywarden-retry-count", b"9" * 5000)], 0),
    ],
)
def test_the_last_retry_header_counts_and_nonsense_is_zero(headers: list[tuple[str, bytes | None]], count: int) -> None:
    assert Letter(LetterId(0, 1), 1, on_topic(b"v", headers=headers), "why", 1).retry_count == count


@given(partition=st.integers(0, 10**9 - 1), offset=st.integers(0, 10**18 - 1))
def test_the_text_of_a_letter_id_parses_to_the_same_id(partition: int, offset: int) -> None:
    assert LetterId.of(str(LetterId(partition, offset))) == LetterId(partition, offset)


@pytest.mark.parametrize("text", ["", "17", "0-", "-17", "0-1-2", "a-1", "0--1", "0-1\n", "١-١", "0-" + "9" * 19])
def test_a_text_that_is_no_letter_id_is_refused(text: str) -> None:
    with pytest.raises(Misconfigured, match="wanted a letter's id, such as 0-17"):
        LetterId.of(text)


def test_a_payment_of_an_erased_card_gives_no_letter(tmp_path: Path) -> None:
    keys = ErasureKeys.create(tmp_path / "erasure.keys")
    keys.keys_for(["kept", "gone"])
    decoder = LetterDecoder(IDS, keys, "p-payments")

    def letter(topic: str, key: bytes | None, timestamp_ms: int) -> Letter | DamagedLetter:
        record = Record(topic, 0, 1, key, b"of payment-id-1", timestamp_ms, [])
        return decoder.letter(on_topic(sent_letter(record, "odd", 2)[1]))

    assert isinstance(letter("p-payments", b"gone", 5), Letter)
    keys.destroy("gone", 5)
    assert letter("p-payments", b"gone", 5) == DamagedLetter(LetterId(0, 17), 99, None, "its card was erased")
    others = [
        ("p-payments", b"kept", 5),
        ("p-payments", b"gone", 6),
        ("p-payments", b"\xff", 5),
        ("p-payments", None, 5),
        ("p-outcomes", b"gone", 5),
    ]
    assert all(isinstance(letter(*other), Letter) for other in others)
