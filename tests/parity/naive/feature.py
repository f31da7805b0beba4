"""A feature: how a payment's value is computed from the events that had arrived."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from tests.parity.naive.windows import Moment, Window


@dataclass(frozen=True)
class Feature:
    name: str
    value: Callable[[Moment], float]
    windows: tuple[Window, ...] = ()
    with_delay: Callable[[str], Feature] | None = None
    grows: bool = False
    """Its value is in seconds, and neither a window of frauds nor a `most` of its own bounds it."""


def plain(rows: pd.Series) -> list[int]:
    """Returns Python's integers, which do not overflow."""
    return [int(value) for value in rows]


def quotient(numerator: float, denominator: float) -> float:
    return math.nan if denominator == 0 else numerator / denominator
