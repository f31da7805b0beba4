"""Names of callers: a decision records which caller asked for it.

    a token's line      checkout:Zk3nD0e8Qw7xT5bR              → checkout
    a certificate       CN=checkout, or SAN DNS:checkout.bank  → checkout, or checkout.bank
    neither                                                    → the empty name

A name is bytes of UTF-8, at most NAME_BYTES_MAX. It is in decisions, outboxes, logs and metrics, so it holds no control
character, and it is never a secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

NAME_BYTES_MAX = 128
# How much of a longer name stays before the hash that tells it from others.
_KEPT_BYTES = 100
# The kinds of subject alternative names, the preferred first.
_SAN_KINDS = ("DNS", "URI", "email", "IP Address")


def is_name(text: str) -> bool:
    """Whether a text may be a caller's name as it is."""
    return bool(text) and text.isprintable() and len(text.encode()) <= NAME_BYTES_MAX


def name_of_certificate(certificate: Mapping[str, Any] | None) -> bytes:
    """Returns the name of a checked client certificate, as `ssl.SSLSocket.getpeercert` gives it; empty without one.

    It is the common name of the subject, or else the first alternative name. A certificate without any is named after
    its serial number.
    """
    if not certificate:
        return b""
    for text in _names(certificate):
        if text.strip():
            return _as_name(text.strip())
    return _as_name(f"certificate-{certificate.get('serialNumber', 'unnamed')}")


def _names(certificate: Mapping[str, Any]) -> Iterable[str]:
    for part in certificate.get("subject", ()):
        yield from (str(value) for key, value in part if key == "commonName")
    alternatives = certificate.get("subjectAltName", ())
    for kind in _SAN_KINDS:
        yield from (str(value) for found, value in alternatives if found == kind)


def _as_name(text: str) -> bytes:
    """Returns a text as a name: other characters become "?", and a hash replaces the end of a long one."""
    name = "".join(character if character.isprintable() else "?" for character in text).encode("utf-8", "replace")
    if len(name) <= NAME_BYTES_MAX:
        return name
    kept = name[:_KEPT_BYTES].decode("utf-8", "ignore").encode()
    return kept + b"~" + hashlib.sha256(name).hexdigest()[:16].encode()
