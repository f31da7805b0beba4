"""Counts for a page about the data, from payments in order of time, in bounded memory.

    distinct values, payments per card      exact up to 200,000 values; beyond, of every 2nd, 4th, 8th … value, chosen
                                            by its hash, and multiplied
    quantiles of numbers                    of every k-th payment, at most 100,000
    values of a category                    those of a field with at most 200

No value of an id or of a personal field is kept: these are only counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.tables.fields import KNOWN_MS, LABEL, ROW
from paywarden.features.tables.labels import FRAUD, GENUINE, hashes_of
from paywarden.schemas.payment_fields import FIELD, Form, PaymentField, PaymentFields

DAY_MS = 86_400_000
CATEGORIES_MAX = 200
ENTITIES_MAX = 200_000
SAMPLE_MAX = 100_000
GAPS = 5
QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
ENTITY_QUANTILES = (0.5, 0.9, 0.99, 1.0)
DELAY_EDGES_DAYS = (0, 1, 2, 3, 5, 7, 10, 14, 21, 30, 45, 60, 90, 120, 180, 365)
"""A label's delay lies from one of these to the next, or beyond the last."""
# Fields of every payment whose values a page may show.
_SHOWN = ("currency", "mcc", "country", "channel", "declined")
_IDS = ("card_id", "merchant_id", "device_id", "ip")


class HashCounts:
    """How often each value was there, by the hashes of the values."""

    def __init__(self, most: int = ENTITIES_MAX) -> None:
        self._most = most
        self._hashes, self._counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._one_of = 1

    def add(self, hashes: NDArray[np.int64]) -> None:
        """Count values."""
        # The low bits choose, so that a value is counted always or never.
        chosen = hashes[hashes & (self._one_of - 1) == 0]
        distinct, counts = np.unique(chosen, return_counts=True)
        every, place = np.unique(np.concatenate([self._hashes, distinct]), return_inverse=True)
        total = np.bincount(place, weights=np.concatenate([self._counts, counts]), minlength=len(every))
        self._hashes, self._counts = every, total.astype(np.int64)
        while len(self._hashes) > self._most:
            self._one_of *= 2
            kept = self._hashes & (self._one_of - 1) == 0
            self._hashes, self._counts = self._hashes[kept], self._counts[kept]

    @property
    def distinct(self) -> int:
        """Returns how many values there were: exact while `is_exact`."""
        return len(self._hashes) * self._one_of

    @property
    def is_exact(self) -> bool:
        """Returns whether all values were counted."""
        return self._one_of == 1

    def quantiles(self, shares: Sequence[float]) -> list[int]:
        """Returns quantiles of the count of a value; empty without a value."""
        if len(self._counts) == 0:
            return []
        return [int(one) for one in np.quantile(self._counts, shares, method="inverted_cdf")]

    @property
    def once(self) -> float:
        """Returns the share of values that were there once; 0 without a value."""
        return float((self._counts == 1).mean()) if len(self._counts) else 0.0


