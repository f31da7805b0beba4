"""Checked payments, in the form that the mirror and the feature kernel take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest


class CheckedPayments:
    """A sequence of payments that can be scored. As elements they are ScoreRequests.

    - `bodies`: the serialised requests; `ids`: the payments' ids in UTF-8.
    - `keys`: the store keys of all entities, payment by payment; an empty key where the payment has no such entity.
      With the entities card and device: [b"card:c1", b"device:d1", b"card:c2", b""].
    - `rows`: the attributes, shape (payments, ATTRIBUTE_COUNT), int64.
    - `callers`: the name of each payment's caller in UTF-8; empty when callers have no names.
    """

    __slots__ = ("_entities", "bodies", "callers", "ids", "keys", "rows")

    def __init__(
        self, bodies: Sequence[bytes], ids: Sequence[bytes], keys: Sequence[bytes], rows: NDArray[np.int64]
    ) -> None:
        self.bodies, self.ids, self.keys, self.rows = bodies, ids, keys, rows
        # Requests do not say who sends them: the batcher, which knows, sets the names.
        self.callers: Sequence[bytes] = [b""] * len(bodies)
        self._entities = len(keys) // len(bodies) if bodies else 0

    def __len__(self) -> int:
        return len(self.bodies)

    def __getitem__(self, index: int) -> ScoreRequest:
        """Parse one payment. Only some policies and rare cases need it."""
        return ScoreRequest.FromString(self.bodies[index])

    def __iter__(self) -> Iterator[ScoreRequest]:
        return map(ScoreRequest.FromString, self.bodies)

    def chosen(self, indexes: Sequence[int]) -> CheckedPayments:
        """Returns the payments at `indexes`, which must ascend."""
        entities = self._entities
        chosen = CheckedPayments(
            [self.bodies[index] for index in indexes],
            [self.ids[index] for index in indexes],
            [key for index in indexes for key in self.keys[index * entities : (index + 1) * entities]],
            self.rows[list(indexes)],
        )
        chosen.callers = [self.callers[index] for index in indexes]
        return chosen


def joined(parts: Sequence[CheckedPayments]) -> CheckedPayments:
    """Returns all payments of the parts, in order."""
    return CheckedPayments(
        [body for part in parts for body in part.bodies],
        [identity for part in parts for identity in part.ids],
        [key for part in parts for key in part.keys],
        np.concatenate([part.rows for part in parts]),
    )
