"""Counts of decisions in the store. No crash of a worker loses a decision or counts one twice.

    drift:head:P            the head of partition P (streams/counts/checkpoint.py). Its progress is a CountingProgress,
                            and its *delta* all that was counted since the partition's tiles were last written
    drift:minute:P:SLOT     a tile: what was counted of one minute. SLOT is a place in a ring of 120 minutes
    drift:five:P:SLOT       a tile of five minutes, in a ring of 48 hours

A head is one record, so its offset and its delta always belong together. A save writes the head; the worker may then
commit that offset on Kafka. When the delta has grown large, it goes into the tiles:

1. The worker writes the head with the delta up to offset n. Each tile will say n, too.
2. It reads each tile of the delta. A tile that says n has its part already; else the worker adds the part and writes n.
3. The next head begins a new delta. A worker that takes the partition over repeats step 2 for the head it finds.

    head   {next_offset: 900, delta: {12:05 -> 40 decisions}}
    tile   12:05  {next_offset: 500, 160 decisions}    the delta is not in it yet: a reader adds 160 + 40
    tile   12:05  {next_offset: 900, 200 decisions}    the delta is in it: a reader takes 200

All writes are compare-and-set. Taking over writes the head, so a worker that still counts a partition it has lost meets
a conflict at its next save, and drops its counts. Tiles need only step 2: every worker adds the same to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from paywarden.features.stores.base import ProfileStore, update_records
from paywarden.models.drift.binning import Binning
from paywarden.models.drift.counts import Counts
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.counts.checked_state import Check
from paywarden.streams.counts.checkpoint import Checkpoint, CheckpointHead, HeadPlace, pack, stored_heads, unpack
from paywarden.streams.drift.drift_counts import (
    KEPT_MS,
    MINUTE_MS,
    Binnings,
    CountCell,
    CountingProgress,
    DecisionRow,
    Model,
    PartitionCounts,
    Totals,
    actions_of,
    counted,
    scores_of,
)
from paywarden.streams.drift.drift_metrics import DriftMetrics
from paywarden.streams.drift.drift_settings import DriftSettings

ENTITY = "drift"
FIVE_MS = 5 * MINUTE_MS
# The number of slots in each ring. Tiles of a minute serve windows that move by the minute. Tiles of five minutes are
# kept as long as decisions are counted at all; one slot more keeps the oldest tile whole.
SLOTS = {MINUTE_MS: 120, FIVE_MS: KEPT_MS // FIVE_MS + 1}
_NAMES = {MINUTE_MS: "minute", FIVE_MS: "five"}
# Longer than records stay on the topic.
HEAD_TTL_S = 120 * 86_400
TILE_TTL_S = 7 * 86_400
# The most bytes of cells in one record. Stores take 1,000,000 bytes (features/stores/base.py), header included.
RECORD_BYTES_MAX = 950_000
# A delta with this many cells or bytes goes into the tiles. Each save writes the whole delta again: with one model, the
# minute that is counted and the one before it.
_DELTA_CELLS_MAX = 3
_DELTA_BYTES_MAX = RECORD_BYTES_MAX // 4
# How far a partition may be ahead of the evaluation. Its tiles must be there until they are evaluated.
_AHEAD_MS_MAX = KEPT_MS // 2

# The content of a delta or of a tile: packed Counts by cell. In a tile, all cells have the tile's time.
Cells = dict[CountCell, bytes]


@dataclass
class DriftHead(CheckpointHead[CountingProgress]):
    """The head of one partition. `delta`: the counts since the partition's tiles were last written."""

    progress: CountingProgress = field(default_factory=CountingProgress)
    delta: Cells = field(default_factory=dict)

    def passed_ms(self, grace_ms: int) -> int:
        """Return the time before which every decision is counted, in milliseconds."""
        return max(0, max(self.progress.newest_ms, self.quiet_ms) - grace_ms)

    def encode(self) -> bytes:
        fields = {"owner": self.owner, "quiet_ms": self.quiet_ms, "progress": asdict(self.progress)}
        return pack(fields, _keyed(self.delta))

    @classmethod
    def decode(cls, data: bytes) -> DriftHead:
        fields, cells = unpack(data)
        progress = fields["progress"]
        totals = Totals(**progress.pop("totals"))
        return cls(fields["owner"], CountingProgress(**progress, totals=totals), fields["quiet_ms"], _cells_of(cells))

    @classmethod
    def empty(cls) -> DriftHead:
        return cls("")


