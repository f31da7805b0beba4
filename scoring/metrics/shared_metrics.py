"""Counters, gauges and histograms of many worker processes, summed when Prometheus scrapes one of them.

    worker 0 ─ add(1) ─► worker-0.metrics (memory-mapped) ─┐
                                                           ├─ render ─► Prometheus text
    worker 1 ─ add(1) ─► worker-1.metrics (memory-mapped) ─┘

1. A process declares all its series on a `MetricsRegistry` and keeps the handles. Later there is no look-up by label:
   `handle.add(1)` is one addition to one int64 slot.
2. `MetricsRegistry.open(directory, worker)` moves the slots into a file mapped into memory, one per worker:

       magic (8) │ u32 size, u32 CRC-32 of the series │ the series as JSON │ padding to 8 │ int64 slots: pid, series

   The kernel keeps the file's pages when the process dies, so its counts stay. A worker that starts again under the
   same name continues from them. Keep the directory on a memory file system: on a disk, the kernel writes the pages
   back at times, and may block the worker meanwhile.
3. `render(directory)`, in any process, reads the files of all workers. It adds counters and histograms, and takes the
   largest gauge of the live workers. The files describe their series, so the reader need not know them. If two
   versions of Paywarden give one name different meanings, `render` leaves one of them out.
4. A file of other series, as those of another release, or a damaged one is replaced, and the counts begin at 0.
   `render` leaves it out. A process whose file is cut short is ended by the missing pages, and started again.

A lock ensures one writer per file. Writers and readers share no lock: a slot is aligned and written in one store, so a
reader sees a value that was true a moment ago. A histogram may be read between its bucket and its sum.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import logging
import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zlib import crc32

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.private_files import make_private_folder, private_opener

_log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_MAGIC = b"PWMETR02"
_HEAD = struct.Struct("<8sII")
_SUFFIX = ".metrics"
# The slot of the process that counts.
_PID_SLOT = 0
# No gauge is ever this small, so it can mean "not set".
_UNSET = -(2**63)


@dataclass(frozen=True)
class Series:
    """A metric with one set of labels. A slot that holds a quantity counts multiples of `scale`."""

    kind: str
    name: str
    help: str
    labels: tuple[tuple[str, str], ...]
    bounds: tuple[float, ...] = ()
    scale: float = 1.0

    @property
    def slot_count(self) -> int:
        """The number of slots. A histogram has one per bucket, one for values above the last bound, and its sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two series whose slots may be added: everything but the help text."""
        return (*self.shape, self.labels)

    @property
    def shape(self) -> tuple[object, ...]:
        """The part that all series of one name share."""
        return (self.name, self.kind, tuple(label for label, _ in self.labels), self.bounds, self.scale)

    def as_json(self) -> list[object]:
        return [self.kind, self.name, self.help, self.labels, self.bounds, self.scale]

    @classmethod
    def from_json(cls, values: Sequence[object]) -> Series:
        """Raises ValueError or TypeError for values that `as_json` has not made."""
        kind, name, help_text, labels, bounds, scale = values
        if not isinstance(labels, list) or not isinstance(bounds, list):
            raise TypeError("labels and bounds: wanted lists")
        pairs = tuple((str(label), str(value)) for label, value in labels)
        return cls(str(kind), str(name), str(help_text), pairs, tuple(map(float, bounds)), float(str(scale)))


def _address_of(slots: memoryview, index: int) -> int:
    """Returns the address of a slot. Nothing keeps the slots alive for it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(slots)) + 8 * index


class Counter:
    """A count that only goes up. Not thread-safe."""

    __slots__ = ("_index", "_slots")

    def __init__(self) -> None:
        self._slots = memoryview(bytearray(8)).cast("q")
        self._index = 0

    def add(self, count: int) -> None:
        """Add `count`, at least 0."""
        self._slots[self._index] += count

    @property
    def address(self) -> int:
        """The address of its slot, for compiled code. It changes when the registry is opened, and ends with it."""
        return _address_of(self._slots, self._index)

    @property
    def value(self) -> int:
        """The count of this worker, including its earlier processes under the same name."""
        return self._slots[self._index]

    def _bind(self, slots: memoryview, index: int) -> None:
        slots[index] += self._slots[self._index]
        self._slots, self._index = slots, index


