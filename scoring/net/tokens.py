"""Who may ask for scores: bearer tokens from a file that can be replaced while we serve.

The file has a token a line, or `name:token`; lines that are empty or begin with # are skipped. A token is 16
characters or more of those that RFC 6750 allows, so a colon is never part of one. Only hashes of tokens are kept.
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

# 16 characters drawn at random are more than anyone can try.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
_SCHEME = b"bearer "
# Of thousands of callers; a larger file is another file.
_FILE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True)
class AuthSettings:
    """Whether callers must show a token. Without `tokens_file` nobody has to."""

    tokens_file: str = ""
    # /metrics names no card, but how much is declined is not everybody's business either.
    metrics_need_token: bool = False


class Tokens:
    """The tokens of a file. `version` changes whenever they do."""

    def __init__(self, path: str) -> None:
        """Raises Misconfigured naming the file, and the line, but nothing that stands in it."""
        self._path = Path(path)
        self._state: _State | None
        self._digests, self._state = _read(self._path)
        self.version = 0

    def __repr__(self) -> str:
        return f"Tokens({str(self._path)!r})"

    def allows(self, authorization: bytes | None) -> bool:
        """Whether the value of an Authorization header shows one of the tokens. Takes as long whichever it is."""
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            return False
        digest = hashlib.sha256(authorization[len(_SCHEME) :].strip(b" ")).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found

    def refresh(self) -> None:
        """Read the file again if it is another one now. One that cannot be used changes nothing: a line in the log."""
        state = _state_of(self._path)
        if state == self._state:
            return
        # Whatever it is: it is complained about once.
        self._state = state
        try:
            self._digests, self._state = _read(self._path)
        except Misconfigured as error:
            _log.error("%s; the tokens known before stay in force", error)
            return
        self.version += 1
        _log.info("the tokens in %s have changed: there are %d", self._path, len(self._digests))


_State = tuple[int, int, int, int]


def _state_of(path: Path) -> _State | None:
    try:
        return _as_state(path.stat())
    except OSError:
        return None


def _as_state(found: os.stat_result) -> _State:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path) -> tuple[tuple[bytes, ...], _State]:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Misconfigured(f"[auth] tokens_file: cannot read {path}: {error.strerror}") from error
    if found.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise Misconfigured(f"[auth] tokens_file: {path} must not be open to everyone (chmod o-rw)")
    if len(content) > _FILE_BYTES_MAX:
        raise Misconfigured(f"[auth] tokens_file: {path} is larger than {_FILE_BYTES_MAX} bytes")
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise Misconfigured(f"[auth] tokens_file: {path} is not ASCII text") from None
    return _digests(path, lines), _as_state(found)


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