@dataclass
class CountTile:
    """The counts of the span of time that begins at `start_ms`, from offsets before `next_offset`."""

    start_ms: int
    next_offset: int = 0
    cells: Cells = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the tile as it is stored."""
        return pack({"start_ms": self.start_ms, "next_offset": self.next_offset}, _keyed(self.cells))

    @staticmethod
    def decode(data: bytes) -> CountTile:
        """Return the tile that `encode` turned into these bytes."""
        fields, cells = unpack(data)
        return CountTile(fields["start_ms"], fields["next_offset"], _cells_of(cells))


def head_key(partition: int) -> bytes:
    return f"{ENTITY}:head:{partition}".encode()


def tile_key(length_ms: int, partition: int, start_ms: int) -> bytes:
    slot = start_ms // length_ms % SLOTS[length_ms]
    return f"{ENTITY}:{_NAMES[length_ms]}:{partition}:{slot}".encode()


class DriftCounting:
    """Counts decisions for drift detection: the part that all partitions of a worker share."""

    def __init__(self, store: ProfileStore, binnings: Binnings, settings: DriftSettings, metrics: DriftMetrics) -> None:
        self.store, self.binnings, self.settings, self.metrics = store, binnings, settings, metrics
        self.adder = Adder(binnings, on_trimmed=metrics.trimmed.inc, on_lost=metrics.lost.inc)
        # The time to which blocks are evaluated, by any worker; 0 before the first.
        self.done_ms = 0

    def take_over(self, partition: int) -> PartitionState:
        """Take a partition over in the store; an AcquirePartition. Raises StoreUnavailable or StoreConflict."""
        return PartitionState(self, partition, take_over(self.store, partition, self.adder))

    def count(self, cell: CountCell, rows: Sequence[DecisionRow]) -> Counts:
        """Return the counts of the rows of one cell, and show them to Prometheus."""
        self.metrics.counted(cell.model.version, scores_of(rows), actions_of(rows))
        binning = self.binnings.binning_of(cell.model)
        assert binning is not None, "rows that were just put into a cell are counted in a binning that is here"
        return counted(binning, rows)


class PartitionState:
    """A PartitionWork: the decisions of one partition, as the worker that has it counts and saves them."""

    def __init__(self, counting: DriftCounting, partition: int, checkpoint: Checkpoint[DriftHead]) -> None:
        """`checkpoint`: the result of `take_over` for this partition."""
        self.partition, self.checkpoint = partition, checkpoint
        self.counts = PartitionCounts(checkpoint.saved.progress, counting.binnings, counting.settings)
        self._counting = counting
        self._delta: Cells = {}
        # Whether the delta has decisions that the head has not. Until it is saved, no more decisions are taken into
        # it: one record must hold it.
        self._is_taken = False
        # A delta that goes into the tiles next, and the offset behind it.
        self._to_flush: tuple[Cells, int] | None = None

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def saved(self) -> CountingProgress:
        """The progress that the store has."""
        return self.checkpoint.saved.progress

    @property
    def next_offset(self) -> int:
        return self.saved.next_offset

    @property
    def is_ahead(self) -> bool:
        """Whether the ring would overwrite the oldest tiles before they are evaluated."""
        since_ms = self._counting.done_ms or self.saved.first_ms
        return self.saved.newest_ms > since_ms + _AHEAD_MS_MAX

    @property
    def has_news(self) -> bool:
        is_behind = self.next_offset < self.counts.handed_to
        return is_behind or self._is_taken or self._to_flush is not None or self.checkpoint.has_quiet_news

    def add(self, offset: int, record: Mapping[str, Any]) -> None:
        self.counts.add(offset, record)

    def skip(self, offset: int) -> None:
        self.counts.skip(offset)

    def hand_over(self, quiet_ms: int) -> None:
        self.checkpoint.note_quiet(quiet_ms)
        self.counts.hand_over()

    def save(self, now_ms: int, *, flush: bool = False) -> None:
        """Count as many waiting decisions as fit into one record, and save it. `flush` writes the tiles as well."""
        self._flush()
        adder = self._counting.adder
        if not self._is_taken:
            for cell, rows in self.counts.take(now_ms).items():
                counts = self._counting.count(cell, rows)
                self._delta = adder.merged([self._delta, {cell: counts.to_bytes()}])
            self._delta = adder.fitting(self._delta)
            self._is_taken = True
        earlier, progress = self.saved, self.counts.progress.copy()
        is_all = progress.next_offset >= self.counts.handed_to
        self.checkpoint.save(replace(self.checkpoint.saved, progress=progress, delta=self._delta), is_all=is_all)
        self._is_taken = False
        self._counting.metrics.saved(progress.totals.less(earlier.totals))
        size = sum(map(len, self._delta.values()))
        if self._delta and (flush or len(self._delta) >= _DELTA_CELLS_MAX or size >= _DELTA_BYTES_MAX):
            self._to_flush = (self._delta, progress.next_offset)
            self._delta = {}
            self._flush()

    def _flush(self) -> None:
        if self._to_flush is not None:
            write_tiles(self._counting.store, self.partition, *self._to_flush, self._counting.adder)
            self._to_flush = None


def take_over(store: ProfileStore, partition: int, adder: Adder) -> Checkpoint[DriftHead]:
    """Become the worker that counts a partition; the tiles then hold its whole delta. Raises StoreUnavailable."""

    def settle(head: DriftHead) -> DriftHead:
        write_tiles(store, partition, head.delta, head.progress.next_offset, adder)
        return replace(head, delta={})

    name = f"partition {partition} of decisions"
    return Checkpoint.take_over(HeadPlace(store, head_key(partition), DriftHead, HEAD_TTL_S, name), settle)


def write_tiles(store: ProfileStore, partition: int, delta: Cells, next_offset: int, adder: Adder) -> None:
    """Add a delta that ends before `next_offset` to those tiles that do not have it yet.

    Raises StoreUnavailable: call again with the same arguments; StoreConflict if others keep writing the same tiles.
    """
    parts = {
        tile_key(length_ms, partition, start_ms): (start_ms, of_tile(delta, start_ms, length_ms))
        for length_ms in SLOTS
        for start_ms in sorted({cell.minute_ms - cell.minute_ms % length_ms for cell in delta})
    }

    def grow(key: bytes, found: bytes | None) -> bytes | None:
        tile = _grown(found, *parts[key], next_offset, adder)
        return None if tile is None else tile.encode()

    update_records(store, list(parts), grow, ttl_s=TILE_TTL_S)


def _grown(
    found: bytes | None, start_ms: int, part: Sequence[Cells], next_offset: int, adder: Adder
) -> CountTile | None:
    """Return the tile with its part added; None if there is nothing to write."""
    tile = CountTile(start_ms) if found is None else CountTile.decode(found)
    if tile.start_ms > start_ms or (tile.start_ms == start_ms and tile.next_offset >= next_offset):
        # A later tile has taken the slot, or this part is in the tile already.
        return None
    if tile.start_ms < start_ms:
        tile = CountTile(start_ms)
    return CountTile(start_ms, next_offset, adder.fitting(adder.merged([tile.cells, *part])))


def read_heads(store: ProfileStore, partitions: Iterable[int]) -> dict[int, DriftHead]:
    """Return the heads of those partitions that have one. Raises StoreUnavailable."""
    return stored_heads(store, {number: head_key(number) for number in partitions}, DriftHead.decode)


def merged(
    store: ProfileStore,
    heads: Mapping[int, DriftHead],
    start_ms: int,
    end_ms: int,
    adder: Adder,
    *,
    tile_ms: int = FIVE_MS,
) -> dict[Model, Counts]:
    """Return the counts of all partitions from `start_ms` to `end_ms`, by model. Both times begin a tile.

    `heads` were just read. `tile_ms` is MINUTE_MS for the last two hours, or FIVE_MS for as long as tiles are kept.
    Raises StoreUnavailable.
    """
    starts = range(start_ms, end_ms, tile_ms)
    parts: list[Cells] = []
    for partition, head in heads.items():
        found = store.read([tile_key(tile_ms, partition, start) for start in starts])
        for start, data in zip(starts, found, strict=True):
            parts += _seen(head, start, tile_ms, data)
    return adder.sums(parts)


def read_tile(store: ProfileStore, partition: int, head: DriftHead, start_ms: int) -> Sequence[Cells]:
    """Return a partition's counts of five minutes. `head` was just read. Raises StoreUnavailable."""
    (data,) = store.read([tile_key(FIVE_MS, partition, start_ms)])
    return _seen(head, start_ms, FIVE_MS, data)


