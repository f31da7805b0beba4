"""What is known of a payment: how it was decided, what it turned out to be, and what of that is counted already.

Decisions and outcomes come from two topics, in any order, again and again, and are worked in by different workers at
the same time. So each payment has a record of its own, replaced by compare-and-set, and a row is worked in like this:

1. `Payment.join`: the record with the row in it. The first decision of each variant counts; of outcomes the latest, by
   the time it became known, within the window after the first decision; of two of one time, fraud. What comes again or
   too late changes nothing, so rows may come any number of times.
2. A row that changes something leaves a *mark*: which row of which partition it was, and what the outcome was before
   and after. Whoever works the row in again, because nobody knows whether it was counted, finds it there.
3. `Payment.counted`: what a marked row adds to the tallies and takes away. What is counted of a payment, over all marks
   that it ever had, is so what its record says: each change starts from what the one before ended with.

A mark is dropped when its partition's next row about the payment is worked in and its own is counted and saved: a
record has as many as its payment has rows in one batch, and mostly one of each topic.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.models.metrics.outcome_tally import UNLABELLED
from paywarden.models.metrics.tally import FRAUD
from paywarden.schemas.errors import InvalidEvent

ENTITY = "outcome"
DAY_MS = 86_400_000
# Decisions of a payment that are counted, one a variant, and outcomes that wait for the first: more are one too many.
DECIDED_MAX = 8
WAITING_MAX = 8
_FORMAT = 1


class RowEffect(IntEnum):
    """What a row did."""

    NOTHING = 0
    DECIDED = 1
    WAITED = 2
    LABELLED = 3
    CORRECTED = 4
    CONFIRMED = 5
    LATE = 6
    UNREADABLE = 7


class Arm(NamedTuple):
    """Whose decisions are measured together: a model version under the name of a variant, empty for none."""

    version: str
    variant: str


class TallyCell(NamedTuple):
    """What one tally is of. `day`: UTC, of the decision, counted from 1970-01-01."""

    day: int
    arm: Arm


class SourcePartition(NamedTuple):
    """A partition of decisions ("d") or of outcomes ("o")."""

    topic: str
    partition: int


class Outcome(NamedTuple):
    """A label, GENUINE or FRAUD of models/metrics/tally.py, and when it became known. Ordered by which one counts."""

    time_ms: int
    label: int


class CountedDecision(NamedTuple):
    """A decision as it is counted. `score_units`: of models/metrics/outcome_tally.py; amounts in the reference
    currency."""

    arm: Arm
    decided_ms: int
    action: int
    score_units: int
    amount_minor: int

    @property
    def cell(self) -> TallyCell:
        return TallyCell(self.decided_ms // DAY_MS, self.arm)


class JoinMark(NamedTuple):
    """What a row changed: the outcome of the first `decided_count` decisions, or that the last of them came."""

    source: SourcePartition
    offset: int
    kind: RowEffect
    decided_count: int
    before: Outcome | None
    after: Outcome | None


class TallyChange(NamedTuple):
    """A payment more (`times` 1) or less (-1) in a tally."""

    decided: CountedDecision
    outcome: Outcome | None
    times: int

    @property
    def label(self) -> int:
        return UNLABELLED if self.outcome is None else self.outcome.label

    @property
    def lag_ms(self) -> int:
        """From the decision to its label; 0 where there is none, or clocks differ."""
        return 0 if self.outcome is None else max(0, self.outcome.time_ms - self.decided.decided_ms)


class Payment(NamedTuple):
    """See above. `waiting`: outcomes that came before any decision, the newest first."""

    decided: tuple[CountedDecision, ...] = ()
    outcome: Outcome | None = None
    waiting: tuple[Outcome, ...] = ()
    marks: tuple[JoinMark, ...] = ()

    def mark_of(self, source: SourcePartition, offset: int) -> JoinMark | None:
        """What this row changed, if it was worked in and may not be counted."""
        for mark in self.marks:
            if mark.offset == offset and mark.source == source:
                return mark
        return None

    def without_counted(self, source: SourcePartition, next_offset: int) -> Payment:
        """Without the marks of rows before this one, which are counted."""
        if not self.marks:
            return self
        return self._replace(
            marks=tuple(mark for mark in self.marks if mark.source != source or mark.offset >= next_offset)
        )

    def join(
        self, row: CountedDecision | Outcome, source: SourcePartition, offset: int, window_ms: int
    ) -> tuple[Payment, RowEffect]:
        """With a row worked in, and what that did. For NOTHING and LATE it is the same as before."""
        if isinstance(row, CountedDecision):
            joined, kind = self._with_decision(row, window_ms)
        elif not self.decided:
            joined, kind = self._with_waiting(row)
        else:
            joined, kind = self._with_outcome(row, window_ms)
        if kind in (RowEffect.NOTHING, RowEffect.LATE):
            return self, kind
        before = self.outcome if kind is not RowEffect.DECIDED else None
        mark = JoinMark(source, offset, kind, len(joined.decided), before, joined.outcome)
        return joined._replace(marks=(*joined.marks, mark)), kind

    def counted(self, mark: JoinMark) -> Iterator[TallyChange]:
        """What a marked row changes in the tallies."""
        if mark.kind is RowEffect.DECIDED:
            yield TallyChange(self.decided[mark.decided_count - 1], mark.after, 1)
        elif mark.kind is not RowEffect.WAITED:
            for decided in self.decided[: mark.decided_count]:
                yield TallyChange(decided, mark.before, -1)
                yield TallyChange(decided, mark.after, 1)

    def _with_decision(self, row: CountedDecision, window_ms: int) -> tuple[Payment, RowEffect]:
        if len(self.decided) >= DECIDED_MAX or any(one.arm.variant == row.arm.variant for one in self.decided):
            return self, RowEffect.NOTHING
        outcome = self.outcome
        if not self.decided:
            outcome = max((one for one in self.waiting if one.time_ms <= row.decided_ms + window_ms), default=None)
        return self._replace(decided=(*self.decided, row), outcome=outcome, waiting=()), RowEffect.DECIDED

    def _with_waiting(self, row: Outcome) -> tuple[Payment, RowEffect]:
        waiting = tuple(sorted({*self.waiting, row}, reverse=True)[:WAITING_MAX])
        return (
            (self, RowEffect.NOTHING) if waiting == self.waiting else (self._replace(waiting=waiting), RowEffect.WAITED)
        )

    def _with_outcome(self, row: Outcome, window_ms: int) -> tuple[Payment, RowEffect]:
        if row.time_ms > self.decided[0].decided_ms + window_ms:
            return self, RowEffect.LATE
        known = self.outcome
        if known is not None and row <= known:
            return self, RowEffect.NOTHING
        joined = self._replace(outcome=row)
        if known is None:
            return joined, RowEffect.LABELLED
        return joined, RowEffect.CORRECTED if row.label != known.label else RowEffect.CONFIRMED

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        parts = [_HEAD.pack(_FORMAT, len(self.decided), len(self.waiting), len(self.marks)), _packed(self.outcome)]
        for one in self.decided:
            names = [name.encode() for name in one.arm]
            lengths = map(len, names)
            parts.append(_DECIDED.pack(one.decided_ms, one.action, one.score_units, one.amount_minor, *lengths))
            parts += names
        parts += map(_packed, self.waiting)
        for mark in self.marks:
            source, kind = mark.source, mark.kind
            parts.append(
                _MARK.pack(source.topic.encode(), source.partition, mark.offset, kind, mark.decided_count)
                + _packed(mark.before)
                + _packed(mark.after)
            )
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Payment:
        """What `to_bytes` wrote. Raises InvalidEvent for what is no such record."""
        try:
            return _Reading(stored).payment()
        except (struct.error, ValueError, IndexError) as error:
            raise InvalidEvent("what is stored of a payment's outcome is damaged or of another release") from error


_HEAD = struct.Struct("<BBBH")
_OUTCOME = struct.Struct("<bq")
_DECIDED = struct.Struct("<qBiqHH")
_MARK = struct.Struct("<1sHqBB")


def _packed(outcome: Outcome | None) -> bytes:
    return _OUTCOME.pack(-1, 0) if outcome is None else _OUTCOME.pack(outcome.label, outcome.time_ms)


class _Reading:
    """A payment's bytes, and how far they are read."""

    def __init__(self, stored: bytes) -> None:
        self._stored, self._at = stored, 0

    def payment(self) -> Payment:
        layout, decided, waiting, marks = self._unpack(_HEAD)
        if layout != _FORMAT:
            raise ValueError(layout)
        outcome = self._outcome()
        found = Payment(
            tuple(self._decided() for _ in range(decided)),
            outcome,
            tuple(self._known_outcome() for _ in range(waiting)),
            tuple(self._mark() for _ in range(marks)),
        )
        if self._at != len(self._stored):
            raise ValueError(self._at)
        return found

    def _unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        values = layout.unpack_from(self._stored, self._at)
        self._at += layout.size
        return values

    def _text(self, length: int) -> str:
        self._at += length
        return self._stored[self._at - length : self._at].decode()

    def _outcome(self) -> Outcome | None:
        label, time_ms = self._unpack(_OUTCOME)
        return None if label < 0 else Outcome(time_ms, label)

    def _known_outcome(self) -> Outcome:
        label, time_ms = self._unpack(_OUTCOME)
        return Outcome(time_ms, label)

    def _decided(self) -> CountedDecision:
        decided_ms, action, score_units, amount_minor, *lengths = self._unpack(_DECIDED)
        version, variant = [self._text(length) for length in lengths]
        return CountedDecision(Arm(version, variant), decided_ms, action, score_units, amount_minor)

    def _mark(self) -> JoinMark:
        topic, partition, offset, kind, decided_count = _MARK.unpack_from(self._stored, self._at)
        self._at += _MARK.size
        before, after = self._outcome(), self._outcome()
        return JoinMark(
            SourcePartition(topic.decode(), partition), offset, RowEffect(kind), decided_count, before, after
        )


def payment_key(payment_id: str) -> bytes:
    """Where a payment's record is; of an id that is longer than a key may be, a digest stands for it."""
    key = f"{ENTITY}:{payment_id}".encode()
    if len(key) <= KEY_BYTES_MAX:
        return key
    return f"{ENTITY}:{hashlib.blake2b(key, digest_size=32).hexdigest()}".encode()


assert FRAUD > 0, "of two outcomes of one time the order of labels decides"