class Gauge:
    """A value that goes up and down. `render` shows the largest of all live workers; a new worker has none."""

    __slots__ = ("_index", "_per_unit", "_slots")

    def __init__(self, scale: float) -> None:
        self._slots = memoryview(bytearray(8)).cast("q")
        self._slots[0] = _UNSET
        self._index = 0
        self._per_unit = 1.0 / scale

    def set(self, value: float) -> None:
        """Set the value, in the metric's unit."""
        self._slots[self._index] = round(value * self._per_unit)

    @property
    def address(self) -> int:
        """As `Counter.address`. The slot counts the gauge's scale."""
        return _address_of(self._slots, self._index)

    def clear(self) -> None:
        """Show no value, because it is not known."""
        self._slots[self._index] = _UNSET

    def _bind(self, slots: memoryview, index: int) -> None:
        slots[index] = self._slots[self._index]
        self._slots, self._index = slots, index


class MetricHistogram:
    """Counts values by bucket. A value equal to a bound is in the bucket below it."""

    __slots__ = ("_bounds", "_index", "_per_unit", "_slots", "_sum_index")

    def __init__(self, bounds: tuple[float, ...], scale: float) -> None:
        self._bounds = bounds
        self._per_unit = 1.0 / scale
        self._slots = memoryview(bytearray(8 * (len(bounds) + 2))).cast("q")
        self._index = 0
        self._sum_index = len(bounds) + 1

    def observe(self, value: float) -> None:
        """Count `value`, in the metric's unit, at least 0."""
        slots = self._slots
        slots[self._index + bisect_left(self._bounds, value)] += 1
        slots[self._sum_index] += int(value * self._per_unit)

    def observe_many(self, value: float, count: int) -> None:
        """Count `value` `count` times."""
        slots = self._slots
        slots[self._index + bisect_left(self._bounds, value)] += count
        slots[self._sum_index] += int(value * count * self._per_unit)

    @property
    def addresses(self) -> tuple[int, int]:
        """The addresses of the first bucket and of the sum: as `Counter.address`."""
        return _address_of(self._slots, self._index), _address_of(self._slots, self._sum_index)

    @property
    def slots(self) -> memoryview:
        """The memory of its counts. Another object after the registry is opened: then all addresses change."""
        return self._slots

    @property
    def bounds(self) -> tuple[float, ...]:
        """The upper bounds of all buckets but the last."""
        return self._bounds

    @property
    def per_unit(self) -> float:
        """The units of the sum for a value of 1."""
        return self._per_unit

    @property
    def count(self) -> int:
        """The number of values that this worker has counted."""
        return sum(self._slots[self._index : self._sum_index])

    def _bind(self, slots: memoryview, index: int) -> None:
        for offset in range(len(self._bounds) + 2):
            slots[index + offset] += self._slots[self._index + offset]
        self._slots, self._index, self._sum_index = slots, index, index + len(self._bounds) + 1


Handle = Counter | Gauge | MetricHistogram