class NumberSample:
    """Range and quantiles of a number."""

    def __init__(self) -> None:
        self._step = 1
        self._rows, self._values = np.zeros(0, dtype=np.int64), np.zeros(0)
        self.least, self.most = np.inf, -np.inf

    def add(self, rows: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Take some values that are there, with the numbers of their rows."""
        if len(values) == 0:
            return
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))
        chosen = rows % self._step == 0
        self._rows = np.concatenate([self._rows, rows[chosen]])
        self._values = np.concatenate([self._values, values[chosen]])
        while len(self._rows) > SAMPLE_MAX:
            self._step *= 2
            kept = self._rows % self._step == 0
            self._rows, self._values = self._rows[kept], self._values[kept]

    def quantiles(self, shares: Sequence[float] = QUANTILES) -> list[float]:
        """Returns quantiles; empty without a value. The first and the last are exact."""
        if not np.isfinite(self.least):
            return []
        values = self._values if len(self._values) else np.array([self.least, self.most])
        found = np.quantile(values, shares).tolist()
        return [self.least, *found[1:-1], self.most]


@dataclass
class CategoryCounts:
    """Payments, frauds and genuine payments of each value; None once there were more than CATEGORIES_MAX values."""

    values: dict[str, list[int]] | None = field(default_factory=dict)

    def add(self, texts: pa.Array, label: NDArray[np.int8]) -> None:
        """Count some rows."""
        if self.values is None:
            return
        encoded = texts.dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        for code, name in enumerate(encoded.dictionary.to_pylist()):
            if len(self.values) >= CATEGORIES_MAX and name not in self.values:
                self.values = None
                return
            labels = label[codes == code]
            counts = self.values.setdefault(name, [0, 0, 0])
            counts[0] += len(labels)
            counts[1] += int((labels == FRAUD).sum())
            counts[2] += int((labels == GENUINE).sum())


@dataclass
class DayCounts:
    """A day's payments."""

    payments: int = 0
    frauds: int = 0
    genuine: int = 0


class TableProfile:
    """The profile of a table's payments. `add` takes them in order of time."""

    def __init__(self, payment: PaymentFields) -> None:
        self.payments = 0
        self.missing: Counter[str] = Counter()
        self.fields: Mapping[str, PaymentField] = payment.by_name
        self.present: list[str] = []
        self.entities: dict[str, HashCounts] = {}
        self.numbers: dict[str, NumberSample] = {}
        self.amounts: dict[str, NumberSample] = {}
        self.amount_payments: Counter[str] = Counter()
        self.categories: dict[str, CategoryCounts] = {}
        self.days: dict[int, DayCounts] = {}
        self.gaps: list[tuple[int, int]] = []
        """The longest times without a payment: (length, start) in milliseconds, the longest first."""
        self.delays = {
            FRAUD: np.zeros(len(DELAY_EDGES_DAYS), np.int64),
            GENUINE: np.zeros(len(DELAY_EDGES_DAYS), np.int64),
        }
        self.first_ms = self.last_ms = 0

    def add(self, payments: pa.Table) -> None:
        """Count the payments of a part, which follows the ones before in time."""
        label = np.asarray(payments[LABEL].to_numpy())
        time_ms = np.asarray(payments["event_time_ms"].to_numpy())
        rows = np.asarray(payments[ROW].to_numpy())
        self._add_times(time_ms, label)
        self._add_delays(payments, time_ms, label)
        self.present = [name for name in payments.column_names if name in self.fields]
        for name in self.present:
            column = payments[name].combine_chunks()
            column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
            self.missing[name] += column.null_count
            self._add_column(self.fields[name], column, rows, label)
        self._add_amounts(payments, rows)
        self.payments += len(payments)

    def _add_times(self, time_ms: NDArray[np.int64], label: NDArray[np.int8]) -> None:
        days, starts = np.unique(time_ms // DAY_MS, return_index=True)
        for day, start, end in zip(days.tolist(), starts, [*starts[1:], len(time_ms)], strict=True):
            counts = self.days.setdefault(day, DayCounts())
            counts.payments += int(end - start)
            counts.frauds += int((label[start:end] == FRAUD).sum())
            counts.genuine += int((label[start:end] == GENUINE).sum())
        self.first_ms = self.first_ms or int(time_ms[0])
        pauses = np.diff(time_ms, prepend=self.last_ms or time_ms[0])
        for place in np.argsort(pauses)[-GAPS:].tolist():
            if pauses[place] > 0:
                self.gaps.append((int(pauses[place]), int(time_ms[place] - pauses[place])))
        self.gaps = sorted(self.gaps, reverse=True)[:GAPS]
        self.last_ms = int(time_ms[-1])

    def _add_delays(self, payments: pa.Table, time_ms: NDArray[np.int64], label: NDArray[np.int8]) -> None:
        known = np.asarray(payments[KNOWN_MS].fill_null(0).to_numpy())
        for value, counts in self.delays.items():
            days = (known - time_ms)[label == value] / DAY_MS
            bins = np.searchsorted(DELAY_EDGES_DAYS, days, side="right") - 1
            counts += np.bincount(np.maximum(bins, 0), minlength=len(counts))

    def _add_column(
        self, one: PaymentField, column: pa.Array, rows: NDArray[np.int64], label: NDArray[np.int8]
    ) -> None:
        if one.name in ("payment_id", "event_time_ms", "amount_minor"):
            return
        if one.is_text or one.form is Form.FLAG:
            texts = column if one.is_text else column.cast(pa.string())
            present = texts.drop_null()
            if one.is_text and one.name not in _SHOWN:
                self.entities.setdefault(one.name, HashCounts()).add(hashes_of(present, 21, 0))
            if one.name in _SHOWN or (one.name not in FIELD and not one.is_personal and one.form is not Form.EMAIL):
                self.categories.setdefault(one.name, CategoryCounts()).add(texts, label)
            return
        there = np.asarray(pc.is_valid(column).to_numpy(zero_copy_only=False))
        values = np.asarray(column.drop_null().cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        self.numbers.setdefault(one.name, NumberSample()).add(rows[there], values)

    def _add_amounts(self, payments: pa.Table, rows: NDArray[np.int64]) -> None:
        encoded = payments["currency"].combine_chunks()
        encoded = pa.concat_arrays(encoded.chunks) if isinstance(encoded, pa.ChunkedArray) else encoded
        encoded = encoded.dictionary_encode()
        codes, amounts = encoded.indices.to_numpy(), payments["amount_minor"].to_numpy()
        for code, name in enumerate(encoded.dictionary.to_pylist()):
            chosen = codes == code
            self.amount_payments[name] += int(chosen.sum())
            self.amounts.setdefault(name, NumberSample()).add(rows[chosen], amounts[chosen].astype(np.float64))


def is_entity(name: str) -> bool:
    """Returns whether payments per value of a field of every payment are of interest."""
    return name in _IDS
