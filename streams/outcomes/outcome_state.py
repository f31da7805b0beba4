"""Join outcomes to decisions in the store. No crash of a worker loses a row or counts one twice.

    outcome:ID                the record of a payment (streams/outcomes/payments.py)
    outcomes:day:SOURCE:DAY   what the rows of one partition changed in the tallies of payments decided on one day, and
                              the offset up to which it has them
    outcomes:head:SOURCE      the head of one partition of decisions (d0, d1, …) or outcomes (o0, o1, …): how far it is
                              worked in (streams/counts/checkpoint.py)

A worker processes a batch of rows in this order. Each step is a compare-and-set, repeated until it succeeds:

1. The payments' records, with a mark for each row that changes something. A row whose mark is there already changes
   nothing more; its mark has its change.
2. The days. A day that says n has all rows before n. The worker adds the others, and the day says the batch's end.
3. The head. From then on the batch's marks are dropped.

    o0, rows 10 to 19     payments: marks o0/12, o0/17     day 19730: n = 20     head: next_offset = 20

If a worker dies in between, its successor begins at the head, perhaps with a batch of another length. It finds the
changes in the marks, and in the days' offsets which of them are counted. A worker that still works for a partition it
has lost does the same as its successor. It does no harm, and meets a conflict at the head.

The tally of a day is the sum over all partitions of both topics.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from paywarden.features.profiles.money import RateTable
from paywarden.features.stores.base import ProfileStore, update_records
from paywarden.models.metrics.outcome_tally import NO_SCORE, OutcomeTally, total, units_of
from paywarden.models.metrics.tally import FRAUD, GENUINE
from paywarden.models.policy.policy import ACTIONS, MODEL_ABSENT
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import AMOUNT_MINOR_MAX
from paywarden.streams.counts.checked_state import Check
from paywarden.streams.counts.checkpoint import (
    Checkpoint,
    CheckpointHead,
    HeadPlace,
    PendingRows,
    pack,
    stored_heads,
    unpack,
)
from paywarden.streams.counts.label_cap import has_place, take_place
from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
from paywarden.streams.outcomes.payments import (
    DAY_MS,
    Arm,
    CountedDecision,
    JoinedPayment,
    JoinMark,
    Outcome,
    RowEffect,
    SourcePartition,
    TallyCell,
    TallyChange,
    first_record,
    payment_key,
)

ENTITY = "outcomes"
DECISIONS, OUTCOMES = "d", "o"
OTHER_ARM = Arm("other", "other")
"""Stands for the versions and variants beyond `arms_max`, and for names that are too long."""
# The most rows processed at once: each takes a read and a write of a record.
ROWS_MAX = 2_000
MEASURED_DAYS_MAX = 28
"""The longest window that is measured."""
_NAME_LENGTH_MAX = 128
# A version without a decision for this long gives its place to another.
_IDLE_MS = DAY_MS
# How much longer records are kept than they are needed: workers may be away.
_MARGIN_DAYS = 30
_ACTIONS = {name: number for number, name in enumerate(ACTIONS)}
_LABELS = {"genuine": GENUINE, "fraud": FRAUD}

# A record that waits to be processed, as its offset and some fields: a fifth of its size.
JoinRow: TypeAlias = tuple[Any, ...]


class JoinResult(NamedTuple):
    """The effect of a row on its payment, and the changes of the tallies that follow."""

    offset: int
    kind: RowEffect
    changes: tuple[TallyChange, ...] = ()


@dataclass
class JoinProgress:
    """The state before the record at offset `next_offset`.

    `first_ms`: the time of the earliest decision, 0 before there is one. `newest_of`: the versions and variants that
    are counted apart, each with the time of its newest decision. `totals`: the number of records ever, by their effect.
    """

    next_offset: int = 0
    first_ms: int = 0
    newest_of: dict[Arm, int] = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)

    def copy(self) -> JoinProgress:
        """Return a copy that can be changed."""
        return JoinProgress(self.next_offset, self.first_ms, dict(self.newest_of), Counter(self.totals))


@dataclass
class OutcomeHead(CheckpointHead[JoinProgress]):
    """The head of one partition of decisions or outcomes."""

    progress: JoinProgress = field(default_factory=JoinProgress)

    def encode(self) -> bytes:
        progress = self.progress
        fields = {
            "owner": self.owner,
            "quiet_ms": self.quiet_ms,
            "next_offset": progress.next_offset,
            "first_ms": progress.first_ms,
            "newest_of": [[*arm, newest_ms] for arm, newest_ms in progress.newest_of.items()],
            "totals": progress.totals,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> OutcomeHead:
        fields = json.loads(data)
        newest_of = {Arm(version, variant): newest_ms for version, variant, newest_ms in fields["newest_of"]}
        progress = JoinProgress(fields["next_offset"], fields["first_ms"], newest_of, Counter(fields["totals"]))
        return cls(fields["owner"], progress, fields["quiet_ms"])

    @classmethod
    def empty(cls) -> OutcomeHead:
        return cls("")


@dataclass
class Day:
    """The changes that a partition's rows before `next_offset` made to the tallies of one day."""

    next_offset: int = 0
    tallies: dict[Arm, OutcomeTally] = field(default_factory=dict)

    def add(self, changes: Iterable[tuple[int, TallyChange]]) -> None:
        """Count changes of this day, each with the offset of its row, that are not counted yet."""
        of_arms: dict[Arm, list[TallyChange]] = {}
        for offset, change in changes:
            if offset >= self.next_offset:
                of_arm = of_arms.get(change.decided.arm)
                if of_arm is None:
                    of_arm = of_arms[change.decided.arm] = []
                of_arm.append(change)
        for arm, of_arm in of_arms.items():
            self._count(self.tallies.setdefault(arm, OutcomeTally()), of_arm)

    def _count(self, tally: OutcomeTally, changes: Sequence[TallyChange]) -> None:
        decided = [change.decided for change in changes]
        tally.count_columns(
            score_units=np.array([one.score_units for one in decided], dtype=np.int64),
            actions=np.array([one.action for one in decided], dtype=np.int64),
            amount_minor=np.array([one.amount_minor for one in decided], dtype=np.int64),
            labels=np.array([change.label for change in changes], dtype=np.int64),
            lag_ms=np.array([change.lag_ms for change in changes], dtype=np.int64),
            times=np.array([change.times for change in changes], dtype=np.int64),
        )

    def encode(self) -> bytes:
        """Return the day as it is stored."""
        packed = ((tuple(arm), tally.to_bytes()) for arm, tally in sorted(self.tallies.items()))
        return pack({"next_offset": self.next_offset}, packed)

    @staticmethod
    def decode(data: bytes) -> Day:
        """Return the day that `encode` turned into these bytes."""
        fields, cells = unpack(data)
        tallies = {Arm(version, variant): OutcomeTally.from_bytes(packed) for (version, variant), packed in cells}
        return Day(fields["next_offset"], tallies)


