"""Which entity a payment belongs to: the store key of a profile, from the payment's own fields."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.errors import InvalidEvent

# Between the ids of a combination: the character that ASCII has for it. No id may hold it.
SEPARATOR = "\x1f"


def entity_key(entity: str, ids: Sequence[str]) -> bytes:
    """The store key: `entity:id`, of a combination the ids with SEPARATOR between them.

    Two ids may be longer together than a key can be: a digest stands for them then. A single id is never replaced.
    Raises InvalidEvent when an id of a combination holds SEPARATOR.
    """
    if len(ids) == 1:
        return f"{entity}:{ids[0]}".encode()
    if any(SEPARATOR in identity for identity in ids):
        raise InvalidEvent("holds a control character")
    key = f"{entity}:{SEPARATOR.join(ids)}".encode()
    if len(key) <= KEY_BYTES_MAX:
        return key
    return f"{entity}:{hashlib.blake2b(key, digest_size=32).hexdigest()}".encode()