class MetricsRegistry:
    """The series of one process. Declare all, then `open` once. Handles also work before `open` and without it."""

    def __init__(self) -> None:
        self._declared: dict[tuple[object, ...], tuple[Series, Handle]] = {}
        self._shapes: dict[str, tuple[object, ...]] = {}
        self._file: _SlotFile | None = None

    def counter(
        self, name: str, help_text: str, label_names: Sequence[str] = (), label_values: Sequence[str] = ()
    ) -> Counter:
        """Returns the counter `name`, which ends in `_total`, with these labels; for equal ones the same handle."""
        handle = self._declare(Series("counter", name, help_text, _labels(label_names, label_values)), Counter())
        assert isinstance(handle, Counter)
        return handle

    def gauge(
        self,
        name: str,
        help_text: str,
        label_names: Sequence[str] = (),
        label_values: Sequence[str] = (),
        *,
        scale: float = 1e-3,
    ) -> Gauge:
        """Returns a gauge that is kept in whole multiples of `scale`."""
        series = Series("gauge", name, help_text, _labels(label_names, label_values), (), scale)
        handle = self._declare(series, Gauge(scale))
        assert isinstance(handle, Gauge)
        return handle

    def histogram(
        self,
        name: str,
        help_text: str,
        label_names: Sequence[str] = (),
        label_values: Sequence[str] = (),
        *,
        bounds: Sequence[float],
        scale: float = 1e-6,
    ) -> MetricHistogram:
        """Returns a histogram with ascending bucket `bounds`. Its sum is kept in whole multiples of `scale`."""
        assert list(bounds) == sorted(set(bounds)), "bounds must ascend"
        labels = _labels(label_names, label_values)
        series = Series("histogram", name, help_text, labels, tuple(map(float, bounds)), scale)
        handle = self._declare(series, MetricHistogram(series.bounds, scale))
        assert isinstance(handle, MetricHistogram)
        return handle

    def open(self, directory: Path, worker: str) -> None:
        """Keep the counts in `directory` from now on, continuing from those of an earlier process of `worker`.

        Raises Misconfigured when the directory cannot be written or another process counts as `worker`.
        """
        assert self._file is None, "opened already"
        declared = [series for series, _ in self._declared.values()]
        self._file = _SlotFile.open(directory / f"{worker}{_SUFFIX}", declared)
        for key, (_, handle) in self._declared.items():
            handle._bind(self._file.slots, self._file.first_slot[key])

    def close(self) -> None:
        """Close the file. The handles must not be used any more."""
        if self._file is not None:
            for _, handle in self._declared.values():
                handle._slots = memoryview(b"").cast("q")
            self._file.close()
            self._file = None

    def _declare(self, series: Series, handle: Handle) -> Handle:
        if series.key in self._declared:
            return self._declared[series.key][1]
        assert self._file is None, "declare before open"
        assert self._shapes.setdefault(series.name, series.shape) == series.shape, "one name, two meanings"
        self._declared[series.key] = (series, handle)
        return handle


def _labels(names: Sequence[str], values: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(names, values, strict=True))


class _SlotFile:
    """One worker's file, memory-mapped. It is locked until `close` or the end of the process."""

    def __init__(self, lock: int, mapping: mmap.mmap, series: list[Series], first_slot: int) -> None:
        self._lock, self._mapping = lock, mapping
        self._bytes = memoryview(mapping)
        self.slots = self._bytes[first_slot:].cast("q")
        self.first_slot = dict(zip((one.key for one in series), _slot_indexes(series), strict=True))

    @classmethod
    def open(cls, path: Path, series: list[Series]) -> _SlotFile:
        head, size = _head(series), 8 * (1 + sum(one.slot_count for one in series))
        try:
            make_private_folder(path.parent)
            lock = _lock(path)
            if not _continues(path, head, size):
                _begin(path, head + bytes(size))
            with path.open("r+b") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE)
        except OSError as error:
            raise Misconfigured(f"metrics: cannot use {path}: {error.strerror}") from error
        made = cls(lock, mapping, series, len(head))
        for one in series:
            if one.kind == "gauge":
                made.slots[made.first_slot[one.key]] = _UNSET
        made.slots[_PID_SLOT] = os.getpid()
        return made

    def close(self) -> None:
        self.slots.release()
        self._bytes.release()
        self._mapping.close()
        os.close(self._lock)


def _lock(path: Path) -> int:
    """Lock a separate file: the file of counts is replaced at every start, and a lock on it would be lost."""
    lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Misconfigured(
            f"metrics: another process counts as {path.stem} in {path.parent}: wanted a folder for each host "
            "([serve] metrics), and no other host that runs with it"
        ) from None
    return lock


def _head(series: Iterable[Series]) -> bytes:
    described = json.dumps([one.as_json() for one in series]).encode()
    head = _HEAD.pack(_MAGIC, len(described), crc32(described)) + described
    return head + bytes(-len(head) % 8)


def _slot_indexes(series: Iterable[Series]) -> list[int]:
    indexes, following = [], _PID_SLOT + 1
    for one in series:
        indexes.append(following)
        following += one.slot_count
    return indexes


def _continues(path: Path, head: bytes, size: int) -> bool:
    """Whether an earlier process has counted these very series in the file. Raises OSError."""
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NO_COUNTS:
            raise
        content = b""
    if content.startswith(head) and len(content) == len(head) + size:
        return True
    _log.warning("metrics: %s holds something else than this release counts: the counts begin at 0", path)
    return False


