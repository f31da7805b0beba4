"""When the newest payment of a stored profile was made, read without unpacking the profile.

    version │ digest │ shape │ widths of the columns │ first payment │ last payment, after the first │ …

features/kernel/codec.py has the whole form.
"""

from __future__ import annotations

from functools import lru_cache

from paywarden.features.kernel.layout import LAYOUT_VERSION, SHAPE_BYTES_AT
from paywarden.features.profiles.shape import decode_shape, shape_of
from paywarden.schemas.errors import Misconfigured

_NUMBER_BYTES_MAX = 8


def newest_payment_ms(state: bytes) -> int | None:
    """Returns the time of a stored profile's newest payment, 0 if it has none; None if this is no profile.

    The checksum is not verified.
    """
    if not state or state[0] != LAYOUT_VERSION:
        return None
    try:
        shape = shape_of(state)[1]
        columns = _stored_columns(shape)
    except Misconfigured:
        return None
    widths = SHAPE_BYTES_AT + len(shape)
    begin = widths + (columns + 1 >> 1)
    if begin > len(state):
        return None
    first_width, last_width = state[widths] & 15, state[widths] >> 4
    middle = begin + first_width
    end = middle + last_width
    if first_width > _NUMBER_BYTES_MAX or last_width > _NUMBER_BYTES_MAX or end > len(state):
        return None
    return int.from_bytes(state[begin:middle], "little") + int.from_bytes(state[middle:end], "little")


@lru_cache(maxsize=256)
def _stored_columns(shape: bytes) -> int:
    """Returns the number of columns of profiles of a shape. A store has few shapes."""
    return decode_shape(shape).stored_columns
