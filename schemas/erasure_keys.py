"""A file of keys, one for each card: to destroy a card's key makes all that was sealed with it unreadable.

    header   512 bytes   id of the file · the master secret, as it is or wrapped by a key service · checksum
    slots    64 bytes    tag of the card (keyed hash) · id of the key · secret · checksum

    key of a card   HMAC(master secret, secret of its slot)

`destroy` overwrites a slot in its place and syncs it: the file system has no second copy of the secret. The slot keeps
the tag and the time of the erasure. Records up to that time never get a key again, and later ones get a new slot.

What can go wrong:

- The process is killed while it adds slots: nothing was sealed with them yet. The next writer cuts half a slot off.
- The process is killed in `destroy`: the slot is the old one or the destroyed one, because its 64 aligned bytes are in
  one sector. `destroy` again is harmless.
- A header or a slot is damaged: Misconfigured. A key that is damaged must not look like one that was destroyed.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import importlib
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.durability import sync_folder, write_synced
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.private_files import make_parent, open_private

_MAGIC: Final = b"paywarden keys 1"
_HEADER_BYTES: Final = 512
_TEXT_BYTES_MAX: Final = 96
# KMS of the large clouds wrap 32 bytes into some 200.
_WRAPPED_BYTES_MAX: Final = 330
_SLOT: Final = np.dtype([("low", "<u8"), ("high", "<u8"), ("id", "<u8"), ("secret", "V32"), ("check", "V8")])
_DESTROYED: Final = 0


class KeyService(Protocol):
    """A KMS or an HSM that wraps the master secret: without it a copy of the file opens nothing."""

    def wrap(self, secret: bytes) -> bytes:
        """Returns the 32 bytes in a form that only the service can open, at most 330 bytes."""

    def unwrap(self, wrapped: bytes) -> bytes:
        """Returns the 32 bytes. Raises TemporaryFailure if the service does not answer, Misconfigured if it refuses."""


class ErasureKeys:
    """The open file of keys. Several processes may use one file."""

    def __init__(self, path: Path) -> None:
        """Raises Misconfigured for a file that is missing, damaged or no file of keys; the errors of its service."""
        self.path = Path(os.path.abspath(path))
        try:
            self._fd = open_private(self.path, os.O_RDWR)
            header = os.pread(self._fd, _HEADER_BYTES, 0)
        except FileNotFoundError as error:
            raise Misconfigured(f"the keys in {self.path} are not there: mount or restore that file") from error
        except OSError as error:
            raise Misconfigured(f"cannot open the keys in {self.path}: {error.strerror or error}") from error
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            raise Misconfigured(f"{self.path} is no file of erasure keys")
        if hashlib.sha256(header[:-32]).digest() != header[-32:]:
            raise Misconfigured(f"{self.path} is damaged: the checksum of its header does not match; restore a copy")
        self.id: str = header[16:32].hex()
        service, rest = _taken(header[32:])
        wrapped, _ = _taken(rest)
        self._master = key_service(service.decode()).unwrap(wrapped) if service else wrapped
        self._count = -1
        self._load()

    @classmethod
    def create(cls, path: Path, service: str = "") -> ErasureKeys:
        """Make a new file, with its master secret wrapped by a service (`package.module:name`), and open it."""
        secret = secrets.token_bytes(32)
        wrapped = key_service(service).wrap(secret) if service else secret
        if len(service.encode()) > _TEXT_BYTES_MAX or len(wrapped) > _WRAPPED_BYTES_MAX:
            raise Misconfigured(f"[erasure] key_service: its name or what it wraps is too long: {service}")
        header = _MAGIC + secrets.token_bytes(16) + _counted(service.encode()) + _counted(wrapped)
        header = header.ljust(_HEADER_BYTES - 32, b"\0")
        new = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            make_parent(path)
            write_synced(new, header + hashlib.sha256(header).digest())
            # If two processes make the file at once, the first one's stays, and both open it.
            with suppress(FileExistsError):
                os.link(new, path)
            new.unlink()
            sync_folder(path.parent)
        except OSError as error:
            raise Misconfigured(f"cannot make the keys in {path}: {error.strerror or error}") from error
        return cls(path)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def keys_for(self, cards: Collection[str]) -> dict[str, tuple[int, bytes, int]]:
        """Returns for each card the id of its key, the key, and the time until which its records are erased.

        Makes the missing keys; they are on disk when this returns.
        """
        tags = {card: self._tag(card) for card in cards}
        with self._locked():
            known = {card: self._known(tag) for card, tag in tags.items()}
            missing = [card for card, (row, _) in known.items() if row is None]
            if missing:
                first = len(self._slots)
                self._append([_slot(tags[card], secrets.randbits(63) + 1, secrets.token_bytes(32)) for card in missing])
                known |= {card: (first + place, known[card][1]) for place, card in enumerate(missing)}
            return {card: (*self._key(row), until_ms) for card, (row, until_ms) in known.items() if row is not None}

    def keys_of(self, ids: Collection[int]) -> dict[int, bytes]:
        """Returns the keys of these ids; destroyed ones are missing. Raises Misconfigured for a damaged slot."""
        self._load()
        asked = np.array(sorted(ids), dtype=np.uint64)
        places = np.searchsorted(self._ids, asked)
        found: dict[int, bytes] = {}
        for wanted, place in zip(asked.tolist(), places.tolist(), strict=True):
            # A slot that was destroyed since the file was looked at has another id now.
            row = int(self._by_id[place]) if place < len(self._by_id) else -1
            if wanted != _DESTROYED and row >= 0 and int(self._slots["id"][row]) == wanted:
                found[wanted] = self._key(row)[1]
        return found

    def payment_key(self, payment_id: str) -> tuple[bytes, bytes]:
        """Returns a keyed hash of a payment's id to find its records by, and the key that seals them."""
        return self._mac(b"payment", payment_id.encode())[:16], self._mac(b"payment key", payment_id.encode())

    def erased_until_ms(self, card: str) -> int:
        """Returns the time until which a card's records are erased, 0 if it never was. Raises Misconfigured."""
        self._load()
        return self._known(self._tag(card))[1]

    def destroy(self, card: str, until_ms: int) -> bool:
        """Destroy a card's key, and never make one for its records up to `until_ms`. Returns whether it had a key."""
        tag = self._tag(card)
        with self._locked():
            row, _ = self._known(tag)
            destroyed = _slot(tag, _DESTROYED, until_ms.to_bytes(32, "little"))
            if row is None:
                self._append([destroyed])
            else:
                self._write(destroyed, row)
        return row is not None

    # Slots

    def _tag(self, card: str) -> bytes:
        return self._mac(b"card", card.encode())[:16]

    def _mac(self, purpose: bytes, text: bytes) -> bytes:
        return hmac.digest(self._master, purpose + b"\0" + text, "sha256")

    def _known(self, tag: bytes) -> tuple[int | None, int]:
        """Returns the row of a card's key, None without one, and the time of its last erasure, 0 without one."""
        low, high = (int.from_bytes(half, "little") for half in (tag[:8], tag[8:]))
        live: int | None = None
        place, until_ms = int(np.searchsorted(self._tags, np.uint64(low))), 0
        while place < len(self._tags) and int(self._tags[place]) == low:
            row = int(self._by_tag[place])
            self._check(row)
            if int(self._slots["high"][row]) == high:
                if int(self._slots["id"][row]) == _DESTROYED:
                    until_ms = max(until_ms, int.from_bytes(bytes(self._slots["secret"][row]), "little"))
                else:
                    live = row
            place += 1
        return live, until_ms

    def _key(self, row: int) -> tuple[int, bytes]:
        self._check(row)
        return int(self._slots["id"][row]), self._mac(b"key", bytes(self._slots["secret"][row]))

    def _check(self, row: int) -> None:
        slot = self._slots[row].tobytes()
        if hashlib.sha256(slot[:-8]).digest()[:8] != slot[-8:]:
            raise Misconfigured(f"{self.path} is damaged: the checksum of slot {row} does not match; restore a copy")

    def _load(self) -> None:
        """Follow the slots that any process has added."""
        count = max(0, os.fstat(self._fd).st_size - _HEADER_BYTES) // _SLOT.itemsize
        if count != self._count:
            self._slots: NDArray[Any] = np.empty(0, dtype=_SLOT)
            if count:
                self._slots = np.memmap(self.path, dtype=_SLOT, mode="r", offset=_HEADER_BYTES, shape=(count,))
            self._by_tag, self._by_id = (np.argsort(self._slots[name], kind="stable") for name in ("low", "id"))
            # Copies in order: `destroy` changes an id in the file, and a search needs an order that stays.
            self._tags, self._ids = self._slots["low"][self._by_tag], self._slots["id"][self._by_id]
            self._count = count

    def _append(self, slots: list[bytes]) -> None:
        self._write(b"".join(slots), self._count)
        self._load()

    def _write(self, data: bytes, row: int) -> None:
        place = _HEADER_BYTES + row * _SLOT.itemsize
        try:
            while data:
                count = os.pwrite(self._fd, data, place)
                data, place = data[count:], place + count
            os.fsync(self._fd)
        except OSError as error:
            raise Misconfigured(f"cannot write the keys in {self.path}: {error.strerror or error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the one writer, with all slots of earlier ones. Cuts half a slot of a killed writer off."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._load()
            whole = _HEADER_BYTES + self._count * _SLOT.itemsize
            if os.fstat(self._fd).st_size > whole:
                os.ftruncate(self._fd, whole)
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)


def key_service(name: str) -> KeyService:
    """Returns the service `package.module:name` of an installed package. Raises Misconfigured."""
    module, _, attribute = name.partition(":")
    try:
        service: KeyService = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise Misconfigured(f"[erasure] key_service: cannot import {name}: wanted package.module:name") from error
    return service


def _slot(tag: bytes, key_id: int, secret: bytes) -> bytes:
    content = tag + key_id.to_bytes(8, "little") + secret
    return content + hashlib.sha256(content).digest()[:8]


def _counted(data: bytes) -> bytes:
    return len(data).to_bytes(2, "little") + data


def _taken(data: bytes) -> tuple[bytes, bytes]:
    end = 2 + int.from_bytes(data[:2], "little")
    return data[2:end], data[end:]
