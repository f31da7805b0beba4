"""All cases, built from their events: each event is applied once, and not again for each page."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from paywarden.ops.console.cases.case import Case, after
from paywarden.ops.console.inbox.store import AlertStore

PREFIX = "case:"


class KnownCases:
    """The cases in the database. Thread-safe."""

    def __init__(self, store: AlertStore, large_minor: int) -> None:
        self._store, self._large = store, large_minor
        self._lock = threading.Lock()
        self._cases: dict[str, Case] = {}
        self._number, self._mark = 0, (0, "")

    def all(self) -> Mapping[str, Case]:
        """Returns the cases by id, with the events since the last call. Raises DatabaseUnavailable."""
        with self._lock:
            if self._number and self._store.mark_of_kind(PREFIX, self._number) != self._mark:
                self._cases, self._number = {}, 0
            new = self._store.events_of_kind(PREFIX, self._number)
            for number, event in new:
                case_id = event.subject.removeprefix(PREFIX)
                case = after(self._cases.get(case_id), event, self._large)
                if case is not None:
                    self._cases[case_id] = case
                self._number = number
            if new:
                self._mark = self._store.mark_of_kind(PREFIX, self._number)
            return dict(self._cases)
