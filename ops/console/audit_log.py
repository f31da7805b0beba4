"""The audit log: views of sensitive fields and acts of people, in signed lines that each name the one before.

    {"act":"viewed","at_ms":1760000000000,"by":"anna","number":12,"previous":"7c1e…","signature":"mG0…","subject":
     "payment:p-8812","what":{}}

1. The lines have the form of schemas/signed_lines.py: an edit, a removal and a reorder in the middle show. `number`
   counts from 1.
2. Lines cut off at the end leave a whole log. The file LOG.head has number and digest of the last line, signed. An
   older log that was restored together with its older head is found by a head that somebody remembered: `paywarden
   admin audit --head`, or `--topic`, because consoles put the head of each hour on the topic console-events.
3. A line is synced before a page is shown, and before an act is reported as done. An act is not begun unless there is
   room for its line.

The log has no card, device or address: an act names payments, alerts and cases, and searches by their *blinded* value,
which only the console's key can make.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.file_state import open_regular, read_regular
from paywarden.schemas.line_file import FileUnwritable, LineFile
from paywarden.schemas.private_files import open_private
from paywarden.schemas.signed_lines import (
    FIRST,
    DamagedLine,
    LineForm,
    SignedLine,
    chained_lines,
    is_digest,
    write_head,
)
from paywarden.scoring.state.disk_room import reserve

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_log = logging.getLogger(__name__)

LINE_BYTES_MAX: Final = 16_384
TEXT_CHARS_MAX: Final = 1_000
# An act reserves this much of the disk before it begins: the lines of many acts that run at once.
_ROOM_BYTES: Final = 8 * LINE_BYTES_MAX


class AuditUnavailable(TemporaryFailure):
    """The log cannot be written now: nothing may be shown or done."""


class Audit(Protocol):
    """The log of views and acts."""

    def require_room(self) -> None:
        """Make sure that lines about an act can be written when it is done.

        Raises AuditUnavailable: then nothing may be done.
        """

    def record(self, by: str, act: str, subject: str, what: Mapping[str, str], at_ms: int) -> None:
        """Note one act, durably. Raises AuditUnavailable, Misconfigured for a log that is damaged."""

    def blinded(self, value: str) -> str:
        """Returns the log's stand-in for a sensitive value: 16 hex digits, the same for the same value."""


@dataclass(frozen=True)
class AuditHead:
    """Number and digest of a line."""

    number: int = 0
    digest: str = FIRST


@dataclass(frozen=True)
class AuditEntry:
    """One line of the log."""

    number: int
    at_ms: int
    by: str
    act: str
    subject: str
    what: Mapping[str, str]


