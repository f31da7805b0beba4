"""Payments whose requests were read and are right, for the steps of a chunk that Python takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest


class CheckedPayments:
    """A sequence of payments that can be scored. As elements they are ScoreRequests.

    - `bodies`: the requests as the outbox keeps them; `ids`: the payments' ids in UTF-8.
    - `keys`: the store keys of all entities, payment by payment; an empty key where the payment has no such entity.
      With the entities card and device: [b"card:c1", b"device:d1", b"card:c2", b""].
    - `rows`: the attributes, shape (payments, plan.row_width), int64. They hold until other requests are read.
    - `callers`: the name of each payment's caller in UTF-8; empty names when callers have none.
    """

    __slots__ = ("bodies", "callers", "ids", "keys", "rows")

    def __init__(
        self, bodies: Sequence[bytes], ids: Sequence[bytes], keys: Sequence[bytes], rows: NDArray[np.int64]
    ) -> None:
        self.bodies, self.ids, self.keys, self.rows = bodies, ids, keys, rows
        # Requests do not say who sends them: the scorer, which knows, sets the names.
        self.callers: Sequence[bytes] = [b""] * len(bodies)

    def __len__(self) -> int:
        return len(self.bodies)

    def __getitem__(self, index: int) -> ScoreRequest:
        """Parse one payment, as the outbox keeps it. Only rare cases need it."""
        return ScoreRequest.FromString(self.bodies[index])
