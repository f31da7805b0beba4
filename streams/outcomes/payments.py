"""The record of a payment: its decisions, its outcome, and the changes that may not be counted yet.

Decisions and outcomes come from two topics, in any order and any number of times. Different workers process them at the
same time. Each payment therefore has a record of its own, which is replaced by compare-and-set:

    row d0/5   decided by m1              mark d0/5: decided                 m1's tally: +1 unlabelled
    row o1/3   genuine                    mark o1/3: nothing -> genuine      m1's tally: -1 unlabelled, +1 genuine
    row o1/3   genuine, a repetition      finds its mark                     the same change, once (outcome_state.py)
    row o2/8   fraud, known later         mark o2/8: genuine -> fraud        m1's tally: -1 genuine, +1 fraud

1. `Payment.join` adds a row to the record. The first decision of each variant counts. The outcome that became known
   last counts, within the window after the first decision; of two outcomes with the same time, fraud counts. A
   repetition or a late row changes nothing, so rows may come any number of times.
2. A row that changes something leaves a *mark*: the row's partition and offset, and the outcome before and after. A
   worker that works the row in again, because nobody knows whether it was counted, finds the mark.
3. `Payment.counted` yields the changes of the tallies by a marked row. Each change starts from the result of the change
   before. The changes of all marks together therefore always equal the record.

A mark is dropped when the next row of its partition comes to the payment and the marked row is counted and saved. A
record has as many marks as its payment has rows in one batch, mostly one of each topic.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.models.metrics.outcome_tally import UNLABELLED
from paywarden.models.metrics.tally import ACTION_COUNT, FRAUD, GENUINE
from paywarden.schemas.errors import InvalidEvent

ENTITY = "outcome"
DAY_MS = 86_400_000
# The most decisions of a payment that are counted, one for each variant, and the most outcomes that wait for the first
# decision. Any more are ignored.
DECIDED_MAX = 8
WAITING_MAX = 8
_FORMAT = 1


class RowEffect(IntEnum):
    """The effect of a row on its payment."""

    NOTHING = 0
    DECIDED = 1
    WAITED = 2
    LABELLED = 3
    CORRECTED = 4
    CONFIRMED = 5
    LATE = 6
    UNREADABLE = 7


class Arm(NamedTuple):
    """A model version and the name of a variant (empty without variants), whose decisions are measured together."""

    version: str
    variant: str


class TallyCell(NamedTuple):
    """A day and an arm: one tally belongs to them. `day`: the UTC day of the decision, in days since 1970-01-01."""

    day: int
    arm: Arm


class SourcePartition(NamedTuple):
    """A partition of decisions ("d") or of outcomes ("o")."""

    topic: str
    partition: int


class Outcome(NamedTuple):
    """A label, GENUINE or FRAUD of models/metrics/tally.py, and when it became known. The larger of two counts."""

    time_ms: int
    label: int


class CountedDecision(NamedTuple):
    """A decision as it is counted.

    models/metrics/outcome_tally.py defines `score_units`. The amount is in minor units of the reference currency.
    """

    arm: Arm
    decided_ms: int
    action: int
    score_units: int
    amount_minor: int

    @property
    def cell(self) -> TallyCell:
        return TallyCell(self.decided_ms // DAY_MS, self.arm)


class JoinMark(NamedTuple):
    """The change that a row made: a new outcome of the first `decided_count` decisions, or the last of them."""

    source: SourcePartition
    offset: int
    kind: RowEffect
    decided_count: int
    before: Outcome | None
    after: Outcome | None


class TallyChange(NamedTuple):
    """One payment more (`times` 1) or one less (-1) in a tally."""

    decided: CountedDecision
    outcome: Outcome | None
    times: int

    @property
    def label(self) -> int:
        return UNLABELLED if self.outcome is None else self.outcome.label

    @property
    def lag_ms(self) -> int:
        """The time from the decision to its label in ms; 0 without a label, or if clocks differ."""
        return 0 if self.outcome is None else max(0, self.outcome.time_ms - self.decided.decided_ms)


class JoinedPayment(NamedTuple):
    """The record of a payment. `waiting`: outcomes that came before any decision, the newest first."""

    decided: tuple[CountedDecision, ...] = ()
    outcome: Outcome | None = None
    waiting: tuple[Outcome, ...] = ()
    marks: tuple[JoinMark, ...] = ()

    def mark_of(self, source: SourcePartition, offset: int) -> JoinMark | None:
        """Return the change of this row; None if it has no mark."""
        for mark in self.marks:
            if mark.offset == offset and mark.source == source:
                return mark
        return None

    def without_counted(self, source: SourcePartition, next_offset: int) -> JoinedPayment:
        """Return the payment without the partition's marks before `next_offset`, which are counted."""
        if not self.marks:
            return self
        return self._replace(
            marks=tuple(mark for mark in self.marks if mark.source != source or mark.offset >= next_offset)
        )

    def join(
        self, row: CountedDecision | Outcome, source: SourcePartition, offset: int, window_ms: int
    ) -> tuple[JoinedPayment, RowEffect]:
        """Return the payment with a row applied, and the row's effect. NOTHING and LATE leave it unchanged."""
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
        """Yield the changes of the tallies by a marked row."""
        if mark.kind is RowEffect.DECIDED:
            yield TallyChange(self.decided[mark.decided_count - 1], mark.after, 1)
        elif mark.kind is not RowEffect.WAITED:
            for decided in self.decided[: mark.decided_count]:
                yield TallyChange(decided, mark.before, -1)
                yield TallyChange(decided, mark.after, 1)

    def _with_decision(self, row: CountedDecision, window_ms: int) -> tuple[JoinedPayment, RowEffect]:
        if len(self.decided) >= DECIDED_MAX or any(one.arm.variant == row.arm.variant for one in self.decided):
            return self, RowEffect.NOTHING
        outcome = self.outcome
        if not self.decided:
            outcome = max((one for one in self.waiting if one.time_ms <= row.decided_ms + window_ms), default=None)
        return self._replace(decided=(*self.decided, row), outcome=outcome, waiting=()), RowEffect.DECIDED

    def _with_waiting(self, row: Outcome) -> tuple[JoinedPayment, RowEffect]:
        waiting = tuple(sorted({*self.waiting, row}, reverse=True)[:WAITING_MAX])
        return (
            (self, RowEffect.NOTHING) if waiting == self.waiting else (self._replace(waiting=waiting), RowEffect.WAITED)
        )

    def _with_outcome(self, row: Outcome, window_ms: int) -> tuple[JoinedPayment, RowEffect]:
        if row.time_ms > self.decided[0].decided_ms + window_ms:
            return self, RowEffect.LATE
        earlier = self.outcome
        if earlier is not None and row <= earlier:
            return self, RowEffect.NOTHING
        joined = self._replace(outcome=row)
        if earlier is None:
            return joined, RowEffect.LABELLED
        return joined, RowEffect.CORRECTED if row.label != earlier.label else RowEffect.CONFIRMED

    def to_bytes(self) -> bytes:
        """Return the record as it is stored, for `from_bytes`."""
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
    def from_bytes(cls, stored: bytes) -> JoinedPayment:
        """Return the payment that `to_bytes` wrote. Raises InvalidEvent for any other bytes."""
        try:
            return _Reading(stored).payment()
        except (struct.error, ValueError, IndexError) as error:
            raise InvalidEvent("the stored record of a payment's outcome is damaged or from another release") from error


