"""The columns that every simulated world has: countries, times of day, ids and amounts; and the outcomes.

A column of codes becomes a column of names: `ids("card-", [3, 1], width=6)` is card-000003, card-000001.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from paywarden.features.datasets.fraud_patterns import ATM, DAY_MS, ECOM, HOUR_MS, NONE, POS, AnyInts, FloatArray
from paywarden.features.history.history import LABELS, numbered_ids
from paywarden.schemas.errors import Misconfigured

DEFAULT_START_MS = 1_704_067_200_000
"""2024-01-01T00:00:00Z: a fixed day, so that the same arguments give the same tables on any day."""

WRONG_REPORT_SHARE = 0.02
"""The number of mistaken reports for each fraud; they are taken back later."""

SOURCES = ("chargeback", "issuer", "analyst")


@dataclass(frozen=True)
class Country:
    """A country of cards and merchants. Cash machines pay multiples of `note`, in major units."""

    code: str
    share: float
    currency: str
    minor_digits: int
    units_per_eur: float
    note: int
    utc_offset_hours: int


COUNTRIES = (
    Country("DE", 0.28, "EUR", 2, 1.0, 10, 1),
    Country("FR", 0.18, "EUR", 2, 1.0, 10, 1),
    Country("GB", 0.16, "GBP", 2, 0.85, 10, 0),
    Country("US", 0.12, "USD", 2, 1.08, 20, -5),
    Country("NL", 0.09, "EUR", 2, 1.0, 10, 1),
    Country("SE", 0.07, "SEK", 2, 11.4, 100, 1),
    Country("PL", 0.06, "PLN", 2, 4.3, 50, 1),
    Country("JP", 0.04, "JPY", 0, 163.0, 1000, 9),
)


# Local hours at which people pay, by kind: (mean, deviation, share).
HOURS = {
    ECOM: ((12.5, 3.0, 0.35), (20.5, 2.2, 0.57), (2.0, 2.0, 0.08)),
    POS: ((8.5, 1.2, 0.15), (12.8, 1.8, 0.4), (18.0, 2.0, 0.45)),
    ATM: ((11.5, 2.5, 0.5), (17.5, 2.5, 0.5)),
}


def span_of(*, cards: int, days: int, seed: int, end_time_ms: int | None) -> tuple[int, int]:
    """Returns the first and the last moment (exclusive) of a simulated span. Raises Misconfigured if it cannot be."""
    for name, value, least in (("cards", cards, 1), ("days", days, 1), ("seed", seed, 0)):
        if value < least:
            raise Misconfigured(f"{name} must be at least {least}, got {value}")
    start_ms = DEFAULT_START_MS if end_time_ms is None else end_time_ms - days * DAY_MS
    if start_ms < 0:
        raise Misconfigured(f"the simulated span must not start before 1970: {days} days end at {end_time_ms} ms")
    return start_ms, start_ms + days * DAY_MS


def split_at(
    payments: pa.Table, outcomes: pa.Table, time_ms: int
) -> tuple[tuple[pa.Table, pa.Table], tuple[pa.Table, pa.Table]]:
    """Split a history into the part that had happened and was known before a time, and the part from then on.

    The first pair is a history of its own; outcomes of the second may be about payments of the first.
    """
    is_past_payment = pc.less(payments["event_time_ms"], time_ms)
    is_past_outcome = pc.less(outcomes["outcome_time_ms"], time_ms)
    past = payments.filter(is_past_payment), outcomes.filter(is_past_outcome)
    rest = payments.filter(pc.invert(is_past_payment)), outcomes.filter(pc.invert(is_past_outcome))
    return past, rest


def draw_countries(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """Returns places in COUNTRIES, shape (count,)."""
    return rng.choice(len(COUNTRIES), count, p=[country.share for country in COUNTRIES])


def draw_times_of_day(
    rng: np.random.Generator, kind: npt.NDArray[np.int8], country: npt.NDArray[np.int8]
) -> npt.NDArray[np.int64]:
    """Returns milliseconds of the UTC day, by kind of merchant and the payer's country."""
    hour = np.empty(len(kind))
    for each, mixture in HOURS.items():
        rows = np.flatnonzero(kind == each)
        mean, deviation, share = (np.array(column) for column in zip(*mixture, strict=True))
        part = np.searchsorted(np.cumsum(share)[:-1], rng.random(len(rows)), side="right")
        hour[rows] = mean[part] + deviation[part] * rng.standard_normal(len(rows))
    offset = np.array([entry.utc_offset_hours for entry in COUNTRIES])[country]
    time_ms: npt.NDArray[np.int64] = ((hour - offset) * HOUR_MS).astype(np.int64) % DAY_MS
    return time_ms


