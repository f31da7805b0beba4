"""The tag of a payment: a short hash of its id, by which a scoring host recognises a payment in a profile.

    tags = PaymentTags(key)
    tags.of(b"p-17")          4127301123994837510, the same in every process of a deployment

The hash is seeded from the deployment's identity key: without the key nobody can choose two ids of one tag. A tag is at
least TAG_MIN, so that it can stand where an untagged event has a 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from xxhash import xxh3_64_intdigest

from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.kernel import layout

TAG_MIN = layout.TAG_MIN
MARK_DTYPE = np.dtype([("tag", "<i8"), ("offset", "<i8"), ("source", "<i4")])
"""A payment that a profile contains: its tag, and the offset and the source number of its Kafka record."""
_SEED_TEXT = "paywarden payment tags"


class PaymentTags:
    """Makes the tags of payments, and hashes of store keys for tables in memory."""

    def __init__(self, key: IdentityKey) -> None:
        self._seed = key.of(_SEED_TEXT)

    @property
    def seed(self) -> int:
        """The seed of the hashes, for compiled code: at least 0, and below 2**63."""
        return self._seed

    def of(self, payment_id: bytes) -> int:
        """Returns the tag of a payment's id in UTF-8: 62 bits, at least TAG_MIN."""
        return xxh3_64_intdigest(payment_id, self._seed) >> 1 | TAG_MIN

    def of_all(self, payment_ids: Sequence[bytes]) -> list[int]:
        """Returns the tag of each id."""
        digest, seed = xxh3_64_intdigest, self._seed
        return [digest(payment_id, seed) >> 1 | TAG_MIN for payment_id in payment_ids]

    def hash_of_key(self, key: bytes) -> int:
        """Returns the hash of a store key, from 1 to 2**63 - 1; 0 of an empty key."""
        return xxh3_64_intdigest(key, self._seed) >> 1 | 1 if key else 0

    def hashes_of_keys(self, keys: Sequence[bytes]) -> list[int]:
        """Returns the hash of each store key."""
        digest, seed = xxh3_64_intdigest, self._seed
        return [digest(key, seed) >> 1 | 1 if key else 0 for key in keys]
