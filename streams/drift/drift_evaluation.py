"""Find the blocks of decisions that are complete, and evaluate each once and in order.

A block is five minutes, an hour or a day (UTC) of decision times. One worker evaluates: the one that has partition 0 of
the topic decisions.

    partition 0   counted up to 12:11      passed (less a grace of 1 minute) 12:10
    partition 1   counted up to 12:07                                        12:06
    all           12:06: the block 12:00-12:05 is complete, 12:05-12:10 waits for partition 1

1. A block is complete when every partition has *passed* its end: it has counted a decision made `grace_ms` after the
   end, or everything that was on the topic `grace_ms` after it. A partition that is behind, or that no worker counts,
   holds all blocks up. No block is skipped.
2. Every five minutes, the counts of the block are added up over all partitions and handed to the detection. A full hour
   is added up again from the partitions' tiles, so it includes late decisions. The hour's sum is kept for a day, and
   its OVERALL part for four weeks. At midnight the day follows, from its hours.
3. The detection's state is written first, then one record that says how far evaluation is and which state it led to.
   If a worker dies before that record is written, the next worker evaluates the same block from the same state.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from paywarden.features.stores.base import ProfileStore, StoreConflict
from paywarden.models.drift.counts import Counts
from paywarden.schemas.errors import StoreUnavailable, TemporaryFailure
from paywarden.streams.counts.checked_state import Check
from paywarden.streams.counts.partition_worker import PartitionWorker
from paywarden.streams.drift.drift_counts import Binnings, CountCell, Model
from paywarden.streams.drift.drift_settings import DriftSettings
from paywarden.streams.drift.drift_state import (
    ENTITY,
    FIVE_MS,
    RECORD_BYTES_MAX,
    Adder,
    Cells,
    CountTile,
    DriftCounting,
    DriftHead,
    PartitionState,
    merged,
    read_heads,
)

_log = logging.getLogger(__name__)

HOUR_MS = 60 * 60_000
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
DONE_KEY = f"{ENTITY}:evaluated".encode()
PAST_WEEKS = 4
# Slots of the two rings: one hour more than a day has, and one week more than detection reads.
_HOUR_SLOTS = 25
_PAST_SLOTS = (PAST_WEEKS + 1) * 7 * 24
_HOUR_TTL_S = 7 * 86_400
_PAST_TTL_S = 36 * 86_400
_DONE_TTL_S = 120 * 86_400
# The time, the owner's token, the number of records the state takes, and its digest.
_DONE = struct.Struct("<q16sH16s")


class Detection(Protocol):
    """Looks at the counts of complete blocks. Called in one thread, one call at a time."""

    def restore(self, state: bytes) -> None:
        """Continue from a state that `state` returned; with empty bytes, start again."""

    def evaluate(self, start_ms: int, length_ms: int, counts: Mapping[str, Counts]) -> None:
        """Evaluate a complete block: its counts by model version, without versions that made no decision.

        If the state could not be saved, this is called again with the same block after `restore`. Alerts should carry
        the block's time, so that readers recognise the repetition. Raises TemporaryFailure: to be tried again.
        """

    def state(self) -> bytes:
        """Return the state that all blocks so far have led to."""


@dataclass(frozen=True)
class EvaluatedUpTo:
    """All blocks that end by `done_ms` are evaluated (0: none yet).

    `owner` wrote the state they led to, in `records` records with this `digest`. The token makes the records of two
    owners different even if both evaluated the same block, so only one of them succeeds.
    """

    done_ms: int = 0
    owner: bytes = bytes(16)
    records: int = 0
    digest: bytes = bytes(16)

    def encode(self) -> bytes:
        """Return the record as it is stored."""
        return _DONE.pack(self.done_ms, self.owner, self.records, self.digest)

    def state_keys(self) -> list[bytes]:
        """Return the keys of the state. An owner uses two places in turn, so it never overwrites the state in use."""
        place = self.done_ms // FIVE_MS % 2
        return [f"{ENTITY}:state:{self.owner.hex()}:{place}:{number}".encode() for number in range(self.records)]


def read_done(store: ProfileStore) -> tuple[EvaluatedUpTo, int]:
    """Return how far evaluation is, and the record's version. Raises StoreUnavailable."""
    record = store.read_versioned([DONE_KEY])[0]
    return EvaluatedUpTo() if record.value is None else EvaluatedUpTo(*_DONE.unpack(record.value)), record.version


def read_state(store: ProfileStore, done: EvaluatedUpTo) -> bytes:
    """Return the state that `done` led to; empty if it is gone. Raises StoreUnavailable."""
    parts = store.read(done.state_keys())
    state = b"".join(part for part in parts if part is not None)
    if done.records and _digest(state) != done.digest:
        _log.warning("the state of drift detection is gone: detection starts again, and open alerts are not cleared")
        return b""
    return state