_HEAD = struct.Struct("<BBBH")
_OUTCOME = struct.Struct("<bq")
_DECIDED = struct.Struct("<qBiqHH")
_MARK = struct.Struct("<1sHqBB")


# A payment's record with one decision and its mark, without the arm's names: these stand between the two.
_FIRST = struct.Struct(_HEAD.format + (_OUTCOME.format + _DECIDED.format).replace("<", ""))
_FIRST_MARK = struct.Struct(_MARK.format + 2 * _OUTCOME.format.replace("<", ""))
_NO_OUTCOME = (-1, 0)


def first_record(decided: CountedDecision, source: SourcePartition, offset: int) -> bytes:
    """Returns the record of a payment with this decision alone: the same bytes as from `join` and `to_bytes`."""
    arm, decided_ms, action, score_units, amount_minor = decided
    version, variant = arm[0].encode(), arm[1].encode()
    head = _FIRST.pack(
        _FORMAT, 1, 0, 1, *_NO_OUTCOME, decided_ms, action, score_units, amount_minor, len(version), len(variant)
    )
    mark = _FIRST_MARK.pack(
        source.topic.encode(), source.partition, offset, RowEffect.DECIDED, 1, *_NO_OUTCOME, *_NO_OUTCOME
    )
    return b"".join((head, version, variant, mark))


def _packed(outcome: Outcome | None) -> bytes:
    return _OUTCOME.pack(*_NO_OUTCOME) if outcome is None else _OUTCOME.pack(outcome.label, outcome.time_ms)


class _Reading:
    """Reads the bytes of a payment, piece by piece."""

    def __init__(self, stored: bytes) -> None:
        self._stored, self._at = stored, 0

    def payment(self) -> JoinedPayment:
        layout, decided, waiting, marks = self._unpack(_HEAD)
        if layout != _FORMAT:
            raise ValueError(layout)
        outcome = self._outcome()
        payment = JoinedPayment(
            tuple(self._decided() for _ in range(decided)),
            outcome,
            tuple(self._known_outcome() for _ in range(waiting)),
            tuple(self._mark() for _ in range(marks)),
        )
        if self._at != len(self._stored) or not _is_consistent(payment):
            raise ValueError(self._at)
        return payment

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


def _is_consistent(payment: JoinedPayment) -> bool:
    """Return whether the tallies can count the payment: bytes that were damaged may say anything."""
    outcomes = [payment.outcome, *payment.waiting]
    for mark in payment.marks:
        outcomes += [mark.before, mark.after]
        if not int(mark.kind == RowEffect.DECIDED) <= mark.decided_count <= len(payment.decided):
            return False
    return all(outcome is None or outcome.label in (GENUINE, FRAUD) for outcome in outcomes) and all(
        one.action < ACTION_COUNT and one.amount_minor >= 0 for one in payment.decided
    )


def payment_key(payment_id: str) -> bytes:
    """Return the key of a payment's record. If the id is empty or longer than a key may be, a digest stands for it."""
    key = f"{ENTITY}:{payment_id}".encode()
    if payment_id and len(key) <= KEY_BYTES_MAX:
        return key
    return f"{ENTITY}:{hashlib.blake2b(key, digest_size=32).hexdigest()}".encode()


assert FRAUD > 0, "of two outcomes of one time the order of labels decides"