def _begin(path: Path, content: bytes) -> None:
    """Replace `path` in one step, so that a reader, or a start after a crash, finds the old or the new file whole."""
    new = path.with_suffix(".new")
    # A killed process may have left anything there.
    new.unlink(missing_ok=True)
    with open(new, "wb", opener=private_opener) as file:
        file.write(content)
    new.replace(path)


# Errors with which `read_regular` refuses a file that holds no counts, or has the wrong size.
_NO_COUNTS = (errno.EINVAL, errno.EISDIR, errno.EFBIG, errno.ELOOP)


def _read_file(path: Path) -> tuple[int, list[tuple[Series, list[int]]]]:
    """Returns the pid of the last process that used the file, and every series with its slots.

    Raises OSError, Misconfigured.
    """
    content = read_regular(path)
    if len(content) < _HEAD.size:
        raise Misconfigured("it is cut short")
    magic, size, checksum = _HEAD.unpack_from(content)
    end = _HEAD.size + size
    described = content[_HEAD.size : end]
    if magic != _MAGIC or crc32(described) != checksum:
        raise Misconfigured("it holds no counts")
    series = [Series.from_json(values) for values in json.loads(described)]
    first_slot, slot_count = end + -end % 8, 1 + sum(one.slot_count for one in series)
    if len(content) != first_slot + 8 * slot_count:
        raise Misconfigured("it is cut short")
    slots = memoryview(content)[first_slot:].cast("q").tolist()
    indexes = _slot_indexes(series)
    counted = [(one, slots[index : index + one.slot_count]) for one, index in zip(series, indexes, strict=True)]
    return slots[_PID_SLOT], counted


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@lru_cache(maxsize=256)
def _log_unread(path: Path, why: str | None) -> None:
    """Log once that the counts of a file are left out: it is read every second."""
    _log.error("metrics: the counts in %s are left out until its process writes it again: %s", path, why)


def totals(directory: Path) -> dict[Series, list[int]]:
    """Returns the merged slots of every series of all workers in `directory`. Gauges without a value are left out."""
    merged: dict[tuple[object, ...], tuple[Series, list[int]]] = {}
    shapes: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        try:
            pid, counted = _read_file(path)
        except (Misconfigured, OSError) as error:
            # Its worker replaces the file, or logs its error, when it is started again. It may be gone by now.
            _log_unread(path, error.strerror if isinstance(error, OSError) else str(error))
            continue
        alive = _lives(pid)
        for series, slots in counted:
            is_gauge = series.kind == "gauge"
            if shapes.setdefault(series.name, series.shape) != series.shape:
                continue
            if is_gauge and (not alive or slots == [_UNSET]):
                continue
            merge: Callable[[int, int], int] = max if is_gauge else int.__add__
            _, earlier = merged.get(series.key, (series, None))
            merged[series.key] = series, slots if earlier is None else list(map(merge, earlier, slots))
    return dict(merged.values())


class _DirectoryCollector(Collector):
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily] = {}
        for series, slots in totals(self._directory).items():
            family = families.get(series.name) or families.setdefault(series.name, _family(series))
            _add_series(family, series, slots)
        yield from families.values()


def _family(series: Series) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    names = [name for name, _ in series.labels]
    if series.kind == "counter":
        return CounterMetricFamily(series.name, series.help, labels=names)
    if series.kind == "gauge":
        return GaugeMetricFamily(series.name, series.help, labels=names)
    return HistogramMetricFamily(series.name, series.help, labels=names)


def _add_series(
    family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily, series: Series, slots: list[int]
) -> None:
    values = [value for _, value in series.labels]
    if not isinstance(family, HistogramMetricFamily):
        family.add_metric(values, slots[0] * series.scale if series.kind == "gauge" else slots[0])
        return
    buckets, cumulative = [], 0
    for bound, count in zip((*map(str, series.bounds), "+Inf"), slots[:-1], strict=True):
        cumulative += count
        buckets.append((bound, cumulative))
    family.add_metric(values, buckets, slots[-1] * series.scale)


def render(directory: Path) -> bytes:
    """Returns all workers' metrics as Prometheus text (`CONTENT_TYPE`). It takes one or two milliseconds."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_DirectoryCollector(directory))
    return generate_latest(registry)
