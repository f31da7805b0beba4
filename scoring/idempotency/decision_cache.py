"""Gives a repeated payment the decision it got before. Caller and payment id together are the idempotency key.

    worker 0   claim(p1): won ─► place ─► append to the outbox ─► settle ─► answer "approve"
    worker 1   claim(p1): found, settled ─► read the record in worker 0's outbox ─► answer "approve"

A caller repeats a payment that got no answer: the connection broke, a worker was killed, time ran out. The repeat
may reach another worker, even at the same moment. All workers of a host share one table of claims in memory, without
a lock, so a worker that is stopped or killed at any point blocks nobody. For the layout of a slot and the protocol of
a claim, see scoring/idempotency/claim_table.py.

1. `claim`: a worker claims the ids of a chunk. Only the worker that wins an id decides about it.
2. `place`: the worker notes in each slot where in its outbox the record will begin. It appends the records in one
   write, notes in the slots that they are there (`settle`), and answers. If the outbox refuses, the worker gives the
   claims back (`release`).
   A payment of a caller with a name is claimed under `key_of(caller, id)`, so two callers may use the same id. Without
   names the key is the id.
3. If a claim is found settled, the slot names the record. The decision in the record is the answer. If the record has
   another card, merchant, amount or currency, the id was used for another payment, and the request is refused.
4. If a claim is found unsettled and its worker lives, the decision is in progress: the batcher asks again.
5. If a claim is found unsettled and its worker is dead, the worker was killed before it could settle. If the record is
   there, it is the decision, answered or not, because the companion ships it. If not, nobody was answered, and the
   finder takes the claim over.
6. A worker that starts takes the lock of its outbox first, then a new incarnation (an epoch), which ends the claims of
   its earlier processes. The lock is the fence: an earlier process can append nothing more. If a worker is dead and
   was not started again, the worker that finds its claim ends its incarnation.
7. Two ids with the same 64-bit hash are told apart by the id in the record; the later one is decided without a claim.
   A payment whose two buckets are full of live claims is decided without a claim, too. Metrics count both: only these
   payments are decided again when they are repeated.

The window goes by CLOCK_BOOTTIME, so no leap of the time of day ends it. The table lives as long as this boot of the
machine: after the next one a repeated payment may be decided again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from struct import Struct
from typing import TypeAlias

import numpy as np
from google.protobuf.message import DecodeError
from xxhash import xxh3_64_intdigest

from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.schemas.durability import boot_id, boot_ms
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.private_files import open_private
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.idempotency import claim_table as claims
from paywarden.scoring.metrics.shared_metrics import Counter, MetricsRegistry
from paywarden.scoring.requests.payments import CheckedPayments
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxUnavailable
from paywarden.scoring.state.shared_table import prepare_file

# "PWANSW" and the layout's version.
_MAGIC = int.from_bytes(b"PWANSW02", "little")
# The claim of a payment that is not remembered: its buckets are full, or another payment has the same hash.
UNREMEMBERED = -1
# How much longer than the window the outbox keeps decisions. A record follows its claim within moments, and a
# segment is as old as its newest record.
KEEP_MORE_S = 60
_LARGEST_I64 = 2**63


class PaymentIdReused(InvalidEvent):
    """The payment id was used for another payment within the window."""

    def __init__(self) -> None:
        super().__init__("was used for another payment", field="payment_id")


@dataclass(frozen=True)
class DecisionCacheSettings:
    """The number of answered payments to remember, and for how long. Memory: 24 bytes for each of `payments_max`."""

    path: str = "/dev/shm/paywarden/answered" if Path("/dev/shm").is_dir() else ".paywarden/answered"
    # How long a repeated payment gets its earlier decision. The outbox keeps decisions as long.
    window_s: int = 600
    # 20,000 payments a second for the whole window fill seven tenths of the slots. At that load about one payment in
    # a hundred thousand finds no slot. 400 MB, allocated at the start.
    payments_max: int = 16_777_216

    @property
    def keep_s(self) -> int:
        """Seconds for which the outbox must keep a decision."""
        return self.window_s + KEEP_MORE_S


class ClaimConflict(Enum):
    """The reason why a payment cannot be decided now."""

    OTHER_PAYMENT = "other_payment"
    IN_FLIGHT = "in_flight"


@dataclass(frozen=True)
class Repeat:
    """The same payment stands earlier in the same chunk, at `index`, and both get one answer."""

    index: int


# A slot that was won, or UNREMEMBERED: decide. Otherwise the earlier decision, or the reason not to decide.
Claim: TypeAlias = int | OutboxEntry | Repeat | ClaimConflict


@dataclass(frozen=True)
class DecisionCacheMetrics:
    """Counts repeated payments, and decisions that could not be remembered."""

    repeated: Counter
    in_flight: Counter
    other_payment: Counter
    full: Counter
    collisions: Counter
    taken_over: Counter

    @classmethod
    def declare(cls, registry: MetricsRegistry) -> DecisionCacheMetrics:
        def counter(name: str, help_text: str) -> Counter:
            return registry.counter(f"paywarden_answered_{name}_total", help_text)

        return cls(
            repeated=counter("repeated", "Payments that got the decision they had got before."),
            in_flight=counter("in_flight", "Payments asked for while another worker was deciding about them."),
            other_payment=counter("other_payment", "Requests with the id of another payment."),
            full=counter("full", "Decisions not remembered for lack of room: raise [answered] payments_max."),
            collisions=counter("collisions", "Decisions not remembered because another id has the same hash."),
            taken_over=counter("taken_over", "Claims of workers that died before they had decided, taken over."),
        )


def prepare(settings: DecisionCacheSettings) -> None:
    """Create the table, unless this boot has one of this size. The parent calls it before any worker opens it.

    Raises Misconfigured when the settings or the path cannot be used, or there is no room.
    """
    if settings.window_s < 1 or settings.payments_max < claims.BUCKET_SLOTS:
        raise Misconfigured(f"answered: window_s must be at least 1, payments_max at least {claims.BUCKET_SLOTS}")
    bucket_count = -(-settings.payments_max // claims.BUCKET_SLOTS)
    size = 8 * (claims.BUCKETS_AT + bucket_count * claims.BUCKET_SIZE)
    head = np.zeros(claims.WORKERS_AT, dtype=np.int64)
    head[claims.MAGIC_AT], head[claims.BUCKET_COUNT_AT] = _MAGIC, bucket_count
    head[claims.BOOT_AT] = tag_of(boot_id().encode())
    prepare_file(Path(settings.path), head, size, f"answered: cannot use {settings.path}")


def warm_up() -> None:
    """Compile everything, so that no payment waits for it."""
    table = np.zeros(claims.BUCKETS_AT + claims.BUCKET_SIZE, dtype=np.int64)
    table[claims.BUCKET_COUNT_AT] = table[claims.WORKERS_AT + claims.INCARNATION] = 1
    slots, ones = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64)
    owner = _owner(0, 1)
    frame = Frame(claims.SLOT, {"table": table, "tags": ones, "slots": slots, "positions": ones})
    claims.claim_bound(frame.address, 1, owner, 0, 1)
    claims.place_bound(frame.address, 1)
    claims.settle_bound(frame.address, 1, owner)
    claims.free_all(table, slots, 1, owner)
    claims.take_over(table, int(slots[0]), claims.load(table, int(slots[0]) + claims.WORDS), owner, 0, 1)
    claims.store(table, 0, 0)
    claims.swap(table, 0, 0, 0)


class DecisionCache:
    """One worker's access to the table. For each chunk, compiled code claims, places and settles. Not thread-safe."""

    def __init__(
        self,
        settings: DecisionCacheSettings,
        outbox: OutboxSettings,
        worker: int,
        metrics: DecisionCacheMetrics | None = None,
        *,
        clock_ms: Callable[[], int] = boot_ms,
    ) -> None:
        """Take a new incarnation as `worker`. Call it after `prepare`, and only with the lock of the worker's outbox.

        `clock_ms`: a clock of this boot that nobody sets.

        Raises Misconfigured when the table cannot be used, or `worker` is not below WORKERS_MAX.
        """
        if not 0 <= worker < claims.WORKERS_MAX:
            raise Misconfigured(f"answered: at most {claims.WORKERS_MAX} workers on a host")
        self._window_s, self._worker, self._outbox_settings = settings.window_s, worker, outbox
        self._clock_ms = clock_ms
        self._metrics = metrics or DecisionCacheMetrics.declare(MetricsRegistry())
        try:
            with os.fdopen(open_private(Path(settings.path), os.O_RDWR), "r+b") as file:
                if os.fstat(file.fileno()).st_size < 8 * (claims.BUCKETS_AT + claims.BUCKET_SIZE):
                    raise Misconfigured(f"answered: {settings.path} was cut short")
                self._mapping = mmap.mmap(file.fileno(), 0)
            self._table = np.frombuffer(self._mapping, dtype=np.int64)
            self._owner = _owner(worker, self._begin())
        except OSError as error:
            raise Misconfigured(f"answered: cannot use {settings.path}: {error.strerror}") from error
        self._readers: dict[int, OutboxReader] = {}
        self._grow(64)

    def close(self) -> None:
        """Unmap the table. Its claims stay."""
        del self._table, self._frame
        self._mapping.close()

    def claimed(self, payments: CheckedPayments) -> Sequence[Claim]:
        """Returns for each payment, in order, the slot that was won, or the result of an earlier claim.

        The frame's loop has just claimed the tags of the payments.
        """
        now_s, slots = self.now_s(), self.slots_of(len(payments))
        results: list[Claim] = []
        try:
            for index, result in enumerate(slots):
                claim = result if 0 <= result < claims.FOUND else self._known(result, index, payments, results, now_s)
                results.append(claim)
        except BaseException:
            self.release([result for result in slots if 0 <= result < claims.FOUND])
            raise
        return results

    def slots_of(self, count: int) -> list[int]:
        """Returns the loop's results for the frame's first `count` tags: slots, or other results."""
        slots: list[int] = self._slots[: 8 * count].cast("q").tolist()
        return slots

    @property
    def frame_at(self) -> int:
        """The address of the frame of claim_table.py. It changes when the frame grows."""
        return self._frame_at

    @property
    def owner(self) -> int:
        """The word of a claim of this worker, without state and time."""
        return self._owner

    def now_s(self) -> int:
        """Returns the time of a claim of now."""
        return self._clock_ms() // 1000

    @property
    def window_s(self) -> int:
        """Seconds for which a claim holds."""
        return self._window_s

    def put_slots(self, slots: Sequence[int]) -> None:
        """Put slots into the frame, for the steps of compiled code that place and settle them."""
        self._int64s[len(slots)].pack_into(self._slots, 0, *slots)

    def settle(self, slots: Sequence[int]) -> None:
        """Note in the slots that the records are appended. Call it before the answers leave."""
        self.put_slots(slots)
        claims.settle_bound(self._frame_at, len(slots), self._owner)

    def release(self, slots: Sequence[int]) -> None:
        """Give claims back, since nothing was appended for them. The next worker that asks decides."""
        claims.free_all(self._table, np.array(slots, dtype=np.int64), len(slots), self._owner)

    def make_room(self, count: int) -> None:
        """Make room for the claims of this many payments at a time."""
        if count >= len(self._int64s):
            self._grow(2 * count)

    def _grow(self, count: int) -> None:
        """Make room for `count` payments at a time."""
        self.arrays = {name: np.zeros(count, dtype=np.int64) for name in ("tags", "slots", "positions")}
        """The arrays of the frame beside the table. They are others when the frame has grown."""
        self._slots = self.arrays["slots"].data.cast("B")
        # Packers, indexed by the number of payments.
        self._int64s = [Struct(f"={number}q") for number in range(count + 1)]
        self._frame = Frame(claims.SLOT, {"table": self._table, **self.arrays})
        self._frame_at = self._frame.address

    def _known(self, result: int, index: int, payments: CheckedPayments, before: Sequence[Claim], now_s: int) -> Claim:
        """Returns the result for a payment whose claim was not won. `before` are the results of earlier payments."""
        if result == claims.FULL:
            self._metrics.full.add(1)
            return UNREMEMBERED
        if result == claims.BUSY:
            self._metrics.in_flight.add(1)
            return ClaimConflict.IN_FLIGHT
        slot = result & ~claims.FOUND
        if slot in before:
            return self._repeated(index, before.index(slot), payments)
        claim = self._look_up(slot, payments[index], payments.callers[index], now_s)
        if isinstance(claim, OutboxEntry):
            self._metrics.repeated.add(1)
        elif claim is ClaimConflict.IN_FLIGHT:
            self._metrics.in_flight.add(1)
        elif claim is ClaimConflict.OTHER_PAYMENT:
            self._metrics.other_payment.add(1)
        return claim

    def _repeated(self, index: int, earlier: int, payments: CheckedPayments) -> Claim:
        """Returns the result for a payment whose tag an earlier payment of the same chunk has won."""
        if (payments.callers[earlier], payments.ids[earlier]) != (payments.callers[index], payments.ids[index]):
            self._metrics.collisions.add(1)
            return UNREMEMBERED
        if _is_other(payments[earlier], payments[index]):
            self._metrics.other_payment.add(1)
            return ClaimConflict.OTHER_PAYMENT
        self._metrics.repeated.add(1)
        return Repeat(earlier)

    def _look_up(self, slot: int, request: ScoreRequest, caller: bytes, now_s: int) -> Claim:
        word, position = self._load(slot + claims.WORDS), self._load(slot + claims.POSITIONS) - 1
        if self._load(slot + claims.WORDS) != word or word == 0:
            return ClaimConflict.IN_FLIGHT
        worker = word >> claims.WORKER_SHIFT & (claims.WORKERS_MAX - 1)
        is_settled = word >> claims.STATE_SHIFT == claims.SETTLED
        # Check that the worker has ended before looking for the record: only then can no record be appended any more.
        if not is_settled and not self._has_ended(worker, word):
            return ClaimConflict.IN_FLIGHT
        try:
            entry = self._entry(worker, position)
        except OutboxUnavailable:
            return ClaimConflict.IN_FLIGHT
        if entry is None:
            return self._take_over(slot, word, now_s)
        found = entry.caller.encode(), entry.request.payment_id.encode()
        if found == (caller, request.payment_id.encode()):
            return ClaimConflict.OTHER_PAYMENT if _is_other(entry.request, request) else entry
        if tag_of(key_of(*found)) == self._load(slot):
            self._metrics.collisions.add(1)
            return UNREMEMBERED
        return self._take_over(slot, word, now_s)

    def _take_over(self, slot: int, word: int, now_s: int) -> Claim:
        """Take over a claim without a record: it was never appended, or the outbox has lost it."""
        owner = self._owner | now_s
        result = claims.take_over(self._table, slot, word, owner, now_s, self._window_s)
        if not 0 <= result < claims.FOUND:
            return ClaimConflict.IN_FLIGHT
        self._metrics.taken_over.add(1)
        return int(result)

    def _entry(self, worker: int, position: int) -> OutboxEntry | None:
        if position < 0:
            return None
        reader = self._readers.get(worker)
        if reader is None:
            reader = self._readers[worker] = OutboxReader(self._outbox_settings, worker_name(worker))
        payload = reader.at(position)
        if payload is None:
            return None
        try:
            return OutboxEntry.FromString(payload)
        except DecodeError:
            return None

    def _has_ended(self, worker: int, word: int) -> bool:
        """Whether the incarnation of a claim has ended. Ends it now if its process is dead."""
        head = claims.WORKERS_AT + worker * claims.WORKER_SIZE
        incarnation = self._load(head + claims.INCARNATION)
        if _owner(worker, incarnation) != word & ~claims.TIME_MASK & ((1 << claims.STATE_SHIFT) - 1):
            return True
        if worker == self._worker:
            return False
        pid = self._load(head + claims.PID)
        try:
            # 0: a new process of this worker is starting, and will end the incarnation.
            if pid == 0 or _started(pid) == self._load(head + claims.STARTED):
                return False
        except OSError:
            # No descriptor is left, perhaps. A worker that may be alive may still decide.
            return False
        claims.swap(self._table, head + claims.INCARNATION, incarnation, _next(incarnation))
        return True

    def _begin(self) -> int:
        """Start a new incarnation of this worker, and return its number."""
        head = claims.WORKERS_AT + self._worker * claims.WORKER_SIZE
        # The order matters: a worker that saw the new incarnation with the old pid would take this process for dead.
        claims.store(self._table, head + claims.PID, 0)
        while True:
            incarnation = self._load(head + claims.INCARNATION)
            if claims.swap(self._table, head + claims.INCARNATION, incarnation, _next(incarnation)):
                break
        claims.store(self._table, head + claims.STARTED, _started(os.getpid()))
        claims.store(self._table, head + claims.PID, os.getpid())
        return _next(incarnation)

    def _load(self, position: int) -> int:
        return int(claims.load(self._table, position))


