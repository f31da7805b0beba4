"""Keep a person's search terms out of addresses: card ids, devices, IP addresses, and any free text.

    form ──POST card_id=…──► 303 ──► GET /decisions?action=review&search=4f1c…
                                     paging, Back and reload use this address

Addresses stay in a browser's history, in the logs of proxies, and in `Referer`. A personal field is therefore sent in a
form. The console remembers it for its session or token until it restarts, and the address gets a name of it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from collections.abc import Mapping

SEARCH_FIELD = "search"
_KEPT_MAX = 20_000


class Searches:
    """The personal fields of searches, by name. Thread-safe."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._kept: OrderedDict[str, tuple[str, str, dict[str, str]]] = OrderedDict()

    def keep(self, owner: str, path: str, values: Mapping[str, str]) -> str:
        """Return the name of a page's fields for a session or a token, the same name for the same fields."""
        content = json.dumps([owner, path, sorted(values.items())]).encode()
        name = hmac.new(self._secret, content, hashlib.sha256).hexdigest()[:32]
        self._kept[name] = owner, path, dict(values)
        while len(self._kept) > _KEPT_MAX:
            self._kept.popitem(last=False)
        return name

    def find(self, owner: str, path: str, name: str) -> dict[str, str] | None:
        """Return the fields of this name; None for another session's, another page's, or forgotten ones."""
        kept = self._kept.get(name)
        return kept[2] if kept is not None and kept[:2] == (owner, path) else None