def head_key(source: SourcePartition) -> bytes:
    return f"{ENTITY}:head:{source.topic}{source.partition}".encode()


def day_key(source: SourcePartition, day: int) -> bytes:
    return f"{ENTITY}:day:{source.topic}{source.partition}:{day}".encode()


class StateReading:
    """Turns decisions or outcomes into rows, and rows into the form that is joined to a payment."""

    def __init__(self, topic: str, settings: OutcomeSettings, rates: RateTable) -> None:
        """`topic`: DECISIONS or OUTCOMES."""
        self._settings, self._rates = settings, rates
        self.row_of: Callable[[int, Mapping[str, Any]], JoinRow] = _decision_row if topic == DECISIONS else _outcome_row
        self.joined_of: Callable[[JoinRow, JoinProgress], CountedDecision | Outcome] = (
            self._decided if topic == DECISIONS else self._outcome
        )

    def _decided(self, row: JoinRow, progress: JoinProgress) -> CountedDecision:
        _, _, decided_ms, version, variant, score, action, amount_minor, currency, flags = row
        arm = self._counted_as(Arm(version, variant), decided_ms, progress)
        progress.first_ms = min(progress.first_ms or decided_ms, decided_ms)
        amount = self._amount(amount_minor, currency, decided_ms)
        progress.totals["without_amount"] += amount is None
        units = NO_SCORE if MODEL_ABSENT in flags else units_of(score)
        return CountedDecision(arm, decided_ms, _ACTIONS[action], units, amount or 0)

    def _amount(self, amount_minor: int, currency: str, decided_ms: int) -> int | None:
        """Return the amount in the reference currency; None without a rate, or if it is out of bounds."""
        if not 0 <= amount_minor <= AMOUNT_MINOR_MAX:
            return None
        return self._rates.convert(amount_minor, currency, decided_ms)

    def _counted_as(self, arm: Arm, decided_ms: int, progress: JoinProgress) -> Arm:
        places, newest_of = self._settings.arms_max, progress.newest_of
        newest_ms = newest_of.get(arm)
        if newest_ms is not None:
            if decided_ms > newest_ms:
                newest_of[arm] = decided_ms
            return arm
        is_long = max(len(arm.version), len(arm.variant)) > _NAME_LENGTH_MAX
        if is_long or not has_place(newest_of, arm, decided_ms, places=places, idle_ms=_IDLE_MS):
            progress.totals["other_arm"] += 1
            return OTHER_ARM
        take_place(newest_of, arm, decided_ms, places=places)
        return arm

    def _outcome(self, row: JoinRow, _: JoinProgress) -> Outcome:
        return Outcome(row[2], _LABELS[row[3]])


