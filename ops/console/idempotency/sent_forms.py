"""A form that is sent twice acts once, with and without JavaScript.

    <input type="hidden" name="once" value="{{ once() }}">       in each form that makes something

1. Each form of each page has a token of its own: an idempotency key.
2. The digest of session, address, token and fields says which sending it is. A form that was filled in again, on a page
   that a browser had kept, is another sending.
3. The first sending acts. The same one that comes meanwhile waits for it.
4. The target and message of the first answer are kept as long as a session may last. The second sending gets them.
5. A refusal is not kept: the same form may be sent again.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from paywarden.ops.console.database import ConsoleDatabase, DatabaseUnavailable
from paywarden.ops.console.pages import Answer, Done, Upload

ONCE_FIELD = "once"
TABLES = (
    "CREATE TABLE IF NOT EXISTS sent_forms (digest TEXT PRIMARY KEY, location TEXT NOT NULL, message TEXT NOT NULL, "
    "time_ms INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS sent_forms_by_time ON sent_forms (time_ms)",
)
# A secret is not kept, not even as a digest.
_SECRET_FIELDS = ("passphrase",)


def new_token() -> str:
    """Returns the token of a form."""
    return secrets.token_urlsafe(16)


def digest_of(session: str, path: str, pairs: Iterable[tuple[str, str]], uploads: Mapping[str, Upload]) -> str:
    """Returns which sending a form is. `pairs`: its fields, the token among them; `session`: the session's digest."""
    digest = hashlib.sha256()
    parts = [session, path]
    for name, value in sorted(pair for pair in pairs if pair[0] not in _SECRET_FIELDS):
        parts += [name, value]
    for name, upload in sorted(uploads.items()):
        parts += [name, upload.name, hashlib.sha256(upload.content).hexdigest()]
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


class SentForms:
    """The answers to forms that were sent. Thread-safe."""

    def __init__(self, database: ConsoleDatabase, keep_ms: int) -> None:
        self._database, self._keep_ms = database, keep_ms
        self._lock = threading.Lock()
        self._under_way: dict[str, threading.Event] = {}

    def answer(self, digest: str, act: Callable[[], Answer], now_ms: int) -> Answer:
        """Returns the answer of `act`, or the earlier answer to the same sending. Raises the errors of `act`."""
        ended = threading.Event()
        while (first := self._first(digest, ended)) is not ended:
            first.wait()
        try:
            done = self._done(digest)
            if done is not None:
                return Done(done.location, f"The form was sent twice, and counts once. {done.message}")
            answer = act()
            if isinstance(answer, Done):
                # It is done, whether that can be kept or not.
                with suppress(DatabaseUnavailable):
                    self._keep(digest, answer, now_ms)
            return answer
        finally:
            with self._lock:
                del self._under_way[digest]
            ended.set()

    def _first(self, digest: str, ended: threading.Event) -> threading.Event:
        """Returns when the sending that is under way ends; `ended` if it is this one."""
        with self._lock:
            return self._under_way.setdefault(digest, ended)

    def _done(self, digest: str) -> Done | None:
        rows = self._database.read("SELECT location, message FROM sent_forms WHERE digest = ?", (digest,))
        return Done(rows[0]["location"], rows[0]["message"]) if rows else None

    def _keep(self, digest: str, done: Done, now_ms: int) -> None:
        with self._database.write() as connection:
            connection.execute("DELETE FROM sent_forms WHERE time_ms < ?", (now_ms - self._keep_ms,))
            connection.execute(
                "INSERT OR REPLACE INTO sent_forms VALUES (?, ?, ?, ?)", (digest, done.location, done.message, now_ms)
            )
