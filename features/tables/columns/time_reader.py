"""Times of a column in UTC, from timestamps, numbers or texts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paywarden.features.tables.columns.arrow_columns import (
    Flags,
    Int64Array,
    Wrong,
    as_texts,
    flags_at,
    flags_of,
)
from paywarden.features.tables.columns.number_reader import NO_NUMBER, RIGHT, TOO_LARGE, NumberReader
from paywarden.features.tables.columns.time_texts import NO_OFFSET, read_times
from paywarden.features.tables.mapping import InputForm, TimeSource
from paywarden.features.tables.sources import TableRows
from paywarden.features.tables.zones import Zone, zone_of

_MINUTE_MS = 60_000
# By unit: how many digits after the point are read, and the fraction (times, over) that turns the result into ms.
_TIME_SCALES = {
    "seconds": (6, 1, 1000),
    "milliseconds": (3, 1, 1000),
    "microseconds": (0, 1, 1000),
    "nanoseconds": (0, 1, 1_000_000),
    "minutes": (6, 60_000, 10**6),
    "hours": (6, 3_600_000, 10**6),
    "days": (6, 86_400_000, 10**6),
}


class TimeReader:
    """Reads times as the files of a mapping write them."""

    def __init__(self, form: InputForm, numbers: NumberReader) -> None:
        self._form, self._numbers = form, numbers

    def moments(
        self, name: str, source: TimeSource, column: pa.Array, rows: TableRows
    ) -> tuple[Int64Array, Flags, Int64Array, list[Wrong]]:
        """Returns (epoch milliseconds, which are missing, UTC offsets in minutes, what is wrong)."""
        kind = column.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            whole = column.cast(pa.timestamp("ms", tz=getattr(kind, "tz", None)), safe=False).cast(pa.int64())
            missing = flags_of(pc.is_null(whole))
            local = np.asarray(whole.fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
            if getattr(kind, "tz", None):
                return local, missing, np.zeros(len(local), dtype=np.int64), []
            named = np.full(len(local), NO_OFFSET, dtype=np.int64)
            return self._utc(name, source, local, named, missing, rows, [])
        if source.is_number:
            digits, times, over = _TIME_SCALES[source.format]
            numbers, status, missing = self._numbers.scaled(
                column, np.full(len(column), digits, dtype=np.int8), rounds=True
            )
            origin = Zone.moment_ms(source.origin) if source.origin else 0
            bad = [
                (status == NO_NUMBER, name, f"is no number of {source.format}"),
                ((status == TOO_LARGE) | (np.abs(numbers) > 4 * 10**18 // times), name, "is too large for a time"),
            ]
            safe = np.where(bad[1][0] | (status != RIGHT), 0, numbers)
            assert origin is not None
            return safe * times // over + origin, missing, np.zeros(len(numbers), dtype=np.int64), bad
        texts = as_texts(column, self._form.missing)
        missing = flags_of(pc.is_null(texts))
        read = read_times(texts, source.format)
        wanted = "a time such as 2026-05-01T12:00:00Z" if source.format == "iso" else f"the format {source.format}"
        strange = (read.is_wrong, name, f"is no time of its format; wanted {wanted}")
        skip = missing | read.is_wrong
        return self._utc(name, source, read.local_ms, read.offset_minutes, skip, rows, [strange])

    def are_dates(self, source: TimeSource, column: pa.Array) -> Flags:
        """Returns which values name a day and no time of it."""
        kind = column.type
        if source.is_number or pa.types.is_timestamp(kind):
            return np.zeros(len(column), dtype=np.bool_)
        if pa.types.is_date(kind) or source.is_date:
            return np.ones(len(column), dtype=np.bool_)
        if source.format != "iso":
            return np.zeros(len(column), dtype=np.bool_)
        size = pc.utf8_length(as_texts(column, self._form.missing))
        return flags_of(pc.less_equal(size, len("2026-05-01")).fill_null(False))

    def _utc(
        self,
        name: str,
        source: TimeSource,
        local: Int64Array,
        named: Int64Array,
        skip: Flags,
        rows: TableRows,
        wrong: list[Wrong],
    ) -> tuple[Int64Array, Flags, Int64Array, list[Wrong]]:
        """Returns local times in UTC: by the offset that a text names, by the zone of the column, or of the mapping."""
        count = len(local)
        time_ms, offset = local - named * _MINUTE_MS, named.copy()
        missing = skip & ~(wrong[0][0] if wrong else np.zeros(count, dtype=np.bool_))
        for zone_name, where in self._zones(source, rows, count):
            chosen = np.flatnonzero(where & (named == NO_OFFSET) & ~skip)
            if len(chosen) == 0:
                continue
            zone = zone_of(zone_name) if zone_name else None
            if zone is None:
                flags = flags_at(chosen, count)
                wrong = [
                    *wrong,
                    (flags, source.zone_column, "is no zone; wanted a name such as Europe/Berlin or +02:00"),
                ]
                continue
            found = zone.utc(local[chosen], second=source.ambiguous == "second")
            time_ms[chosen], offset[chosen] = found.time_ms, found.offset_minutes
            gap = f"is in the hour that the clocks of {zone_name} leave out in spring"
            twice = f"is in the hour that the clocks of {zone_name} have twice; `ambiguous` says which"
            wrong = [*wrong, (flags_at(chosen[found.is_in_gap], count), name, gap)]
            if source.ambiguous == "refuse":
                wrong = [*wrong, (flags_at(chosen[found.is_ambiguous], count), name, twice)]
        offset[offset == NO_OFFSET] = 0
        time_ms[skip] = 0
        return time_ms, missing, offset, wrong

    def _zones(self, source: TimeSource, rows: TableRows, count: int) -> Iterable[tuple[str, Flags]]:
        if not source.zone_column:
            return [(source.zone, np.ones(count, dtype=np.bool_))]
        encoded = as_texts(rows.columns[source.zone_column], self._form.missing).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        names = [*encoded.dictionary.to_pylist(), ""]
        return [(name, codes == (code if name else -1)) for code, name in enumerate(names)]