def key_of(caller: bytes, payment_id: bytes) -> bytes:
    """Returns the idempotency key of a caller's payment. Without a caller's name it is the id."""
    return caller + b"\0" + payment_id if caller else payment_id


def tag_of(key: bytes) -> int:
    """Returns the key's 64-bit hash as an int64, never 0."""
    tag: int = xxh3_64_intdigest(key) or 1
    return tag - 2 * _LARGEST_I64 if tag >= _LARGEST_I64 else tag


def worker_name(worker: int) -> str:
    """Returns the name of a worker's outbox and of its metrics file."""
    return f"worker-{worker}"


def _is_other(one: ScoreRequest, another: ScoreRequest) -> bool:
    return (one.card_id, one.merchant_id, one.amount_minor, one.currency) != (
        another.card_id,
        another.merchant_id,
        another.amount_minor,
        another.currency,
    )


def _owner(worker: int, incarnation: int) -> int:
    return worker << claims.WORKER_SHIFT | incarnation << claims.INCARNATION_SHIFT


def _next(incarnation: int) -> int:
    return (incarnation + 1) % claims.INCARNATIONS


def _started(pid: int) -> int:
    """Returns when the process started, by the kernel's clock; -1 when it is dead. Pid and start time never repeat.

    Raises OSError when the kernel does not say, as when this process may open no more files.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return -1
    # The process's name stands before the last parenthesis, and may hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])
