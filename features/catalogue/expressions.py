"""The expressions that features consist of: measures over windows, memories, recencies, neighbours, and operations.

entity.py and request.py turn the words of a catalogue into expressions. plan.py lays them out for the kernel. The order
of each enum's members is the order of the kernel's numbers. For example, card.amount_mean("mean", "7d") is

    Derived(DIVIDE, (WindowedMeasure("card", Column(AMOUNT_SUM), 7 days, SUM),
                     WindowedMeasure("card", Column(COUNT), 7 days, SUM)))
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

from paywarden.features.catalogue.attributes import Condition
from paywarden.features.catalogue.windows import Window


class Measure(enum.Enum):
    """A number that a tile keeps about its events. All are integers that do not depend on the order of arrival.

    Profiles name a measure by its position in this list, so no position may ever get another meaning.
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
    NUMBER_COUNT = "number_count"
    NUMBER_SUM = "number_sum"
    NUMBER_SQUARES_LOW = "number_squares_low"
    NUMBER_SQUARES_HIGH = "number_squares_high"
    NUMBER_MAX = "number_max"
    NUMBER_MIN = "number_min"
    FRAUD_SQUARES_LOW = "fraud_squares_low"
    FRAUD_SQUARES_HIGH = "fraud_squares_high"
    LABELLED_COUNT = "labelled_count"


LABEL_MEASURES = frozenset(
    {
        Measure.FRAUD_COUNT,
        Measure.FRAUD_AMOUNT,
        Measure.FRAUD_SQUARES_LOW,
        Measure.FRAUD_SQUARES_HIGH,
        Measure.LABELLED_COUNT,
    }
)
"""Measures that labels change. A table has either these or the others."""
NUMBER_MEASURES = frozenset(
    {
        Measure.NUMBER_COUNT,
        Measure.NUMBER_SUM,
        Measure.NUMBER_SQUARES_LOW,
        Measure.NUMBER_SQUARES_HIGH,
        Measure.NUMBER_MAX,
        Measure.NUMBER_MIN,
    }
)


class Reduction(enum.Enum):
    """How the tiles of a window become one value."""

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
    LARGEST_NUMBER = "largest_number"
    SMALLEST_NUMBER = "smallest_number"


class Recency(enum.Enum):
    """Times that an entity's profile keeps besides its tiles."""

    SINCE_LAST = "seconds_since_last"
    SINCE_FIRST = "seconds_since_first"


class Recollection(enum.Enum):
    """A question to a memory: of the latest distinct values, or, from AGO on, of the latest payments."""

    LAST_VALUE = "last_value"
    IS_NEW = "is_new"
    SINCE_SAME = "since_same"
    TRAVEL_KMH = "travel_kmh"
    AGO = "ago"
    NUMBER_OF = "number_of"
    IS_SAME = "is_same"
    DISTANCE_KM = "distance_km"
    SPEED_KMH = "speed_kmh"
    COUNT_SAME = "count_same"
    QUANTILE = "quantile"


class Operation(enum.Enum):
    """How a value is computed from the payment's attributes or from other values."""

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
    DECLARED_NUMBER = "declared_number"
    AGE_MS = "age_ms"
    SAME_VALUE = "same_value"
    DISTANCE = "distance"
    SUBTRACT = "subtract"
    CLIP = "clip"
    SURPRISE = "surprise"
    MULTIPLY = "multiply"
    MEETS = "meets"


class NeighbourReduction(enum.Enum):
    """How the values of several neighbours become one."""

    LARGEST = "largest"
    MEAN = "mean"


@dataclass(frozen=True)
class Column:
    """A column of a table: a measure of the events for which `condition` holds.

    `attribute` is the column of the counted attribute; `parts` is the number of words that the measure takes. Measures
    of numbers name a moment by the column behind its own (`number_column`).
    """

    measure: Measure
    condition: Condition | None = None
    attribute: int = 0
    parts: int = 1


