"""The routing header, and the order in which a card's payments try several hosts.

    route   HMAC-SHA-256 of the card under the clients' shared key, the first 32 hexadecimal digits
    order   hosts by SHA-256 of "route\\nurl", the largest first (rendezvous hashing)

With rendezvous hashing a card stays where it is when another host comes or goes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

ROUTE_HEADER = "x-paywarden-route"
ROUTE_DIGITS = 32


def route_of(route_key: bytes, card_id: str) -> str:
    """Returns the routing header's value: 32 hexadecimal digits."""
    return hmac.digest(route_key, card_id.encode(), "sha256").hex()[:ROUTE_DIGITS]


def host_order(key: str, urls: Sequence[str]) -> list[int]:
    """Returns the places of the hosts in `urls`, the one to ask first at the front.

    `key` is the card's route, or the card's token in a client without a route key. It stays in this process.
    """
    if len(urls) == 1:
        return [0]
    weights = [hashlib.sha256(f"{key}\n{url}".encode()).digest()[:8] for url in urls]
    return sorted(range(len(urls)), key=lambda place: (weights[place], urls[place]), reverse=True)
