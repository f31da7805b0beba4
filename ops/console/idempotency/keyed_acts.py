"""A program's act that is sent twice acts once: the header Idempotency-Key, on every POST of the API.

    console 1   began K ─────────────────────► act ──► answered K
    console 2            began K (counts not) ► 409               ► the answer of K

1. The life of a key is a row of events on the topic console-events. The first `began` on the topic holds the key, for
   every console and after any restart. A console acts only after it has read its own `began` back as the first one.
2. `answered` has the answer. The same key with the same request gets it again, with another request 422.
3. A refusal did nothing and frees the key: the same request may be sent again.
4. If nobody can say whether the act was done, the key stays taken: it never acts a second time. That is so after a
   failure in the middle of the act, and after a console that was killed in it.
5. A key counts for `KEPT_MS` after its `began`. Then it is as new.

The topic has neither the key nor anything that can be read: the subject is a hash of person and key, the answer is
encrypted with a key made of both. Only a caller that sends the same Idempotency-Key again can read it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from paywarden.ops.console.pages import NothingDone, PageRefused
from paywarden.schemas.errors import InvalidEvent, Misconfigured, PaywardenError, TemporaryFailure
from paywarden.streams.alerts.events import ConsoleEvent

KEY_HEADER = "idempotency-key"
REPLAYED_HEADER = "idempotency-replayed"
KEPT_MS = 86_400_000
"""How long a key counts."""

PREFIX = "key:"
BEGAN, ANSWERED, FREED, UNKNOWN = "key_began", "key_answered", "key_freed", "key_unknown"
# The least that a random key has; a key that can be guessed shows the answer to who reads the topic.
_KEY = re.compile(r"[!#-\[\]-~]{16,200}")
# No act takes this long: a key that is held longer belongs to a console that was killed.
_ACT_MS_MAX = 60_000
# Far below the largest record that Kafka takes.
_ANSWER_BYTES_MAX = 256 * 1024
_NONCE_BYTES = 12
_OTHER_REQUEST = "Idempotency-Key: this key came with another request before. Make a new key for each act."
_IN_PROGRESS = "Idempotency-Key: the request with this key is still being worked on. Send it again in a moment."
_OUTCOME_UNKNOWN = "Idempotency-Key: nobody can say whether that request was done. Look first; a new key does it again."


class KeyEvents(Protocol):
    """The events read from the topic: AlertStore."""

    def events(self, subject: str) -> Iterable[ConsoleEvent]:
        """See AlertStore."""

    def drop_older(self, prefix: str, time_ms: int) -> None:
        """See AlertStore."""


class KeyWriter(Protocol):
    """The writer of events: AlertReader."""

    def write(self, events: list[ConsoleEvent]) -> bool:
        """See AlertReader."""


@dataclass(frozen=True)
class Keyed:
    """A request with a key. `subject` is the same for one person and key, `request` for one request of it."""

    subject: str
    request: str
    secret: bytes


@dataclass(frozen=True)
class Body:
    """The answer of an act: a status and JSON. `is_replayed`: it is the answer of an earlier request."""

    status: int
    content: dict[str, Any]
    is_replayed: bool = False


@dataclass(frozen=True)
class _Held:
    """A key that somebody's `began` holds. `answer`: encrypted, "" without one."""

    began: ConsoleEvent
    answer: str = ""
    is_unknown: bool = False


def key_of(values: list[str]) -> str:
    """Returns the key of a request's headers, "" without one. Raises PageRefused.

    The draft of the IETF wants a text in quotes; most clients send it without.
    """
    if not values:
        return ""
    key = values[0].strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if len(values) > 1 or not _KEY.fullmatch(key):
        raise PageRefused(400, "Idempotency-Key: wanted one random text of 16 to 200 characters, such as a UUID.")
    return key


def keyed(person: str, key: str, request: str) -> Keyed:
    """Returns a request with its key. `request`: a digest of everything in it that may not change."""
    return Keyed(PREFIX + _digest("subject", person, key).hex(), request, _digest("answer", person, key))


