"""A small world of payments and the blocks of signals that it gives, for tests of drift detection.

Payments have a country (DE 20 %, FR 30 %, US 50 %), a channel, three features of the ranks 0 to 1 and a score. The
feature `amount` is higher in DE; the score follows `velocity`, and `amount` a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.detectors import LENGTHS_MS
from paywarden.models.drift.signals import Block, Signal

Floats = NDArray[np.float64]
COUNTRIES, CHANNELS, FEATURES = ("DE", "FR", "US"), ("ecom", "pos"), ("amount", "velocity", "distance")
SEGMENTS = (
    "overall",
    *(f"country={name}" for name in COUNTRIES),
    *(f"channel={name}" for name in CHANNELS),
)
_STATISTICS = (
    ("score", "location"),
    ("score", "high_risk"),
    *((f"feature:{name}", statistic) for name in FEATURES for statistic in ("location", "missing")),
    ("flag:unknown_card", "share"),
    ("profile_age", "location"),
)
SIGNALS = (
    *(Signal(subject, statistic, segment) for subject, statistic in _STATISTICS for segment in SEGMENTS),
    *(Signal("traffic", "share", segment) for segment in SEGMENTS[1:]),
)


@dataclass
class World:
    """Makes the payments of blocks of five minutes. Setting a field changes the payments from then on."""

    seed: int = 0
    payments: int = 2000
    country_weights: Sequence[float] = (0.2, 0.3, 0.5)
    # Additions to features everywhere, additions in DE alone, and the features that are missing.
    added: dict[str, float] = field(default_factory=dict)
    added_in_de: dict[str, float] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    score_added: float = 0.0
    score_added_in_de: float = 0.0
    profile_age_added: float = 0.0
    length_ms: int = LENGTHS_MS[0]
    now_ms: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(abs(self.seed))
        self._expected, self._deviation = (np.empty(0), np.empty(0)) if self.seed < 0 else _expected()

    def block(self) -> Block:
        """Return the next block of payments."""
        value, _, count = self._measured()
        with np.errstate(divide="ignore", invalid="ignore"):
            sd = self._deviation / np.sqrt(count)
            moved = value - self._expected
            shares = np.array([signal.statistic not in ("location", "spread") for signal in SIGNALS])
            effect = np.where(shares, np.abs(moved) / self._expected, (moved / self._deviation) ** 2)
        start_ms, self.now_ms = self.now_ms, self.now_ms + self.length_ms
        return Block(start_ms, self.length_ms, SIGNALS, value, self._expected, sd, count, effect)

    def _measured(self) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Return the value, the standard deviation of one payment, and the count of each signal."""
        n = self.payments
        weights = np.array(self.country_weights)
        country = self._rng.choice(3, size=n, p=weights / weights.sum())
        channel = self._rng.integers(0, 2, size=n)
        inside = np.stack(
            [np.ones(n, dtype=bool), *(country == c for c in range(3)), *(channel == c for c in range(2))]
        )
        columns = self._columns(country == 0)
        values, deviations, counts = [], [], []
        for column in columns:
            for rows in inside:
                part = column[rows]
                values.append(part.mean() if len(part) else 0.0)
                deviations.append(part.std() if len(part) else 1.0)
                counts.append(len(part))
        for rows in inside[1:]:
            share = rows.mean()
            values.append(share)
            deviations.append(np.sqrt(share * (1 - share)))
            counts.append(n)
        return np.array(values), np.array(deviations), np.array(counts, dtype=np.int64)

    def _columns(self, in_de: NDArray[np.bool_]) -> list[Floats]:
        n = len(in_de)
        draws = {name: self._rng.beta(2, 3, size=n) for name in FEATURES}
        draws["amount"] = draws["amount"] * 0.7 + 0.3 * in_de
        for name in FEATURES:
            draws[name] = draws[name] + self.added.get(name, 0.0) + self.added_in_de.get(name, 0.0) * in_de
        score = 0.6 * draws["velocity"] + 0.2 * draws["amount"] + 0.2 * self._rng.random(n)
        score = score + self.score_added + self.score_added_in_de * in_de
        found = [score, (score > 0.75).astype(float)]
        for name in FEATURES:
            absent = self._rng.random(n) < (1.0 if name in self.missing else 0.02)
            found += [np.where(absent, 0.3, draws[name]), absent.astype(float)]
        found.append((self._rng.random(n) < 0.05).astype(float))
        found.append(self._rng.beta(2, 5, size=n) + self.profile_age_added)
        return found


@cache
def _expected() -> tuple[Floats, Floats]:
    """Return each signal's value and standard deviation of one payment while nothing has changed."""
    quiet = World(seed=-1, payments=400_000)
    quiet._rng = np.random.default_rng(99)
    value, deviation, _ = quiet._measured()
    return value, deviation