def _decision_row(offset: int, record: Mapping[str, Any]) -> JoinRow:
    return (
        offset, record["payment_id"], record["decided_time_ms"], record["model_version"], record["variant"],
        record["score"], record["action"], record["amount_minor"], record["currency"], record["flags"],
    )  # fmt: skip


def _outcome_row(offset: int, record: Mapping[str, Any]) -> JoinRow:
    return offset, record["payment_id"], record["outcome_time_ms"], record["label"]


class OutcomeWork:
    """A PartitionWork: joins and counts the rows of one partition. `checkpoint` is the result of `take_over`.

    `on_saved` is called after each save with the additions to the totals, and with the effect of each row.
    """

    def __init__(
        self,
        store: ProfileStore,
        source: SourcePartition,
        checkpoint: Checkpoint[OutcomeHead],
        *,
        reading: StateReading,
        settings: OutcomeSettings,
        on_saved: Callable[[Counter[str], Sequence[JoinResult]], object] = lambda *_: None,
    ) -> None:
        self.source, self.checkpoint = source, checkpoint
        self._store, self._reading, self._settings, self._on_saved = store, reading, settings, on_saved
        self._window_ms = settings.window_days * DAY_MS
        self._pending: PendingRows[JoinRow] = PendingRows(self.next_offset, reading.row_of)

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def saved(self) -> JoinProgress:
        """The progress that the store has."""
        return self.checkpoint.saved.progress

    @property
    def next_offset(self) -> int:
        return self.saved.next_offset

    @property
    def is_ahead(self) -> bool:
        """Never: days are kept for longer than the topics' records."""
        return False

    @property
    def has_news(self) -> bool:
        return self.next_offset < self._pending.handed_to or self.checkpoint.has_quiet_news

    def add(self, offset: int, record: Mapping[str, Any]) -> None:
        self._pending.add(offset, record)

    def skip(self, offset: int) -> None:
        self._pending.skip(offset)

    def hand_over(self, quiet_ms: int) -> None:
        self._pending.hand_over()
        self.checkpoint.note_quiet(quiet_ms)

    def save(self, now_ms: int) -> None:  # noqa: ARG002 - nothing here depends on the clock
        waiting = self._pending.handed_over
        rows = waiting[:ROWS_MAX]
        is_all = len(rows) == len(waiting)
        earlier, progress = self.saved, self.saved.copy()
        progress.next_offset = self._pending.handed_to if is_all else waiting[ROWS_MAX][0]
        results = self._join(rows, progress) if rows else []
        self._write_days(results, progress.next_offset)
        self.checkpoint.save(replace(self.checkpoint.saved, progress=progress), is_all=is_all)
        del waiting[: len(rows)]
        more = Counter({name: count - earlier.totals[name] for name, count in progress.totals.items()})
        self._on_saved(more, results)

    def _join(self, rows: Sequence[JoinRow], progress: JoinProgress) -> list[JoinResult]:
        """Do step 1. Repeating it gives the same result."""
        wanted: dict[bytes, list[tuple[int, CountedDecision | Outcome]]] = {}
        for row in rows:
            wanted.setdefault(payment_key(row[1]), []).append((row[0], self._reading.joined_of(row, progress)))
        results: dict[bytes, list[JoinResult]] = {}

        def join(key: bytes, found: bytes | None) -> bytes | None:
            if found is None and len(wanted[key]) == 1:
                offset, row = wanted[key][0]
                if type(row) is CountedDecision:
                    # Nearly every decision is the first row of its payment.
                    results[key] = [JoinResult(offset, RowEffect.DECIDED, (TallyChange(row, None, 1),))]
                    return first_record(row, self.source, offset)
            try:
                payment = JoinedPayment() if found is None else JoinedPayment.from_bytes(found)
            except InvalidEvent:
                results[key] = [JoinResult(offset, RowEffect.UNREADABLE) for offset, _ in wanted[key]]
                return None
            joined, results[key] = self._joined(payment, wanted[key])
            return None if joined is None else joined.to_bytes()

        ttl_s = (self._settings.window_days + _MARGIN_DAYS) * DAY_MS // 1000
        update_records(self._store, list(wanted), join, ttl_s=ttl_s)
        found = sorted(result for of_payment in results.values() for result in of_payment)
        for kind, count in Counter([result.kind for result in found]).items():
            progress.totals[kind.name.lower()] += count
        return found

    def _joined(
        self, payment: JoinedPayment, rows: Sequence[tuple[int, CountedDecision | Outcome]]
    ) -> tuple[JoinedPayment | None, list[JoinResult]]:
        """Return the payment with its rows, or None if they change nothing more; and the effect of each row."""
        payment = payment.without_counted(self.source, self.saved.next_offset)
        marked, is_new = len(payment.marks), False
        effects: list[tuple[int, RowEffect, JoinMark | None]] = []
        for offset, row in rows:
            mark = payment.mark_of(self.source, offset)
            if mark is not None:
                effects.append((offset, mark.kind, mark))
                continue
            payment, kind = payment.join(row, self.source, offset, self._window_ms)
            is_new = len(payment.marks) > marked
            effects.append((offset, kind, payment.mark_of(self.source, offset)))
        results = [
            JoinResult(offset, kind, () if mark is None else tuple(payment.counted(mark)))
            for offset, kind, mark in effects
        ]
        return (payment if is_new else None), results

    def _write_days(self, results: Sequence[JoinResult], next_offset: int) -> None:
        """Do step 2."""
        changed: dict[int, list[tuple[int, TallyChange]]] = {}
        for offset, _, changes in results:
            for change in changes:
                day = change.decided.decided_ms // DAY_MS
                of_day = changed.get(day)
                if of_day is None:
                    of_day = changed[day] = []
                of_day.append((offset, change))
        days = {day_key(self.source, day): day for day in sorted(changed)}
        if not days:
            return

        def add(key: bytes, found: bytes | None) -> bytes | None:
            day = Day() if found is None else Day.decode(found)
            if day.next_offset >= next_offset:
                return None
            day.add(changed[days[key]])
            day.next_offset = next_offset
            return day.encode()

        update_records(self._store, list(days), add, ttl_s=_kept_s(self._settings))