class AuditLog:
    """The log in a file, with the key that signs it. Thread-safe; several processes may share the file."""

    def __init__(self, path: Path, key: Ed25519PrivateKey) -> None:
        """Raises Misconfigured if the file cannot be read, or its end is damaged."""
        self.path, self._key = path, key
        self._file = LineFile(path)
        self._lock = threading.Lock()
        self._secret = hashlib.sha256(b"paywarden console blinding\n" + key.private_bytes_raw()).digest()
        self._size, self._head = 0, AuditHead()
        self._trouble: tuple[int, str] | None = None
        with self._lock, self._file.locked():
            self._catch_up()

    @property
    def name(self) -> str:
        """The fingerprint of the key: which log it is, on a topic that several consoles share."""
        from paywarden.models.bundle.signature import fingerprint

        return fingerprint(self._key.public_key())

    @property
    def head(self) -> AuditHead:
        """The last line that this process knows."""
        return self._head

    def require_room(self) -> None:
        """See Audit. Where the file system reserves nothing, a full disk is met when the act is done."""
        try:
            descriptor = open_private(self.path, os.O_WRONLY | os.O_CREAT)
            try:
                reserve(descriptor, os.fstat(descriptor).st_size, _ROOM_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._note(f"cannot write {self.path}: {error.strerror}") from error
        self._trouble = None

    @property
    def trouble(self) -> tuple[int, str] | None:
        """Since when the log cannot be written, in epoch ms, and why; None if it can."""
        return self._trouble

    def record(self, by: str, act: str, subject: str, what: Mapping[str, str], at_ms: int) -> None:
        """See Audit."""
        try:
            self._record(by, act, subject, what, at_ms)
        except FileUnwritable as error:
            raise self._note(str(error)) from error
        self._trouble = None

    def _note(self, why: str) -> AuditUnavailable:
        if self._trouble is None:
            _log.error("the audit log cannot be written, and nothing is shown or done without it: %s", why)
            self._trouble = now_ms(), why
        return AuditUnavailable(f"nothing is shown or done without the audit log: {why}")

    def _record(self, by: str, act: str, subject: str, what: Mapping[str, str], at_ms: int) -> None:
        with self._lock, self._file.locked():
            self._catch_up()
            content = {
                "act": _clean(act),
                "at_ms": at_ms,
                "by": _clean(by),
                "number": self._head.number + 1,
                "previous": self._head.digest,
                "subject": _clean(subject),
                "what": {name: _clean(text) for name, text in what.items()},
            }
            try:
                signed = _LINES.sign(self._key, content)
            except ValueError as error:
                raise Misconfigured(f"the audit log: {error}") from error
            self._file.append(self._size, signed.line + b"\n")
            self._size += len(signed.line) + 1
            self._head = _head_of(signed)
            self._write_head()

    def blinded(self, value: str) -> str:
        """See Audit."""
        return hmac.new(self._secret, value.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]

    def newest(self, count: int) -> list[AuditEntry]:
        """Returns the last entries, the newest first. Lines that are damaged are left out: `verify` finds them."""
        found: list[AuditEntry] = []
        for line in _last_lines(self.path, count):
            with suppress(ValueError):
                found.append(_entry(_LINES.read(line)))
        return found[::-1][:count]

    def _catch_up(self) -> None:
        """Read the lines of another process; cut off the beginning of a line that a killed process left."""
        try:
            with open_regular(self.path) as file:
                file.seek(0, 2)
                size = file.tell()
                if size == self._size:
                    return
                if size < self._size:
                    raise Misconfigured(f"the audit log {self.path} has become shorter: run `paywarden admin audit`")
                # At most the last line is unchecked: the process that wrote it had checked the lines before it.
                file.seek(max(0, size - 2 * LINE_BYTES_MAX))
                tail = file.read()
        except FileNotFoundError:
            if self._size:
                raise Misconfigured(f"the audit log {self.path} is gone: run `paywarden admin audit`") from None
            return
        except OSError as error:
            raise Misconfigured(f"cannot read the audit log {self.path}: {error.strerror}") from error
        whole, _, torn = tail.rpartition(b"\n")
        if whole:
            line = whole.rpartition(b"\n")[2]
            try:
                self._head = _head_of(_LINES.read(line))
            except ValueError as error:
                raise Misconfigured(
                    f"the last line of the audit log {self.path} is damaged: {error}: run `paywarden admin audit`"
                ) from error
        self._size = size - len(torn)

    def _write_head(self) -> None:
        path = _head_path(self.path)
        head = _HEADS.sign(self._key, {"digest": self._head.digest, "number": self._head.number})
        try:
            write_head(path, head.line + b"\n")
        except OSError as error:
            raise FileUnwritable(f"cannot write {path}: {error.strerror}") from error


def verify(path: Path, key: Ed25519PublicKey, remembered: Collection[AuditHead] = ()) -> int:
    """Returns the number of entries of a log that is whole. Raises Misconfigured naming the first line that is not.

    `remembered`: heads that somebody noted, or that the topic has; the log must have each.
    """
    last = AuditHead()
    wanted = {head for head in remembered if head.number}
    try:
        with open_regular(path) as file:
            for number, (line, _) in enumerate(chained_lines(file, _LINES, str(path)), 1):
                if line.content["number"] != number:
                    raise DamagedLine(f"{path}, line {number} has another number: lines were removed before it")
                if not line.is_signed_by(key):
                    raise DamagedLine(f"{path}, line {number} is damaged: its signature is wrong")
                last = _head_of(line)
                wanted.discard(last)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Misconfigured(f"cannot read the audit log {path}: {error.strerror}") from error
    if wanted:
        first = min(head.number for head in wanted)
        raise Misconfigured(f"{path} lacks the line {first} that was remembered: lines were removed or changed")
    head = _read_head(path, key)
    # A process that is killed between the line and the head leaves a head that is one line old.
    if head.number not in (last.number, last.number - 1) or (head.number == last.number and head != last):
        raise Misconfigured(
            f"{path} ends with line {last.number}, and its head names line {head.number}: lines were removed at the end"
        )
    return last.number


def audit_log(folder: Path) -> AuditLog:
    """Returns the log of a folder; its key is made at the first start. Raises Misconfigured."""
    from paywarden.models.registry.people import make_signing_key, public_text, read_signing_key
    from paywarden.schemas.private_files import make_private_folder

    try:
        make_private_folder(folder)
    except OSError as error:
        raise Misconfigured(f"[console] folder: cannot make {folder}: {error.strerror}") from error
    path, key_path = folder / "audit.jsonl", folder / "audit.pem"
    if key_path.exists():
        key = read_signing_key(key_path)
    elif path.exists():
        raise Misconfigured(f"the audit log {path} is there, but not its key {key_path}")
    else:
        key = make_signing_key(key_path)
        (folder / "audit.pub").write_text(public_text(key.public_key()) + "\n", encoding="utf-8")
    return AuditLog(path, key)


def public_key(path: Path) -> Ed25519PublicKey:
    """Returns the public key in a file of one line. Raises Misconfigured."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        key = load_der_public_key(base64.b64decode(read_regular(path).strip(), validate=True))
    except OSError as error:
        raise Misconfigured(f"cannot read the public key {path}: {error.strerror}") from error
    except (ValueError, binascii.Error) as error:
        raise Misconfigured(f"{path}: wanted an Ed25519 public key in one line") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Misconfigured(f"{path}: wanted an Ed25519 public key, got another kind")
    return key


def _last_lines(path: Path, count: int) -> list[bytes]:
    try:
        with open_regular(path) as file:
            file.seek(0, 2)
            size, block, content = file.tell(), 0, b""
            while content.count(b"\n") <= count and block < size:
                block = min(size, max(2 * block, 64 * 1024))
                file.seek(size - block)
                content = file.read(block)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Misconfigured(f"cannot read the audit log {path}: {error.strerror}") from error
    lines = content.split(b"\n")[:-1]
    return lines[-count:]


def _read_head(path: Path, key: Ed25519PublicKey) -> AuditHead:
    head_path = _head_path(path)
    try:
        head = _HEADS.read(read_regular(head_path).rstrip(b"\n"))
    except FileNotFoundError:
        return AuditHead()
    except OSError as error:
        raise Misconfigured(f"cannot read {head_path}: {error.strerror}") from error
    except ValueError as error:
        raise Misconfigured(f"{head_path} is damaged: {error}") from error
    if not head.is_signed_by(key):
        raise Misconfigured(f"{head_path} is damaged: its signature is wrong")
    return AuditHead(**head.content)


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _head_of(line: SignedLine) -> AuditHead:
    return AuditHead(line.content["number"], line.digest)


def _entry(line: SignedLine) -> AuditEntry:
    return AuditEntry(**{name: value for name, value in line.content.items() if name != "previous"})


def _problem(content: Mapping[str, Any]) -> str:
    texts, what = [content[name] for name in ("act", "by", "subject")], content["what"]
    if not isinstance(what, dict) or not all(isinstance(text, str) for text in [*texts, *what.values()]):
        return "a field has another type"
    if type(content["at_ms"]) is not int:
        return "a field has another type"
    return _head_problem({"digest": content["previous"], "number": content["number"]})


def _head_problem(content: Mapping[str, Any]) -> str:
    is_head = type(content["number"]) is int and is_digest(content["digest"])
    return "" if is_head else "a field has another type"


_LINES: Final = LineForm(
    b"paywarden console audit\n",
    frozenset({"act", "at_ms", "by", "number", "previous", "subject", "what"}),
    LINE_BYTES_MAX,
    _problem,
)
_HEADS: Final = LineForm(
    b"paywarden console audit head\n", frozenset({"digest", "number"}), LINE_BYTES_MAX, _head_problem
)


def _clean(text: str) -> str:
    return text[:TEXT_CHARS_MAX].encode("utf-8", "replace").decode()
