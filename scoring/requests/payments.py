"""Checked payments, in the form that the mirror and the feature kernel take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from paywarden.models.policy.rules import ConditionFields
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.requests.schema import PACKAGED, RequestSchema


class CheckedPayments:
    """A sequence of payments that can be scored. As elements they are ScoreRequests.

    - `bodies`: the requests as the outbox keeps them; `ids`: the payments' ids in UTF-8.
    - `sent`: the requests with all fields of the deployment. Without declared fields the same list as `bodies`.
    - `keys`: the store keys of all entities, payment by payment; an empty key where the payment has no such entity.
      With the entities card and device: [b"card:c1", b"device:d1", b"card:c2", b""].
    - `rows`: the attributes, shape (payments, plan.row_width), int64.
    - `arrivals`: when each request arrived, in seconds of time.perf_counter; empty where that is not known.
    - `traces`: the trace of each request (trace_context.py), empty where it has none; no items if none has.
    - `callers`: the name of each payment's caller in UTF-8; empty when callers have no names.
    """

    __slots__ = ("_entities", "arrivals", "bodies", "callers", "ids", "keys", "rows", "schema", "sent", "traces")

    def __init__(
        self,
        bodies: Sequence[bytes],
        ids: Sequence[bytes],
        keys: Sequence[bytes],
        rows: NDArray[np.int64],
        sent: Sequence[bytes] | None = None,
        schema: RequestSchema = PACKAGED,
    ) -> None:
        self.bodies, self.ids, self.keys, self.rows = bodies, ids, keys, rows
        self.sent, self.schema = bodies if sent is None else sent, schema
        # Requests do not say who sends them: the batcher, which knows, sets the names.
        self.callers: Sequence[bytes] = [b""] * len(bodies)
        self.arrivals: Sequence[float] = ()
        self.traces: Sequence[bytes] = ()
        self._entities = len(keys) // len(bodies) if bodies else 0

    def __len__(self) -> int:
        return len(self.bodies)

    def __getitem__(self, index: int) -> ScoreRequest:
        """Parse one payment, as the outbox keeps it. Only rare cases need it."""
        return ScoreRequest.FromString(self.bodies[index])

    def facts_of(self, index: int) -> ConditionFields:
        """Parse one payment with all its fields, for the conditions of the policy."""
        return self.schema.payment_of(self.sent[index])

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
            None if self.sent is self.bodies else [self.sent[index] for index in indexes],
            self.schema,
        )
        chosen.callers = [self.callers[index] for index in indexes]
        if self.arrivals:
            chosen.arrivals = [self.arrivals[index] for index in indexes]
        if self.traces:
            chosen.traces = [self.traces[index] for index in indexes]
        return chosen


def joined(parts: Sequence[CheckedPayments]) -> CheckedPayments:
    """Returns all payments of the parts, in order."""
    return CheckedPayments(
        [body for part in parts for body in part.bodies],
        [identity for part in parts for identity in part.ids],
        [key for part in parts for key in part.keys],
        np.concatenate([part.rows for part in parts]),
        [body for part in parts for body in part.sent] if any(part.sent is not part.bodies for part in parts) else None,
        parts[0].schema,
    )