def _digest(state: bytes) -> bytes:
    return hashlib.sha256(state).digest()[:16]


class Evaluator:
    """Evaluates complete blocks. All calls block, and raise TemporaryFailure: call again later."""

    def __init__(
        self,
        store: ProfileStore,
        detection: Detection,
        *,
        partitions: Sequence[int],
        binnings: Binnings,
        settings: DriftSettings,
    ) -> None:
        self._store, self._detection, self._partitions = store, detection, partitions
        self._binnings, self._grace_ms, self._adder = binnings, settings.grace_ms, Adder(binnings)
        self._token = uuid.uuid4().bytes
        # The record whose state the detection has; None if the state has to be restored.
        self._has: EvaluatedUpTo | None = None

    def step(self, blocks_max: int = 1000, may_go_on: Callable[[], bool] = lambda: True) -> int:
        """Evaluate the complete blocks of five minutes, and the hours and days that end with them; return how many."""
        heads = read_heads(self._store, self._partitions)
        passed_ms = passed(heads, self._partitions, self._grace_ms)
        count = 0
        while count < blocks_max and may_go_on():
            done, version = read_done(self._store)
            start_ms = done.done_ms or _first_ms(heads, passed_ms)
            if start_ms == 0 or start_ms + FIVE_MS > passed_ms:
                break
            if self._has != done:
                self._detection.restore(read_state(self._store, done))
            self._has = None
            self._evaluate(heads, start_ms)
            try:
                self._has = self._save(start_ms + FIVE_MS, version)
            except StoreConflict:
                _log.warning("another worker evaluates decisions, too: going on from its results")
                break
            count += 1
        return count

    def _save(self, done_ms: int, version: int) -> EvaluatedUpTo:
        state = self._detection.state()
        parts = [state[first : first + RECORD_BYTES_MAX] for first in range(0, len(state), RECORD_BYTES_MAX)]
        done = EvaluatedUpTo(done_ms, self._token, len(parts), _digest(state))
        for key, part in zip(done.state_keys(), parts, strict=True):
            self._store.write({key: part}, ttl_s=_DONE_TTL_S)
        self._store.write({DONE_KEY: done.encode()}, ttl_s=_DONE_TTL_S, versions={DONE_KEY: version})
        return done

    def forget(self) -> None:
        """Restore the state before the next block: another worker may evaluate meanwhile."""
        self._has = None

    def _evaluate(self, heads: Mapping[int, DriftHead], start_ms: int) -> None:
        end_ms = start_ms + FIVE_MS
        self._tell(start_ms, FIVE_MS, merged(self._store, heads, start_ms, end_ms, self._adder))
        if end_ms % HOUR_MS == 0:
            hour_ms = end_ms - HOUR_MS
            counts = merged(self._store, heads, hour_ms, end_ms, self._adder)
            self._keep_hour(hour_ms, counts)
            self._tell(hour_ms, HOUR_MS, counts)
        if end_ms % DAY_MS == 0:
            self._tell(end_ms - DAY_MS, DAY_MS, read_hours(self._store, end_ms - DAY_MS, end_ms, self._adder))

    def _tell(self, start_ms: int, length_ms: int, counts: Mapping[Model, Counts]) -> None:
        current = {model.version: of_model for model, of_model in counts.items() if self._binnings.is_current(model)}
        self._detection.evaluate(start_ms, length_ms, current)

    def _keep_hour(self, hour_ms: int, counts: Mapping[Model, Counts]) -> None:
        hour = {CountCell(hour_ms, model): of_model.to_bytes() for model, of_model in sorted(counts.items())}
        past = {
            CountCell(hour_ms, model): of_overall(of_model).to_bytes() for model, of_model in sorted(counts.items())
        }
        self._store.write({_hour_key(hour_ms): self._tile(hour_ms, hour)}, ttl_s=_HOUR_TTL_S)
        self._store.write({_past_key(hour_ms): self._tile(hour_ms, past)}, ttl_s=_PAST_TTL_S)

    def _tile(self, start_ms: int, cells: Cells) -> bytes:
        return CountTile(start_ms, 0, self._adder.fitting(cells)).encode()


