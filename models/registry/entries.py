"""Entries of the registry's log: what happened, by whom, why and when.

    {"by":"anna","key":"91b2…","kind":"approved","previous":"7c1e…","registry":"paywarden","signature":"mG0…",
     "time_ms":1760000000000,"what":{"proposal":"0f33…"},"why":"backtest of September read"}

An entry is a signed line that names the one before it (schemas/signed_lines.py). `registry` is the registry's name, so
that an entry of a test system never fits the one of production.

An entry is somebody's claim. Each reader decides whether it counts (models/registry/registry_rules.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from paywarden.models.bundle.signature import fingerprint
from paywarden.schemas.errors import RegistryRefused
from paywarden.schemas.signed_lines import LineForm, SignedLine, is_digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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

WHY_BYTES_MAX: Final = 1_000
NAME_BYTES_MAX: Final = 64
# A bundle of a cascade with libraries for five processors has twenty files: four kilobytes.
LINE_BYTES_MAX: Final = 65_536

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
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
    signed: SignedLine

    @property
    def line(self) -> bytes:
        """The canonical bytes, without the end of the line."""
        return self.signed.line

    @property
    def digest(self) -> str:
        """The sha256 of the line: how others name this entry."""
        return self.signed.digest

    def text(self, name: str) -> str:
        """Returns the text of this name in `what`; an empty one if there is none."""
        value = self.what.get(name)
        return value if isinstance(value, str) else ""


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
    try:
        return entry_of(FORM.sign(key, content))
    except ValueError as error:
        raise RegistryRefused(str(error)) from error


def entry_of(line: SignedLine) -> Entry:
    """Returns the entry of a line in FORM.

    A kind of a later release is accepted here: the chain goes on, and the rules ignore the entry.
    """
    return Entry(signed=line, **line.content)


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
        if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value.encode()) > length:
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
        return all(isinstance(item, str) for item in value)
    if isinstance(value, dict):
        return all(isinstance(part, str) for pair in value.items() for part in pair)
    return value is None or isinstance(value, str | bool) or (type(value) is int and -(2**63) <= value < 2**63)


FORM: Final = LineForm(
    b"paywarden model registry\n",
    frozenset({"by", "key", "kind", "previous", "registry", "time_ms", "what", "why"}),
    LINE_BYTES_MAX,
    _problem,
)
"""The form of the log's lines."""
