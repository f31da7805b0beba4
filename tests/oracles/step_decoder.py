"""Reads requests one at a time where the compiled loop leaves them out: the oracle of `read_right`.

requests ─ FastRequests (compiled, a chunk at once) ─► rows, keys, ids
              └─ unusual ─ RequestRules, RequestRows (one at a time) ─► row, keys, id, or InvalidEvent
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from paywarden.features.profiles.money import RateTable
from paywarden.features.profiles.plan import Plan
from paywarden.models.policy.rules import ConditionFields
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.requests import payments
from paywarden.scoring.requests import request_bytes as loop
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.fast_requests import ROWS_MAX, FastRequests, Pieces
from paywarden.scoring.requests.protobuf_form import canonical, parse
from paywarden.scoring.requests.schema import PACKAGED, RequestSchema
from paywarden.scoring.requests.validation import RequestLimits
from tests.oracles.request_rows import RequestRows


class CheckedPayments(payments.CheckedPayments):
    """Payments of which some can be chosen, with arrivals and traces.

    - `sent`: the requests with all fields of the deployment. Without declared fields the same list as `bodies`.
    - `arrivals`: when each request arrived, in seconds of time.perf_counter; empty where that is not known.
    - `traces`: the trace of each request (trace_context.py), empty where it has none; no items if none has.
    """

    __slots__ = ("_entities", "arrivals", "schema", "sent", "traces")

    def __init__(
        self,
        bodies: Sequence[bytes],
        ids: Sequence[bytes],
        keys: Sequence[bytes],
        rows: NDArray[np.int64],
        sent: Sequence[bytes] | None = None,
        schema: RequestSchema = PACKAGED,
    ) -> None:
        super().__init__(bodies, ids, keys, rows)
        self.sent, self.schema = bodies if sent is None else sent, schema
        self.arrivals: Sequence[float] = ()
        self.traces: Sequence[bytes] = ()
        self._entities = len(keys) // len(bodies) if bodies else 0

    def __iter__(self) -> Iterator[ScoreRequest]:
        return map(ScoreRequest.FromString, self.bodies)

    def facts_of(self, index: int) -> ConditionFields:
        """Parse one payment with all its fields, for the conditions of the policy."""
        return self.schema.payment_of(self.sent[index])

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


class StepDecoder(RequestDecoder):
    """A worker's decoder that also makes rows in Python. Not thread-safe."""

    def __init__(self, plan: Plan, rates: RateTable, limits: RequestLimits) -> None:
        super().__init__(plan, rates, limits)
        self._made = RequestRows(plan, rates, ROWS_MAX)

    def read(self, requests: Sequence[bytes], now_ms: int) -> tuple[CheckedPayments, dict[int, InvalidEvent]]:
        """Returns the payments that can be scored, in order, and the error of every other request by its index."""
        parts = [requests[first : first + ROWS_MAX] for first in range(0, len(requests), ROWS_MAX)] or [requests]
        read = [self._read(part, now_ms) for part in parts]
        errors = {
            number * ROWS_MAX + index: error for number, (_, wrong) in enumerate(read) for index, error in wrong.items()
        }
        return joined([part for part, _ in read]), errors

    def _read(self, requests: Sequence[bytes], now_ms: int) -> tuple[CheckedPayments, dict[int, InvalidEvent]]:
        is_usual, keys, ids = read_pieces(self.fast, requests, now_ms)
        sent, bodies = [*requests], self.fast.kept(requests)
        rows, entities = self._rows[: len(requests)].copy(), self._plan.entity_count
        errors: dict[int, InvalidEvent] = {}
        for index in (index for index, usual in enumerate(is_usual) if not usual):
            try:
                message = parse(requests[index], self.schema)
                self._rules.check(message, now_ms)
                self._made.write(index, message)
                keys[index * entities : (index + 1) * entities] = self._made.keys_of(message)
            except InvalidEvent as error:
                errors[index] = error
                continue
            rows[index] = self._made.attributes[index]
            sent[index] = canonical(message)
            bodies[index], ids[index] = kept_of(sent[index]), message.payment_id.encode()
        payments = CheckedPayments(bodies, ids, keys, rows, sent, self.schema)
        return payments.chosen([index for index in range(len(requests)) if index not in errors]), errors


def as_a_scorer_reads(
    decoder: RequestDecoder, requests: Sequence[bytes], now_ms: int
) -> tuple[payments.CheckedPayments, dict[int, InvalidEvent]]:
    """Returns the same as `StepDecoder.read`, read by the compiled loop alone."""
    bodies, errors = [*requests], dict[int, InvalidEvent]()
    for index in (
        index for index, usual in enumerate(read_pieces(decoder.fast, requests, now_ms).is_usual) if not usual
    ):
        try:
            bodies[index] = decoder.checked(requests[index], now_ms)
        except InvalidEvent as error:
            errors[index] = error
    right = [body for index, body in enumerate(bodies) if index not in errors]
    decoder.read_right(right)
    return decoder.payments_read(right), errors


def read_pieces(fast: FastRequests, bodies: Sequence[bytes], now_ms: int) -> Pieces:
    """Read at most ROWS_MAX bodies with the compiled loop, and fill the rows of the usual ones."""
    count = len(bodies)
    if fast.put(bodies) < 0:
        return Pieces(bytes(count), [b""] * (count * fast._entities), [b""] * count)
    fast.set_time(now_ms)
    loop.read_bodies(fast.frame_at, count)
    return fast.pieces(count)


def kept_of(body: bytes) -> bytes:
    """Returns the part of canonical bytes that the outbox keeps: the fields that every payment has."""
    return canonical(ScoreRequest.FromString(body))


def joined(parts: Sequence[CheckedPayments]) -> CheckedPayments:
    """Returns all payments of the parts, in order."""
    return CheckedPayments(
        [body for part in parts for body in part.bodies],
        [identity for part in parts for identity in part.ids],
        [key for part in parts for key in part.keys],
        np.concatenate([part.rows for part in parts]),
        [body for part in parts for body in part.sent],
        parts[0].schema,
    )