def take_over(store: ProfileStore, source: SourcePartition, settings: OutcomeSettings) -> Checkpoint[OutcomeHead]:
    """Become the worker that processes a partition. Raises StoreUnavailable."""
    name = f"the join of partition {source.topic}{source.partition}"
    return Checkpoint.take_over(HeadPlace(store, head_key(source), OutcomeHead, _kept_s(settings), name))


def read_heads(store: ProfileStore, sources: Sequence[SourcePartition]) -> dict[SourcePartition, OutcomeHead]:
    """Return the heads of those partitions that have one. Raises StoreUnavailable."""
    return stored_heads(store, {source: head_key(source) for source in sources}, OutcomeHead.decode)


def read_day(store: ProfileStore, sources: Sequence[SourcePartition], day: int) -> dict[Arm, OutcomeTally]:
    """Return the tallies of the payments decided on one day. Raises StoreUnavailable."""
    stored = store.read([day_key(source, day) for source in sources])
    parts: dict[Arm, list[OutcomeTally]] = {}
    for data in stored:
        if data is not None:
            for arm, tally in Day.decode(data).tallies.items():
                parts.setdefault(arm, []).append(tally)
    return {arm: total(tallies) for arm, tallies in sorted(parts.items())}


def read_cells(
    store: ProfileStore, sources: Sequence[SourcePartition], days: Iterable[int]
) -> dict[TallyCell, OutcomeTally]:
    """Return the tallies of several days; see `read_day`. Raises StoreUnavailable."""
    return {TallyCell(day, arm): tally for day in days for arm, tally in read_day(store, sources, day).items()}


def _kept_s(settings: OutcomeSettings) -> int:
    """Return how long days and heads are kept after they were last written, in seconds."""
    return (settings.window_days + MEASURED_DAYS_MAX + _MARGIN_DAYS) * DAY_MS // 1000


# Decoders of each kind of record of this module, by the beginning of its key.
OUTCOME_CHECKS: dict[bytes, Check] = {
    f"{ENTITY}:head:".encode(): OutcomeHead.decode,
    f"{ENTITY}:day:".encode(): Day.decode,
}
