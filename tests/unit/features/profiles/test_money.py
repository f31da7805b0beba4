"""Amounts in one currency: rounded half up, at the rate of their time, the same one by one and in columns."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.kernel import UNKNOWN_AMOUNT
from paywarden.features.profiles.money import _RATE_MAX, RATE_SCALE, RateTable, load_rates
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.payment_fields import AMOUNT_MINOR_MAX

HEADER = "currency,valid_from,reference_per_unit"
NEW_YEAR_2020_MS = 1_577_836_800_000


def table(tmp_path: Path, *lines: str) -> RateTable:
    path = tmp_path / "rates.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return load_rates(str(path))


def test_the_reference_currency_is_the_one_that_is_not_converted(tmp_path: Path) -> None:
    assert load_rates().reference_currency == "EUR"
    assert table(tmp_path, "USD,2020-01-01,1", "EUR,2020-01-01,1", "EUR,2021-01-01,1.1").reference_currency == "USD"
    # With two unconverted currencies, the reference currency is unknown.
    assert table(tmp_path, "USD,2020-01-01,1", "EUR,2020-01-01,1").reference_currency == ""


@pytest.mark.parametrize(
    ("amount_minor", "converted"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (-1, 0), (-2, -1), (-3, -1)]
)
def test_halves_are_rounded_up(amount_minor: int, converted: int) -> None:
    assert RateTable({"CHF": [(0, RATE_SCALE // 2)]}).convert(amount_minor, "CHF", 1) == converted


def test_a_currency_without_minor_units_is_converted_from_whole_ones(tmp_path: Path) -> None:
    # 1000 yen at 0.0061 euros are 6.10 euros.
    assert table(tmp_path, "JPY,2020-01-01,0.0061").convert(1000, "JPY", NEW_YEAR_2020_MS) == 610


def test_a_currency_of_thousandths_is_converted_from_thousandths(tmp_path: Path) -> None:
    # 1.000 dinar at 3.00 euros is 3.00 euros.
    assert table(tmp_path, "KWD,2020-01-01,3").convert(1000, "KWD", NEW_YEAR_2020_MS) == 300


def test_a_payment_is_converted_at_the_rate_of_its_own_time(tmp_path: Path) -> None:
    # Order in the file does not matter.
    rates = table(tmp_path, "USD,2021-01-01,0.8", "USD,2020-01-01,0.9", "USD,2022-01-01T12:00:00+02:00,0.7")
    new_year_2021_ms = NEW_YEAR_2020_MS + 366 * 86_400_000
    third_ms = new_year_2021_ms + 365 * 86_400_000 + 10 * 3_600_000
    moments = {
        0: 900,  # before the first rate: the first one
        NEW_YEAR_2020_MS: 900,
        new_year_2021_ms - 1: 900,
        new_year_2021_ms: 800,  # a rate is valid from its own millisecond on
        third_ms - 1: 800,
        third_ms: 700,
        10**15: 700,
    }
    assert {time_ms: rates.convert(1000, "USD", time_ms) for time_ms in moments} == moments


AMOUNTS = st.one_of(st.integers(0, 10**6), st.integers(0, AMOUNT_MINOR_MAX))
RATES = st.integers(1, _RATE_MAX)
TABLES = st.dictionaries(
    st.sampled_from(["EUR", "JPY", "KWD"]),
    st.lists(st.tuples(st.integers(0, 100), RATES), min_size=1, max_size=5, unique_by=lambda pair: pair[0]).map(sorted),
    min_size=1,
)


@given(
    rates=TABLES,
    rows=st.lists(st.tuples(AMOUNTS, st.integers(0, 2), st.integers(-1, 101)), max_size=20),
)
def test_columns_are_converted_as_single_amounts_are(
    rates: dict[str, list[tuple[int, int]]], rows: list[tuple[int, int, int]]
) -> None:
    names = sorted(rates)
    of = RateTable(rates)
    codes = [code % len(names) for _, code, _ in rows]
    converted = of.convert_columns(
        np.array([amount for amount, _, _ in rows], dtype=np.int64),
        np.array(codes, dtype=np.int32),
        names,
        np.array([time_ms for _, _, time_ms in rows], dtype=np.int64),
    )
    assert converted.dtype == np.int64
    singly = [of.convert(amount, names[code], t) for (amount, _, t), code in zip(rows, codes, strict=True)]
    assert converted.tolist() == singly


@given(amount_minor=AMOUNTS, rate=RATES)
def test_conversion_is_exact_arithmetic_rounded_once(amount_minor: int, rate: int) -> None:
    exact = (Decimal(amount_minor) * rate / RATE_SCALE).to_integral_value(rounding=ROUND_HALF_UP)
    assert RateTable({"CHF": [(0, rate)]}).convert(amount_minor, "CHF", 1) == int(exact)


def test_the_largest_amount_at_the_largest_rate_does_not_overflow() -> None:
    rates = RateTable({"CHF": [(0, _RATE_MAX)]})
    wanted = AMOUNT_MINOR_MAX * _RATE_MAX // RATE_SCALE
    converted = rates.convert_columns(np.array([AMOUNT_MINOR_MAX]), np.array([0]), ["CHF"], np.array([1]))
    assert converted.tolist() == [rates.convert(AMOUNT_MINOR_MAX, "CHF", 1)] == [wanted]


def test_a_column_with_an_amount_that_could_overflow_is_refused() -> None:
    # A history may hold any integer; this used to wrap around to a small or negative amount in silence.
    with pytest.raises(InvalidEvent, match="at most 100000000000") as refused:
        load_rates().convert_columns(np.array([1, AMOUNT_MINOR_MAX + 1]), np.array([0, 0]), ["EUR"], np.array([1, 1]))
    assert refused.value.field == "amount_minor"


def test_an_amount_in_a_currency_without_a_rate_is_not_known() -> None:
    assert load_rates().convert(1, "NGN", 1) is None
    converted = load_rates().convert_columns(np.array([7, 7]), np.array([0, 1]), ["NGN", "EUR"], np.array([1, 1]))
    assert converted.tolist() == [UNKNOWN_AMOUNT, 7]


def test_the_example_table_reads_and_has_the_currencies_of_the_simulator() -> None:
    rates = load_rates()
    assert {"EUR", "USD", "GBP", "JPY", "KWD"} <= rates.currencies
    largest = [rates.convert(AMOUNT_MINOR_MAX, currency, NEW_YEAR_2020_MS) for currency in rates.currencies]
    assert all(amount is not None and amount < 2**53 for amount in largest)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("USD,2020-01-01", "wanted 3 columns"),
        ("USD,2020-01-01,0.9,1", "wanted 3 columns"),
        ("usd,2020-01-01,0.9", "'usd' is no currency of ISO 4217"),
        ("DOLLAR,2020-01-01,0.9", "'DOLLAR' is no currency of ISO 4217"),
        ("USD,new year,0.9", "new year"),
        ("USD,2020-01-01,cheap", "reference_per_unit must be a number, got 'cheap'"),
        ("USD,2020-01-01,", "reference_per_unit must be a number"),
        ("USD,2020-01-01,nan", "reference_per_unit must be a number"),
        ("USD,2020-01-01,inf", "reference_per_unit must be a number"),
        ("USD,2020-01-01,1e999999999", "out of bounds|must be a number"),
        ("USD,2020-01-01,0", "the rate of USD is out of bounds"),
        ("USD,2020-01-01,-1", "the rate of USD is out of bounds"),
        ("USD,2020-01-01,50.0001", "the rate of USD is out of bounds"),
        ("EUR,2020-01-01,1.1", "EUR already has a rate from that time on"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(Misconfigured, match=rf"rates\.csv, line 3: .*({reason})") as refused:
        table(tmp_path, "EUR,2020-01-01,1", line, "GBP,2020-01-01,1.2")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("header", ["", "currency,rate", f"{HEADER},note"])
def test_other_columns_are_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(f"{header}\nEUR,2,2020-01-01,1\n", encoding="utf-8")
    with pytest.raises(Misconfigured, match=f"wanted the columns {HEADER}"):
        load_rates(str(path))


@pytest.mark.parametrize("cell", ["9" * 200_000, '"1\n' + "x" * 200_000, "n" * 100_000])
def test_a_cell_without_end_is_refused_in_one_short_line(tmp_path: Path, cell: str) -> None:
    """A quotation mark too many ended every process with a traceback."""
    path = tmp_path / "rates.csv"
    path.write_text(f"currency,valid_from,reference_per_unit\nEUR,2020-01-01,{cell}\n", encoding="utf-8")
    with pytest.raises(Misconfigured, match=r"rates\.csv, line \d+: ") as refused:
        load_rates(str(path))
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)