def minor_amounts(
    eur_cents: FloatArray, country: npt.NDArray[np.int8], kind: npt.NDArray[np.int8]
) -> npt.NDArray[np.int64]:
    """Returns amounts in minor units of the country's currency, at least one; cash in whole notes."""
    per_cent = np.array([entry.units_per_eur * 10**entry.minor_digits / 100 for entry in COUNTRIES])
    note = np.array([entry.note * 10**entry.minor_digits for entry in COUNTRIES])[country]
    exact = eur_cents * per_cent[country]
    cash = np.maximum(1, np.rint(exact / note)) * note
    minor: npt.NDArray[np.int64] = np.where(kind == ATM, cash, np.maximum(1, np.rint(exact))).astype(np.int64)
    return minor


def outcomes_table(
    rng: np.random.Generator, payment_time_ms: AnyInts, is_fraud: npt.NDArray[np.bool_], payment_id: pa.Array
) -> pa.Table:
    """Returns who reports each payment and when, as an `outcomes.parquet` has it. Arrays: shape (payments,)."""
    genuine, fraud = np.flatnonzero(~is_fraud), np.flatnonzero(is_fraud)
    mistaken = rng.choice(genuine, min(len(genuine), rng.poisson(len(fraud) * WRONG_REPORT_SHARE)), replace=False)
    reported = np.concatenate((fraud, mistaken))
    source, delay_ms = _draw_reports(rng, len(reported))
    corrected_ms = delay_ms[len(fraud) :] + (rng.uniform(2, 20, len(mistaken)) * DAY_MS).astype(np.int64)
    silent = np.setdiff1d(genuine, mistaken, assume_unique=True)
    silence_ms = 7 * DAY_MS + (rng.exponential(0.5, len(silent)) * DAY_MS).astype(np.int64)
    row = np.concatenate((reported, mistaken, silent))
    time_ms = payment_time_ms[row] + np.concatenate((delay_ms, corrected_ms, silence_ms))
    label = np.repeat([LABELS.index("fraud"), LABELS.index("genuine")], [len(reported), len(row) - len(reported)])
    analyst = np.full(len(mistaken), SOURCES.index("analyst"))
    said_by = np.concatenate((source, analyst, np.full(len(silent), NONE)))
    order = np.argsort(time_ms, kind="stable")
    return pa.table(
        {
            "payment_id": payment_id.take(pa.array(row[order])),
            "outcome_time_ms": time_ms[order],
            "label": named(label[order], LABELS),
            "source": named(said_by[order], SOURCES),
        }
    )


def _draw_reports(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns who reports a fraud (index into SOURCES), and how many milliseconds after the payment."""
    source = rng.choice(len(SOURCES), count, p=[0.7, 0.15, 0.15])
    median_days = np.array([5.0, 1.5, 3 / 24])[source]
    days = np.clip(median_days * rng.lognormal(0, 0.8, count), 10 / (24 * 60), 60)
    return source, (days * DAY_MS).astype(np.int64)


def ids(prefix: str, codes: AnyInts, *, width: int) -> pa.Array:
    """Returns a column of ids: the prefix, and the code in at least `width` digits. A code of -1 is null."""
    highest = int(codes.max(initial=0))
    names = numbered_ids(prefix, np.arange(highest + 1), width=max(width, len(str(highest))))
    return named(codes, names)


def addresses(codes: AnyInts) -> pa.Array:
    """Returns private addresses, which name no real network. They repeat after 16 million."""
    numbers = range(int(codes.max(initial=0)) + 1)
    return named(codes, [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in numbers])


def named(codes: AnyInts, names: pa.Array | list[str] | tuple[str, ...]) -> pa.Array:
    """Returns a dictionary-encoded column; a code of -1 is null."""
    indices = pa.array(codes.astype(np.int32), mask=codes == NONE)
    distinct = names if isinstance(names, pa.Array) else pa.array(names, pa.string())
    return pa.DictionaryArray.from_arrays(indices, distinct)