@dataclass(frozen=True)
class WindowedMeasure:
    """One column of one entity over one window, which the roll-up computes.

    - `half_life_ms` is for DECAYED: a tile of that age counts half.
    - `beside` is for the last four reductions: `column` counts some of the events that `beside` counts.
    - `summed` is for STREAK_SUM: the column to add up.
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
        """Returns the columns that tiles must keep for it."""
        return tuple(column for column in (self.column, self.beside, self.summed) if column is not None)


@dataclass(frozen=True)
class EntityRecency:
    entity: str
    recency: Recency


@dataclass(frozen=True)
class Remembered:
    """A question to an entity's memory of the latest `capacity` distinct values of an attribute."""

    entity: str
    attribute: int
    capacity: int
    recollection: Recollection


@dataclass(frozen=True)
class Latest:
    """A question to an entity's memory of its latest `capacity` payments.

    `fields` are (column, whether it is kept as a number); numbers are named as in `Column`. `is_whole`: only payments
    that have all of the fields are kept. The question is about the payment `place` (0 is the latest), and its `field`.

    COUNT_SAME counts the payments with this payment's value of the only field. QUANTILE is about the first field, of
    payments with this payment's value of the second field if there is one; its `place` is the share in thousandths.
    """

    entity: str
    fields: tuple[tuple[int, bool], ...]
    capacity: int
    is_whole: bool
    recollection: Recollection
    place: int = 0
    field: int = 0


@dataclass(frozen=True)
class Neighbours:
    """A feature of the neighbours of an entity, two hops away: of the last `capacity` different merchants of a card.

    `entity` remembers the neighbours by the identities in the column `attribute`: the one key field of `target`. The
    value of a neighbour is that of the earlier feature `feature`, from its own profile as of the payment. `attribute`
    is 0 until a catalogue says which column the field `key` is.
    """

    entity: str
    target: str
    key: str
    feature: str
    capacity: int
    reduction: NeighbourReduction
    attribute: int = 0


Stored = WindowedMeasure | EntityRecency | Remembered | Latest | Neighbours


@dataclass(frozen=True)
class Derived:
    """An operation on stored values, other operations, earlier features by name, and constants."""

    operation: Operation
    operands: tuple[Stored | Derived | str, ...] = ()
    numbers: tuple[int, ...] = ()


Expression = Stored | Derived | str


# The questions to a memory and the operations that say nothing without a payment of one's own.
ASK_PAYMENT = frozenset(
    {
        Recollection.IS_NEW,
        Recollection.SINCE_SAME,
        Recollection.TRAVEL_KMH,
        Recollection.IS_SAME,
        Recollection.DISTANCE_KM,
        Recollection.SPEED_KMH,
        Recollection.COUNT_SAME,
        Operation.ATTRIBUTE_VALUE,
        Operation.HOUR,
        Operation.NIGHT,
        Operation.WEEKEND,
        Operation.WEEKDAY,
        Operation.TRAILING_ZEROS,
        Operation.BELOW_LIMIT,
        Operation.HOLDS,
        Operation.CATEGORY,
        Operation.DECLARED_NUMBER,
        Operation.AGE_MS,
        Operation.SAME_VALUE,
        Operation.DISTANCE,
        Operation.MEETS,
    }
)


@dataclass(frozen=True)
class Feature:
    """One named number of the vector. `missing` says when it is NaN, `line` where the catalogue declares it."""

    name: str
    value: Expression
    meaning: str
    unit: str
    missing: str
    entity: str = ""
    window: str = ""
    line: str = field(default="", compare=False)
    with_delay: Callable[..., Feature] | None = field(default=None, compare=False, repr=False)
    """Makes the feature with a label delay, if its line in the catalogue leaves the delay to the catalogue."""


def knows_fraud(stored: Stored) -> TypeGuard[WindowedMeasure]:
    """Returns whether a stored value is made of labels."""
    return isinstance(stored, WindowedMeasure) and any(column.measure in LABEL_MEASURES for column in stored.columns)


def stored_values(value: Expression) -> list[Stored]:
    """Returns the stored values that a value needs, in order of use."""
    if isinstance(value, str):
        return []
    if isinstance(value, Derived):
        return [stored for operand in value.operands for stored in stored_values(operand)]
    return [value]
