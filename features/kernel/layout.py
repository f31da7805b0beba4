"""Numbers that compiled code and Python share: a payment's row, measures, reductions, a profile's words, statuses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

# Columns of a payment's row of attributes, as far as compiled code knows them (features/catalogue/attributes.py has
# all).
TIME_MS, AMOUNT, AMOUNT_MINOR, UTC_OFFSET, COUNTRY = 0, 1, 2, 4, 11
ATTRIBUTE_COUNT = 13
# The code of an offset of 0 minutes: 0 stands for an offset that is not known. Codes of all offsets are above 0.
OFFSET_ZERO, UTC_OFFSET_MINUTES_MAX = 1440, 1439
# Codes of countries of two capital letters are 1 to 676; a text that is no country comes behind them.
COUNTRY_CODES = 26 * 26
# Operators of conditions.
EQUAL, DIFFERENT, AT_LEAST, BELOW = range(4)

# Measures, in the order of paywarden.features.catalogue.expressions.Measure. Largest and smallest are stored plus
# one: 0 stands for no payment.
(
    COUNT,
    AMOUNT_SUM,
    SQUARES_LOW,
    SQUARES_HIGH,
    AMOUNT_MAX,
    AMOUNT_MIN,
    DISTINCT_BITS,
    BUCKET_COUNTS,
    FRAUD_COUNT,
    FRAUD_AMOUNT,
) = range(10)
# An amount's square has up to 74 bits. It is kept in two sums, split here: neither overflows in 2**23 payments.
SQUARE_BITS = 40
# Reductions of a measure over the tiles of a window, in the order of
# paywarden.features.catalogue.expressions.Reduction.
SUM, DECAYED, LARGEST, SMALLEST, UNION, NEWEST, OLDEST, NEWEST_OTHER, STREAK, STREAK_AGE, STREAK_SUM = range(11)
DECAY_ONE = 1 << 30
# What a feature asks of a memory, in the order of paywarden.features.catalogue.expressions.Recollection.
LAST_VALUE, IS_NEW, SINCE_SAME, TRAVEL_KMH = range(4)

# Operations of the program that makes values of slots and attributes, in the order of
# paywarden.features.catalogue.expressions.Operation.
(
    ATTRIBUTE_VALUE,
    HOUR,
    NIGHT,
    WEEKEND,
    WEEKDAY,
    TRAILING_ZEROS,
    BELOW_LIMIT,
    HOLDS,
    CATEGORY,
    NUMBER,
    ADD,
    DIVIDE,
    SCALE,
    DEVIATION,
    STANDARD_SCORE,
    ENTROPY,
    TOP_SHARE,
) = range(17)

# A profile's words: the times of the first and the last payment and of the newest event of any kind. Then the length of
# each section: sources, tables, memories.
FIRST_MS, LAST_MS, NEWEST_MS, LENGTHS_AT = range(4)
# One profile hears from every partition of `payments` and `outcomes`; 128 allows 64 of each.
SOURCES_MAX = 128

LAYOUT_VERSION = 4
# Where the shape begins in a stored profile.
SHAPE_BYTES_AT = 7
# Columns of every stored profile beside those of its tables and memories: three times, the lengths, sources, offsets.
FIXED_COLUMNS = 6
# A number is written eight bytes wide whatever its width: room that a buffer needs behind its end.
SLACK_BYTES = 8

# Kinds of events.
PAYMENT, LABEL = 0, 1
# Whether an entity takes part in a payment.
ABSENT, UNKNOWN, KNOWN = 0, 1, 2
# Statuses of unpacking and packing. With a place: status * STATUS_UNIT + place.
OK, WRONG_VERSION, WRONG_DIGEST, DAMAGED, TOO_MANY_SOURCES, NO_ROOM = 0, 1, 2, 3, 4, 5
STATUS_UNIT = 2**32

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
# 1970-01-01 was a Thursday: day 0 is weekday 3 of a week that starts on Monday.
EPOCH_WEEKDAY = 3
EARTH_RADIUS_KM = 6371.0
# Far beyond any clock, and three of them add up to less than 64 bits hold.
TIME_MS_MAX = 1 << 60
# Clocks of terminals differ: a journey is taken to last a minute at least.
JOURNEY_MS_MIN = 60_000
