"""One challenger's process: follows the outboxes of the host, decides, and puts its decisions on a topic.

    outbox of each worker ──read──► VectorChallenger ──► topic shadow-decisions

1. Take a batch from each outbox (streams/shadow/outbox_tail.py), evaluate it, send the records, and wait until Kafka
   has them. Then the cursors may move.
2. Rest until the next batch. Rest longer if the challenger has used more of a core than `cpu_share_max`.
   With the priority "idle" a batch is evaluated in the time that all others leave. If a sixteenth of
   `waiting_bytes_max` waits for the challenger, it takes a small share of the cores until it has caught up. If that is
   not enough, it skips forward in the end. Then the host has more payments than it can take: no share for a minute.
3. The outboxes are looked for before the challenger is loaded, which may take long: decisions wait meanwhile.
4. Once a second send the counts to the parent, look for outboxes of new workers, and load the challenger again if its
   files have changed. If they cannot be loaded, the challenger that is there goes on. They are tried again ever more
   rarely, at least every ten minutes: a descriptor or a disk may have been missing, and the files stay as they are.

What can go wrong:

- Kafka is away: the batch waits, and so do all later records. Records beyond the limit are skipped later.
- The process is killed: the records since the last stored cursor, some seconds, are evaluated and sent again.
- A record is refused by Kafka, or is no decision: it is counted, and the next one goes on.
- The parent is gone: the process ends, because nobody reads its reports.
- A batch does not end, because the challenger's library runs for ever. In spare time another thread evaluates it, and
  this one could go on reporting that all is well. Therefore it reports nothing more once the batch has used
  `hang_timeout_s` of CPU time, and the parent starts the process again. A batch that only waits for a core uses none.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from threading import Event
from typing import Any, Protocol

from confluent_kafka import KafkaError
from google.protobuf.message import DecodeError

from paywarden.schemas.avro import Encoder
from paywarden.schemas.errors import BrokerUnavailable, PaywardenError, TemporaryFailure
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.retry_times import RetryTimes
from paywarden.scoring.state.outbox import Frames, OutboxSettings, workers
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.shadow.challenger import LEFT_OUT, Evaluated
from paywarden.streams.shadow.outbox_tail import OutboxTail
from paywarden.streams.shadow.shadow_settings import ShadowSettings
from paywarden.streams.shadow.spare_time import SpareTime

_log = logging.getLogger(__name__)

SHED, UNREADABLE, REFUSED = "shed", "unreadable", "refused"
REASONS = (SHED, UNREADABLE, REFUSED, *LEFT_OUT)
"""Why a decision of the champion has no partner. `shed`: the challenger was too slow, and skipped forward."""
_LOOK_EVERY_S = 1.0
_FLUSH_S = 3.0
# How long it waits before it tries again to load files that could not be loaded: at first, and at most.
_LOAD_AGAIN_S, _LOAD_AGAIN_S_MAX = 5.0, 600.0
# The longest rest at a time: the parent hears of the process meanwhile.
_REST_S_MAX = 1.0
# A challenger takes a share of the cores while more than this part of `waiting_bytes_max` waits, and gives it back
# below the second one.
_SHARE_FROM, _SHARE_TO = 1 / 16, 1 / 64
# A challenger that had to skip forward has no share for this long.
_NO_SHARE_S = 60.0
# A batch that takes longer in spare time is followed by smaller ones. Nobody can take it over: not before its end does
# the challenger see how far behind it is.
_SLOW_S = 1.0
_BATCH_MIN = 100


class Challenger(Protocol):
    """Decides about payments that were decided before."""

    def evaluate(self, entries: Sequence[OutboxEntry]) -> Evaluated:
        """Returns the decision about each entry, or why the entry is left out. Never raises."""


class ChallengerSource(Protocol):
    """The source of a challenger."""

    def load(self) -> Challenger:
        """Load and check it. Raises Misconfigured, BundleRefused."""

    def has_changed(self) -> bool:
        """Whether its files differ from the loaded ones. Never raises."""


class ShadowEvaluator:
    """Evaluates one challenger. Not thread-safe."""

    def __init__(
        self,
        name: str,
        source: ChallengerSource,
        *,
        outbox: OutboxSettings,
        settings: ShadowSettings,
        sender: Sender,
        topic: str,
        encoder: Encoder,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`topic`: the name on the cluster. Raises Misconfigured, BundleRefused if the challenger cannot be loaded."""
        self._name, self._source, self._now_ms = name, source, now_ms
        self._outbox, self._settings = outbox, settings
        self._sender, self._topic, self._encoder = sender, topic, encoder
        self._spare_time: SpareTime | None = None
        # The sender in spare time, and the sender with a share of a core.
        self._senders = sender, sender
        self._tails: dict[str, OutboxTail] = {}
        self._has_looked = False
        self._evaluated = 0
        self._left_out: Counter[str] = Counter()
        self._newest_ms = 0
        self._trouble = ""
        self._has_share = False
        # The most decisions in the next batch of an outbox.
        self._batch = settings.batch_max
        self._shed, self._no_share_until = 0, -math.inf
        self._load_again, self._load_trouble = RetryTimes(_LOAD_AGAIN_S, _LOAD_AGAIN_S_MAX), ""
        self._look_for_outboxes()
        self._challenger = source.load()

    def use_spare_time(self, spare_time: SpareTime, sender: Sender) -> None:
        """Evaluate batches in spare time from now on, while that is enough. `sender` sends those, and no others.

        Without this they are evaluated in the calling thread.
        """
        self._spare_time, self._senders = spare_time, (sender, self._senders[1])

    def run(self, stop: Event, tell: Callable[[dict[str, Any]], object]) -> None:
        """Work until `stop` is set, or `tell` raises. `tell` gets the status once a second, and is called at once."""
        look_at = 0.0
        while not stop.is_set():
            began, used = time.monotonic(), time.process_time()
            if began >= look_at:
                self.look_around()
                tell(self.status())
                look_at = began + _LOOK_EVERY_S
            try:
                count = self._round_by_priority(tell)
                if not self._wait_for_kafka(stop, tell):
                    break
                self._keep()
                self._note("")
            except TemporaryFailure as error:
                self._note(str(error))
                count = 0
            self._rest(stop, count, time.monotonic() - began, time.process_time() - used)
        with suppress(PaywardenError):
            self._keep(at_once=not self._trouble)
        with suppress(BrokenPipeError):
            tell(self.status())

    def look_around(self) -> None:
        """Look for outboxes of new workers, and for another version of the challenger."""
        self._look_for_outboxes()
        has_changed = self._source.has_changed()
        if has_changed:
            self._load_again.shorten()
            self._load_trouble = ""
        if has_changed or time.monotonic() >= self._load_again.at:
            self._load_anew()

    def _load_anew(self) -> None:
        """Load the challenger again. If that fails, it is tried again later."""
        try:
            self._challenger = self._source.load()
        except (PaywardenError, OSError) as error:
            self._load_again.note_failure(time.monotonic())
            if str(error) != self._load_trouble:
                _log.error("shadow %s: its new files cannot be loaded, the old ones go on: %s", self._name, error)
            self._load_trouble = str(error)
            return
        self._load_again.clear()
        self._load_trouble = ""
        _log.info("shadow %s: loaded again, its files have changed", self._name)

    def _look_for_outboxes(self) -> None:
        try:
            for worker in workers(self._outbox):
                if worker not in self._tails:
                    self._tails[worker] = OutboxTail(
                        self._outbox,
                        worker,
                        self._name,
                        waiting_bytes_max=self._settings.waiting_bytes_max,
                        is_new=self._has_looked,
                    )
            self._has_looked = True
        except TemporaryFailure as error:
            self._note(str(error))

    def _round_by_priority(self, tell: Callable[[dict[str, Any]], object]) -> int:
        """Run a round in spare time, or in this thread with its share. `tell` gets the status while it waits."""
        self._choose_share()
        self._sender = self._senders[self._has_share]
        batch_max = self._settings.batch_max
        if self._spare_time is None or self._has_share:
            self._batch = batch_max
            return self.round()
        began, used_s = time.monotonic(), time.process_time()
        running = self._spare_time.start(self.round)
        while not wait([running], _LOOK_EVERY_S).done:
            hangs = time.process_time() - used_s > self._settings.hang_timeout_s
            trouble = f"a batch has used {self._settings.hang_timeout_s} s of CPU time and is not done" if hangs else ""
            if not hangs or self._trouble != trouble:
                if hangs:
                    self._note(trouble)
                tell(self.status())
        is_slow = time.monotonic() - began > _SLOW_S
        self._batch = max(min(_BATCH_MIN, batch_max), self._batch // 4) if is_slow else min(2 * self._batch, batch_max)
        return running.result()

    def _choose_share(self) -> None:
        """Take a share of the cores if too much waits, and give it back later: see the top of this file."""
        shed = sum(tail.passed.shed for tail in self._tails.values())
        if shed > self._shed:
            self._shed, self._no_share_until = shed, time.monotonic() + _NO_SHARE_S
        left = max((tail.left_bytes for tail in self._tails.values()), default=0) / self._settings.waiting_bytes_max
        wants = left > (_SHARE_TO if self._has_share else _SHARE_FROM)
        has_share = wants and time.monotonic() >= self._no_share_until
        if has_share != self._has_share and self._spare_time is not None:
            _log.info(
                "shadow %s: %.0f %% of waiting_bytes_max wait: it %s",
                self._name,
                100 * left,
                "takes a small share of the cores" if has_share else "has what others leave",
            )
        self._has_share = has_share

    def round(self) -> int:
        """Evaluate a batch of each outbox and queue the records for Kafka. Returns how many decisions were read.

        Raises OutboxUnavailable; records that were read before that are sent all the same.
        """
        count = 0
        for tail in self._tails.values():
            frames = tail.read(self._batch)
            count += len(frames)
            self._evaluate(frames)
        return count

    def _evaluate(self, frames: Frames) -> None:
        entries = self._entries(frames.payloads)
        if not entries:
            return
        self._newest_ms = max(self._newest_ms, entries[-1].decided_time_ms)
        found = self._challenger.evaluate(entries)
        self._send(
            [record.payment_id.encode() for record in found.records],
            [self._encoder.encode(record.value()) for record in found.records],
        )
        self._left_out.update(found.left_out)

    def _entries(self, payloads: Sequence[bytes]) -> list[OutboxEntry]:
        entries = []
        for payload in payloads:
            try:
                entries.append(OutboxEntry.FromString(payload))
            except DecodeError:
                self._left_out[UNREADABLE] += 1
        return entries

    def _send(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        self._sender.send_many(self._topic, values, keys=keys, on_refused=self._count_refused)
        self._evaluated += len(values)

    def _count_refused(self, error: KafkaError) -> None:
        if not self._left_out[REFUSED]:
            _log.error("shadow %s: Kafka refuses a record: %s", self._name, error.str())
        self._left_out[REFUSED] += 1
        self._evaluated -= 1

    def _wait_for_kafka(self, stop: Event, tell: Callable[[dict[str, Any]], object]) -> bool:
        """Wait until Kafka has every record. Returns False if the process must end before."""
        while True:
            try:
                self._sender.flush(_FLUSH_S)
            except BrokerUnavailable as error:
                self._note(str(error))
                if stop.is_set():
                    return False
                tell(self.status())
            else:
                return True

    def _keep(self, *, at_once: bool = False) -> None:
        for tail in self._tails.values():
            tail.keep(at_once=at_once)

    def status(self) -> dict[str, Any]:
        """Returns the counts since the start, and how far behind the challenger is."""
        left_out = dict(self._left_out)
        waiting, gone = 0, 0
        for tail in self._tails.values():
            left_out[SHED] = left_out.get(SHED, 0) + tail.passed.shed
            gone += tail.passed.gone_bytes
            with suppress(TemporaryFailure):
                waiting = max(waiting, tail.waiting_bytes())
        lag_s = max(0.0, (self._now_ms() - self._newest_ms) / 1000) if waiting and self._newest_ms else 0.0
        return {
            "evaluated": self._evaluated,
            "left_out": left_out,
            "gone_bytes": gone,
            "waiting_bytes": waiting,
            "lag_s": lag_s,
            "cpu_s": time.process_time(),
            "trouble": self._trouble,
        }

    def _rest(self, stop: Event, count: int, wall_s: float, cpu_s: float) -> None:
        """Wait for the next batch, and until the CPU time used is a small enough share of the time."""
        has_more = count > 0 and any(tail.left_bytes for tail in self._tails.values())
        usual_s = 0.0 if has_more else self._settings.batch_wait_ms / 1000 - wall_s
        allowed_s = cpu_s / self._settings.cpu_share_max - wall_s
        stop.wait(min(_REST_S_MAX, max(usual_s, allowed_s, 0.0)))

    def _note(self, trouble: str) -> None:
        """Log a trouble once, until it is over."""
        if trouble and trouble != self._trouble:
            _log.warning("shadow %s: %s", self._name, trouble)
        self._trouble = trouble
