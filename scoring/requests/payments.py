"""Payments that are asked about: checked, and as the feature kernel and the mirror take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest


class CheckedPayments:
    """Some payments, all of which can be decided. Iterated over and indexed, they are ScoreRequests.

    `bodies` are the serialised requests, `ids` the payments' ids in UTF-8. `keys` holds the store key of each entity of
    each payment, payments outermost, empty where there is none. `rows`: shape (payments, ATTRIBUTE_COUNT), int64.
    """

    __slots__ = ("_entities", "bodies", "ids", "keys", "rows")

    def __init__(
        self, bodies: Sequence[bytes], ids: Sequence[bytes], keys: Sequence[bytes], rows: NDArray[np.int64]
    ) -> None:
        self.bodies, self.ids, self.keys, self.rows = bodies, ids, keys, rows
        self._entities = len(keys) // len(bodies) if bodies else 0

    def __len__(self) -> int:
        return len(self.bodies)

    def __getitem__(self, index: int) -> ScoreRequest:
        """One of them, parsed: for what only some policies, or rare moments, ask for."""
        return ScoreRequest.FromString(self.bodies[index])

    def __iter__(self) -> Iterator[ScoreRequest]:
        return map(ScoreRequest.FromString, self.bodies)

    def chosen(self, indexes: Sequence[int]) -> CheckedPayments:
        """Those at `indexes`, which ascend."""
        entities = self._entities
        return CheckedPayments(
            [self.bodies[index] for index in indexes],
            [self.ids[index] for index in indexes],
            [key for index in indexes for key in self.keys[index * entities : (index + 1) * entities]],
            self.rows[list(indexes)],
        )


def joined(parts: Sequence[CheckedPayments]) -> CheckedPayments:
    """All of them, one part behind the other."""
    return CheckedPayments(
        [body for part in parts for body in part.bodies],
        [identity for part in parts for identity in part.ids],
        [key for part in parts for key in part.keys],
        np.concatenate([part.rows for part in parts]),
    )
