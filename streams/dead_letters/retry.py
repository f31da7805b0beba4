"""Send dead letters back to their topics, after the cause of their failure is fixed.

1. decide   for each letter: refuse it, skip it because it was retried before, or send it
2. send     the original key, value and headers, and two more headers: the letter's id and the number of the retry
3. note     that the letters were retried, on a compacted topic, after the broker has acknowledged the whole batch

    letter 0-17 of payments    ─►  payments, with headers paywarden-retry-of: 0-17, paywarden-retry-count: 1
                               ─►  dead-letters-retried, key 0-17

The record gets a new offset and the present Kafka timestamp: for the stream it is a new record.

What can go wrong:

- A crash between 2 and 3: the next run sends the batch again. That is harmless, because the stream knows a payment by
  its id, and a repeated outcome changes nothing.
- The record with its two headers is too large for its topic: it goes back without them.
- The record fails again: it becomes a new letter. After 5 retries it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from confluent_kafka import Consumer, KafkaError

from paywarden.schemas.avro import Decoder, Encoder, SchemaIds
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.streams.dead_letters.writer import (
    RETRY_COUNT_HEADER,
    RETRY_OF_HEADER,
    AnyLetter,
    DamagedLetter,
    Letter,
    LetterId,
)
from paywarden.streams.kafka.admin import partitions_of, topics_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import RecordHeaders, Sender
from paywarden.streams.kafka.reading import make_consumer, records_to_end

# The topics that the stream reads. Letters come from no other topics.
ORIGINS = ("payments", "outcomes")
# A record that has failed this often will fail again.
RETRIES_MAX = 5
_FLUSH_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class BatchLimits:
    """The most letters and bytes to send before a wait for the broker. A letter may have megabytes."""

    count: int = 500
    size_bytes: int = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Note:
    """A note that a letter was retried. `letter_time_ms` tells it apart from a later letter with the same id."""

    letter_id: LetterId
    letter_time_ms: int
    topic: str
    retry_count: int
    retried_time_ms: int


class Notes(Protocol):
    """The notes of retried letters."""

    def read(self) -> dict[LetterId, Note]:
        """Returns the last note of each letter."""

    def write(self, notes: Sequence[Note]) -> None:
        """Store notes; returns when they are safe."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record on its way back. `more_headers` are left out if they make the record too large."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: RecordHeaders
    more_headers: RecordHeaders


class Origins(Protocol):
    """The topics that letters go back to."""

    def missing_of(self, topic: str) -> str | None:
        """Returns why nothing can be sent to this topic; None if it can."""

    def send(self, records: Sequence[Outgoing]) -> list[str | None]:
        """Send all records. Returns for each None when the broker has it, or why the broker refused it."""


@dataclass(frozen=True)
class Selection:
    """Selects the letters that match every given part. An empty part matches all letters."""

    topics: frozenset[str] = frozenset()
    reason: str = ""
    since_ms: int = 0

    def has(self, letter: AnyLetter) -> bool:
        """Returns whether the letter is selected. The topic of a damaged letter is unknown."""
        if self.topics and (isinstance(letter, DamagedLetter) or letter.record.topic not in self.topics):
            return False
        return self.reason.lower() in letter.reason.lower() and letter.failed_time_ms >= self.since_ms


@dataclass
class Retried:
    """The result of a retry. `before`: letters that an earlier retry sent. `refused`: letters by the reason."""

    sent: list[LetterId] = field(default_factory=list)
    before: list[LetterId] = field(default_factory=list)
    refused: dict[str, list[LetterId]] = field(default_factory=dict)

    def refuse(self, letter_id: LetterId, why: str) -> None:
        self.refused.setdefault(why, []).append(letter_id)


def note_of(letter: AnyLetter, notes: dict[LetterId, Note]) -> Note | None:
    """Returns the note of this letter, or None if it was not retried."""
    note = notes.get(letter.letter_id)
    return note if note is not None and note.letter_time_ms == letter.written_time_ms else None


def retry(
    letters: Iterable[AnyLetter],
    *,
    notes: Notes,
    origins: Origins,
    now_ms: Callable[[], int],
    again: bool = False,
    retries_max: int = RETRIES_MAX,
    dry_run: bool = False,
    limits: BatchLimits | None = None,
) -> Retried:
    """Send letters back. `again` also sends letters that were retried before or have failed `retries_max` times.

    Raises BrokerUnavailable. The same call then resumes, and repeats the last batch at most.
    """
    done = Retried()
    earlier_notes = notes.read()
    chosen = _to_send(letters, earlier_notes, origins, done, again=again, retries_max=retries_max)
    for batch in _in_batches(chosen, limits or BatchLimits()):
        answers = [None] * len(batch) if dry_run else origins.send([outgoing_of(letter) for letter in batch])
        sent = [letter for letter, why in zip(batch, answers, strict=True) if why is None]
        if not dry_run:
            notes.write([_note(letter, now_ms()) for letter in sent])
        done.sent += [letter.letter_id for letter in sent]
        for letter, why in zip(batch, answers, strict=True):
            if why is not None:
                done.refuse(letter.letter_id, why)
    return done


