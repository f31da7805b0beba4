"""Look for the bundles of model versions that decisions name and nobody knows yet.

    decision of m-42 ─► Binnings knows no m-42: counted in the grid, and noted here
                                          │ at most every few seconds, in the thread of evaluation
                                          ▼
                         [drift] bundles and bundle_folders ─ a bundle of m-42 with a reference ─► learnt

A new model needs no restart of the stream: its bundle only has to lie where the search looks. Until it is found, its
scores are counted without features. The search for a version is given up after `PAUSES_S`: a version in a decision may
be anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from paywarden.models.drift.reference import Reference
from paywarden.streams.drift.drift_counts import OTHER_VERSION, base_version

_log = logging.getLogger(__name__)

PAUSES_S = (0.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0)
"""When a version is looked for, each in seconds after the time before."""
# The most versions that are looked for. Decisions may name any number of them.
VERSIONS_MAX = 32


@dataclass
class _Missing:
    tries: int
    due_s: float


class ReferenceSearch:
    """Looks for references of unknown versions. `miss` may be called in any thread, `look` in one."""

    def __init__(
        self,
        find: Callable[[frozenset[str]], Iterable[Reference]],
        learn: Callable[[Reference], object],
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`find` returns the references of those of these versions whose bundles it can read. It never raises.

        `learn` gets each reference once, in the thread of `look`.
        """
        self._find, self._learn, self._now_s = find, learn, now_s
        self._missing: dict[str, _Missing] = {}

    def miss(self, version: str) -> None:
        """Note that a decision has an unknown version."""
        name = base_version(version)
        if name in ("", OTHER_VERSION) or name in self._missing or len(self._missing) >= VERSIONS_MAX:
            return
        self._missing[name] = _Missing(0, self._now_s() + PAUSES_S[0])

    def look(self) -> int:
        """Look for the versions that are due; returns how many were learnt."""
        now_s = self._now_s()
        due = {
            version: missing
            for version, missing in list(self._missing.items())
            if missing.tries < len(PAUSES_S) and missing.due_s <= now_s
        }
        if not due:
            return 0
        learnt = 0
        for reference in self._find(frozenset(due)):
            version = reference.model_version
            if version in due:
                self._learn(reference)
                _log.info("model %s: its bundle was found, and its decisions are compared with it", version)
                del due[version], self._missing[version]
                learnt += 1
        for version, missing in due.items():
            missing.tries += 1
            if missing.tries < len(PAUSES_S):
                missing.due_s = now_s + PAUSES_S[missing.tries]
            else:
                _log.warning("model %s: no bundle of it was found, and it is compared with itself alone", version)
        return learnt
