"""The store key of an entity's profile, from the ids in a payment.

entity_key("card", ["C1"])                      b"card:C1"
entity_key("card_merchant", ["C1", "M7"])       b"card_merchant:C1\\x1fM7"
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.errors import InvalidEvent

# Stands between the ids of a combination. It is ASCII's unit separator; no id may contain it.
SEPARATOR = "\x1f"


def entity_key(entity: str, ids: Sequence[str]) -> bytes:
    """Returns the store key: `entity:id`. For a combination, SEPARATOR stands between the ids.

    If the ids of a combination are too long for a key, a digest replaces them. A single id is never replaced.
    Raises InvalidEvent if an id of a combination contains SEPARATOR.
    """
    if len(ids) == 1:
        return f"{entity}:{ids[0]}".encode()
    if any(SEPARATOR in identity for identity in ids):
        raise InvalidEvent("holds a control character")
    key = f"{entity}:{SEPARATOR.join(ids)}".encode()
    if len(key) <= KEY_BYTES_MAX:
        return key
    return f"{entity}:{hashlib.blake2b(key, digest_size=32).hexdigest()}".encode()
