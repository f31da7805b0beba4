"""Counts for a page about the data, by DuckDB in bounded memory.

    payments of a card          how many cards have one payment, two, …
    quantiles of numbers        of a sample of about 100,000 payments
    values of a category        those of a field with at most 200

No value of an id or of a personal field is kept: these are only counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from paywarden.features.tables.labels import FRAUD, GENUINE
from paywarden.features.tables.ordered_rows import OrderedRows
from paywarden.schemas.payment_fields import FIELD, Form, PaymentField, PaymentFields

DAY_MS = 86_400_000
CATEGORIES_MAX = 200
SAMPLE_MAX = 100_000
GAPS = 5
QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
ENTITY_QUANTILES = (0.5, 0.9, 0.99, 1.0)
DELAY_EDGES_DAYS = (0, 1, 2, 3, 5, 7, 10, 14, 21, 30, 45, 60, 90, 120, 180, 365)
"""A label's delay lies from one of these to the next, or beyond the last."""
# Fields of every payment whose values a page may show.
_SHOWN = ("currency", "mcc", "country", "channel", "declined")
_LABELLED = f'count(*), count(*) FILTER ("@label" = {FRAUD}), count(*) FILTER ("@label" = {GENUINE})'
_DAYS = f"SELECT event_time_ms // {DAY_MS} AS day, {_LABELLED} FROM kept GROUP BY day ORDER BY day"
_DELAYS = f"""SELECT "@label", ("@known_ms" - event_time_ms) // {DAY_MS}, count(*) FROM kept
WHERE "@known_ms" IS NOT NULL GROUP BY ALL"""
_ENTITIES = """SELECT payments, count(*) FROM (
    SELECT count(*) AS payments FROM kept WHERE {column} IS NOT NULL GROUP BY hash({column}))
GROUP BY payments ORDER BY payments"""
_CATEGORIES = f"""SELECT {{column}}::VARCHAR AS value, {_LABELLED} FROM kept WHERE value IS NOT NULL
GROUP BY value ORDER BY value LIMIT {CATEGORIES_MAX + 1}"""
_NUMBERS = f"""SELECT part, any_value(payments), min({{column}}), max({{column}}),
    quantile_cont({{column}}, {list(QUANTILES[1:-1])}) FILTER (hash("@row") % (payments // {SAMPLE_MAX} + 1) = 0)
FROM (SELECT *, {{by}} AS part FROM kept WHERE {{column}} IS NOT NULL)
    JOIN (SELECT {{by}} AS part, count({{column}}) AS payments FROM kept GROUP BY part) USING (part)
GROUP BY part ORDER BY any_value(payments) DESC, part"""


class DayCounts(NamedTuple):
    """Payments, and how many of them are frauds and genuine."""

    payments: int
    frauds: int
    genuine: int


@dataclass(frozen=True)
class EntityCounts:
    """How many values of a field have how many payments: (payments, values), the fewest payments first."""

    steps: Sequence[tuple[int, int]]

    @property
    def distinct(self) -> int:
        """Return how many values there were."""
        return sum(values for _, values in self.steps)

    @property
    def once(self) -> float:
        """Return the share of values that were there once; 0 without a value."""
        return sum(values for payments, values in self.steps if payments == 1) / max(1, self.distinct)

    def quantiles(self, shares: Sequence[float]) -> list[int]:
        """Return quantiles of the payments of a value. There must be one."""
        payments, values = np.array(self.steps, dtype=np.int64).T
        return [int(payments[np.searchsorted(np.cumsum(values), share * self.distinct)]) for share in shares]


class TableProfile:
    """The profile of a table's payments, once `fill` has counted them."""

    def __init__(self, payment: PaymentFields) -> None:
        self.fields: Mapping[str, PaymentField] = payment.by_name
        self.present: list[str] = []
        self.payments = self.first_ms = self.last_ms = 0
        self.missing: dict[str, int] = {}
        self.entities: dict[str, EntityCounts] = {}
        # By field, and by currency: QUANTILES, exact at both ends.
        self.numbers: dict[str, list[float]] = {}
        self.amounts: dict[str, tuple[int, list[float]]] = {}
        self.categories: dict[str, dict[str, DayCounts] | None] = {}
        """The payments of each value. A field with more than CATEGORIES_MAX values has None."""
        self.days: dict[int, DayCounts] = {}
        self.gaps: list[tuple[int, int]] = []
        """The longest times without a payment: (length, start) in milliseconds, the longest first."""
        self.delays = {label: np.zeros(len(DELAY_EDGES_DAYS), np.int64) for label in (FRAUD, GENUINE)}

    def fill(self, rows: OrderedRows, payments: Path) -> None:
        """Count the rows, which are those of a file of payments in order of time."""
        self.present = [name for name in rows.names if name in self.fields]
        (counts,) = rows.asked(
            f"SELECT count(*), {', '.join(f'count({_named(name)})' for name in self.present)} FROM kept"
        )
        self.payments = counts[0]
        self.missing = {name: self.payments - count for name, count in zip(self.present, counts[1:], strict=True)}
        self.days = {day: DayCounts(*of_day) for day, *of_day in rows.asked(_DAYS)}
        for label, days, count in rows.asked(_DELAYS):
            self.delays[label][np.searchsorted(DELAY_EDGES_DAYS, days, side="right") - 1] += count
        for currency, count, quantiles in self._numbers(rows, "amount_minor", "currency"):
            self.amounts[currency] = count, quantiles
        for name in self.present:
            if name not in ("payment_id", "event_time_ms", "amount_minor"):
                self._add_field(self.fields[name], rows)
        with pq.ParquetFile(payments) as file:
            for batch in file.iter_batches(columns=["event_time_ms"]):
                self._add_times(batch.column(0).to_numpy())

    def _add_field(self, field: PaymentField, rows: OrderedRows) -> None:
        name, column = field.name, _named(field.name)
        if not field.is_text and field.form is not Form.FLAG:
            for _, _, quantiles in self._numbers(rows, name, "true"):
                self.numbers[name] = quantiles
            return
        if field.is_text and name not in _SHOWN:
            self.entities[name] = EntityCounts(rows.asked(_ENTITIES.format(column=column)))
        if name in _SHOWN or (name not in FIELD and not field.is_personal and field.form is not Form.EMAIL):
            found = rows.asked(_CATEGORIES.format(column=column))
            is_many = len(found) > CATEGORIES_MAX
            self.categories[name] = None if is_many else {value: DayCounts(*counts) for value, *counts in found}

    def _numbers(self, rows: OrderedRows, name: str, by: str) -> list[tuple[Any, int, list[float]]]:
        """Return each value of `by`, its payments with a number, and QUANTILES of these numbers."""
        found = rows.asked(_NUMBERS.format(column=_named(name), by=by))
        return [(value, count, [least, *middle, most]) for value, count, least, most, middle in found]

    def _add_times(self, times: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
        self.first_ms = self.first_ms or int(times[0])
        pauses = np.diff(times, prepend=self.last_ms or times[0])
        for place in np.argsort(pauses)[-GAPS:].tolist():
            if pauses[place] > 0:
                self.gaps.append((int(pauses[place]), int(times[place] - pauses[place])))
        self.gaps = sorted(self.gaps, reverse=True)[:GAPS]
        self.last_ms = int(times[-1])


def _named(name: str) -> str:
    return f'"{name}"'
