"""Entries of the registry's log: what happened, by whom, why and when; each signed, each naming the one before.

    {"by":"anna","key":"91b2…","kind":"approved","previous":"7c1e…","registry":"paywarden","signature":"mG0…",
     "time_ms":1760000000000,"what":{"proposal":"0f33…"},"why":"backtest of September read"}

1. An entry is one line of JSON with sorted keys and no spaces. Its bytes are *canonical*: the same entry has one form
   only, and a line in any other form is damage.
2. `signature` is the Ed25519 signature of everything else in the line.
3. The digest of an entry is the sha256 of its line. `previous` is the digest of the line before, 64 zeros in the first.
   A line that is changed, removed or moved therefore no longer fits the one behind it.
4. `registry` is the registry's name, so that an entry of a test system never fits the one of production.

An entry is somebody's claim. Each reader decides whether it counts (models/registry/rules.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from paywarden.models.bundle.signature import fingerprint
from paywarden.schemas.errors import RegistryRefused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

# The types of values in an entry. No fractions: other languages write them otherwise, and the bytes must be the same.
Value: TypeAlias = str | int | bool | list[str] | dict[str, str] | None

REGISTERED_BUNDLE: Final = "registered_bundle"
REGISTERED_POLICY: Final = "registered_policy"
PROPOSED: Final = "proposed"
APPROVED: Final = "approved"
PROMOTED: Final = "promoted"
ROLLED_BACK: Final = "rolled_back"
ROLLOUT_STARTED: Final = "rollout_started"
ROLLOUT_STEP: Final = "rollout_step"
ROLLOUT_VERDICT: Final = "rollout_verdict"
ROLLOUT_PAUSED: Final = "rollout_paused"
ROLLOUT_RESUMED: Final = "rollout_resumed"
ROLLOUT_ABORTED: Final = "rollout_aborted"
KEY_REVOKED: Final = "key_revoked"
CLOCK_SET: Final = "clock_set"
KINDS: Final = (
    REGISTERED_BUNDLE, REGISTERED_POLICY, PROPOSED, APPROVED, PROMOTED, ROLLED_BACK, ROLLOUT_STARTED, ROLLOUT_STEP,
    ROLLOUT_VERDICT, ROLLOUT_PAUSED, ROLLOUT_RESUMED, ROLLOUT_ABORTED, KEY_REVOKED, CLOCK_SET,
)  # fmt: skip
"""The kinds of entries: events in the life of a model."""

LATE_KINDS: Final = (ROLLED_BACK, ROLLOUT_VERDICT, ROLLOUT_ABORTED, KEY_REVOKED)
"""Entries that take something back. They do not wait for other hosts, and count behind any entry, at any time."""

FIRST: Final = "0" * 64
"""The digest that the first entry names as the one before."""

WHY_BYTES_MAX: Final = 1_000
NAME_BYTES_MAX: Final = 64
# A bundle of a cascade with libraries for five processors has twenty files: four kilobytes.
LINE_BYTES_MAX: Final = 65_536

_PURPOSE = b"paywarden model registry\n"
# Keys and lines whose signatures were right: a log is read many times, and its lines do not change.
_verified: set[tuple[bytes, str]] = set()
_VERIFIED_MAX = 200_000
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_KEYS = {"by", "key", "kind", "previous", "registry", "signature", "time_ms", "what", "why"}
# The year 9999. A time beyond it cannot be shown.
_TIME_MS_MAX = 253_402_300_799_999


@dataclass(frozen=True)
class Entry:
    """One entry. `key` is the fingerprint of the signer's key, `time_ms` epoch milliseconds UTC."""

    registry: str
    previous: str
    time_ms: int
    kind: str
    by: str
    key: str
    why: str
    what: Mapping[str, Value]
    signature: bytes

    @cached_property
    def line(self) -> bytes:
        """The canonical bytes, without the end of the line."""
        return _canonical({**self._content(), "signature": base64.b64encode(self.signature).decode()})

    @cached_property
    def digest(self) -> str:
        """The sha256 of the line: how others name this entry."""
        return digest_of(self.line)

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        """Returns whether the signature is that of this key. Each line is verified once, and remembered."""
        from cryptography.exceptions import InvalidSignature

        known = (key.public_bytes_raw(), self.digest)
        if known in _verified:
            return True
        try:
            key.verify(self.signature, _PURPOSE + _canonical(self._content()))
        except InvalidSignature:
            return False
        if len(_verified) >= _VERIFIED_MAX:
            _verified.clear()
        _verified.add(known)
        return True

    def text(self, name: str) -> str:
        """Returns the text of this name in `what`; an empty one if there is none."""
        value = self.what.get(name)
        return value if isinstance(value, str) else ""

    def _content(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "key": self.key,
            "kind": self.kind,
            "previous": self.previous,
            "registry": self.registry,
            "time_ms": self.time_ms,
            "what": dict(self.what),
            "why": self.why,
        }


