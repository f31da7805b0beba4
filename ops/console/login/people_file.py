"""Follow the file of people while the console runs.

Every second: if the file has changed, and has stood still for a round, the console goes on with its people. A file that
cannot be used changes nothing: the log and each page say why, and the people before stay until it is right.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from paywarden.ops.console.pages import Missing, Section
from paywarden.ops.console.people.people import People
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import file_state

_log = logging.getLogger(__name__)
_EVERY_S = 1.0


class PeopleFile:
    """The file of people, read at the start. Raises Misconfigured."""

    def __init__(self, path: Path, clock: Callable[[], int] = now_ms) -> None:
        self._path, self._clock = path, clock
        # The states of the file in use, and at the last look: taken before a file is read.
        self._used = self._seen = file_state(path)
        self.people = People.read(path)
        """The people of the newest file that could be used."""
        self._right_ms, self._why = clock(), ""

    def section(self, take: Callable[[People], object]) -> Section:
        """Returns a section without pages that gives the people of each changed file to `take`."""

        def follow(stop: threading.Event) -> None:
            while not stop.wait(_EVERY_S):
                if self.look():
                    take(self.people)

        return Section("people", "", "", (), background=(follow,), missing=self.missing)

    def look(self) -> bool:
        """Read the file if it has changed. Returns whether there are new people."""
        state = file_state(self._path)
        if state == self._used and not self._why:
            self._right_ms = self._clock()
            return False
        if state != self._seen:
            # It may still be written: half a file would end the sessions of the people in its other half.
            self._seen = state
            return False
        try:
            self.people = People.read(self._path)
        except Misconfigured as error:
            if str(error) != self._why:
                _log.error("%s; the people before stay", error)
            self._why = str(error)
            return False
        self._used, self._right_ms, self._why = state, self._clock(), ""
        _log.info("%s has changed: %d people, %d tokens", self._path, len(self.people.people), len(self.people.tokens))
        return True

    def missing(self) -> list[Missing]:
        """Returns that the file cannot be used, while it cannot."""
        if not self._why:
            return []
        effect = "People, roles and tokens are those of that time."
        return [Missing("The file of people", self._right_ms, self._why, effect, is_lasting=True)]
