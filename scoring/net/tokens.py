"""Decides which callers may ask for scores: bearer tokens from a file that can be replaced while the server runs.

    # one token per line, with or without a name; this is a comment
    checkout:Zk3nD0e8Qw7xT5bR
    9fQ2mL6vX1cJ4hYs

A token has at least 16 of the characters that RFC 6750 allows, so it never holds a colon. The server keeps only the
hashes of tokens.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from paywarden.schemas.errors import Misconfigured

_log = logging.getLogger(__name__)

# Nobody can guess 16 random characters.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
_SCHEME = b"bearer "
# Enough for thousands of callers. A larger file is not a file of tokens.
_FILE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True)
class AuthSettings:
    """Whether callers must show a token. Without `tokens_file` they need none."""

    tokens_file: str = ""
    # /metrics names no card, but the share of declined payments may be confidential as well.
    metrics_need_token: bool = False


class Tokens:
    """The tokens of a file. `version` changes when they change."""

    def __init__(self, path: str) -> None:
        """Raises Misconfigured naming the file and the line, but never its content."""
        self._path = Path(path)
        self._state: _State | None
        self._digests, self._state = _read(self._path)
        self.version = 0
        # Why the file as it is now is not in use, and whether it could not even be read.
        self._problem, self._is_unread = "", False

    def __repr__(self) -> str:
        return f"Tokens({str(self._path)!r})"

    def allows(self, authorization: bytes | None) -> bool:
        """Whether an Authorization header holds one of the tokens. The time it takes does not depend on which one."""
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            return False
        digest = hashlib.sha256(authorization[len(_SCHEME) :].strip(b" ")).digest()
        is_allowed = False
        for known in self._digests:
            is_allowed |= hmac.compare_digest(known, digest)
        return is_allowed

    def refresh(self) -> bool:
        """Read the file again if it has changed. If it cannot be used, log one line and keep the old tokens.

        A file that could not be read, for want of a file descriptor say, is read again at each call. Returns whether
        the tokens are those of the file.
        """
        state = _state_of(self._path)
        is_new = state != self._state
        if not (is_new or self._is_unread):
            return not self._problem
        # Noted even if the content cannot be used, so that the log has one line per change.
        self._state = state
        try:
            self._digests, self._state = _read(self._path)
        except Misconfigured as error:
            self._is_unread = isinstance(error.__cause__, OSError)
            if is_new or str(error) != self._problem:
                _log.error("%s; the previous tokens stay valid", error)
            self._problem = str(error)
            return False
        self._problem, self._is_unread = "", False
        self.version += 1
        _log.info("the tokens in %s have changed: there are %d", self._path, len(self._digests))
        return True


_State = tuple[int, int, int, int]


def _state_of(path: Path) -> _State | None:
    try:
        return _as_state(path.stat())
    except OSError:
        return None


def _as_state(status: os.stat_result) -> _State:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: Path) -> tuple[tuple[bytes, ...], _State]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Misconfigured(f"[auth] tokens_file: cannot read {path}: {error.strerror}") from error
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise Misconfigured(f"[auth] tokens_file: {path} must not be open to everyone (chmod o-rw)")
    if len(content) > _FILE_BYTES_MAX:
        raise Misconfigured(f"[auth] tokens_file: {path} is larger than {_FILE_BYTES_MAX} bytes")
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise Misconfigured(f"[auth] tokens_file: {path} is not ASCII text") from None
    return _digests(path, lines), _as_state(status)


def _digests(path: Path, lines: list[str]) -> tuple[bytes, ...]:
    digests = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        token = line.rpartition(":")[2].strip()
        if _TOKEN.fullmatch(token) is None:
            raise Misconfigured(
                f"[auth] tokens_file: {path}, line {number}: wanted a token of 16 or more of A-Z a-z 0-9 . _ ~ + / -"
            )
        digests.append(hashlib.sha256(token.encode()).digest())
    if not digests:
        raise Misconfigured(f"[auth] tokens_file: {path} has no token")
    return tuple(digests)
