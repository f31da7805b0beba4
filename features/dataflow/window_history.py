"""A window's payments as a history here, for what an engine does not compute: measures, and the columns of a training.

    frauds before the window │ payments of the window, part by part │ frauds after it ─► columns in files ─► History

The frauds outside the window decide which frauds are the first of their card, merchant or device. The history has
no declared fields: nothing here reads one. Its payments were checked when they became events.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.dataflow.column_files import MmapAllocator
from paywarden.features.dataflow.dataflow_engine import Batches, RowsT
from paywarden.features.dataflow.events import (
    KIND,
    KNOWN_MS,
    LABEL,
    OUTCOME,
    OUTCOMES,
    PAYMENT,
    Places,
    known_labels,
)
from paywarden.features.dataflow.fold import Window
from paywarden.features.dataflow.vectors import Passage
from paywarden.features.history.history import (
    ABOUT_LABELS,
    NEVER_LABELLED,
    PROPENSITY,
    Coded,
    History,
    integers,
    never_labelled,
    parts_of,
    propensities,
)
from paywarden.features.history.payment_columns import flag_codes, plain_texts
from paywarden.schemas.payment_fields import FIELDS

_REQUIRED = ("payment_id", "event_time_ms", "amount_minor")
READ_COLUMNS = (
    *("card_id", "merchant_id", "device_id", "currency", "mcc", "country", "channel", "declined"),
    *ABOUT_LABELS,
)
"""The columns that are read here, where the payments have them, besides id, time and amount."""

_CODED = tuple(field.name for field in FIELDS if field.is_text and field.name != "payment_id")
NO_END = int(np.iinfo(np.int64).max)


def read_columns_of(columns: pa.Schema) -> list[str]:
    """Returns the columns of payments that are read here, besides id, time and amount."""
    return [name for name in READ_COLUMNS if name in columns.names]


@dataclass(frozen=True)
class OtherFrauds:
    """Takes from events the frauds outside a window, as known at a time."""

    columns: pa.Schema
    places: Places
    window: Window
    known_by_ms: int = NO_END

    @cached_property
    def schema(self) -> pa.Schema:
        names = (*_REQUIRED, *read_columns_of(self.columns))
        return pa.schema([("_place", pa.int64()), *((name, self.columns.field(name).type) for name in names)])

    def run(self, batches: Batches, _: int) -> Batches:
        wanted = self.window.places
        for batch in batches:
            place = self.places.of_events(batch)
            is_fraud = (batch[KIND].to_numpy() == PAYMENT) & (known_labels(batch[OUTCOMES], self.known_by_ms) == 1)
            rows = pa.array(np.flatnonzero(is_fraud & ((place < wanted.start) | (place >= wanted.stop))))
            arrays = [pa.array(place).take(rows), *(batch[name].take(rows) for name in self.schema.names[1:])]
            yield pa.record_batch(arrays, schema=self.schema)


@dataclass(frozen=True)
class GenuineDelays:
    """Takes from events how long after its payment each sampled outcome "genuine" became known.

    `every`: N, to sample every N-th outcome of those known at `known_by_ms`.
    """

    places: Places
    every: int
    known_by_ms: int = NO_END
    schema = pa.schema([("delay_ms", pa.int64())])

    def run(self, batches: Batches, _: int) -> Batches:
        for batch in batches:
            known_ms = batch[KNOWN_MS].to_numpy()
            is_genuine = (batch[KIND].to_numpy() == OUTCOME) & (batch[LABEL].to_numpy() == 0)
            is_sampled = (self.places.of_outcomes(batch) % self.every == 0) & (known_ms <= self.known_by_ms)
            rows = np.flatnonzero(is_genuine & is_sampled)
            yield pa.record_batch([pa.array(known_ms[rows] - batch["event_time_ms"].to_numpy()[rows])], self.schema)


class WindowHistory:
    """The payments of a window, and the frauds outside it, as they arrive.

    The columns lie in files, the distinct texts in memory.
    """

    def __init__(self, passage: Passage[RowsT], room: MmapAllocator, frauds: OtherFrauds, files: ExitStack) -> None:
        """`files` closes the columns' files."""
        engine = passage.engine
        tables = engine.tables(engine.map(passage.events, frauds))
        found = pa.concat_tables([frauds.schema.empty_table(), *tables]).sort_by("_place")
        is_before = found["_place"].to_numpy() < frauds.window.places.start
        before, self._after = (found.filter(pa.array(flags)) for flags in (is_before, ~is_before))
        self._room, self._files = room, files
        self._columns: dict[str, tuple[BinaryIO, np.dtype[Any]]] = {}
        self._numbers: dict[str, dict[str, int]] = {name: {} for name in _CODED}
        self._end = 0
        self.frauds, self.rows = len(found), slice(len(before), len(before))
        self._put("offsets", np.zeros(1, dtype=np.int64))
        self._add(before)

    def add(self, payments: pa.Table) -> slice:
        """Take further payments of the window, which has these columns among others; returns their rows."""
        first = self.rows.stop
        self.rows = slice(self.rows.start, first + len(payments))
        self._add(payments)
        return slice(first, self.rows.stop)

    def whole(self) -> History:
        """Returns all as a history without outcomes, once all payments of the window are there."""
        self._add(self._after)
        columns = {name: self._room.mapped(file, kind) for name, (file, kind) in self._columns.items()}
        offsets, count = columns.pop("offsets"), self.rows.stop + len(self._after)
        texts = [None, pa.py_buffer(offsets), pa.py_buffer(columns.pop("ids"))]
        coded = {name.removesuffix("_id"): self._coded(name, columns.pop(name, None), count) for name in _CODED}
        return History(
            payment_id=pa.Array.from_buffers(pa.large_string(), count, texts),
            utc_offset_code=self._room.new(count, np.int64),
            outcome_payment=np.zeros(0, dtype=np.int64),
            outcome_time_ms=np.zeros(0, dtype=np.int64),
            outcome_fraud=np.zeros(0, dtype=np.bool_),
            **coded,
            **columns,
        )

    def _add(self, payments: pa.Table) -> None:
        if len(payments) == 0:
            return
        table = _columns_of(payments)
        ids = plain_texts(table["payment_id"])
        _, offsets, content = ids.buffers()
        bounds = np.frombuffer(offsets, dtype=np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
        self._put("offsets", bounds[1:] - bounds[0] + self._end)
        self._put("ids", np.frombuffer(content or b"", dtype=np.uint8)[bounds[0] : bounds[-1]])
        self._end += int(bounds[-1] - bounds[0])
        for name in ("event_time_ms", "amount_minor"):
            self._put(name, integers(table, name))
        self._put("declined_code", flag_codes(table, "declined"))
        for name, values in ((PROPENSITY, propensities(table)), (NEVER_LABELLED, never_labelled(table))):
            if values is not None:
                self._put(name, values)
        for name in set(_CODED) & set(table.column_names):
            encoded, numbers = plain_texts(table[name]).dictionary_encode(), self._numbers[name]
            known = [numbers.setdefault(text, len(numbers)) for text in encoded.dictionary.to_pylist()]
            # Code -1 takes the last entry.
            self._put(name, np.array([*known, -1], dtype=np.int32)[encoded.indices.fill_null(-1).to_numpy()])

    def _put(self, name: str, values: NDArray[Any]) -> None:
        if name not in self._columns:
            self._columns[name] = self._files.enter_context(self._room.new_file()), values.dtype
        self._room.append(self._columns[name][0], values)

    def _coded(self, name: str, codes: NDArray[np.int32] | None, count: int) -> Coded:
        """Returns a column of texts, numbered in their order instead of as they arrived."""
        if codes is None:
            codes = self._room.new(count, np.int32)
            codes[:] = -1
        names = pa.array(list(self._numbers.pop(name)), pa.string())
        order = pc.sort_indices(names).to_numpy()
        new_code = np.full(len(order) + 1, -1, dtype=np.int32)
        new_code[order] = np.arange(len(order))
        for part in parts_of(count):
            codes[part] = new_code[codes[part]]
        return Coded(codes, names.take(pa.array(order)))


def with_outcomes(
    history: History, row: NDArray[np.int64], time_ms: NDArray[np.int64], fraud: NDArray[np.bool_]
) -> History:
    """Returns a history with outcomes, which may come in any order but for those of one payment."""
    order = np.argsort(time_ms, kind="stable")
    return replace(history, outcome_payment=row[order], outcome_time_ms=time_ms[order], outcome_fraud=fraud[order])


def _columns_of(table: pa.Table) -> pa.Table:
    """Returns the columns that a history here has. A column's name may begin with a line."""
    names = (*_REQUIRED, *READ_COLUMNS)
    columns = {name: table[one] for name in names for one in (name, f"_{name}") if one in table.column_names}
    return pa.table(columns)
