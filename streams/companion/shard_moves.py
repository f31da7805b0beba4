"""Changes the shards of cards that a mirror holds, while the companion goes on.

    holds 1 2 3, is to hold 2 3 4                                what workers flag       applied of the changelog
    1. note "2 3 are complete", and let workers see that         all but 2 3             1 2 3
    2. sweep: delete what is in the mirror of other shards       all but 2 3             2 3
    3. catch up: copy 4 from the store, or from the changelog    all but 2 3             2 3 4
    4. read on to where the changelog ended after the copy       all but 2 3             2 3 4
    5. note "2 3 4 are complete"                                 all but 2 3 4           2 3 4

1. Each step works in slices, between two batches of the changelog (`advance`). Cards that stay never wait for it.
2. A copy is never put over a record or a tombstone that the changelog has brought since step 3 began: `_touched`
   remembers these keys. A profile of shard 4 then has the bits that it has in a mirror which holds everything.
3. A companion that dies in between begins with step 1 again. The mirror's note names the complete shards, and says that
   it is not clean.
4. If the store is lost, or another profile set is swapped in, the copy starts again with step 2.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.errors import StoreUnavailable
from paywarden.scoring.state.shards import CardShards, HeldShards, ShardSettings, mask_of
from paywarden.streams.companion.mirror_writer import MirrorWriter

_log = logging.getLogger(__name__)

# A worker looks at the mirror's note every half second.
_SEEN_S = 2.0
_LOOK_AGAIN_S = 1.0
# A slice of work between two batches of the changelog: it adds to the age of profiles while shards move.
_SLICE_S = 0.05

States = Mapping[bytes, bytes | None]
"""Profiles by key; None erases one."""


class CopyInterrupted(Exception):
    """The copied profiles may be of an old profile set: begin the copy again."""


@dataclass(frozen=True)
class HostShards:
    """The shards of cards that a host's mirror should hold, and the function that finds a profile's shard."""

    settings: ShardSettings
    cards: CardShards

    @cached_property
    def wanted(self) -> frozenset[int]:
        """The shards that the mirror is to hold. Raises Misconfigured."""
        return self.settings.wanted()

    def kept(self, profiles: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        """Returns the profiles that the mirror is to hold, of all kinds of entities."""
        found = dict(profiles)
        for key in unheld(found, self.cards, mask_of(self.wanted, self.cards.count)):
            del found[key]
        return found


def unheld(keys: Collection[bytes | None], cards: CardShards, held: NDArray[np.bool_]) -> set[bytes]:
    """Returns the keys whose shards are not held."""
    own, shards = cards.of_keys(keys)
    return {own[place] for place in np.flatnonzero(~held[shards]).tolist()}


class ShardMoves:
    """Decides which records of the changelog go into a mirror, and moves shards. See the module for the steps."""

    def __init__(
        self,
        mirror: MirrorWriter,
        shards: HostShards,
        *,
        copies: Callable[[], Iterator[States]],
        put: Callable[[States], None],
        read_to: Callable[[], Mapping[int, int]],
        ends: Callable[[], Mapping[int, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the mirror's note about its shards.

        `copies` yields all profiles, in parts; it may raise StoreUnavailable and CopyInterrupted. `put` writes into the
        mirror. `read_to` is how far the changelog is applied, by partition, and `ends` where it ends now. Raises
        MirrorUnavailable.
        """
        self._mirror, self._cards, self._clock = mirror, shards.cards, clock
        self._copies, self._put, self._read_to, self._ends = copies, put, read_to, ends
        self._wanted = shards.wanted
        note = mirror.shards()
        self._complete = frozenset(range(self._cards.count)) if note is None else note.complete
        self._is_clean = note is None or note.is_clean
        # The shards whose records are applied. Those that go are applied until workers flag their cards.
        self._held = self._mask(self._complete)
        # While a copy is made: the keys that the changelog has changed since it began, and the shards that it is of.
        self._touched: set[bytes] | None = None
        self._copied = self._mask(())
        self.copied_count = 0
        """Profiles that were copied into the mirror."""
        self._steps = self._move()
        self._resume_at = 0.0
        self.is_settled = False
        """Whether the mirror holds the wanted shards, and no other."""

    @property
    def complete(self) -> int:
        """The number of complete shards in the mirror."""
        return len(self._complete)

    @property
    def missing(self) -> int:
        """The number of wanted shards that the mirror does not hold completely."""
        return len(self._wanted - self._complete)

    def skipped(self, keys: Collection[bytes | None]) -> frozenset[bytes]:
        """Returns the keys of a batch that the mirror does not take."""
        return frozenset(unheld(keys, self._cards, self._held))

    def applied(self, profiles: States) -> None:
        """Note the profiles that the changelog has changed in the mirror."""
        if self._touched is not None:
            self._touched.update(profiles)

    def advance(self) -> None:
        """Do a slice of the work. Raises MirrorUnavailable; the next call then goes on."""
        until = self._clock() + _SLICE_S
        while not self.is_settled and self._clock() >= self._resume_at and self._clock() < until:
            try:
                next(self._steps)
            except StopIteration:
                self.is_settled = True
            except Exception:
                # A generator that has raised is at its end. The mirror's note says how far it came.
                self._touched, self._steps = None, self._move()
                raise

    def _mask(self, shards: Iterable[int]) -> NDArray[np.bool_]:
        return mask_of(shards, self._cards.count)

    def _note(self, complete: frozenset[int], *, is_clean: bool) -> None:
        self._mirror.note_shards(HeldShards(self._cards.digest, complete, is_clean))
        self._complete, self._is_clean = complete, is_clean

    def _pause(self, seconds: float) -> None:
        self._resume_at = self._clock() + seconds

    def _move(self) -> Iterator[None]:
        kept = self._complete & self._wanted
        missing = self._wanted - kept
        if not self._is_clean or self._complete - self._wanted:
            self._note(kept, is_clean=False)
            self._pause(_SEEN_S)
            yield
            self._held = self._mask(kept)
            yield from self._sweep()
        elif missing:
            self._note(kept, is_clean=False)
        if missing:
            _log.info("companion: %d shards of cards are copied into the mirror", len(missing))
        while missing:
            try:
                yield from self._copy(kept, missing)
                break
            except (StoreUnavailable, CopyInterrupted) as error:
                _log.info("companion: the copy of shards starts again: %s", error)
                self._touched, self._held = None, self._mask(kept)
                self._pause(_LOOK_AGAIN_S)
                yield
                yield from self._sweep()
        if not self._is_clean or self._complete != self._wanted:
            self._note(self._wanted, is_clean=True)
            _log.info("companion: the mirror holds its %d shards of cards", len(self._wanted))

    def _sweep(self) -> Iterator[None]:
        """Delete all that is of shards which are not held."""
        for keys in self._mirror.walk():
            if leaving := unheld(keys, self._cards, self._held):
                self._put(dict.fromkeys(leaving))
            yield

    def _copy(self, kept: frozenset[int], missing: frozenset[int]) -> Iterator[None]:
        self._touched, self._copied = set(), self._mask(missing)
        self._held = self._mask(kept | missing)
        for profiles in self._copies():
            own, shards = self._cards.of_keys(profiles)
            found = {own[place]: profiles[own[place]] for place in np.flatnonzero(self._copied[shards]).tolist()}
            for key in self._touched.intersection(found):
                del found[key]
            if found:
                self._put(found)
                self.copied_count += len(found)
            yield
        # A record from the time of the copy may have put an older state in for a moment: read past them all.
        ends = self._ends()
        while any(self._read_to().get(partition, 0) < end for partition, end in ends.items()):
            self._pause(_SLICE_S)
            yield
        self._touched = None
