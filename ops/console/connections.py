"""Keep the console's connections: one address without a login cannot keep others out.

    address A   100 connections without a login ─► the oldest that waits for A gives way to A's next one
    all         200 connections                 ─► the oldest without a login that waits for its client gives way
    anna        50 connections with a login     ─► her further ones count as connections without

A connection is *proven* when a request with a session or a token came on it. It gives way to no other. One whose
request has come whole and is being answered does not either: a person behind the same NAT as a flood has an answer if
their request comes before a hundred newer connections do.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from paywarden.ops.console.limits import network_of
from paywarden.schemas.rare_line import RareLine

_log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 200
ADDRESS_MAX: Final = CONNECTIONS_MAX // 2
"""Connections without a login that one address has, or one /64 of IPv6. A reverse proxy has one address for all."""

PERSON_MAX: Final = CONNECTIONS_MAX // 4
PROVE: Final = "prove"
"""The name of a function in the state of each request: it takes the name of the person who has sent the request."""


class Held(Protocol):
    """A connection that can give way."""

    @property
    def waits_for_client(self) -> bool:
        """Whether the client has to send something before the console can go on."""

    def give_way(self) -> None:
        """Close at once."""


class Connections:
    """The open connections. For the thread of the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The network of each connection without a login, the oldest first, and the person of each other one.
        self._unproven: dict[Held, str] = {}
        self._proven: dict[Held, str] = {}
        self._line = RareLine()

    def admit(self, connection: Held, address: str) -> bool:
        """Register a connection until `forget`; another may give way to it. Returns False if it is refused."""
        network = network_of(address)
        own = [one for one, theirs in self._unproven.items() if theirs == network]
        is_full = len(self._unproven) + len(self._proven) >= CONNECTIONS_MAX
        if len(own) >= ADDRESS_MAX or is_full:
            rivals = own if len(own) >= ADDRESS_MAX else list(self._unproven)
            oldest = next((one for one in rivals if one.waits_for_client), None)
            if count := self._line.due(self._clock()):
                _log.warning(
                    "the console has too many connections without a login: since the last such line %d gave way or "
                    "were refused, now for one from %s",
                    count,
                    address,
                )
            if oldest is None:
                return False
            self.forget(oldest)
            oldest.give_way()
        self._unproven[connection] = network
        return True

    def prove(self, connection: Held, person: str) -> None:
        """Note that a person, or a program with a token, has sent a request on a connection."""
        if connection in self._unproven and Counter(self._proven.values())[person] < PERSON_MAX:
            del self._unproven[connection]
            self._proven[connection] = person

    def forget(self, connection: Held) -> None:
        """Remove a connection that has ended."""
        self._unproven.pop(connection, None)
        self._proven.pop(connection, None)
