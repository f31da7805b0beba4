"""The console's connection to the index: opened when the database answers, kept current by threads.

A console starts although its index cannot be opened. Its pages then show that the index is missing, and since when.

A database that refuses is asked again by each page. One that does not answer costs each page the time-out, and soon all
threads wait. After the first such failure, pages are refused at once, and one thread asks until the database is back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress

from paywarden.ops.console.background import remembered
from paywarden.ops.console.page_rows import HELD_EFFECT, Missing, NothingDone
from paywarden.schemas.errors import PaywardenError, TemporaryFailure
from paywarden.streams.decision_index.database import IndexSilent
from paywarden.streams.decision_index.filler import FillState, IndexFiller, VerdictSender
from paywarden.streams.decision_index.index import DecisionIndex
from paywarden.streams.decision_index.reviews import ReviewQueue

_log = logging.getLogger(__name__)
_EFFECT = "Decisions, reviews and catches of rules cannot be shown until then."
_RETRY_S = 2.0
# Every page asks.
_COUNT_EVERY_MS, _NEWEST_EVERY_MS = 5_000, 1_000
Open = Callable[[], AbstractContextManager[tuple[DecisionIndex, ReviewQueue]]]
Fill = Callable[[DecisionIndex, ReviewQueue], tuple[IndexFiller, VerdictSender]]


class OpenedIndex:
    """The index and its queue, for pages and threads."""

    def __init__(self, opens: Open, fill: Fill | None, *, now_ms: Callable[[], int]) -> None:
        """`fill`: makes the fillers that follow the topics; None if another process does that."""
        self._opens, self._fill, self._now_ms = opens, fill, now_ms
        self._stack, self._lock = ExitStack(), threading.Lock()
        self._opened: tuple[DecisionIndex, ReviewQueue] | None = None
        self._fillers: tuple[IndexFiller, VerdictSender] | None = None
        self._trouble: tuple[int, str] | None = None
        # Whether the database says nothing, and who may ask although it does not.
        self._is_silent, self._prober = False, threading.local()
        self._waiting = remembered(self._waiting_count, _COUNT_EVERY_MS)
        self._newest = remembered(self._newest_ms, _NEWEST_EVERY_MS)

    @contextmanager
    def used(self) -> Iterator[tuple[DecisionIndex, ReviewQueue]]:
        """Give the index and the queue, and remember if the database does not answer meanwhile.

        Raises NothingDone if it cannot be used now.
        """
        with self._lock if self._opened is None else nullcontext():
            # Another one may have waited meanwhile, and in vain.
            if self._is_silent and self._trouble is not None and not getattr(self._prober, "may", False):
                raise NothingDone(self._trouble[1])
            try:
                parts = self._opened = self._opened or self._stack.enter_context(self._opens())
            except PaywardenError as error:
                self._note(error)
                raise NothingDone(str(error)) from error
        try:
            yield parts
        except TemporaryFailure as error:
            self._note(error)
            raise
        self._trouble, self._is_silent = None, False

    def _note(self, error: PaywardenError) -> None:
        since_ms = self._trouble[0] if self._trouble is not None else self._now_ms()
        self._trouble = since_ms, str(error)
        self._is_silent = self._is_silent or isinstance(error, IndexSilent)

    def ask(self, stop: threading.Event) -> None:
        """While the database does not answer, ask until it does: nobody has to open a page for that."""
        self._prober.may = True
        while not stop.wait(_RETRY_S):
            if self._trouble is not None:
                with suppress(PaywardenError), self.used() as (index, _):
                    index.count()

    def waiting_count(self) -> int | None:
        """Return how many payments wait for a review; None if that is not known."""
        with suppress(TemporaryFailure):
            return self._waiting(self._now_ms())
        return None

    def newest_ms(self) -> int:
        """Return when the newest decision came; 0 without any, or without an index."""
        with suppress(PaywardenError):
            return self._newest(self._now_ms())
        return 0

    def _waiting_count(self, now_ms: int) -> int:
        with self.used() as (_, queue):
            return queue.waiting(now_ms, 1)[1]

    def _newest_ms(self, _: int) -> int:
        with self.used() as (index, _queue):
            return index.newest_ms()

    @property
    def _state(self) -> FillState:
        """The state of the index's filling. Before the first record is asked for, an index is not yet whole either."""
        if self._fill is None:
            return FillState(is_fresh=True)
        return FillState() if self._fillers is None or self._fillers[0] is None else self._fillers[0].state

    @property
    def state_line(self) -> str:
        """A sentence about decisions that the index may lack now; "" if it lacks none."""
        return self._state.line()

    def missing(self) -> list[Missing]:
        """Return why the index is not whole, for the top of each page."""
        trouble, state = self._trouble, self._state
        sender = None if self._fillers is None else self._fillers[1]
        stuck = sender if sender is not None and sender.trouble else None
        found = []
        if trouble is not None:
            found.append(Missing("The index of decisions", *trouble, _EFFECT))
        elif stuck is not None and stuck.is_index_away:
            # No page has asked the database meanwhile.
            found.append(Missing("The index of decisions", stuck.trouble_since_ms, stuck.trouble, _EFFECT))
        elif state.is_index_away:
            found.append(Missing("The index of decisions", state.trouble_since_ms, state.trouble))
        if state.trouble and not state.is_index_away:
            found.append(Missing("The topics of decisions", state.trouble_since_ms, state.trouble))
        elif state.held and not state.trouble:
            found.append(Missing("A part of the decisions", state.held_since_ms, state.held, HELD_EFFECT))
        if stuck is not None and not stuck.is_index_away:
            effect = "Verdicts are kept here, and sent later."
            found.append(Missing("The topic of verdicts", stuck.trouble_since_ms, stuck.trouble, effect))
        return found

    def follow(self, stop: threading.Event) -> None:
        """Follow the topics until `stop`."""
        if (made := self._made(stop)) is not None:
            made[0].run(stop)

    def send(self, stop: threading.Event) -> None:
        """Send verdicts until `stop`."""
        if (made := self._made(stop)) is not None:
            made[1].run(stop)

    def _made(self, stop: threading.Event) -> tuple[IndexFiller, VerdictSender] | None:
        while self._fill is not None and not stop.is_set():
            try:
                with self.used() as parts, self._lock:
                    self._fillers = self._fillers or self._fill(*parts)
                    return self._fillers
            except PaywardenError as error:
                _log.warning("index of decisions: %s", error)
                self._note(error)
                stop.wait(_RETRY_S)
        return None

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._stack.close()
            self._opened = None
