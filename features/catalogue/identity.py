"""The key of a deployment. It turns texts into identities, which profiles remember and count.

    card c-17 paid at m-1, key A      its memory of merchants holds 5410…2213
    card c-17 paid at m-1, key B                                    7306…0018

An attacker who knows a hash without a key can make a thousand device ids that look alike, and they would count as one
device. The key is a secret of the deployment. Stream, scoring, training and replay must have the same one: otherwise no
process knows again what another one remembers; `digest` tells keys apart without revealing them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from paywarden.features import kernel
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.key_files import read_hex_key

KEY_BYTES = 16


@dataclass(frozen=True)
class IdentityKey:
    """A key of SipHash-2-4, as two int64. Its repr and its digest do not reveal it."""

    low: int = field(repr=False)
    high: int = field(repr=False)

    @classmethod
    def of_bytes(cls, key: bytes) -> IdentityKey:
        """Returns the key of KEY_BYTES bytes."""
        assert len(key) == KEY_BYTES
        return cls(*(int.from_bytes(half, "little", signed=True) for half in (key[:8], key[8:])))

    @property
    def digest(self) -> str:
        """16 hex digits that differ for different keys, and from which no key can be found."""
        halves = b"".join(half.to_bytes(8, "little", signed=True) for half in (self.low, self.high))
        return hashlib.sha256(b"paywarden identity key" + halves).hexdigest()[:16]

    def of(self, text: str) -> int:
        """Returns the identity of a text: 62 bits of its hash, and kernel.IDENTITY_BIT."""
        data = text.encode()
        return int(kernel.identity_of_text(np.frombuffer(data, np.uint8), 0, len(data), self.low, self.high))

    def of_all(self, texts: list[str]) -> list[int]:
        """Returns the identity of each text."""
        encoded = [text.encode() for text in texts]
        data = np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8)
        ends, found = np.cumsum(list(map(len, encoded)), dtype=np.int64), np.zeros(len(texts), dtype=np.int64)
        kernel.identities_of_texts(data, ends, self.low, self.high, found)
        return found.tolist()


# Public, since it stands here: for laptops, tests and the demo. A deployment sets [features] identity_key_file.
LAPTOP_KEY = IdentityKey.of_bytes(b"paywarden-laptop")


def read_key(path: str) -> IdentityKey:
    """Returns the key in a file of 32 hex digits. Raises Misconfigured, without a word of the content."""
    key = read_hex_key("identity_key_file", path)
    if len(key) != KEY_BYTES:
        raise Misconfigured(f"identity_key_file: {path} must hold {2 * KEY_BYTES} hex digits (openssl rand -hex 16)")
    return IdentityKey.of_bytes(key)
