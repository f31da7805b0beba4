"""Reads requests for one scorer, and says what is wrong with each that cannot be scored.

    requests ─ compiled reader, a chunk at once ─► rows, keys, ids
                  └─ unusual ─► protobuf parser, RequestRules ─ right ─► compiled reader once more
                                                              └─ wrong ─► InvalidEvent

1. The compiled loop (scoring/requests/fast_requests.py) reads a chunk of requests from their protobuf bytes. A JSON
   request comes as such bytes, too.
2. It leaves out an unusual request, such as one with a name in UTF-8 or a wrong value. `checked` parses and checks it.
3. `read_right` lets the loop read requests that are right. Python only completes what the loop cannot make: a key that
   is too long, and the network of an address such as ::ffff:192.0.2.7.
4. The body that goes on to the outbox holds only fields that were understood. A usual body holds nothing else. An
   unusual one is written again from its parsed message, without unknown fields. Otherwise a caller could put bytes into
   the outbox that its reader cannot parse.

With fields of a project the body for the outbox ends where these begin: no declared field is kept (schema.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paywarden.features.catalogue.attributes import declared_column
from paywarden.features.profiles.keys import key_maker
from paywarden.features.profiles.money import RateTable
from paywarden.features.profiles.plan import Plan
from paywarden.scoring.requests import request_bytes as loop
from paywarden.scoring.requests.fast_requests import ROWS_MAX, FastRequests
from paywarden.scoring.requests.payments import CheckedPayments
from paywarden.scoring.requests.protobuf_form import canonical, parse
from paywarden.scoring.requests.schema import RequestSchema
from paywarden.scoring.requests.validation import RequestLimits, RequestRules


class RequestDecoder:
    """Reads requests for one scorer. Not thread-safe."""

    def __init__(self, plan: Plan, rates: RateTable, limits: RequestLimits) -> None:
        self.limits = limits
        """The limits that every request is checked against."""
        self.schema = RequestSchema(plan.fields, ignores_unknown=limits.unknown_fields == "ignore")
        """The fields that every request may have."""
        self._rules = RequestRules(limits, self.schema)
        self._plan = plan
        self._rows = np.zeros((ROWS_MAX, plan.row_width), dtype=np.int64)
        self.fast = FastRequests(plan, rates, limits, self._rows)
        """The compiled reader, whose loop is part of the scorer's call (scoring/engine/chunk_call.py)."""
        self._key_makers = [
            key_maker(name, fields, plan.fields, plan.key)
            for name, fields in zip(plan.entity_names, plan.entity_keys, strict=True)
        ]

    def checked(self, body: bytes, now_ms: int) -> bytes:
        """Returns the canonical bytes of a request that the compiled reader has left out.

        Raises InvalidEvent if it is wrong.
        """
        message = parse(body, self.schema)
        self._rules.check(message, now_ms)
        return canonical(message)

    def read_right(self, bodies: Sequence[bytes]) -> None:
        """Fill the compiled reader's arrays with requests that are right: usual ones, or as `checked` returns them."""
        fast, count = self.fast, len(bodies)
        fast.note_checked(count, are_checked=True)
        is_put = fast.put(bodies) >= 0
        assert is_put, "requests that are right are not too long"
        loop.read_bodies(fast.frame_at, count)
        fast.note_checked(count, are_checked=False)
        is_usual = fast.usual(count)
        assert loop.UNUSUAL not in is_usual, "every request that is right can be read"
        if loop.INCOMPLETE in is_usual:
            self._complete([place for place, usual in enumerate(is_usual) if usual == loop.INCOMPLETE], bodies)

    def _complete(self, places: Sequence[int], bodies: Sequence[bytes]) -> None:
        """Fill the columns of derived fields, and the keys, of requests of which the loop could not make all."""
        plan, fast, entities = self._plan, self.fast, self._plan.entity_count
        _, keys, ids = fast.pieces(len(bodies))
        for place in places:
            values = self.schema.values(parse(bodies[place], self.schema))
            for derived in plan.fields.derived:
                source, column = values.get(derived.of), declared_column(derived.number)
                if text := derived.value_of(source) if source else "":
                    self._rows[place, column : column + 2] = 1, plan.key.of(text)
            keys[place * entities : (place + 1) * entities] = [make(values) for make in self._key_makers]
        fast.put_pieces(keys, ids)

    def payments_read(self, bodies: Sequence[bytes]) -> CheckedPayments:
        """Returns the payments of bodies whose rows, keys and ids the compiled reader's arrays hold, all of them."""
        _, keys, ids = self.fast.pieces(len(bodies))
        return CheckedPayments(self.fast.kept(bodies), ids, keys, self._rows[: len(bodies)])
