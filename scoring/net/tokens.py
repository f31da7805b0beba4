"""Decides which callers may ask for scores: bearer tokens from a file that can be replaced while the server runs.

    # one token per line, with or without the caller's name; this is a comment
    checkout:Zk3nD0e8Qw7xT5bR
    checkout:3hB7kWq0aLx9sVtY
    9fQ2mL6vX1cJ4hYs

Two tokens of one name are one caller, so a token can be replaced without a gap. A token without a name gets one that is
made of a hash of it, such as token-4e1f09aa. A caller's name is in every decision (scoring/net/caller_names.py).

A token has at least 16 of the characters that RFC 6750 allows, so it never holds a colon. The server keeps only the
hashes of tokens.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import FileState, file_state, open_regular, state_of
from paywarden.scoring.net.caller_names import NAME_BYTES_MAX, is_name

_log = logging.getLogger(__name__)

# Nobody can guess 16 random characters.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
_SCHEME = b"bearer "
# Enough for a hundred thousand callers. A larger file is not a file of tokens.
_FILE_BYTES_MAX = 16 * 1024 * 1024


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
        self._state: FileState | None
        self._callers, self._state = _read(self._path)
        self.version = 0
        # Why the file as it is now is not in use, and whether it could not even be read.
        self._problem, self._is_unread = "", False

    def __repr__(self) -> str:
        return f"Tokens({str(self._path)!r})"

    def caller_of(self, authorization: bytes | None) -> bytes | None:
        """Returns the name of the caller whose token an Authorization header holds; None when it holds none of them.

        The time it takes depends neither on the number of tokens nor on their text: the table is keyed by a hash, which
        nobody can choose.
        """
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            return None
        digest = hashlib.sha256(authorization[len(_SCHEME) :].strip(b" ")).digest()
        return self._callers.get(digest)

    def refresh(self) -> bool:
        """Read the file again if it has changed. If it cannot be used, log one line and keep the old tokens.

        A file that could not be read, for want of a file descriptor say, is read again at each call. Returns whether
        the tokens are those of the file.
        """
        state = file_state(self._path)
        is_new = state != self._state
        if not (is_new or self._is_unread):
            return not self._problem
        # Noted even if the content cannot be used, so that the log has one line per change.
        self._state = state
        try:
            self._callers, self._state = _read(self._path)
        except Misconfigured as error:
            self._is_unread = isinstance(error.__cause__, OSError)
            if is_new or str(error) != self._problem:
                _log.error("%s; the previous tokens stay valid", error)
            self._problem = str(error)
            return False
        self._problem, self._is_unread = "", False
        self.version += 1
        _log.info("the tokens in %s have changed: there are %d", self._path, len(self._callers))
        return True


# By the hash of each token, its caller's name.
_Callers = dict[bytes, bytes]


def _read(path: Path) -> tuple[_Callers, FileState]:
    try:
        with open_regular(path) as file:
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
    return _callers(path, lines), state_of(status)


def _callers(path: Path, lines: list[str]) -> _Callers:
    callers = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        name, _, token = (part.strip() for part in line.rpartition(":"))
        if _TOKEN.fullmatch(token) is None:
            raise Misconfigured(
                f"[auth] tokens_file: {path}, line {number}: wanted a token of 16 or more of A-Z a-z 0-9 . _ ~ + / -"
            )
        if name and not is_name(name):
            raise Misconfigured(
                f"[auth] tokens_file: {path}, line {number}: wanted a caller's name of at most {NAME_BYTES_MAX} "
                "printable characters"
            )
        callers[hashlib.sha256(token.encode()).digest()] = (name or _unnamed(token)).encode()
    if not callers:
        raise Misconfigured(f"[auth] tokens_file: {path} has no token")
    return callers


def _unnamed(token: str) -> str:
    """Returns the name of a caller whose token has none. It stays the same wherever the token's line moves."""
    # Not the hash that is compared; 32 of its bits tell tokens apart and give away nothing of 16 random characters.
    return "token-" + hashlib.sha256(b"caller:" + token.encode()).hexdigest()[:8]
