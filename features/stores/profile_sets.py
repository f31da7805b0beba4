"""Profile sets: complete collections of the stream's records, side by side in one store. One of them is live.

A set holds the profiles of all entities and the records about payments. The first set has the empty name and lies
where a store without further sets keeps everything. A rebuild fills a new set next to the live one:

    create        live ""    next -      epoch 0    the stream writes "", the rebuild "b1"
    begin_swap    live ""    next "b1"   epoch 0
    finish_swap   live "b1"  next -      epoch 1    (abort_swap: live "", next -, epoch 1)
    drop ""       erases its records, then removes its name from the register

Names, times and the pointer to the live set stand in one record, the register. A change replaces it by compare-and-set:
if two processes change it at once, one of them reads it again and decides again. Therefore a set cannot be dropped and
swapped in at once. Every change carries a token of its own. Without it, two rebuilds that write the same bytes would
both believe that they had made the change, since a store takes equal bytes for a repetition.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from paywarden.features.stores.base import (
    ProfileStore,
    RegisterUnreadable,
    ScanProgress,
    StoreConflict,
    Versioned,
    in_batches,
)
from paywarden.schemas.errors import Misconfigured, TemporaryFailure

FIRST = ""
# The empty name in commands and messages. A command that accepted an empty argument would accept an unset variable too.
FIRST_SPOKEN = "first"
REGISTER_KEY = b"meta:live"

# Short, since the name and an entity's name form the name of an Aerospike set, which has at most 63 characters.
_NAME = re.compile(r"[a-z0-9]{1,16}")
_FORMAT = 1
# Changes are rare and take milliseconds. After this many conflicts in a row something must be wrong.
_ATTEMPTS_MAX = 20
_ERASE_BATCH = 1_000
# A process may still write during the first pass. The second pass erases those records; the number is limited.
_ERASE_PASSES_MAX = 3


@dataclass(frozen=True)
class LiveSet:
    """The live set. `next` is the set being swapped in, None when no swap is in progress.

    `epoch` counts the swaps that have ended, finished or aborted. It makes the state after a swap differ from before.
    """

    name: str
    epoch: int
    next: str | None


@dataclass(frozen=True)
class ProfileSet:
    """One set. `begun_ms` is the time of its creation in epoch ms, None for the first set."""

    name: str
    begun_ms: int | None
    is_being_dropped: bool = False


@dataclass(frozen=True)
class Register:
    """All sets, and the live one. Without a record there is only the first set, and it is live.

    `identity` is the digest of the key that all sets' profiles are made with; empty before a key has claimed the store.
    """

    live: LiveSet = LiveSet(FIRST, 0, None)
    sets: tuple[ProfileSet, ...] = (ProfileSet(FIRST, None),)
    identity: str = ""

    def find(self, name: str) -> ProfileSet:
        """Returns the set of this name. Raises Misconfigured if there is none."""
        for one in self.sets:
            if one.name == name:
                return one
        known = ", ".join(spoken(one.name) for one in self.sets)
        raise Misconfigured(f"there is no profile set {spoken(name)}; there are {known}")

    def encode(self, change: str) -> bytes:
        """Returns the stored bytes. `change` is a token that no other change has."""
        fields = {"format": _FORMAT, "change": change, **dataclasses.asdict(self)}
        return json.dumps(fields, indent=1).encode()


def decode_register(value: bytes | None) -> Register:
    """Returns the register in these bytes; None means an absent record. Raises Misconfigured for another format."""
    if value is None:
        return Register()
    try:
        fields = json.loads(value)
        if fields["format"] != _FORMAT:
            raise Misconfigured(
                f"the register of profile sets has format {fields['format']}, and this release reads {_FORMAT}"
            )
        sets = tuple(ProfileSet(**one) for one in fields["sets"])
        return Register(LiveSet(**fields["live"]), sets, fields.get("identity", ""))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RegisterUnreadable(
            "the register of profile sets cannot be read: it is damaged; put it back from a backup"
        ) from error


class RegisterStore(Protocol):
    """One record. Every process that uses the store reads it; any of them may replace it."""

    def read(self) -> Versioned:
        """Returns the record and its version. Raises StoreUnavailable or Misconfigured."""

    def replace(self, value: bytes, version: int) -> None:
        """Replace the record if it is still at this version, or already holds these bytes.

        Raises StoreConflict otherwise; StoreUnavailable, after which the record may or may not have been replaced; and
        Misconfigured.
        """

    def close(self) -> None:
        """Close files and connections. Closing twice is no error."""


class StoredRegister:
    """A RegisterStore in a ProfileStore that belongs to no profile set. It closes that store."""

    def __init__(self, store: ProfileStore) -> None:
        self._store = store

    def read(self) -> Versioned:
        """See RegisterStore."""
        return self._store.read_versioned([REGISTER_KEY])[0]

    def replace(self, value: bytes, version: int) -> None:
        """See RegisterStore."""
        self._store.write({REGISTER_KEY: value}, ttl_s=0, versions={REGISTER_KEY: version})

    def close(self) -> None:
        """See RegisterStore."""
        self._store.close()


class SetStores(Protocol):
    """A store with all its profile sets. Every call raises StoreUnavailable or Misconfigured."""

    def open(self, name: str, *, readonly: bool = False) -> ProfileStore:
        """Returns the records of one set; the caller closes it. Only one process may write to a set at a time."""

    def open_register(self) -> RegisterStore:
        """Returns the register; the caller closes it."""

    def open_beside(self, *, readonly: bool = False) -> ProfileStore:
        """Returns records that belong to no profile set and outlive them all, such as counts of decisions.

        The caller closes it. Several processes may write there at once: they name the versions that they replace.
        """

    def counts(self, name: str) -> dict[str, int]:
        """Returns the number of records of each kind (card, payment, …) in a set, without kinds that have none."""

    def erase(self, name: str, *, records_per_second: int = 0, progress: ScanProgress | None = None) -> None:
        """Erase a whole set. A store that erases record by record keeps `records_per_second` (0: no limit).

        After an interruption the same call continues.
        """


class ProfileSets:
    """The changes of the register. Safe to use from several processes.

    Every call raises StoreUnavailable or Misconfigured as RegisterStore does. After StoreUnavailable a change may or
    may not have been made: read the register before trying again.
    """

    def __init__(self, register: RegisterStore) -> None:
        self._register = register

    def read(self) -> LiveSet:
        """Returns which set is live now."""
        return self.register().live

    def register(self) -> Register:
        """Returns the whole register, as of one moment."""
        return decode_register(self._register.read().value)

    def check_identity(self, digest: str) -> None:
        """Raises Misconfigured if another key has claimed the store. `digest` is that of the caller's key."""
        _check_identity(self.register(), digest)

    def claim_identity(self, digest: str) -> None:
        """Note that the store's profiles are made with this key. Raises Misconfigured if another key has claimed it."""
        if _check_identity(self.register(), digest):
            return

        def claim(register: Register) -> Register:
            _check_identity(register, digest)
            return dataclasses.replace(register, identity=digest)

        self._change(claim)

    def create(self, name: str, *, now_ms: int) -> None:
        """Enter a new, empty set. Raises Misconfigured if the name is invalid or already in use."""
        check_name(name)

        def enter(register: Register) -> Register:
            if any(one.name == name for one in register.sets):
                raise Misconfigured(f"there is a profile set {spoken(name)} already")
            return dataclasses.replace(register, sets=(*register.sets, ProfileSet(name, now_ms)))

        self._change(enter)

    def begin_swap(self, live: LiveSet, to: str) -> LiveSet:
        """Announce that `to` is about to become live; returns the new state.

        Raises StoreConflict if `live` is not the current state; Misconfigured if a swap is in progress, or if there is
        no such set to swap in.
        """

        def announce(register: Register) -> Register:
            _check_unchanged(register, live)
            if live.next is not None:
                raise Misconfigured(f"a swap to profile set {spoken(live.next)} is under way: end that one first")
            if to == live.name:
                raise Misconfigured(f"profile set {spoken(to)} is live already")
            if register.find(to).is_being_dropped:
                raise Misconfigured(f"profile set {spoken(to)} is being dropped")
            return dataclasses.replace(register, live=dataclasses.replace(live, next=to))

        return self._change(announce).live

    def finish_swap(self, live: LiveSet) -> LiveSet:
        """Make the set being swapped in the live one; returns the new state. Raises as `begin_swap` does."""

        def finish(register: Register) -> Register:
            return dataclasses.replace(register, live=LiveSet(_next_of(register, live), live.epoch + 1, None))

        return self._change(finish).live

    def abort_swap(self, live: LiveSet) -> LiveSet:
        """Abort the swap: the live set stays live. Returns the new state. Raises as `begin_swap` does."""

        def give_up(register: Register) -> Register:
            _next_of(register, live)
            return dataclasses.replace(register, live=LiveSet(live.name, live.epoch + 1, None))

        return self._change(give_up).live

    def begin_drop(self, name: str) -> None:
        """Record that a set is being dropped, so that it can no longer be swapped in.

        Raises Misconfigured if it is live, being swapped in, or not there.
        """

        def note(register: Register) -> Register:
            found = register.find(name)
            if name == register.live.name:
                raise Misconfigured(f"profile set {spoken(name)} is live: it can't be dropped")
            if name == register.live.next:
                raise Misconfigured(f"profile set {spoken(name)} is being swapped in: it can't be dropped")
            dropped = dataclasses.replace(found, is_being_dropped=True)
            return dataclasses.replace(register, sets=tuple(dropped if one is found else one for one in register.sets))

        self._change(note)

    def end_drop(self, name: str) -> None:
        """Remove a set that is being dropped from the register; its name is free again."""

        def remove(register: Register) -> Register:
            left = tuple(one for one in register.sets if one.name != name or not one.is_being_dropped)
            return dataclasses.replace(register, sets=left)

        self._change(remove)

    def close(self) -> None:
        """Close the register."""
        self._register.close()

    def _change(self, update: Callable[[Register], Register]) -> Register:
        """Replace the register by the result of `update`. Errors of `update` are raised to the caller."""
        for _ in range(_ATTEMPTS_MAX):
            value, version = self._register.read()
            changed = update(decode_register(value))
            try:
                self._register.replace(changed.encode(uuid.uuid4().hex), version)
            except StoreConflict:
                # Another process changed the register. `update` decides again on the new content.
                continue
            return changed
        raise StoreConflict(f"others changed the register of profile sets {_ATTEMPTS_MAX} times in a row: try again")