def signed_entry(
    key: Ed25519PrivateKey,
    *,
    registry: str,
    previous: str,
    time_ms: int,
    kind: str,
    by: str,
    why: str,
    what: Mapping[str, Value],
) -> Entry:
    """Returns an entry with its signature. Raises RegistryRefused naming the part that no entry can have."""
    content: dict[str, Any] = {
        "by": by,
        "key": fingerprint(key.public_key()),
        "kind": kind,
        "previous": previous,
        "registry": registry,
        "time_ms": time_ms,
        "what": dict(what),
        "why": why,
    }
    if kind not in KINDS:
        raise RegistryRefused(f"kind: wanted one of {', '.join(KINDS)}, got {kind!r}")
    if problem := _problem(content):
        raise RegistryRefused(problem)
    entry = Entry(signature=key.sign(_PURPOSE + _canonical(content)), **content)
    if len(entry.line) > LINE_BYTES_MAX:
        raise RegistryRefused(f"an entry has at most {LINE_BYTES_MAX} bytes, this one has {len(entry.line)}")
    return entry


def entry_of(line: bytes) -> Entry:
    """Returns the entry of a line. Raises ValueError saying what is wrong; the signature is not checked.

    A kind of a later release is accepted here: the chain goes on, and the rules ignore the entry.
    """
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"it has {len(line)} bytes, an entry has at most {LINE_BYTES_MAX}")
    try:
        content = json.loads(line)
        signature = base64.b64decode(content.pop("signature"), validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise ValueError("it is no entry in JSON") from error
    if {*content, "signature"} != _KEYS:
        raise ValueError("it lacks fields of an entry, or has unknown ones")
    if problem := _problem(content):
        raise ValueError(problem)
    entry = Entry(signature=signature, **content)
    if entry.line != line:
        raise ValueError("it is not in the canonical form")
    return entry


def digest_of(line: bytes) -> str:
    """Returns the digest of an entry's line, 64 hex digits."""
    return hashlib.sha256(line).hexdigest()


def is_digest(text: object) -> bool:
    """Returns whether a value is a sha256 in 64 hex digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def is_name(text: object) -> bool:
    """Returns whether a person or registry may have this name: letters, digits and . _ @ -, at most 64."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def _problem(content: Mapping[str, Any]) -> str:
    """Returns what is wrong with the fields of an entry; empty if nothing is."""
    for name in ("by", "registry"):
        if not is_name(content[name]):
            return f"{name}: wanted a name of letters, digits and . _ @ -, at most {NAME_BYTES_MAX}"
    for name, length in (("kind", NAME_BYTES_MAX), ("key", NAME_BYTES_MAX), ("why", WHY_BYTES_MAX)):
        value = content[name]
        if not isinstance(value, str) or not value.strip() or not value.isprintable() or _size(value) > length:
            return f"{name}: wanted printable text of 1 to {length} bytes"
    if not is_digest(content["previous"]):
        return "previous: wanted 64 hex digits"
    if type(content["time_ms"]) is not int or not 0 <= content["time_ms"] <= _TIME_MS_MAX:
        return "time_ms: wanted epoch milliseconds"
    what = content["what"]
    if not isinstance(what, dict) or not all(_is_value(name) and _is_value(what[name]) for name in what):
        return "what: wanted texts, whole numbers, true, false, null, and lists or tables of texts"
    return ""


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) and _size(item) >= 0 for item in value)
    if isinstance(value, dict):
        return all(isinstance(part, str) and _size(part) >= 0 for pair in value.items() for part in pair)
    if isinstance(value, str):
        return _size(value) >= 0
    return value is None or type(value) is bool or (type(value) is int and -(2**63) <= value < 2**63)


def _size(text: str) -> int:
    """Returns the bytes of a text; -1 if it is no Unicode (a lone surrogate, which JSON can hold)."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
