"""Keep a person's search terms out of addresses: card ids, devices, IP addresses, and any free text.

    form ──POST card_id=…──► 303 ──► GET /decisions?action=review&sealed=4kQ…
                                     paging, Back and reload use this address

Addresses stay in a browser's history, in the logs of proxies, and in `Referer`. A personal field is therefore sent in a
form, and the address gets it encrypted. The key is made from the session's cookie, or from a program's token, which
neither the database nor an address has. A sealed value therefore opens in the session that made it, and nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEALED_FIELD = "sealed"
_NONCE_BYTES, _TIME_BYTES = 12, 8
# The length of an address must not tell how long a card's id is.
_PADDED_TO = 64


class SealBroken(Exception):
    """The value was sealed in another session, at another page or too long ago, or is not from this console."""


@dataclass(frozen=True)
class Seal:
    """Seals values for addresses. `secret`: a secret that this browser or program alone has."""

    secret: str = field(repr=False)
    now_ms: int
    keep_ms: int

    def address(self, path: str, values: Mapping[str, str], personal: Collection[str]) -> str:
        """Returns the address of a page with these values. Those in `personal` are sealed, empty ones left out."""
        given = self.parameters(path, values, personal)
        return f"{path}?{urlencode(given)}" if given else path

    def parameters(self, path: str, values: Mapping[str, str], personal: Collection[str]) -> dict[str, str]:
        """Returns the parameters of that address."""
        given = {name: value for name, value in values.items() if value}
        hidden = {name: given.pop(name) for name in personal if name in given}
        if hidden:
            given[SEALED_FIELD] = self._sealed(path, hidden)
        return given

    def opened(self, path: str, text: str) -> dict[str, str]:
        """Returns the values that `address` sealed for this path. Raises SealBroken."""
        from cryptography.exceptions import InvalidTag

        try:
            content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            nonce, cipher = content[:_NONCE_BYTES], content[_NONCE_BYTES:]
            packed = self._cipher().decrypt(nonce, cipher, path.encode())
        except (ValueError, InvalidTag) as error:
            raise SealBroken from error
        age_ms = self.now_ms - int.from_bytes(packed[:_TIME_BYTES], "big")
        if age_ms > self.keep_ms:
            raise SealBroken
        return {str(name): str(value) for name, value in json.loads(packed[_TIME_BYTES:]).items()}

    def _sealed(self, path: str, values: Mapping[str, str]) -> str:
        packed = self.now_ms.to_bytes(_TIME_BYTES, "big") + json.dumps(values, ensure_ascii=False).encode()
        packed += b" " * (-len(packed) % _PADDED_TO)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        content = nonce + self._cipher().encrypt(nonce, packed, path.encode())
        return base64.urlsafe_b64encode(content).decode().rstrip("=")

    def _cipher(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        secret = self.secret.encode("utf-8", "surrogatepass")
        return AESGCM(hashlib.sha256(b"paywarden sealed search\0" + secret).digest())
