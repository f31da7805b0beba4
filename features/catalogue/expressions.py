"""What features are made of: measures in tiles over windows, what profiles remember, and operations on all that.

declare.py makes these of the words of a catalogue, checks them, and plan.py lays them out for the kernel. The order of
each enum's members is the order of the kernel's numbers.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from paywarden.features.catalogue.attributes import Condition
from paywarden.features.catalogue.windows import Window


class Measure(enum.Enum):
    """What a tile keeps about its events. All are integers whose order of arrival cannot matter.

    Profiles name their measures by place in this list: no place is ever given to another.
    """

    COUNT = "count"
    AMOUNT_SUM = "amount_sum"
    SQUARES_LOW = "squares_low"
    SQUARES_HIGH = "squares_high"
    AMOUNT_MAX = "amount_max"
    AMOUNT_MIN = "amount_min"
    DISTINCT_BITS = "distinct_bits"
    BUCKET_COUNTS = "bucket_counts"
    FRAUD_COUNT = "fraud_count"
    FRAUD_AMOUNT = "fraud_amount"


class Reduction(enum.Enum):
    """What becomes of a measure over the tiles of a window."""

    SUM = "sum"
    DECAYED = "decayed"
    LARGEST = "largest"
    SMALLEST = "smallest"
    UNION = "union"
    NEWEST = "newest"
    OLDEST = "oldest"
    NEWEST_OTHER = "newest_other"
    STREAK = "streak"
    STREAK_AGE = "streak_age"
    STREAK_SUM = "streak_sum"


class Recency(enum.Enum):
    """What an entity's profile knows besides its tiles."""

    SINCE_LAST = "seconds_since_last"
    SINCE_FIRST = "seconds_since_first"


class Recollection(enum.Enum):
    """What is asked of a memory of latest distinct values."""

    LAST_VALUE = "last_value"
    IS_NEW = "is_new"
    SINCE_SAME = "since_same"
    TRAVEL_KMH = "travel_kmh"


class Operation(enum.Enum):
    """How a value is made of the payment's attributes, or of other values."""

    ATTRIBUTE_VALUE = "attribute_value"
    HOUR = "hour"
    NIGHT = "night"
    WEEKEND = "weekend"
    WEEKDAY = "weekday"
    TRAILING_ZEROS = "trailing_zeros"
    BELOW_LIMIT = "below_limit"
    HOLDS = "holds"
    CATEGORY = "category"
    NUMBER = "number"
    ADD = "add"
    DIVIDE = "divide"
    SCALE = "scale"
    DEVIATION = "deviation"
    STANDARD_SCORE = "standard_score"
    ENTROPY = "entropy"
    TOP_SHARE = "top_share"


@dataclass(frozen=True)
class Column:
    """What a tile keeps: a measure of the events for which `condition` holds.

    `attribute` is the column of the attribute that is counted, `parts` how many words that takes.
    """

    measure: Measure
    condition: Condition | None = None
    attribute: int = 0
    parts: int = 1


@dataclass(frozen=True)
class WindowedMeasure:
    """One column of one entity over one window: what roll-up computes.

    `half_life_ms` belongs to DECAYED: a tile counts half when it is that old. `beside` belongs to the last four
    reductions: `column` counts some of what it counts. `summed` belongs to STREAK_SUM: the column that is added up.
    """

    entity: str
    column: Column
    window: Window
    reduction: Reduction = Reduction.SUM
    half_life_ms: int = 0
    beside: Column | None = None
    summed: Column | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """All that tiles must keep for it."""
        return tuple(column for column in (self.column, self.beside, self.summed) if column is not None)


@dataclass(frozen=True)
class EntityRecency:
    entity: str
    recency: Recency


@dataclass(frozen=True)
class Remembered:
    """What an entity remembers of the latest `capacity` distinct values of an attribute."""

    entity: str
    attribute: int
    capacity: int
    recollection: Recollection


Stored = WindowedMeasure | EntityRecency | Remembered


@dataclass(frozen=True)
class Derived:
    """An operation on values: on what is stored, other operations, or earlier features by name, and on constants."""

    operation: Operation
    operands: tuple[Stored | Derived | str, ...] = ()
    numbers: tuple[int, ...] = ()


Expression = Stored | Derived | str


@dataclass(frozen=True)
class Feature:
    """One named number of the vector. `missing` says when it is NaN; `line` where it is declared."""

    name: str
    value: Expression
    meaning: str
    unit: str
    missing: str
    entity: str = ""
    window: str = ""
    line: str = field(default="", compare=False)


def stored_values(value: Expression) -> list[Stored]:
    """What profiles must hold for a value, in order of use."""
    if isinstance(value, str):
        return []
    if isinstance(value, Derived):
        return [stored for operand in value.operands for stored in stored_values(operand)]
    return [value]
