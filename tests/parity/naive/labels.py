"""The known frauds within a window, by the age of tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pandas as pd

from tests.parity.naive.events import Payment
from tests.parity.naive.feature import plain
from tests.parity.naive.windows import Window, ages_of


def fraud_age_s(labels: pd.DataFrame, now: Payment, window: Window, which: Callable[[Iterable[int]], int]) -> float:
    by_age = labels["weight"].groupby(ages_of(labels, now, window)).sum()
    ages = plain(by_age.index[by_age > 0].to_series())
    return which(ages) * window.hop_ms / 1000 if ages else math.nan


def genuine_ages(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment, window: Window) -> list[int]:
    """Returns the ages of the tiles with more payments than known frauds."""
    made = rows["time_ms"].groupby(ages_of(rows, now, window)).count()
    frauds = labels["weight"].groupby(ages_of(labels, now, window)).sum()
    more = made.sub(frauds, fill_value=0)
    return [int(age) for age in more.index[more > 0]]


def streak_of(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment, window: Window) -> pd.Series:
    """Returns the frauds, by the age of their tile, that are newer than every tile with a genuine payment."""
    end = min(genuine_ages(rows, labels, now, window), default=math.inf)
    frauds = labels["weight"].groupby(ages_of(labels, now, window)).sum()
    return frauds[(frauds > 0) & (frauds.index < end)]
