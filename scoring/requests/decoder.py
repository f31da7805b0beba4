"""Turns requests into payments that can be scored, and says why each of the others cannot.

    requests ─ FastRequests (compiled, a chunk at once) ─► rows, keys, ids
                  └─ unusual ─ RequestRules, RequestRows (one at a time) ─► row, keys, id, or InvalidEvent

1. The compiled loop (scoring/requests/fast_requests.py) reads a chunk of requests from their protobuf bytes.
2. It leaves out an unusual request, such as one with a name in UTF-8 or a wrong value. Such a request is parsed,
   checked and coded here, in Python.
3. Both ways give the same rows, keys and errors; only the time they take differs.
4. The body that goes on to the outbox holds only fields that were understood. The compiled loop takes only bodies that
   hold nothing else. A body that it leaves out is written anew from its parsed message, without unknown fields.
   Otherwise a caller could put bytes into the outbox that its reader cannot parse.

With fields of a project the body for the outbox ends where these begin: no declared field is kept (schema.py).

A JSON request comes as the protobuf bytes that the outbox will keep. To make a row from its values in Python takes five
times as long as to serialise them and read them back with the compiled loop.
"""

from __future__ import annotations

from collections.abc import Sequence

from paywarden.features.profiles.money import RateTable
from paywarden.features.profiles.plan import Plan
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.requests import request_bytes as loop
from paywarden.scoring.requests.fast_requests import ROWS_MAX, FastRequests
from paywarden.scoring.requests.payments import CheckedPayments, joined
from paywarden.scoring.requests.protobuf_form import canonical, kept_of, parse
from paywarden.scoring.requests.request_rows import RequestRows
from paywarden.scoring.requests.schema import RequestSchema
from paywarden.scoring.requests.validation import RequestLimits, RequestRules


class RequestDecoder:
    """Reads requests for one scorer. Not thread-safe."""

    def __init__(self, plan: Plan, rates: RateTable, limits: RequestLimits) -> None:
        self.limits = limits
        """The limits that every request is checked against."""
        self.schema = RequestSchema(plan.fields, ignores_unknown=limits.unknown_fields == "ignore")
        """The fields that every request may have."""
        self._has_declared = self.schema.has_declared
        self._rules = RequestRules(limits, self.schema)
        self._entities = plan.entity_count
        self._rows = RequestRows(plan, rates, ROWS_MAX)
        self._fast = FastRequests(plan, rates, limits, self._rows.attributes)

    def read(self, requests: Sequence[bytes], now_ms: int) -> tuple[CheckedPayments, dict[int, InvalidEvent]]:
        """Returns the payments that can be scored, in order, and the error of every other request by its index.

        The payments' rows hold until the next call.
        """
        if len(requests) <= ROWS_MAX:
            return self._read(requests, now_ms)
        parts: list[CheckedPayments] = []
        errors: dict[int, InvalidEvent] = {}
        for first in range(0, len(requests), ROWS_MAX):
            part, part_errors = self._read(requests[first : first + ROWS_MAX], now_ms)
            part.rows = part.rows.copy()
            parts.append(part)
            errors |= {first + index: error for index, error in part_errors.items()}
        return joined(parts), errors

    def checked(self, body: bytes, now_ms: int) -> bytes:
        """Returns the canonical bytes of a request that the compiled reader has left out.

        Raises InvalidEvent if it is wrong. The rows of payments hold no longer.
        """
        message, canonical_body = self._checked(body, now_ms)
        self._rows.write(0, message)
        self._rows.keys_of(message)
        return canonical_body

    def read_right(self, bodies: Sequence[bytes]) -> None:
        """Fill the compiled reader's arrays with requests that are right: usual ones, or as `checked` returns them."""
        fast, count = self._fast, len(bodies)
        assert fast.put(bodies) >= 0, "requests that are right are not too long"
        loop.read_bodies(fast.frame_at, count)
        is_usual = fast.usual(count) if fast.can_read else bytes(count)
        if 0 not in is_usual:
            return
        _, keys, ids = fast.pieces(count)
        for place in (place for place, usual in enumerate(is_usual) if not usual):
            message = parse(bodies[place], self.schema)
            self._rows.write(place, message)
            keys[place * self._entities : (place + 1) * self._entities] = self._rows.keys_of(message)
            ids[place] = message.payment_id.encode()
            fast.note_kept(place, len(kept_of(bodies[place]) if self._has_declared else bodies[place]))
        fast.put_pieces(keys, ids)

    @property
    def fast(self) -> FastRequests:
        """The compiled reader, whose loop is part of the scorer's call (scoring/engine/chunk_call.py)."""
        return self._fast

    def payments_read(self, bodies: Sequence[bytes]) -> CheckedPayments:
        """Returns the payments of bodies whose rows, keys and ids the compiled reader's arrays hold, all of them."""
        _, keys, ids = self._fast.pieces(len(bodies))
        kept = self._fast.kept(bodies) if self._has_declared else bodies
        sent = bodies if self._has_declared else None
        return CheckedPayments(kept, ids, keys, self._rows.attributes[: len(bodies)], sent, self.schema)

    def _read(self, requests: Sequence[bytes], now_ms: int) -> tuple[CheckedPayments, dict[int, InvalidEvent]]:
        """Read at most ROWS_MAX requests."""
        bodies = [*requests]
        is_usual, keys, ids = self._fast.read(bodies, now_ms)
        sent: list[bytes] | None = None
        if self._has_declared:
            sent, bodies = bodies, self._fast.kept(bodies)
        errors: dict[int, InvalidEvent] = {}
        if 0 in is_usual:
            for index in (index for index, usual in enumerate(is_usual) if not usual):
                try:
                    message, body = self._checked(requests[index], now_ms)
                    self._rows.write(index, message)
                except InvalidEvent as error:
                    errors[index] = error
                    continue
                bodies[index] = body
                if sent is not None:
                    sent[index], bodies[index] = body, kept_of(body)
                ids[index] = message.payment_id.encode()
                keys[index * self._entities : (index + 1) * self._entities] = self._rows.keys_of(message)
        payments = CheckedPayments(bodies, ids, keys, self._rows.attributes[: len(bodies)], sent, self.schema)
        if errors:
            payments = payments.chosen([index for index in range(len(bodies)) if index not in errors])
        return payments, errors

    def _checked(self, request: bytes, now_ms: int) -> tuple[ScoreRequest, bytes]:
        """Returns the request and its canonical bytes. Raises InvalidEvent."""
        message = parse(request, self.schema)
        self._rules.check(message, now_ms)
        return message, canonical(message)
