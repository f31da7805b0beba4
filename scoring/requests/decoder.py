"""Requests as they were sent in, payments that can be decided out, and why the rest cannot.

Requests are read together by a compiled loop (scoring/requests/fast_requests.py). What it does not take is parsed,
checked and
coded one by one here: nothing but time depends on which way a request goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from paywarden.features.profiles.money import RateTable
from paywarden.features.profiles.plan import Plan
from paywarden.schemas.errors import InvalidEvent
from paywarden.scoring.requests import wire
from paywarden.scoring.requests.fast_requests import ROWS_MAX, FastRequests
from paywarden.scoring.requests.payments import CheckedPayments, joined
from paywarden.scoring.requests.request_rows import RequestRows
from paywarden.scoring.requests.wire import RequestLimits, RequestRules


class RequestDecoder:
    """Reads requests for one scorer. Not thread-safe."""

    def __init__(self, plan: Plan, rates: RateTable, limits: RequestLimits) -> None:
        self.limits = limits
        """Those that a request is held against."""
        self._rules = RequestRules(limits, rates.currencies)
        self._entities = plan.entity_count
        self._rows = RequestRows(plan, rates, ROWS_MAX)
        self._fast = FastRequests(plan, rates, limits, self._rows.attributes)

    def read(self, bodies: Sequence[bytes], now_ms: int) -> tuple[CheckedPayments, dict[int, InvalidEvent]]:
        """Those of the serialised requests that can be decided, and why each of the others cannot, by its place.

        The payments' rows hold until the next call.
        """
        if len(bodies) <= ROWS_MAX:
            return self._read(bodies, now_ms)
        parts: list[CheckedPayments] = []
        wrong: dict[int, InvalidEvent] = {}
        for first in range(0, len(bodies), ROWS_MAX):
            part, found = self._read(bodies[first : first + ROWS_MAX], now_ms)
            part.rows = part.rows.copy()
            parts.append(part)
            wrong |= {first + place: error for place, error in found.items()}
        return joined(parts), wrong

    def _read(self, bodies: Sequence[bytes], now_ms: int) -> tuple[CheckedPayments, dict[int, InvalidEvent]]:
        """Of ROWS_MAX at most."""
        is_usual, keys, ids = self._fast.read(bodies, now_ms)
        wrong: dict[int, InvalidEvent] = {}
        if 0 in is_usual:
            for place in (place for place, usual in enumerate(is_usual) if not usual):
                try:
                    request = wire.parse(bodies[place])
                    self._rules.check(request, now_ms)
                    self._rows.write(place, request)
                except InvalidEvent as error:
                    wrong[place] = error
                    continue
                ids[place] = request.payment_id.encode()
                keys[place * self._entities : (place + 1) * self._entities] = self._rows.keys_of(request)
        payments = CheckedPayments(bodies, ids, keys, self._rows.attributes[: len(bodies)])
        if wrong:
            payments = payments.chosen([place for place in range(len(bodies)) if place not in wrong])
        return payments, wrong
