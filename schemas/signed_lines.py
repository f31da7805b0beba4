"""Signed, chained lines: the form of a log in which nobody changes, removes or moves a line unseen.

    {"by":"anna", … ,"previous":"7c1e…","signature":"mG0…","time_ms":1760000000000}

1. A line is one JSON object with sorted keys and no spaces. Its bytes are *canonical*: the same content has one form
   only, and a line in any other form is damage.
2. `signature` is the Ed25519 signature of everything else in the line, behind the purpose of the log. A signature that
   was made for another kind of log therefore never fits.
3. The digest of a line is its sha256. `previous` is the digest of the line before, FIRST in the first. A line that is
   changed, removed or moved no longer fits the one behind it.
4. Bytes behind the last end of a line are no line: a killed writer leaves them, and the next writer cuts them off.

A log may have *late* lines: they name any line before them. A log whose last lines were cut off is whole. Only a head
(the digest of its last line) that is kept elsewhere shows that they are gone: `write_head` puts one beside the log.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from paywarden.schemas.errors import Misconfigured

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FIRST: Final = "0" * 64
"""The digest that the first line names as the one before."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
# Purposes, keys and lines whose signatures were right: a log is read many times, and its lines do not change.
_verified: set[tuple[bytes, bytes, str]] = set()
_VERIFIED_MAX = 200_000


class DamagedLine(Misconfigured):
    """A line of a log was changed, removed or moved."""


@dataclass(frozen=True)
class SignedLine:
    """A line: its bytes without their end, its content without the signature, and the signature."""

    line: bytes
    content: Mapping[str, Any]
    signature: bytes
    purpose: bytes

    @cached_property
    def digest(self) -> str:
        """The sha256 of the line: how others name it."""
        return digest_of(self.line)

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        """Returns whether the signature is that of this key. Each line is verified once, and remembered."""
        from cryptography.exceptions import InvalidSignature

        known = (self.purpose, key.public_bytes_raw(), self.digest)
        if known in _verified:
            return True
        try:
            key.verify(self.signature, self.purpose + _canonical(self.content))
        except InvalidSignature:
            return False
        if len(_verified) >= _VERIFIED_MAX:
            _verified.clear()
        _verified.add(known)
        return True


@dataclass(frozen=True)
class LineForm:
    """The form of a log's lines. `fields`: those of a line besides the signature.

    `problem` returns what is wrong with the values of a content, or an empty text.
    """

    purpose: bytes
    fields: frozenset[str]
    bytes_max: int
    problem: Callable[[Mapping[str, Any]], str]

    def sign(self, key: Ed25519PrivateKey, content: Mapping[str, Any]) -> SignedLine:
        """Returns a signed line. Raises ValueError naming the part that no line can have."""
        if problem := self.problem(content):
            raise ValueError(problem)
        signature = key.sign(self.purpose + _canonical(content))
        signed = self._line(content, signature)
        if len(signed.line) > self.bytes_max:
            raise ValueError(f"an entry has at most {self.bytes_max} bytes, this one has {len(signed.line)}")
        return signed

    def read(self, line: bytes) -> SignedLine:
        """Returns the line in these bytes. Raises ValueError saying what is wrong; the signature is not checked."""
        if len(line) > self.bytes_max:
            raise ValueError(f"it has more than {self.bytes_max} bytes")
        try:
            content = json.loads(line)
            signature = base64.b64decode(content.pop("signature"), validate=True)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
            raise ValueError("it is no entry in JSON") from error
        if content.keys() != self.fields:
            raise ValueError("it lacks fields of an entry, or has unknown ones")
        if problem := self.problem(content):
            raise ValueError(problem)
        signed = self._line(content, signature)
        if signed.line != line:
            raise ValueError("it is not in the canonical form")
        return signed

    def _line(self, content: Mapping[str, Any], signature: bytes) -> SignedLine:
        line = _canonical({**content, "signature": base64.b64encode(signature).decode()})
        return SignedLine(line, content, signature, self.purpose)


class Chain:
    """The lines of a log so far, and whether a line fits behind them."""

    def __init__(self, *, has_late: bool = False) -> None:
        """`has_late`: whether lines may be late; then all digests are remembered."""
        self.head = FIRST
        self._known = {FIRST} if has_late else None

    def __contains__(self, digest: str) -> bool:
        return self._known is not None and digest in self._known

    def take(self, line: SignedLine, *, may_be_late: bool = False) -> bool:
        """Take the next line; returns whether it is late. Raises DamagedLine, and takes nothing, if it does not fit."""
        previous: str = line.content["previous"]
        is_late = previous != self.head
        if is_late and not (may_be_late and previous in self):
            raise DamagedLine("does not fit the line before it: one of them was changed, removed or moved")
        if self._known is not None:
            if line.digest in self._known:
                raise DamagedLine("is there twice")
            self._known.add(line.digest)
        self.head = line.digest
        return is_late


def chained_lines(
    file: BinaryIO, form: LineForm, where: str, is_late: Callable[[SignedLine], bool] | None = None
) -> Iterator[tuple[SignedLine, bool]]:
    """Yield the lines of a log, and whether each is late. `is_late`: whether a line may be.

    Raises DamagedLine naming the first line that is damaged or does not fit the lines before it. The signatures are not
    checked.
    """
    chain = Chain(has_late=is_late is not None)
    for number, content in enumerate(_whole_lines(file, form.bytes_max), 1):
        try:
            line = form.read(content)
        except ValueError as error:
            raise DamagedLine(f"{where}, line {number} is damaged: {error}") from error
        try:
            late = chain.take(line, may_be_late=is_late is not None and is_late(line))
        except DamagedLine as error:
            raise DamagedLine(f"{where}, line {number} {error}") from error
        yield line, late


def _whole_lines(file: BinaryIO, bytes_max: int) -> Iterator[bytes]:
    """Yield the lines of a file without their ends. A line that is too long is yielded in part: it is damage."""
    while line := file.readline(bytes_max + 1):
        if line.endswith(b"\n"):
            yield line[:-1]
        elif len(line) > bytes_max:
            yield line


def write_head(path: Path, content: bytes) -> None:
    """Put a head into its file, for its user alone. Raises OSError. It is not synced: an older one is in the log as
    well."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_bytes(content)
        new.chmod(0o600)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # A full disk still has room to overwrite the bytes that are there.
        with path.open("r+b") as file:
            file.write(content)


def digest_of(line: bytes) -> str:
    """Returns the digest of a line, 64 hex digits."""
    return hashlib.sha256(line).hexdigest()


def is_digest(text: object) -> bool:
    """Returns whether a value is a sha256 in 64 hex digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def _canonical(content: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text is no Unicode") from error
