"""A request that is sent twice acts once: a form by its hidden token, a program's POST by its Idempotency-Key.

    <input type="hidden" name="once" value="{{ once() }}">       in each form that makes something
    Idempotency-Key: 8e03978e-40d5-43dd-bc93-6894a57f9324        in a program's request

1. Before the act, its key goes into the console's database. Whoever put it there acts.
2. The same request meanwhile waits for the first one; later it gets the first one's answer, also after a restart.
3. A refusal did nothing and frees the key: the same request may be sent again.
4. If nobody can say whether the act was done, the key stays taken: after a failure in the middle of the act, and after
   a console that was killed in it.
5. A key counts for `KEPT_MS`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from paywarden.ops.console.database import ConsoleDatabase, DatabaseUnavailable
from paywarden.ops.console.page_rows import Answer, Done, NothingDone, PageRefused, Upload
from paywarden.ops.console.rendering import as_json
from paywarden.schemas.errors import InvalidEvent, Misconfigured

ONCE_FIELD = "once"
KEY_HEADER, REPLAYED_HEADER = "idempotency-key", "idempotency-replayed"
KEPT_MS = 86_400_000
TABLES = (
    "CREATE TABLE IF NOT EXISTS requests (key TEXT PRIMARY KEY, request TEXT NOT NULL, began_ms INTEGER NOT NULL, "
    "answer TEXT)",
)
_KEY = re.compile(r"[!#-\[\]-~]{16,200}")
# A secret is not kept, not even as a digest.
_SECRET_FIELDS = ("passphrase", "password")
_OTHER_REQUEST = "Idempotency-Key: this key came with another request before. Make a new key for each act."
_OUTCOME_UNKNOWN = "Nobody can say whether this request was done before. Look first; a new form or key does it again."


@dataclass(frozen=True)
class Sending:
    """The key of a request, and the digest of everything in it that may not change."""

    key: str
    request: str


def key_of(values: list[str]) -> str:
    """Return the key of a request's headers, "" without one. Raises PageRefused.

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


def digest_of(*parts: str, pairs: Iterable[tuple[str, str]] = (), uploads: Mapping[str, Upload] | None = None) -> str:
    """Return a digest of texts, fields and files. Each part has its length before it."""
    texts = list(parts)
    for name, value in sorted(pair for pair in pairs if pair[0] not in _SECRET_FIELDS):
        texts += [name, value]
    for name, upload in sorted((uploads or {}).items()):
        texts += [name, upload.name, hashlib.sha256(upload.content).hexdigest()]
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


class Idempotency:
    """The requests that were sent, and their answers. Thread-safe."""

    def __init__(self, database: ConsoleDatabase) -> None:
        self._database, self._lock = database, threading.Lock()
        self._under_way: dict[str, threading.Event] = {}

    def answer(self, sending: Sending, act: Callable[[], Answer], now_ms: int) -> tuple[Answer, bool]:
        """Return the answer of `act`, or that of the same request before and True.

        Raises PageRefused for a key that is taken, DatabaseUnavailable, and the errors of `act`.
        """
        ended = threading.Event()
        while (first := self._first(sending.key, ended)) is not ended:
            first.wait()
        try:
            if (known := self._begin(sending, now_ms)) is not None:
                return known, True
            return self._acted(sending.key, act), False
        finally:
            with self._lock:
                del self._under_way[sending.key]
            ended.set()

    def _first(self, key: str, ended: threading.Event) -> threading.Event:
        """Return when the request that is under way ends; `ended` if it is this one."""
        with self._lock:
            return self._under_way.setdefault(key, ended)

    def _begin(self, sending: Sending, now_ms: int) -> Done | None:
        """Take the key, or return the answer that it has. Raises PageRefused."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM requests WHERE began_ms <= ?", (now_ms - KEPT_MS,))
            taken = connection.execute(
                "INSERT OR IGNORE INTO requests VALUES (?, ?, ?, NULL)", (sending.key, sending.request, now_ms)
            )
            if taken.rowcount:
                return None
            row = connection.execute("SELECT request, answer FROM requests WHERE key = ?", (sending.key,)).fetchone()
        if row["request"] != sending.request:
            raise PageRefused(422, _OTHER_REQUEST)
        if row["answer"] is None:
            raise PageRefused(409, _OUTCOME_UNKNOWN)
        return Done(*json.loads(row["answer"]))

    def _acted(self, key: str, act: Callable[[], Answer]) -> Answer:
        try:
            answer = act()
        except (PageRefused, InvalidEvent, Misconfigured, NothingDone):
            self._put("DELETE FROM requests WHERE key = ?", key)
            raise
        if isinstance(answer, Done):
            kept = json.dumps([answer.location, answer.message, as_json(answer.view)])
            self._put("UPDATE requests SET answer = ? WHERE key = ?", kept, key)
        else:
            self._put("DELETE FROM requests WHERE key = ?", key)
        return answer

    def _put(self, statement: str, *values: str) -> None:
        # It is done, whether that can be kept or not. Without the answer, the key stays taken.
        with suppress(DatabaseUnavailable), self._database.write() as connection:
            connection.execute(statement, values)
