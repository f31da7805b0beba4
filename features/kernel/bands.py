"""Fills the columns of bands: fields that say between which bounds a number of the payment lies, or its local hour.

A band's words in a program (features/profiles/band_program.py) are its column, its source and the count of its bounds;
the bounds; and the identity of each band, one more than there are bounds. For example, the bounds 10_00 and 50_00 of
`amount_minor` make the bands 00 (below 10_00), 01 and 02 (from 50_00 on).
"""

from __future__ import annotations

from paywarden.features.kernel.conditions import local_ms, weekday_of
from paywarden.features.kernel.layout import ATTRIBUTE_COUNT, DAY_MS, HOUR_MS, I64
from paywarden.features.kernel.toolkit.jit import compiled

# Sources that are no columns of a payment's row.
LOCAL_HOUR, LOCAL_WEEKDAY = -1, -2


@compiled()
def fill_bands(bands: I64, row: I64) -> None:
    """Fill the columns of bands in a payment's row. A band of a field that the payment lacks stays 0."""
    at = 0
    while at < len(bands):
        column, source, count = bands[at], bands[at + 1], bands[at + 2]
        bounds = at + 3
        if source == LOCAL_HOUR:
            number = local_ms(row) % DAY_MS // HOUR_MS
        elif source == LOCAL_WEEKDAY:
            number = weekday_of(local_ms(row))
        else:
            number = row[source]
        if source < ATTRIBUTE_COUNT or number != 0:
            band = 0
            while band < count and bands[bounds + band] <= number:
                band += 1
            row[column], row[column + 1] = 1, bands[bounds + count + band]
        at = bounds + 2 * count + 1


@compiled()
def fill_bands_of_rows(bands: I64, rows: I64) -> None:
    """Fill the columns of bands in rows, shape (rows, width)."""
    for number in range(len(rows)):
        fill_bands(bands, rows[number])
