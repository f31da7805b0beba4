"""Constants that compiled code and Python share.

They name the columns of a payment's row, the measures, the reductions, the words of a profile and the statuses. For
example, `attributes[AMOUNT]` is a payment's amount, and `words[LAST_MS]` is the time of a profile's last payment.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

# The columns of a payment's row that compiled code names. features/catalogue/attributes.py has all columns.
TIME_MS, AMOUNT, AMOUNT_MINOR, UTC_OFFSET, DECLINED, COUNTRY = 0, 1, 2, 4, 5, 11
# The public codes of attributes, which any process of any release makes alike: CODE_COUNT columns. The keyed identities
# of texts (features/kernel/toolkit/siphash.py) follow them. Each declared field has two columns more, by its number n:
# its code in ATTRIBUTE_COUNT + 2 * (n - 1), and next to it the identity of a text, or an amount in its own currency.
CODE_COUNT, IDENTITY_COUNT = 13, 5
ATTRIBUTE_COUNT = 18
# The amount of a payment whose currency has no rate. Tiles, memories and conditions leave such an amount out. It is the
# only negative number of a row.
UNKNOWN_AMOUNT = -1
# Set in every identity. No public code has it, so that the two are never equal.
IDENTITY_BIT = 1 << 62
# The least tag of a payment (features/profiles/payment_tags.py). The weight of an event without a tag is below it.
TAG_MIN = 2
# The code of a UTC offset of 0 minutes. Code 0 means that the offset is not known, so all codes are above 0.
OFFSET_ZERO, UTC_OFFSET_MINUTES_MAX = 1440, 1439
# A country of two capital letters has a code from 1 to 676. A text that is no country has a larger code.
COUNTRY_CODES = 26 * 26
# The code of the number 0 in a declared field. All codes are above 0, and keep the order of their numbers.
NUMBER_ZERO = 1 << 54
# Operators of conditions. BELOW_IF_PRESENT is BELOW for an attribute that may be missing, which has code 0 then. The
# value of the next two has a bit for each hour, or day of the week, for which the condition holds. The last three join
# conditions before them: their value has the bits of these.
EQUAL, DIFFERENT, AT_LEAST, BELOW, BELOW_IF_PRESENT, HOUR_AMONG, WEEKDAY_AMONG, ALL_OF, ANY_OF, NONE_OF = range(10)

# Measures, in the order of paywarden.features.catalogue.expressions.Measure. The largest and
# smallest amounts are stored plus one: 0 means no payment. The largest and smallest numbers of a field are kept zigzag
# (features/kernel/toolkit/varint.py), plus one: few bytes for a small number of either sign.
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
    NUMBER_COUNT,
    NUMBER_SUM,
    NUMBER_SQUARES_LOW,
    NUMBER_SQUARES_HIGH,
    NUMBER_MAX,
    NUMBER_MIN,
    FRAUD_SQUARES_LOW,
    FRAUD_SQUARES_HIGH,
    LABELLED_COUNT,
) = range(19)
# How an attribute is read as a number: an amount is one, a declared number has the code of it, and a moment stands for
# its age at its payment, in ms. A text has no number.
READ_AMOUNT, READ_NUMBER, READ_AGE, READ_TEXT = range(4)
# An amount's square has up to 74 bits. Two sums hold its low 40 and its high bits: neither overflows in 2**23 payments.
SQUARE_BITS = 40
# Tables keep sums only of fields whose numbers are at most this far from 0, in units of their last digit: a square has
# at most 84 bits, and no sum overflows in 2**18 payments.
NUMBER_MAX_IN_SUMS = 1 << 42
# Reductions of a measure over the tiles of a window, in the order of
# paywarden.features.catalogue.expressions.Reduction.
SUM, DECAYED, LARGEST, SMALLEST, UNION, NEWEST, OLDEST, NEWEST_OTHER, STREAK, STREAK_AGE, STREAK_SUM = range(11)
LARGEST_NUMBER, SMALLEST_NUMBER = 11, 12
DECAY_ONE = 1 << 30
# The questions that a feature can ask a memory, in the order of paywarden.features.catalogue.expressions.Recollection.
LAST_VALUE, IS_NEW, SINCE_SAME, TRAVEL_KMH = range(4)
# The kinds of memories.
DISTINCT_VALUES, LATEST_PAYMENTS, WHOLE_PAYMENTS = range(3)
# The questions to the latest payments that a profile keeps whole.
AGO, NUMBER_OF, IS_SAME, DISTANCE_KM, SPEED_KMH, COUNT_SAME, QUANTILE = range(4, 11)

# How the values of neighbours become one, in the order of paywarden.features.catalogue.expressions.NeighbourReduction;
# and the most groups of neighbours of a catalogue, and neighbours of a group: each one more is a profile more to read.
LARGEST_OF, MEAN_OF = range(2)
HOPS_MAX, NEIGHBOURS_MAX = 8, 8

# The operations of the program that computes values from slots and attributes, in the order of
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
    DECLARED_NUMBER,
    AGE_MS,
    SAME_VALUE,
    DISTANCE,
    SUBTRACT,
    CLIP,
    SURPRISE,
    MULTIPLY,
    MEETS,
) = range(26)

# A profile's words begin with three times: of the first payment, the last payment, and the newest event of any kind.
# The length of each section follows: sources, tables, memories.
FIRST_MS, LAST_MS, NEWEST_MS, LENGTHS_AT = range(4)
# A profile may get events from every partition of `payments` and `outcomes`. 128 allows 64 partitions of each.
SOURCES_MAX = 128

# The version of the stored form. Profiles of any other version are refused.
LAYOUT_VERSION = 6
# Where the shape begins in a stored profile.
SHAPE_BYTES_AT = 7
# The columns of every stored profile besides its tables and memories: three times, the lengths, sources and offsets.
FIXED_COLUMNS = 6
# The size of the checksum at the end of a stored profile.
CHECKSUM_BYTES = 8
# The codec writes eight bytes for every number, however narrow. A buffer needs this much room behind its end.
SLACK_BYTES = 8

# Kinds of events. A decline says that a payment was declined, or was not, which its own event did not know yet.
PAYMENT, LABEL, DECLINE = 0, 1, 2
# The weight of a decline: what its payment's DECLINED column held before, in the low bits, and the payment's label.
DECLINE_BITS = 2
# The weight of a label is how it changes whether its payment is a known fraud: +1, 0 or -1. This is added if the
# payment had no label before and the plan counts labelled payments.
FIRST_LABEL = 4
# Whether a payment has an entity, and whether the entity has a profile.
ABSENT, UNKNOWN, KNOWN = 0, 1, 2
# Statuses of unpacking and packing. A status about an item is status * STATUS_UNIT + the number of the item.
OK, WRONG_VERSION, WRONG_DIGEST, DAMAGED, TOO_MANY_SOURCES, NO_ROOM = 0, 1, 2, 3, 4, 5
STATUS_UNIT = 2**32

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
# 1970-01-01 was a Thursday: day 0 is weekday 3 of a week that starts on Monday.
EPOCH_WEEKDAY = 3
EARTH_RADIUS_KM = 6371.0
# Latitudes and longitudes of fields are in millionths of a degree.
DEGREE = 1_000_000
# Later than any clock will show. The sum of three such times still fits 64 bits.
TIME_MS_MAX = 1 << 60
# Clocks of terminals differ, so a journey counts as at least one minute long.
JOURNEY_MS_MIN = 60_000
