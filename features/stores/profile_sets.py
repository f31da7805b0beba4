"""Profile sets: complete collections of what the stream keeps, side by side in one store, and which one is live.

A set holds the profiles of all entities and what is kept about payments. The first has the empty name and lies where
a store without further sets has everything. A rebuild fills a fresh set beside the live one, and then:

    create        live ""    next -      epoch 0    the stream writes "", the rebuild "b1"
    begin_swap    live ""    next "b1"   epoch 0
    finish_swap   live "b1"  next -      epoch 1    (abort_swap: live "", next -, epoch 1)
    drop ""       its records are erased, then its name is taken off the register

Names, times and the pointer stand in one record, the register, which is replaced by compare-and-set: of two processes
that change it at once, one looks again at what the other made of it. So no set is dropped that is being swapped in,
and none swapped in that is being dropped. A change carries a token of its own: a store takes the very bytes it has for
a repetition, and two rebuilds that want the same must not both be told that they did it.
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

from paywarden.features.stores.base import ProfileStore, ScanProgress, StoreConflict, Versioned, in_batches
from paywarden.schemas.errors import Misconfigured, TemporaryFailure

FIRST = ""
# How people write and read the empty name. A command that took an empty argument would take an unset variable, too.
FIRST_SPOKEN = "first"
REGISTER_KEY = b"meta:live"

# Short: with an entity's name it makes the name of an Aerospike set, which has 63 characters at most.
_NAME = re.compile(r"[a-z0-9]{1,16}")
_FORMAT = 1
# Changes are rare and take milliseconds; who meets so many others in a row has met something that is wrong.
_ATTEMPTS_MAX = 20
_ERASE_BATCH = 1_000
# What a process that had not yet noticed wrote meanwhile is erased by the second pass; it does not go on for ever.
_ERASE_PASSES_MAX = 3


@dataclass(frozen=True)
class LiveSet:
    """Which set is live. `next` is the one being swapped in, None when no swap is under way.

    `epoch` counts the swaps that have ended, finished or given up, so that nothing looks as it did before one.
    """

    name: str
    epoch: int
    next: str | None


@dataclass(frozen=True)
class ProfileSet:
    """A set there is. `begun_ms`: when it was created, None for the first."""

    name: str
    begun_ms: int | None
    is_being_dropped: bool = False


@dataclass(frozen=True)
class Register:
    """The sets there are, and which is live. Without a record there is the first, and it is live."""

    live: LiveSet = LiveSet(FIRST, 0, None)
    sets: tuple[ProfileSet, ...] = (ProfileSet(FIRST, None),)

    def find(self, name: str) -> ProfileSet:
        """Raises Misconfigured when there is no set of this name."""
        for one in self.sets:
            if one.name == name:
                return one
        known = ", ".join(spoken(one.name) for one in self.sets)
        raise Misconfigured(f"there is no profile set {spoken(name)}; there are {known}")

    def encode(self, change: str) -> bytes:
        """As it is stored. `change`: a token that no other change has."""
        fields = {"format": _FORMAT, "change": change, **dataclasses.asdict(self)}
        return json.dumps(fields, indent=1).encode()


def decode_register(value: bytes | None) -> Register:
    """The register in these bytes, None when there are none. Raises Misconfigured when it is of another release."""
    if value is None:
        return Register()
    try:
        fields = json.loads(value)
        if fields["format"] != _FORMAT:
            raise Misconfigured(
                f"the register of profile sets has format {fields['format']}, and this release reads {_FORMAT}"
            )
        sets = tuple(ProfileSet(**one) for one in fields["sets"])
        return Register(LiveSet(**fields["live"]), sets)
    except (ValueError, KeyError, TypeError) as error:
        raise Misconfigured("the register of profile sets cannot be read: it is damaged") from error


class RegisterStore(Protocol):
    """One record, read by every process that uses the store, and replaced by whichever changes it."""

    def read(self) -> Versioned:
        """The record and its version. Raises StoreUnavailable or Misconfigured."""

    def replace(self, value: bytes, version: int) -> None:
        """Replaces the record if it is still at this version, or holds these very bytes already.

        Raises StoreConflict when it is not; StoreUnavailable, after which it may have been replaced or not; or
        Misconfigured.
        """

    def close(self) -> None:
        """Lets go of files and connections. Closing twice is fine."""


class StoredRegister:
    """A RegisterStore in a ProfileStore, which must belong to no profile set; closes it."""

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
        """The records of one set and of no other; close it. For writing, one process a set at a time."""

    def open_register(self) -> RegisterStore:
        """The record that says which sets there are; close it."""

    def open_beside(self, *, readonly: bool = False) -> ProfileStore:
        """Records that belong to no profile set and outlive them all, such as counts of decisions; close it.

        Several processes may write there at once: they say which versions they replace.
        """

    def counts(self, name: str) -> dict[str, int]:
        """How many records of each kind (card, payment, …) a set has; kinds without any are left out."""

    def erase(self, name: str, *, records_per_second: int = 0, progress: ScanProgress | None = None) -> None:
        """Erases all of a set, at so many records a second (0: no limit) where it goes record by record.

        The same call again goes on where it ended.
        """


class ProfileSets:
    """What is done to the register. Safe to use from several processes.

    Every call raises StoreUnavailable or Misconfigured as RegisterStore does. After StoreUnavailable a change may have
    been made or not: look before making it again.
    """

    def __init__(self, register: RegisterStore) -> None:
        self._register = register

    def read(self) -> LiveSet:
        """Which set is live now."""
        return self.register().live

    def register(self) -> Register:
        """All there is to know, as of one moment."""
        return decode_register(self._register.read().value)

    def create(self, name: str, *, now_ms: int) -> None:
        """Enter a new set, which has nothing in it yet. Raises Misconfigured when the name is taken or is none."""
        check_name(name)

        def enter(register: Register) -> Register:
            if any(one.name == name for one in register.sets):
                raise Misconfigured(f"there is a profile set {spoken(name)} already")
            return dataclasses.replace(register, sets=(*register.sets, ProfileSet(name, now_ms)))

        self._change(enter)

    def begin_swap(self, live: LiveSet, to: str) -> LiveSet:
        """Announce that `to` is about to be live; returns what holds then.

        Raises StoreConflict when `live` is not what holds now; Misconfigured when a swap is under way, or there is no
        such set to swap in.
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
        """Make the set being swapped in the live one; returns what holds then. Raises as `begin_swap` does."""

        def finish(register: Register) -> Register:
            return dataclasses.replace(register, live=LiveSet(_next_of(register, live), live.epoch + 1, None))

        return self._change(finish).live

    def abort_swap(self, live: LiveSet) -> LiveSet:
        """Give the swap up: what was live stays it. Returns what holds then. Raises as `begin_swap` does."""

        def give_up(register: Register) -> Register:
            _next_of(register, live)
            return dataclasses.replace(register, live=LiveSet(live.name, live.epoch + 1, None))

        return self._change(give_up).live

    def begin_drop(self, name: str) -> None:
        """Note that a set is being dropped, so that it can't be swapped in any more.

        Raises Misconfigured when it is live, or being swapped in, or not there.
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
        """Take a set that is being dropped off the register; its name is free again."""

        def remove(register: Register) -> Register:
            left = tuple(one for one in register.sets if one.name != name or not one.is_being_dropped)
            return dataclasses.replace(register, sets=left)

        self._change(remove)

    def close(self) -> None:
        """Lets go of the register."""
        self._register.close()

    def _change(self, update: Callable[[Register], Register]) -> Register:
        """Replace the register by what `update` makes of it, or raise what that raises."""
        for _ in range(_ATTEMPTS_MAX):
            value, version = self._register.read()
            changed = update(decode_register(value))
            try:
                self._register.replace(changed.encode(uuid.uuid4().hex), version)
            except StoreConflict:
                # Perhaps another part of it was changed: that is for `update` to judge.
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
    """Erase a whole set and take it off the register. Killed at any moment, the same call goes on.

    Raises Misconfigured when the set is live, being swapped in, or not there; StoreUnavailable; and TemporaryFailure
    when some process keeps writing to it.
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
    """Erases every record of the kinds that `count` finds, through the port: works on any store.

    `records_per_second` is of all kinds together, 0 for no limit. Raises StoreUnavailable, and TemporaryFailure when
    records keep coming.
    """
    expected = sum(count().values())
    erased = 0
    # No more at once than a second may have.
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
    """A set's name for people."""
    return name or FIRST_SPOKEN


def typed_name(text: str) -> str:
    """The name that a person means. Raises Misconfigured when it can't be one."""
    if text == FIRST_SPOKEN:
        return FIRST
    check_name(text)
    return text


def _check_unchanged(register: Register, live: LiveSet) -> None:
    if register.live != live:
        raise StoreConflict("which profile set is live, or being swapped in, has changed meanwhile: look again")


def _next_of(register: Register, live: LiveSet) -> str:
    """The set being swapped in. Raises StoreConflict when `live` does not hold, Misconfigured when there is none."""
    _check_unchanged(register, live)
    if live.next is None:
        raise Misconfigured("no swap of profile sets is under way")
    return live.next