def outgoing_of(letter: Letter) -> Outgoing:
    """Returns the original record; this retry's headers replace those of an earlier one."""
    record = letter.record
    own = (RETRY_OF_HEADER, RETRY_COUNT_HEADER)
    return Outgoing(
        topic=record.topic,
        key=record.key,
        value=record.value,
        headers=[header for header in record.headers or () if header[0] not in own],
        more_headers=[
            (RETRY_OF_HEADER, str(letter.letter_id).encode()),
            (RETRY_COUNT_HEADER, str(letter.retry_count + 1).encode()),
        ],
    )


def _to_send(
    letters: Iterable[AnyLetter],
    known: dict[LetterId, Note],
    origins: Origins,
    done: Retried,
    *,
    again: bool,
    retries_max: int,
) -> Iterator[Letter]:
    for letter in letters:
        if isinstance(letter, DamagedLetter):
            done.refuse(letter.letter_id, f"the letter itself is damaged: {letter.reason}")
        elif note_of(letter, known) is not None and not again:
            done.before.append(letter.letter_id)
        elif letter.retry_count >= retries_max and not again:
            done.refuse(letter.letter_id, f"it has failed after {letter.retry_count} retries; --again sends it even so")
        elif (missing := origins.missing_of(letter.record.topic)) is not None:
            done.refuse(letter.letter_id, missing)
        else:
            yield letter


def _in_batches(letters: Iterable[Letter], limits: BatchLimits) -> Iterator[list[Letter]]:
    batch: list[Letter] = []
    size_bytes = 0
    for letter in letters:
        batch.append(letter)
        size_bytes += letter.size_bytes
        if len(batch) >= limits.count or size_bytes >= limits.size_bytes:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _note(letter: Letter, now_ms: int) -> Note:
    return Note(letter.letter_id, letter.written_time_ms, letter.record.topic, letter.retry_count + 1, now_ms)


class KafkaNotes:
    """Notes on the topic dead-letters-retried. `close` it."""

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds) -> None:
        """Raises BrokerUnavailable, or Misconfigured when there is no such topic."""
        self._topic = kafka.topic("dead-letters-retried")
        self._partitions = partitions_of(kafka, "dead-letters-retried")
        self._consumer: Consumer = make_consumer(kafka, group_id="paywarden-dead-letters")
        self._sender = Sender(kafka, linger_ms=5)
        self._encoder = Encoder("dead-letters-retried", ids.id_of("dead-letters-retried"))
        self._decoder = Decoder("dead-letters-retried", ids)

    def read(self) -> dict[LetterId, Note]:
        """See Notes. Raises BrokerUnavailable, Misconfigured for a record that is no note."""
        notes: dict[LetterId, Note] = {}
        for records in records_to_end(self._consumer, self._topic, self._partitions):
            for record in records:
                note = self._note(record.key or b"", record.value or b"")
                notes[note.letter_id] = note
        return notes

    def write(self, notes: Sequence[Note]) -> None:
        """See Notes. Raises BrokerUnavailable."""
        for note in notes:
            fields = {
                "letter_time_ms": note.letter_time_ms,
                "topic": note.topic,
                "retry_count": note.retry_count,
                "retried_time_ms": note.retried_time_ms,
            }
            self._sender.send(self._topic, self._encoder.encode(fields), key=str(note.letter_id).encode())
        self._sender.flush(_FLUSH_TIMEOUT_S)

    def close(self) -> None:
        self._consumer.close()

    def _note(self, key: bytes, value: bytes) -> Note:
        try:
            letter_id = LetterId.of(key.decode())
            return Note(letter_id, **self._decoder.decode(value))
        except (InvalidEvent, Misconfigured, UnicodeDecodeError) as error:
            # Ignoring it could send a letter twice.
            raise Misconfigured(f"{self._topic} holds a record that is no note of a retry: {error}") from error


class KafkaOrigins:
    """The topics that this deployment's stream reads."""

    def __init__(self, kafka: KafkaSettings) -> None:
        """Raises BrokerUnavailable."""
        self._names = {kafka.topic(name) for name in ORIGINS}
        # One question for all topics: a question about a missing topic could make the broker create it.
        self._on_cluster = topics_of(kafka)
        self._sender = Sender(kafka, linger_ms=5)

    def missing_of(self, topic: str) -> str | None:
        """See Origins."""
        if topic not in self._names:
            return f"it came from {topic}, and this deployment's stream reads {' and '.join(sorted(self._names))}"
        if topic not in self._on_cluster:
            return f"it came from {topic}, which is not on this cluster"
        return None

    def send(self, records: Sequence[Outgoing]) -> list[str | None]:
        """See Origins. Raises BrokerUnavailable if the broker does not answer for every record."""
        answers = self._send([(record, [*record.headers, *record.more_headers]) for record in records])
        # A record of its topic's largest size has no room for more headers.
        large = [i for i, e in enumerate(answers) if e is not None and e.code() == KafkaError.MSG_SIZE_TOO_LARGE]
        for index, answer in zip(large, self._send([(records[i], records[i].headers) for i in large]), strict=True):
            answers[index] = answer
        return [None if error is None else f"Kafka refused it: {error.str()}" for error in answers]

    def _send(self, records: Sequence[tuple[Outgoing, RecordHeaders]]) -> list[KafkaError | None]:
        answers: list[KafkaError | None] = [None] * len(records)
        for index, (record, headers) in enumerate(records):
            self._sender.send(
                record.topic,
                record.value,
                key=record.key,
                headers=headers,
                on_refused=partial(answers.__setitem__, index),
            )
        self._sender.flush(_FLUSH_TIMEOUT_S)
        return answers