class DriftEvaluation:
    """Evaluates blocks in the worker that has partition 0, and shows every worker's progress as metrics."""

    def __init__(
        self,
        worker: PartitionWorker,
        counting: DriftCounting,
        evaluator: Evaluator,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        *,
        look_for_models: Callable[[], object] = lambda: None,
    ) -> None:
        """`look_for_models` finds references of unknown models."""
        self._look_for_models = look_for_models
        self._worker, self._counting, self._evaluator, self._now_ms = worker, counting, evaluator, now_ms

    def step(self) -> None:
        """Evaluate the complete blocks, in a thread that may wait. A store or Kafka that is away is logged."""
        metrics = self._counting.metrics
        try:
            self._counting.done_ms = self._evaluate()
        except (StoreUnavailable, StoreConflict) as error:
            self._worker.note_trouble(error)
        except TemporaryFailure as error:
            # Kafka does not accept the alerts: the block is evaluated again.
            _log.warning("blocks of decisions cannot be evaluated now, trying again: %s", error)
        now_ms = self._now_ms()
        passed_ms = {p: work.checkpoint.saved.passed_ms(0) for p, work in self._worker.works(PartitionState).items()}
        metrics.unsaved.set(self._worker.unsaved)
        metrics.behind({p: (now_ms - ms) / 1000 for p, ms in passed_ms.items() if ms})
        metrics.evaluated.set(self._counting.done_ms / 1000)

    def _evaluate(self) -> int:
        self._look_for_models()
        if self._worker.has(0):
            assignment = self._worker.assignment
            steps = self._evaluator.step(may_go_on=lambda: assignment == self._worker.assignment)
            self._counting.metrics.blocks.inc(steps)
        else:
            self._evaluator.forget()
        return read_done(self._counting.store)[0].done_ms


def passed(heads: Mapping[int, DriftHead], partitions: Sequence[int], grace_ms: int) -> int:
    """Return the time up to which all partitions are counted, in epoch milliseconds; 0 if one never was."""
    if any(partition not in heads for partition in partitions):
        return 0
    return min((head.passed_ms(grace_ms) for head in heads.values()), default=0)


def read_hours(store: ProfileStore, start_ms: int, end_ms: int, adder: Adder) -> dict[Model, Counts]:
    """Return the sum of whole hours out of the last 24 that were evaluated. Raises StoreUnavailable."""
    return _sum_of(store, [(_hour_key(hour), hour) for hour in range(start_ms, end_ms, HOUR_MS)], adder)


def past_hours(
    store: ProfileStore, start_ms: int, end_ms: int, adder: Adder
) -> Iterator[tuple[int, dict[Model, Counts]]]:
    """Yield every hour from `start_ms` to `end_ms` with its OVERALL counts by model, which are empty if none are kept.

    The counts have payments, scores, actions, flags and ages. They are kept for PAST_WEEKS. Raises StoreUnavailable.
    """
    for first_ms in range(start_ms, end_ms, DAY_MS):
        hours = range(first_ms, min(first_ms + DAY_MS, end_ms), HOUR_MS)
        stored = store.read([_past_key(hour) for hour in hours])
        for hour, data in zip(hours, stored, strict=True):
            tile = None if data is None else CountTile.decode(data)
            yield hour, adder.sums([tile.cells] if tile is not None and tile.start_ms == hour else [])


def _first_ms(heads: Mapping[int, DriftHead], passed_ms: int) -> int:
    """Return where the very first evaluation begins: at the first decision; 0 if there is none yet."""
    first_ms = min((head.progress.first_ms for head in heads.values() if head.progress.first_ms), default=0)
    # A first decision that is not passed yet has no complete block.
    return first_ms - first_ms % FIVE_MS if first_ms <= passed_ms else 0


def _sum_of(store: ProfileStore, wanted: Sequence[tuple[bytes, int]], adder: Adder) -> dict[Model, Counts]:
    stored = store.read([key for key, _ in wanted])
    tiles = [None if data is None else CountTile.decode(data) for data in stored]
    pairs = zip(tiles, wanted, strict=True)
    return adder.sums([tile.cells for tile, (_, start_ms) in pairs if tile is not None and tile.start_ms == start_ms])


def of_overall(counts: Counts) -> Counts:
    """Return the part of counts that is kept for weeks: OVERALL without segments and features."""
    kept = counts.copy()
    for array in (kept.payments, kept.scores, kept.actions, kept.flags, kept.ages):
        array[1:] = 0
    kept.features[:] = 0
    return kept


def _hour_key(hour_ms: int) -> bytes:
    return f"{ENTITY}:hour:{hour_ms // HOUR_MS % _HOUR_SLOTS}".encode()


def _past_key(hour_ms: int) -> bytes:
    return f"{ENTITY}:past:{hour_ms // HOUR_MS % _PAST_SLOTS}".encode()


# Decoders of this module's records that are no tiles. The state itself has a digest.
EVALUATION_CHECKS: dict[bytes, Check] = {DONE_KEY: _DONE.unpack}
