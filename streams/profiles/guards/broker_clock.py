"""Compares this host's time of day with the broker's, which no producer can set.

    sent at 5,000 ms since the boot  ──►  the broker stamps the record: 12:00:00.010
    acknowledged at 5,020 ms         ◄──  12:00:00.010
    at 5,000 ms since the boot it was 11:59:59.990 to 12:00:00.010 at the broker

1. On a topic with `message.timestamp.type=LogAppendTime` a broker stamps each record, and its acknowledgement has the
   stamp. A worker sends frames all the time. It goes by acknowledgements of its own frames alone: producers of payments
   may set any time in their records. One that came late says less, and nothing wrong.
2. Between two acknowledgements the clock of the boot goes on, which nobody sets. A leap of the time of day shows at
   once.
3. `now_ms` is the time of day, moved to within CLOCKS_MS_MAX of the broker's. A leap in the middle of a batch therefore
   refuses no payment.
4. A worker whose clock disagrees by more than that ends. The next one asks the broker once a second, and joins the
   group when they agree (streams/profiles/pipeline.py). Others do its work. It cannot know which clock is wrong.
5. The clock of the boot stands still with a virtual machine. A record that seems to come from the future is therefore a
   reason to ask the broker before anything is refused, and so is a leap before the worker leaves.

Without stamps (another type of timestamp, the embedded broker) there is nothing to compare.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from paywarden.schemas.durability import boot_ms
from paywarden.schemas.errors import TemporaryFailure
from paywarden.streams.profiles.profile_metrics import StreamMetrics

_log = logging.getLogger(__name__)

# Clocks with NTP differ by milliseconds. Payments may be dated a minute into the future (`[stream] future_ms_max`).
CLOCKS_MS_MAX = 10_000
# The embedded broker stamps each record with 1.2 seconds after 1970.
_NO_STAMP_MS = 10_000


class ClocksDisagree(TemporaryFailure):
    """This host's clock and the broker's disagree."""


class BrokerClock:
    """This host's time of day, as far as the broker agrees. Any thread may call `now_ms` and read `trouble`."""

    def __init__(
        self,
        metrics: StreamMetrics,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock_ms: Callable[[], int] = boot_ms,
    ) -> None:
        self._metrics, self._day_ms, self.clock_ms = metrics, now_ms, clock_ms
        self.trouble = ""
        """How the clocks disagree; empty while they agree."""
        # The least and the most by which the broker's time of day is ahead of the clock of the boot.
        self._difference: tuple[int, int] | None = None

    def heard(self, stamp_ms: int, sent_ms: int) -> None:
        """Note the stamp of a record that was sent at `sent_ms` of `clock_ms`, and is acknowledged now."""
        if stamp_ms >= _NO_STAMP_MS:
            self._difference = stamp_ms - self.clock_ms(), stamp_ms - sent_ms

    def now_ms(self) -> int:
        """Returns the time of day in epoch milliseconds, at most CLOCKS_MS_MAX from the broker's."""
        if self._difference is None:
            return self._day_ms()
        least, most = self._difference
        since_boot_ms = self.clock_ms()
        return min(max(self._day_ms(), since_boot_ms + least - CLOCKS_MS_MAX), since_boot_ms + most + CLOCKS_MS_MAX)

    def is_doubtful(self, newest_ms: int) -> bool:
        """Returns whether to ask the broker now. `newest_ms`: the newest timestamp of the records in hand, or 0."""
        return abs(self._ahead_ms()) > CLOCKS_MS_MAX or newest_ms > self._day_ms() + CLOCKS_MS_MAX

    def disagrees(self) -> bool:
        """Returns whether the clocks disagree by the last acknowledgement. A change is logged."""
        ahead_ms, trouble = self._ahead_ms(), ""
        if abs(ahead_ms) > CLOCKS_MS_MAX:
            way = "ahead of" if ahead_ms > 0 else "behind"
            trouble = f"this host's clock is {round(abs(ahead_ms) / 1000)} s {way} the broker's"
        if trouble and not self.trouble:
            _log.error("stream: %s: this worker waits until they agree", trouble)
        elif self.trouble and not trouble:
            _log.info("stream: this host's clock and the broker's agree again")
        self.trouble = trouble
        return bool(trouble)

    def _ahead_ms(self) -> int:
        """Returns by how much this host's clock is certainly ahead; negative if it is behind. Shows it as a metric."""
        if self._difference is None:
            return 0
        least, most = self._difference
        # A process may be stopped between two readings.
        first_ms, day_ms, last_ms = self.clock_ms(), self._day_ms(), self.clock_ms()
        ahead_ms = max(0, day_ms - last_ms - most) + min(0, day_ms - first_ms - least)
        self._metrics.clock_ahead.set(ahead_ms / 1000)
        return ahead_ms
