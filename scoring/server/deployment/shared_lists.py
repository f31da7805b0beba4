"""Long lists of the releases that are ordered: in memory once for all workers of a host, and out of everybody's reach.

    supervisor   ready/KEY/cards.list ──copy, checksum──► memory without a name, sealed ── descriptor 17
                                                              ▲ orders-PID.json: "lists": {DIGEST: 17}
    workers      map /proc/PID/fd/17 ─────────────────────────┘

1. Nobody can write or cut short sealed memory, even if the file on disk changes meanwhile.
2. A worker opens the supervisor's descriptor by its path. The memory's name has the digest of the list, so a descriptor
   that means something else by now is not taken for it.
3. A worker that cannot open it reads the file into memory of its own.
4. A list that no ordered release has is given up. Workers that use it still have it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping

from paywarden.models.policy.mapped_list import MappedList, sealed_copy
from paywarden.models.policy.prepared_policy import LongList

_log = logging.getLogger(__name__)


class SharedLists:
    """The supervisor's lists, by digest."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def hold(self, lists: Iterable[LongList]) -> dict[str, int]:
        """Copy those of them that are not held yet; returns the descriptors of all by digest.

        Raises Misconfigured for a list that is damaged.
        """
        held = {}
        for one in lists:
            if one.digest not in self._held:
                try:
                    self._held[one.digest] = sealed_copy(one.path, one.checksum, _name(one.digest))
                except OSError as error:
                    _log.warning("%s: each worker reads the list into memory of its own: %s", one.path, error)
                    continue
            held[one.digest] = self._held[one.digest]
        return held

    def keep(self, digests: Iterable[str]) -> None:
        """Give up all others."""
        for digest in self._held.keys() - set(digests):
            os.close(self._held.pop(digest))


def shared_list(lists: Mapping[str, int], supervisor: int, digest: str) -> MappedList | None:
    """In a worker: map the list of a digest. `lists`: those of the orders. None if the supervisor has it no more."""
    if digest not in lists:
        return None
    return MappedList.sealed(f"/proc/{supervisor}/fd/{lists[digest]}", _name(digest))


def _name(digest: str) -> str:
    return f"paywarden-list-{digest}"