def _seen(head: DriftHead, start_ms: int, length_ms: int, data: bytes | None) -> Sequence[Cells]:
    """Return the tile, and the delta's part if the tile does not have it yet."""
    part = of_tile(head.delta, start_ms, length_ms)
    tile = None if data is None else CountTile.decode(data)
    if tile is None or tile.start_ms != start_ms:
        return part
    return [tile.cells] if tile.next_offset >= head.progress.next_offset else [tile.cells, *part]


def of_tile(delta: Cells, start_ms: int, length_ms: int) -> list[Cells]:
    """Return the part of a delta that belongs to a tile, minute by minute."""
    return [
        {CountCell(start_ms, cell.model): data}
        for cell, data in delta.items()
        if start_ms <= cell.minute_ms < start_ms + length_ms
    ]


class Adder:
    """Adds packed counts.

    `on_trimmed` is called when `fitting` makes counts smaller, `on_lost` when counts could not be added up.
    """

    def __init__(
        self,
        binnings: Binnings,
        *,
        on_trimmed: Callable[[], object] = int,
        on_lost: Callable[[], object] = int,
    ) -> None:
        self._binnings, self._on_trimmed, self._on_lost = binnings, on_trimmed, on_lost

    def sums(self, parts: Iterable[Cells]) -> dict[Model, Counts]:
        """Return the sum by model. Models whose binning is not known here are left out."""
        sums: dict[Model, Counts] = {}
        for cell, data in (item for part in parts for item in part.items()):
            binning = self._binnings.binning_of(cell.model)
            if binning is None:
                continue
            counts = self._read(data, binning)
            if counts is None:
                continue
            if cell.model in sums:
                sums[cell.model].add(counts)
            else:
                sums[cell.model] = counts
        return sums

    def merged(self, parts: Iterable[Cells]) -> Cells:
        """Return the sum of cells, sorted, so the order of the parts does not matter."""
        found: dict[CountCell, list[bytes]] = {}
        for part in parts:
            for cell, data in part.items():
                found.setdefault(cell, []).append(data)
        return {cell: self._added(cell, found[cell]) for cell in sorted(found)}

    def _added(self, cell: CountCell, packed: Sequence[bytes]) -> bytes:
        """Return the sum. Without the binning (the bundle is no longer watched), keep only the first counts."""
        if len(packed) == 1:
            return packed[0]
        binning = self._binnings.binning_of(cell.model)
        if binning is None:
            self._on_lost()
            return packed[0]
        parts = [counts for data in packed if (counts := self._read(data, binning)) is not None]
        if not parts:
            return packed[0]
        for counts in parts[1:]:
            parts[0].add(counts)
        return parts[0].to_bytes()

    def _read(self, data: bytes, binning: Binning) -> Counts | None:
        """Return counts; None, and they are lost, if they are damaged or of another binning."""
        try:
            return Counts.from_bytes(data, binning)
        except InvalidEvent:
            self._on_lost()
            return None

    def fitting(self, cells: Cells) -> Cells:
        """Return cells that fit into a record. While they are too large, the largest loses its segments' features."""
        fit, whole = dict(cells), dict(cells)
        while whole and sum(map(len, fit.values())) > RECORD_BYTES_MAX:
            largest = max(whole, key=lambda cell: len(whole[cell]))
            data = whole.pop(largest)
            binning = self._binnings.binning_of(largest.model)
            counts = None if binning is None else self._read(data, binning)
            if counts is not None:
                counts.features[1:] = 0
                fit[largest] = counts.to_bytes()
                self._on_trimmed()
        return fit


def _keyed(cells: Cells) -> Iterable[tuple[tuple[int, str, str], bytes]]:
    return (((cell.minute_ms, *cell.model), data) for cell, data in cells.items())


def _cells_of(keyed: Iterable[tuple[list[Any], bytes]]) -> Cells:
    return {CountCell(minute_ms, Model(version, binning)): data for (minute_ms, version, binning), data in keyed}


# Decoders of each kind of record of this module, by the beginning of its key. Hours and the past are tiles, too.
DRIFT_CHECKS: dict[bytes, Check] = {
    f"{ENTITY}:head:".encode(): DriftHead.decode,
    **{f"{ENTITY}:{name}:".encode(): CountTile.decode for name in (*_NAMES.values(), "hour", "past")},
}
