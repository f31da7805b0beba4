"""Windows, and the events that lie in one when a payment arrives."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from tests.parity.naive.attributes import Condition
from tests.parity.naive.events import Payment

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True)
class Window:
    """A window as the catalogue declares it, in milliseconds."""

    entity: str
    length_ms: int
    delay_ms: int
    hop_ms: int
    of: tuple[bool, ...] = (False,)
    """Whether it looks at labels, and whether at payments: False for payments, True for labels."""

    @property
    def reach_ms(self) -> int:
        """Returns how far before the current tile the oldest tile begins that the window can hold."""
        return self.length_ms + self.delay_ms


@dataclass
class Moment:
    """A payment, and the events that its entities had received when it arrived.

    `reach_ms` says for each entity and hop how far its longest window goes, of payments or of labels. The entity
    dropped older tiles when it received its newest event.
    """

    now: Payment
    payments: pd.DataFrame
    labels: pd.DataFrame
    keys: Mapping[str, tuple[str, ...]]
    reach_ms: Mapping[tuple[str, int, bool], int]
    values: dict[str, float] = field(default_factory=dict)
    named: Mapping[str, Callable[[Moment], float]] = field(default_factory=dict)
    """How each feature of the catalogue is computed, by name."""
    _own: dict[str, tuple[pd.DataFrame, pd.DataFrame] | None] = field(default_factory=dict)
    _inside: dict[tuple[Window, bool], pd.DataFrame] = field(default_factory=dict)

    def own(self, entity: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """Returns (payments, labels) of the payment's entity, or None if it has none."""
        if entity not in self._own:
            ids = {key: self.now.fields.get(key) for key in self.keys[entity]}
            found = None
            if None not in ids.values():
                found = (_with(self.payments, ids), _with(self.labels, ids))
            self._own[entity] = found
        return self._own[entity]

    def neighbour(self, entity: str, key: str, value: object) -> Moment:
        """Returns the same payment as if this were its only entity; its features are computed when they are asked."""
        there = Moment(self.now, self.payments, self.labels, self.keys, self.reach_ms, named=self.named)
        there.values = _Asked(there)
        there._own[entity] = (_with(self.payments, {key: value}), _with(self.labels, {key: value}))
        return there

    def inside(self, window: Window, where: Condition | None = None, *, labels: bool = False) -> pd.DataFrame | None:
        """Returns the entity's payments (or labels) in a window that meet a condition, or None without an entity."""
        own = self.own(window.entity)
        if own is None:
            return None
        if (window, labels) not in self._inside:
            newest_ms = max((int(table["time_ms"].max()) for table in own if len(table)), default=0)
            self._inside[window, labels] = self._cut(window, own[labels], newest_ms, labels)
        rows = self._inside[window, labels]
        return rows if where is None else rows[where.of(rows)]

    def _cut(self, window: Window, rows: pd.DataFrame, newest_ms: int, labels: bool) -> pd.DataFrame:
        hop_ms, now_ms = window.hop_ms, self.now.time_ms
        start = rows["time_ms"].to_numpy() // hop_ms * hop_ms
        end = start + hop_ms
        if window.delay_ms == 0:
            # Tiles that touch (now - length, now].
            is_inside = (start <= now_ms) & (end > now_ms - window.length_ms)
        else:
            # Tiles wholly before now - delay, exactly `length` of them.
            last_end = (now_ms - window.delay_ms) // hop_ms * hop_ms
            is_inside = (end <= last_end) & (start >= last_end - window.length_ms)
        is_inside &= start >= newest_ms // hop_ms * hop_ms - self.reach_ms[window.entity, hop_ms, labels]
        return rows[is_inside]


class _Asked(dict[str, float]):
    """The values of features that a neighbour's feature uses."""

    def __init__(self, moment: Moment) -> None:
        super().__init__()
        self._moment = moment

    def __missing__(self, name: str) -> float:
        self[name] = float(self._moment.named[name](self._moment))
        return self[name]


def _with(table: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


def duration_ms(text: str) -> int:
    amount, unit = re.fullmatch(r"([0-9]+)([smhd])", text).groups()  # type: ignore[union-attr]
    return int(amount) * {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}[unit]


def usual_hop_ms(length_ms: int, delay_ms: int) -> int:
    """Returns at most a quarter of the window, out of a short list. With a delay, at least 6 hours."""
    if delay_ms == 0:
        if length_ms < 4 * MINUTE_MS:
            return 15 * SECOND_MS
        if length_ms < 4 * HOUR_MS:
            return MINUTE_MS
        if length_ms <= DAY_MS:
            return HOUR_MS
        return 6 * HOUR_MS if length_ms < 4 * DAY_MS else DAY_MS
    return 6 * HOUR_MS if length_ms <= 7 * DAY_MS else DAY_MS


def ages_of(rows: pd.DataFrame, now: Payment, window: Window) -> pd.Series:
    """Returns the age of each tile, in tiles."""
    return now.time_ms // window.hop_ms - rows["time_ms"] // window.hop_ms


def decayed(rows: pd.DataFrame, amounts: str | None, half_life_ms: int, now: Payment, window: Window) -> float:
    """Weighs each tile by its age, the newest first. A tile's weight is rounded to 2**-30."""
    total = 0.0
    for age, tile in rows.groupby(ages_of(rows, now, window)):
        weight = round(2**30 * 0.5 ** (age * window.hop_ms / half_life_ms))
        total += (
            len(tile) if amounts is None else int(tile[amounts].clip(lower=0 if amounts == "amount" else None).sum())
        ) * weight
    return total / 2**30