class KeyedActs:
    """The acts that were done with an idempotency key. Thread-safe."""

    def __init__(self, events: KeyEvents, writer: KeyWriter) -> None:
        self._events, self._writer = events, writer

    def answer(self, sent: Keyed, by: str, act: Callable[[], Body], now_ms: int) -> Body:
        """Returns the answer of `act`, or that of the same request before.

        Raises PageRefused for a key that is taken, NothingDone, and the errors of `act`.
        """
        if (known := self._known(sent, now_ms)) is not None:
            return known
        self._events.drop_older(PREFIX, now_ms - KEPT_MS)
        began = ConsoleEvent(sent.subject, BEGAN, by, now_ms, {"request": sent.request})
        if not self._began(began):
            raise NothingDone("Nothing was done: the key was not read back from its topic in time. Send it again")
        if (known := self._known(sent, now_ms, began)) is not None:
            return known
        try:
            body = act()
        except (PageRefused, InvalidEvent, Misconfigured, NothingDone):
            self._tell(began, FREED)
            raise
        except BaseException:
            self._tell(began, UNKNOWN)
            raise
        self._tell(began, ANSWERED, answer=_sealed(body, sent.secret))
        return body

    def _known(self, sent: Keyed, now_ms: int, own: ConsoleEvent | None = None) -> Body | None:
        """Returns the answer that a key has; None if the key is free, or `own` holds it. Raises PageRefused."""
        held = _held(self._events.events(sent.subject))
        if held is None or now_ms - held.began.time_ms >= KEPT_MS:
            return None
        if own is not None and held.began.event_id == own.event_id:
            return None
        if held.began.what.get("request") != sent.request:
            raise PageRefused(422, _OTHER_REQUEST)
        body = _opened(held.answer, sent.secret)
        if body is not None:
            return body
        if held.answer or held.is_unknown or now_ms - held.began.time_ms > _ACT_MS_MAX:
            raise PageRefused(409, _OUTCOME_UNKNOWN)
        raise PageRefused(409, _IN_PROGRESS)

    def _began(self, began: ConsoleEvent) -> bool:
        """Write `began`; returns whether it has been read back. Raises NothingDone."""
        try:
            is_seen = self._writer.write([began])
        except NothingDone:
            raise
        except TemporaryFailure as error:
            self._tell(began, FREED)
            raise NothingDone(f"Nothing was done, because the key cannot be kept: {error}") from error
        if not is_seen:
            self._tell(began, FREED)
        return is_seen

    def _tell(self, began: ConsoleEvent, kind: str, **what: str) -> None:
        """Write how it ended. If that fails, the key stays taken, which never does anything twice."""
        with suppress(PaywardenError):
            self._writer.write([replace(began, kind=kind, what={"of": began.event_id, **what}, event_id=_new_id())])


def _held(events: Iterable[ConsoleEvent]) -> _Held | None:
    """Returns who holds a key, by its events in the order of the topic."""
    held: _Held | None = None
    freed = set[str]()
    for event in events:
        if event.kind == BEGAN:
            if event.event_id not in freed and (held is None or event.time_ms - held.began.time_ms >= KEPT_MS):
                held = _Held(event)
        elif held is not None and event.what.get("of") == held.began.event_id:
            if event.kind == FREED:
                held = None
            else:
                is_unknown = held.is_unknown or event.kind == UNKNOWN
                held = replace(held, answer=event.what.get("answer", held.answer), is_unknown=is_unknown)
        elif event.kind == FREED:
            # It may stand before its `began` if two tries of the producer changed places.
            freed.add(event.what.get("of", ""))
    return held


def _sealed(body: Body, secret: bytes) -> str:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    packed = zlib.compress(json.dumps([body.status, body.content]).encode())
    if len(packed) > _ANSWER_BYTES_MAX:
        packed = zlib.compress(
            json.dumps([body.status, {"message": "Done. The answer was too long to keep."}]).encode()
        )
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return base64.b64encode(nonce + AESGCM(secret).encrypt(nonce, packed, None)).decode()


def _opened(sealed: str, secret: bytes) -> Body | None:
    """Returns a kept answer; None if there is none, or none that we have written."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if not sealed:
        return None
    try:
        content = base64.b64decode(sealed)
        packed = AESGCM(secret).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], None)
    except (ValueError, InvalidTag):
        return None
    status, answer = json.loads(zlib.decompress(packed))
    return Body(status, answer, is_replayed=True)


def _digest(*parts: str) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.digest()


def _new_id() -> str:
    return secrets.token_hex(16)