def drop(
    sets: ProfileSets,
    stores: SetStores,
    name: str,
    *,
    records_per_second: int = 0,
    progress: ScanProgress | None = None,
) -> None:
    """Erase a whole set and remove it from the register. If the process is killed, the same call continues later.

    Raises Misconfigured if the set is live, being swapped in, or not there; StoreUnavailable; and TemporaryFailure
    if some process keeps writing to the set.
    """
    sets.begin_drop(name)
    stores.erase(name, records_per_second=records_per_second, progress=progress)
    sets.end_drop(name)


def erase_records(
    store: ProfileStore,
    count: Callable[[], dict[str, int]],
    *,
    records_per_second: int = 0,
    progress: ScanProgress | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Erase every record of the kinds that `count` returns. It works on any ProfileStore.

    `records_per_second` limits all kinds together; 0 means no limit. Raises StoreUnavailable, and TemporaryFailure if
    records keep coming.
    """
    expected = sum(count().values())
    erased = 0
    # A batch has at most the records of one second.
    batch_max = min(_ERASE_BATCH, records_per_second or _ERASE_BATCH)
    for _ in range(_ERASE_PASSES_MAX):
        before = erased
        for keys in in_batches((key for kind in count() for key, _ in store.scan(kind)), batch_max):
            if progress is not None:
                progress(erased, expected)
            started = clock()
            store.delete(keys)
            erased += len(keys)
            if records_per_second:
                sleep(max(0.0, started + len(keys) / records_per_second - clock()))
        if erased == before:
            if progress is not None:
                progress(erased, expected)
            return
    raise TemporaryFailure("some process keeps writing to the profile set that is being erased: stop it, and try again")


def check_name(name: str) -> None:
    """Raises Misconfigured unless a further set may have this name."""
    if _NAME.fullmatch(name) is None or name == FIRST_SPOKEN:
        raise Misconfigured(
            f"a profile set's name has 1 to 16 lower-case letters and digits and is not {FIRST_SPOKEN!r}, got {name!r}"
        )


def spoken(name: str) -> str:
    """Returns a set's name for messages: "first" for the empty name."""
    return name or FIRST_SPOKEN


def typed_name(text: str) -> str:
    """Returns the name that a typed text means. Raises Misconfigured for an invalid name."""
    if text == FIRST_SPOKEN:
        return FIRST
    check_name(text)
    return text


def _check_unchanged(register: Register, live: LiveSet) -> None:
    if register.live != live:
        raise StoreConflict("which profile set is live, or being swapped in, has changed meanwhile: look again")


def _check_identity(register: Register, digest: str) -> bool:
    """Returns whether this key has claimed the store. Raises Misconfigured if another one has."""
    if register.identity not in ("", digest):
        raise Misconfigured(
            f"the store's profiles were made with the identity key of digest {register.identity}, and this process has "
            f"the one of {digest}: set [features] identity_key_file to the store's key"
        )
    return bool(register.identity)


def _next_of(register: Register, live: LiveSet) -> str:
    """Returns the set being swapped in. Raises StoreConflict if `live` is out of date, Misconfigured without a swap."""
    _check_unchanged(register, live)
    if live.next is None:
        raise Misconfigured("no swap of profile sets is under way")
    return live.next
