"""Which letters a retry sends, and that no note runs ahead of the broker."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.dead_letters.retry import (
    BatchLimits,
    Note,
    Outgoing,
    Retried,
    Selection,
    note_of,
    outgoing_of,
    retry,
)
from paywarden.streams.dead_letters.writer import AnyLetter, DamagedLetter, Letter, LetterId
from paywarden.streams.kafka.producers import RecordHeaders
from paywarden.streams.kafka.reading import Record

OWN = ("paywarden-retry-of", "paywarden-retry-count")


class MemoryNotes:
    """Notes in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[LetterId, Note] = {}

    def read(self) -> dict[LetterId, Note]:
        return dict(self.kept)

    def write(self, notes: Sequence[Note]) -> None:
        self.kept |= {note.letter_id: note for note in notes}


class MemoryOrigins:
    """Accepts records of topic payments, refuses the value `refused`, and fails at a chosen batch."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        self.refused = b""
        self.breaks_at = 0

    def missing_of(self, topic: str) -> str | None:
        return None if topic == "payments" else f"no {topic}"

    def send(self, records: Sequence[Outgoing]) -> list[str | None]:
        self.breaks_at -= 1
        if self.breaks_at == 0:
            raise BrokerUnavailable("away")
        self.sent += [record for record in records if record.value != self.refused]
        return ["too odd" if record.value == self.refused else None for record in records]


class World:
    """Letters, with the notes and origins of their retries."""

    def __init__(self, *letters: AnyLetter, limits: BatchLimits | None = None) -> None:
        self.letters, self.limits = list(letters), limits
        self.notes, self.origins = MemoryNotes(), MemoryOrigins()

    def retry(self, *, again: bool = False, retries_max: int = 5, dry_run: bool = False) -> Retried:
        return retry(
            self.letters,
            notes=self.notes,
            origins=self.origins,
            now_ms=lambda: 1000,
            again=again,
            retries_max=retries_max,
            dry_run=dry_run,
            limits=self.limits,
        )


def letter(
    offset: int, *, topic: str = "payments", value: bytes = b"v", headers: RecordHeaders = (), written_ms: int = 50
) -> Letter:
    record = Record(topic, 3, offset, b"k", value, 40, headers)
    return Letter(LetterId(0, offset), written_ms, record, "currency: unknown", 49)


def damaged(offset: int) -> DamagedLetter:
    return DamagedLetter(LetterId(0, offset), 50, b"?", "too short")


def ids(*offsets: int) -> list[LetterId]:
    return [LetterId(0, offset) for offset in offsets]


def test_a_letter_is_sent_once_and_again_only_on_request() -> None:
    world = World(letter(1), letter(2))
    assert world.retry().sent == ids(1, 2)
    done = world.retry()
    assert (done.sent, done.before) == ([], ids(1, 2))
    assert world.retry(again=True).sent == ids(1, 2)
    assert len(world.origins.sent) == 4


def test_another_letter_with_the_id_of_a_retried_one_is_sent() -> None:
    """The topic was created again, and its offsets start at 0 again."""
    world = World(letter(1))
    world.retry()
    world.letters = [letter(1, written_ms=51)]
    assert world.retry().sent == ids(1)


def test_a_dry_run_decides_and_does_nothing() -> None:
    world = World(letter(1), damaged(2), letter(3, topic="elsewhere"))
    done = world.retry(dry_run=True)
    assert done.sent == ids(1)
    assert done.refused == {"the letter itself is damaged: too short": ids(2), "no elsewhere": ids(3)}
    assert (world.origins.sent, world.notes.kept) == ([], {})


def test_a_letter_that_failed_too_often_is_sent_only_with_again() -> None:
    world = World(letter(1, headers=[(OWN[1], b"2")]), letter(2, headers=[(OWN[1], b"1")]))
    done = world.retry(retries_max=2)
    assert done.sent == ids(2)
    assert list(done.refused.values()) == [ids(1)]
    assert world.retry(retries_max=2, again=True).sent == ids(1, 2)
    assert world.notes.kept[LetterId(0, 1)].retry_count == 3


def test_a_refused_letter_is_not_noted_but_the_rest_of_its_batch_is() -> None:
    world = World(letter(1), letter(2, value=b"odd"), letter(3))
    world.origins.refused = b"odd"
    done = world.retry()
    assert (done.sent, done.refused) == (ids(1, 3), {"too odd": ids(2)})
    assert list(world.notes.kept) == ids(1, 3)


def test_a_broker_outage_leaves_notes_of_the_letters_it_has_taken() -> None:
    world = World(*map(letter, range(5)), limits=BatchLimits(count=2))
    world.origins.breaks_at = 2
    with pytest.raises(BrokerUnavailable):
        world.retry()
    assert list(world.notes.kept) == ids(0, 1)
    done = world.retry()
    assert (done.before, done.sent) == (ids(0, 1), ids(2, 3, 4))


def test_large_letters_are_sent_one_by_one() -> None:
    world = World(*(letter(offset, value=b"x" * 200) for offset in range(3)), limits=BatchLimits(size_bytes=100))
    world.origins.breaks_at = 3
    with pytest.raises(BrokerUnavailable):
        world.retry()
    assert list(world.notes.kept) == ids(0, 1)


@given(
    headers=st.lists(st.tuples(st.sampled_from(["a", "", *OWN]), st.none() | st.binary(max_size=5)), max_size=6),
    key=st.none() | st.binary(max_size=9),
    value=st.none() | st.binary(max_size=9),
)
def test_a_retry_keeps_the_record_and_replaces_earlier_retry_headers(
    headers: list[tuple[str, bytes | None]], key: bytes | None, value: bytes | None
) -> None:
    failed = Letter(LetterId(2, 9), 1, Record("payments", 0, 0, key, value, 1, headers), "why", 1)
    sent = outgoing_of(failed)
    assert (sent.topic, sent.key, sent.value) == ("payments", key, value)
    assert sent.headers == [header for header in headers if header[0] not in OWN]
    assert sent.more_headers == [(OWN[0], b"2-9"), (OWN[1], str(failed.retry_count + 1).encode())]
    failed_again = Letter(
        LetterId(2, 10), 1, Record("payments", 0, 5, key, value, 1, [*sent.headers, *sent.more_headers]), "why", 1
    )
    assert failed_again.retry_count == failed.retry_count + 1
    assert outgoing_of(failed_again).headers == sent.headers


@pytest.mark.parametrize(
    ("selection", "selected"),
    [
        (Selection(), [1, 2, 3]),
        (Selection(topics=frozenset({"payments", "p-payments"})), [1]),
        (Selection(reason="CURRENCY"), [1, 2]),
        (Selection(reason="short"), [3]),
        (Selection(since_ms=50), [3]),
        (Selection(topics=frozenset({"outcomes"}), since_ms=49), [2]),
    ],
)
def test_a_selection_has_the_letters_that_match_all_its_parts(selection: Selection, selected: list[int]) -> None:
    letters: list[AnyLetter] = [letter(1), letter(2, topic="outcomes"), damaged(3)]
    assert [found.letter_id for found in letters if selection.has(found)] == ids(*selected)


def test_a_note_belongs_to_one_letter() -> None:
    note = Note(LetterId(0, 1), 50, "payments", 1, 1000)
    notes = {note.letter_id: note}
    assert note_of(letter(1), notes) == note
    assert note_of(letter(1, written_ms=51), notes) is None
    assert note_of(letter(2), notes) is None
