"""Keep the alerts in the database as the topics have them, and write people's acts to the topics.

While Kafka is away the pages show the last known state, and since when it is old. A topic that was created again takes
the place of the old one. The pages then show for a week how many alerts were lost: fewer alerts must not look like
peace. An act is written to its topic before the person sees that it is done. The database reads it from the topic, like
the acts of the terminal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from paywarden.ops.console.inbox.alert_store import AlertStore, Gone, event_of_record
from paywarden.ops.console.page_rows import HELD_EFFECT, Missing, NothingDone
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.streams.alerts.alert_events import ConsoleEvent
from paywarden.streams.alerts.alert_records import ACKNOWLEDGEMENTS_TOPIC, ALERTS_TOPIC, Acknowledgement
from paywarden.streams.alerts.feed import FeedBatch, FeedPosition, FeedRecord

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
_HEARD_EVERY_MS = 5_000
GONE_TOLD_MS = 7 * 86_400_000
"""How long pages show the counts of topics that were created again."""
# How long a page waits for its own act to come back from the topic.
_SEE_OWN_S = 2.0
_SEE_OWN_EVERY_S = 0.02
NOT_SEEN = " Kafka has it; the pages show it when the console has read it, within seconds as a rule."
"""The text about an act that the database does not know yet."""


class Feed(Protocol):
    """The source of records: streams/alerts/feed.py, or a list in tests."""

    def start(self, known: Mapping[str, FeedPosition]) -> set[str]:
        """See AlertFeed."""

    def read(self) -> FeedBatch:
        """See AlertFeed."""

    def close(self) -> None:
        """See AlertFeed."""


class Writer(Protocol):
    """The writer of acts: streams/alerts/alert_events.py, or a list in tests."""

    def write(self, event: ConsoleEvent | Acknowledgement) -> None:
        """See EventWriter."""


class AlertReader:
    """Fills the store from the feed. `run` is its thread's work."""

    def __init__(
        self,
        store: AlertStore,
        feed: Callable[[], Feed],
        writer: Callable[[], Writer],
        clock: Callable[[], int] = now_ms,
    ) -> None:
        """`feed` and `writer` are called when they are first needed, and again after a failure."""
        self._store, self._make_feed, self._make_writer, self._clock = store, feed, writer, clock
        self._writer: Writer | None = None
        self._lock = threading.Lock()
        self._since_ms = store.heard_ms or clock()
        self._why, self._is_lost = "it is being read", False
        self._noted_ms = 0
        # The open transaction that holds a topic up, and since when.
        self._held = ("", 0)
        self._gone = store.gone()

    def run(self, stop: threading.Event) -> None:
        """Read until `stop` is set, through any outage."""
        while not stop.is_set():
            try:
                feed = self._make_feed()
                try:
                    self.follow(feed, stop)
                finally:
                    feed.close()
            except (TemporaryFailure, Misconfigured) as error:
                if not self._is_lost:
                    _log.warning("the console cannot read the topics of alerts: %s", error)
                self._lost(str(error))
                stop.wait(_RETRY_S)

    def follow(self, feed: Feed, stop: threading.Event) -> None:
        """Read a feed until `stop` is set. Raises PaywardenError."""
        if anew := feed.start(self._store.positions()):
            self._store.begin_again(anew, self._clock())
            self._gone = self._store.gone()
        is_first = True
        while not stop.is_set():
            batch = feed.read()
            if batch.records or is_first:
                # Alerts that were raised while nobody read are sent as well; an empty database sends no old ones.
                self._store.take(batch, tells=not anew)
            is_first = False
            self._held = batch.held, batch.held_since_ms
            if batch.is_at_end:
                anew = set()
                self._heard()

    def missing(self) -> list[Missing]:
        """Return entries for topics that cannot be read to their ends, and for alerts and acts that were lost."""
        why, (held, held_since_ms) = self._why, self._held
        told_since_ms = self._clock() - GONE_TOLD_MS
        found = [_told_gone(one) for one in self._gone if one.time_ms > told_since_ms]
        if why:
            return [Missing("The topics of alerts", self._since_ms, why), *found]
        return [Missing("A part of the alerts or acts", held_since_ms, held, HELD_EFFECT), *found] if held else found

    def write(self, events: Sequence[ConsoleEvent | Acknowledgement]) -> bool:
        """Write acts, and wait a moment for the database to know them; returns whether it does.

        Raises NothingDone, TemporaryFailure where nobody can say whether something was done, Misconfigured.
        """
        if self._is_lost:
            raise NothingDone(f"Nothing was done, because the topics cannot be reached: {self._why}")
        with self._lock:
            try:
                writer = self._writer or self._make_writer()
            except TemporaryFailure as error:
                # Without the schema registry, for instance, nobody can write yet.
                raise NothingDone(f"Nothing was done, because nothing can be written: {error}") from error
            self._writer = None
            try:
                for event in events:
                    writer.write(event)
            except TemporaryFailure as error:
                raise TemporaryFailure(
                    f"Nobody can say whether this was done: {error}. Look at the page again before you repeat it"
                ) from error
            self._writer = writer
        deadline = time.monotonic() + _SEE_OWN_S
        last = event_id_of(events[-1])
        while not (is_seen := self._store.has_event(last)) and time.monotonic() < deadline and not self._why:
            time.sleep(_SEE_OWN_EVERY_S)
        return is_seen

    def _heard(self) -> None:
        now = self._clock()
        self._since_ms, self._why, self._is_lost = now, "", False
        if now - self._noted_ms >= _HEARD_EVERY_MS:
            self._noted_ms = now
            self._store.put_heard(now)

    def _lost(self, why: str) -> None:
        self._why, self._is_lost = why, True


def event_id_of(event: ConsoleEvent | Acknowledgement) -> str:
    """Return the id that an act has in the database."""
    if isinstance(event, ConsoleEvent):
        return event.event_id
    return event_of_record(FeedRecord(ACKNOWLEDGEMENTS_TOPIC, 0, event.to_record())).event_id


def _told_gone(one: Gone) -> Missing:
    why = f"the topic {one.topic} is another one than before: created again, of another cluster, or without its end"
    noun, more, effect = (
        ("alert", f" ({one.open:,} open)", "An alert that goes on is not in the inbox before it changes.")
        if one.topic == ALERTS_TOPIC
        else ("act", " of people", "Earlier acts on alerts and cases are not shown.")
    )
    count = f"One earlier {noun}" if one.count == 1 else f"{one.count:,} earlier {noun}s"
    return Missing(count + more, one.time_ms, why, f"{effect} This line stays for a week.", is_lasting=True)
