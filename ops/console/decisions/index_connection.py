"""The console's connection to the index: opened when the database answers, kept current by threads.

A console starts although its index cannot be opened. Its pages then show that the index is missing, and since when.

A database that refuses is asked again by each page. One that does not answer costs each page the time-out, and soon all
threads wait. After the first such failure, pages are refused at once, and one thread asks until the database is back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from paywarden.ops.console.pages import HELD_EFFECT, Missing, NothingDone
from paywarden.schemas.errors import PaywardenError, TemporaryFailure
from paywarden.streams.decision_index.database import IndexSilent
from paywarden.streams.decision_index.filler import FillState

if TYPE_CHECKING:
    from paywarden.streams.decision_index.filler import IndexFiller, VerdictSender
    from paywarden.streams.decision_index.index import DecisionIndex
    from paywarden.streams.decision_index.reviews import ReviewQueue

_log = logging.getLogger(__name__)
_EFFECT = "Decisions, reviews and catches of rules cannot be shown until then."
_RETRY_S = 2.0
_COUNT_EVERY_MS, _NEWEST_EVERY_MS = 5_000, 1_000
Open = Callable[[], AbstractContextManager[tuple["DecisionIndex", "ReviewQueue"]]]
Fill = Callable[["DecisionIndex", "ReviewQueue"], tuple["IndexFiller", "VerdictSender"]]


class OpenedIndex:
    """The index and its queue, for pages and threads."""

    def __init__(self, opens: Open, fill: Fill | None, *, now_ms: Callable[[], int]) -> None:
        """`fill`: makes the fillers that follow the topics; None if another process does that."""
        self._opens, self._fill, self._now_ms = opens, fill, now_ms
        self._stack, self._lock = ExitStack(), threading.Lock()
        self._opened: tuple[DecisionIndex, ReviewQueue] | None = None
        self._filler: IndexFiller | None = None
        self._sender: VerdictSender | None = None
        self._trouble: tuple[int, str] | None = None
        self._counted = self._newest = (0, 0)
        # Whether the database says nothing, and who may ask although it does not.
        self._is_silent, self._prober = False, threading.local()

    def parts(self) -> tuple[DecisionIndex, ReviewQueue]:
        """Returns the index and the queue. Raises NothingDone if the database cannot be used now."""
        if self._opened is not None:
            return self._opened
        self._require_word()
        with self._lock:
            if self._opened is None:
                # Another one has waited meanwhile, and in vain.
                self._require_word()
                try:
                    self._opened = self._stack.enter_context(self._opens())
                except PaywardenError as error:
                    self._note(error)
                    raise NothingDone(str(error)) from error
                self._is_well()
            return self._opened

    @contextmanager
    def used(self) -> Iterator[tuple[DecisionIndex, ReviewQueue]]:
        """Gives the index and the queue to a page, and remembers if the database does not answer meanwhile."""
        parts = self.parts()
        self._require_word()
        try:
            yield parts
        except TemporaryFailure as error:
            self._note(error)
            raise
        self._is_well()

    def _require_word(self) -> None:
        """Raise NothingDone if the database says nothing, unless this thread probes the database."""
        trouble = self._trouble
        if self._is_silent and trouble is not None and not getattr(self._prober, "may", False):
            raise NothingDone(trouble[1])

    def _is_well(self) -> None:
        self._trouble, self._is_silent = None, False

    def _note(self, error: PaywardenError) -> None:
        since_ms = self._trouble[0] if self._trouble is not None else self._now_ms()
        self._trouble = since_ms, str(error)
        self._is_silent = self._is_silent or isinstance(error, IndexSilent)

    def ask(self, stop: threading.Event) -> None:
        """While the database does not answer, asks until it does: nobody has to open a page for that."""
        self._prober.may = True
        while not stop.wait(_RETRY_S):
            if self._trouble is not None:
                with suppress(PaywardenError), self.used() as (index, _):
                    index.count()

    def waiting_count(self) -> int:
        """Returns how many payments wait for a review. It is counted every few seconds, since every page asks."""
        now_ms = self._now_ms()
        if now_ms - self._counted[0] > _COUNT_EVERY_MS:
            with self.used() as (_, queue):
                self._counted = now_ms, queue.waiting(now_ms, 1)[1]
        return self._counted[1]

    def newest_ms(self) -> int:
        """Returns when the newest decision came; 0 without any, or without an index. It is read once a second."""
        now_ms = self._now_ms()
        if now_ms - self._newest[0] > _NEWEST_EVERY_MS:
            # The top of each page says that the index is missing.
            with suppress(PaywardenError), self.used() as (index, _):
                self._newest = now_ms, index.newest_ms()
        return self._newest[1]

    @property
    def state(self) -> FillState | None:
        """The state of the index's filling; None if this console does not fill it."""
        if self._filler is None:
            # Before the first record is asked for, an index is not yet whole either.
            return None if self._fill is None else FillState()
        return self._filler.state

    def missing(self) -> list[Missing]:
        """Returns why the index is not whole, for the top of each page."""
        trouble = self._trouble
        stuck = self._sender if self._sender is not None and self._sender.trouble else None
        if trouble is None and stuck is not None and stuck.is_index_away:
            # No page has asked the database meanwhile.
            trouble = stuck.trouble_since_ms, stuck.trouble
        found = [] if trouble is None else [Missing("The index of decisions", *trouble, _EFFECT)]
        state = self.state
        if state is not None and state.is_index_away:
            if not found:
                found.append(Missing("The index of decisions", state.trouble_since_ms, state.trouble))
        elif state is not None and state.trouble:
            found.append(Missing("The topics of decisions", state.trouble_since_ms, state.trouble))
        elif state is not None and state.held:
            found.append(Missing("A part of the decisions", state.held_since_ms, state.held, HELD_EFFECT))
        if stuck is not None and not stuck.is_index_away:
            effect = "Verdicts are kept here, and sent later."
            found.append(Missing("The topic of verdicts", stuck.trouble_since_ms, stuck.trouble, effect))
        return found

    def follow(self, stop: threading.Event) -> None:
        """Follows the topics until `stop`."""
        filler = self._made(stop)
        if filler is not None:
            filler[0].run(stop)

    def send(self, stop: threading.Event) -> None:
        """Sends verdicts until `stop`."""
        made = self._made(stop)
        if made is not None:
            made[1].run(stop)

    def _made(self, stop: threading.Event) -> tuple[IndexFiller, VerdictSender] | None:
        while self._fill is not None and not stop.is_set():
            try:
                index, queue = self.parts()
                with self._lock:
                    if self._filler is None or self._sender is None:
                        self._filler, self._sender = self._fill(index, queue)
                    return self._filler, self._sender
            except PaywardenError as error:
                _log.warning("index of decisions: %s", error)
                self._note(error)
                stop.wait(_RETRY_S)
        return None

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._stack.close()
            self._opened = None
