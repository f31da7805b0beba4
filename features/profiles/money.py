"""Converts amounts in minor units of any currency to minor units of the reference currency (EUR).

Features compare amounts, so they need one unit. Rates have dates: a payment is converted at the rate of its own time.
Therefore the same payment gives the same integer today and in a replay next year. The table in the package is an
example with round figures; a deployment points `rates` at the file of its treasury. For example, with a rate of 0.92
EUR for 1 USD, 1999 cents of USD are 1839 cents of EUR (1839.08 rounded).

A payment in a currency without a rate has no amount in the reference currency. It is scored without one.
"""

from __future__ import annotations

import csv
import datetime
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal, DecimalException
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel import UNKNOWN_AMOUNT
from paywarden.schemas.currencies import MINOR_DIGITS
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.payment_fields import AMOUNT_MINOR_MAX

REFERENCE_MINOR_DIGITS = 2
# Rates are held as millionths of a reference minor unit for one minor unit of the currency.
RATE_SCALE = 1_000_000
_RATE_MAX = 50 * RATE_SCALE

# An error quotes this much of a cell that is refused.
_TOLD_CHARACTERS = 40
_COLUMNS = ["currency", "valid_from", "reference_per_unit"]


class RateTable:
    """Dated exchange rates to the reference currency."""

    def __init__(self, rates: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """`rates`: for each currency (valid from, epoch ms; scaled rate) pairs, ascending in time."""
        self._times = {currency: [time_ms for time_ms, _ in pairs] for currency, pairs in rates.items()}
        self._rates = {currency: [rate for _, rate in pairs] for currency, pairs in rates.items()}
        self.currencies = frozenset(rates)

    def dated(self) -> list[tuple[str, list[tuple[int, int]]]]:
        """Returns each currency with its (valid from, epoch ms; scaled rate) pairs, both in ascending order."""
        return [
            (currency, list(zip(self._times[currency], self._rates[currency], strict=True)))
            for currency in sorted(self.currencies)
        ]

    @property
    def rate_max(self) -> int:
        """Returns the largest scaled rate; 0 for an empty table."""
        return max((rate for rates in self._rates.values() for rate in rates), default=0)

    @property
    def reference_currency(self) -> str:
        """Returns the reference currency: the only one whose rate is always 1. Empty if there is not exactly one."""
        unconverted = [name for name, rates in self._rates.items() if set(rates) == {RATE_SCALE}]
        return unconverted[0] if len(unconverted) == 1 else ""

    def convert(self, amount_minor: int, currency: str, time_ms: int) -> int | None:
        """Returns the amount in reference minor units, halves rounded up. None for a currency without a rate."""
        times = self._times.get(currency)
        if times is None:
            return None
        # A payment older than the first rate is converted at the first rate.
        rate = self._rates[currency][max(0, bisect_right(times, time_ms) - 1)]
        return (amount_minor * rate + RATE_SCALE // 2) // RATE_SCALE

    def convert_columns(
        self,
        amount_minor: NDArray[np.int64],
        currency_code: NDArray[np.integer],
        currency_names: Sequence[str],
        time_ms: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Run `convert` for columns, shape (rows,) each; `currency_code` indexes `currency_names`.

        An amount without a rate is UNKNOWN_AMOUNT. Raises InvalidEvent for one over AMOUNT_MINOR_MAX, which could
        overflow.
        """
        if len(amount_minor) and int(amount_minor.max()) > AMOUNT_MINOR_MAX:
            raise InvalidEvent(f"must be at most {AMOUNT_MINOR_MAX}", field="amount_minor")
        converted = np.full(len(amount_minor), UNKNOWN_AMOUNT, dtype=np.int64)
        for code, name in enumerate(currency_names):
            rows = np.flatnonzero(currency_code == code)
            if len(rows) == 0 or name not in self._times:
                continue
            index = np.searchsorted(np.array(self._times[name]), time_ms[rows], side="right") - 1
            rate = np.array(self._rates[name], dtype=np.int64)[np.maximum(index, 0)]
            converted[rows] = (amount_minor[rows] * rate + RATE_SCALE // 2) // RATE_SCALE
        return converted


def load_rates(path: str = "") -> RateTable:
    """Returns the table of a CSV file, or the package's example for an empty path. Misconfigured names the line."""
    if not path:
        text = resources.files("paywarden.features.profiles").joinpath("rates.csv").read_text(encoding="utf-8")
        return _parse(text.splitlines(), "rates.csv")
    try:
        text = read_regular(path).decode("utf-8")
    except OSError as error:
        raise Misconfigured(f"rates: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Misconfigured(f"rates: {path} is not UTF-8 text") from error
    return _parse(text.splitlines(), path)


def _parse(lines: Iterable[str], name: str) -> RateTable:
    reader = csv.DictReader(lines)
    if reader.fieldnames != _COLUMNS:
        raise Misconfigured(f"{name}: wanted the columns {','.join(_COLUMNS)}, got {reader.fieldnames}")
    rates: dict[str, dict[int, int]] = {}
    for row in _rows(reader, name):
        try:
            currency, valid_from_ms, rate = _parse_row(row)
        except ValueError as error:
            raise Misconfigured(f"{name}, line {reader.line_num}: {error}") from error
        dated = rates.setdefault(currency, {})
        if valid_from_ms in dated:
            raise Misconfigured(f"{name}, line {reader.line_num}: {currency} already has a rate from that time on")
        dated[valid_from_ms] = rate
    if not rates:
        raise Misconfigured(f"{name}: it holds no rate")
    return RateTable({currency: sorted(dated.items()) for currency, dated in rates.items()})


def _rows(reader: csv.DictReader[str], name: str) -> Iterator[Mapping[str | None, str | None]]:
    try:
        yield from reader
    except csv.Error as error:
        # A quotation mark without its second one takes the rest of the file for one cell.
        raise Misconfigured(f"{name}, line {reader.line_num}: {error}") from error


def _parse_row(row: Mapping[str | None, str | None]) -> tuple[str, int, int]:
    """Returns (currency, valid from, scaled rate). Raises ValueError that says what is wrong."""
    cells = [row[column] for column in _COLUMNS]
    # csv keeps the extra cells of a long row under the key None. A short row lacks cells.
    if None in row or None in cells:
        raise ValueError(f"wanted {len(_COLUMNS)} columns")
    currency, valid_from, per_unit = (cell or "" for cell in cells)
    if currency not in MINOR_DIGITS:
        raise ValueError(f"{currency[:_TOLD_CHARACTERS]!r} is no currency of ISO 4217")
    start = datetime.datetime.fromisoformat(valid_from)
    if start.tzinfo is None:
        start = start.replace(tzinfo=datetime.UTC)
    rate = _scaled_rate(per_unit, MINOR_DIGITS[currency])
    if not 0 < rate <= _RATE_MAX:
        raise ValueError(f"the rate of {currency} is out of bounds")
    return currency, int(start.timestamp() * 1000), rate


def _scaled_rate(reference_per_unit: str, minor_digits: int) -> int:
    try:
        scaled = Decimal(reference_per_unit) * Decimal(10) ** (REFERENCE_MINOR_DIGITS - minor_digits) * RATE_SCALE
        return int(scaled.to_integral_value(rounding=ROUND_HALF_UP))
    except (DecimalException, OverflowError, ValueError) as error:
        raise ValueError(
            f"reference_per_unit must be a number, got {reference_per_unit[:_TOLD_CHARACTERS]!r}"
        ) from error
