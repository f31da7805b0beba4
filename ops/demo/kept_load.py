"""The payments of a demonstration that is kept running: the simulated world goes on, in real time.

    later payments   10:59:58  11:00:03  11:00:07 …     each is sent at its own time
    a minute's load  ├─────────── 60 s ───────────┤     then the next; a load that fails is named and starts again
    after LATER_DAYS the same payments come once more, days later and with new ids

Cards therefore pay as often, and at the hours, as in the history that the model was trained on: drift detection sees
the same world. From a time on a share of the payments is shifted, which it has to notice.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pyarrow as pa
import uvloop

from paywarden.ops.demo.live_run import AGAIN, LIVE_PREFIX, LiveSystem, Publisher
from paywarden.ops.loadgen.load_run import LoadAnswer, run_arrivals
from paywarden.ops.loadgen.traffic import requests_of, stamped
from paywarden.ops.times import now_ms
from paywarden.schemas.avro import LocalSchemaIds
from paywarden.schemas.errors import PaywardenError
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.streams.kafka.producers import make_producer

SHIFTED_SHARE = 0.5
"""The share of the payments that change."""
SHIFTED_TIMES = 6
"""The factor of the amounts of shifted payments."""
SHIFTED_CHANNEL = "moto"
"""Their channel: telephone, which the simulator does not know."""
# Latencies are kept for a whole load, so that one is short.
_LOAD_MS = 60_000
_LOOK_EVERY_S = 0.1
# Before a load that failed starts again; and how long the connections of a load may take to close.
_AGAIN_S, _STOP_S = 1.0, 2.0
_DAY_MS = 86_400_000


class LaterPayments:
    """The payments after the start, in order; their days come round and round."""

    def __init__(self, payments: pa.Table, fields: PaymentFields = TABLE_ALONE) -> None:
        self._payments, self._fields = payments, fields
        self._times = payments["event_time_ms"].to_numpy()
        self._first_ms = int(self._times[0])
        # Whole days, so that a time of day stays one.
        self._round_ms = -(-(int(self._times[-1]) - self._first_ms) // _DAY_MS) * _DAY_MS

    def between(self, start_ms: int, end_ms: int) -> list[ScoreRequest]:
        """Returns the payments from a time on and before another, dated. A span has at most one end of a round."""
        first_round = max(0, (start_ms - self._first_ms) // self._round_ms)
        found: list[ScoreRequest] = []
        for number in (first_round, first_round + 1):
            later_ms = number * self._round_ms
            first, end = np.searchsorted(self._times, (start_ms - later_ms, end_ms - later_ms)).tolist()
            for request in requests_of(
                self._payments.slice(first, end - first), id_prefix=LIVE_PREFIX, fields=self._fields
            ):
                request.event_time_ms += later_ms
                request.payment_id += f"{AGAIN}{number}" if number else ""
                found.append(request)
        return found


def shifted(payments: Iterator[ScoreRequest], is_shifted: Callable[[], bool]) -> Iterator[ScoreRequest]:
    """Yields the payments; while `is_shifted`, a share of them is larger, and on another channel."""
    for place, request in enumerate(payments):
        if place % 10 < SHIFTED_SHARE * 10 and is_shifted():
            request.amount_minor *= SHIFTED_TIMES
            request.channel = SHIFTED_CHANNEL
        yield request


def send_later(stop: threading.Event, live: LiveSystem, shift_ms: int, say: Callable[[str], object]) -> None:
    """Send payments until `stop` is set or a process has ended."""
    world = live.world
    assert world.later is not None
    later = LaterPayments(world.later, world.fields)
    publisher = Publisher(make_producer(live.kafka, linger_ms=5), LocalSchemaIds(fields=world.fields), world)
    sent_to_ms = now_ms()

    def is_over() -> bool:
        return stop.is_set() or not live.parts.all_run()

    def on_answer(answer: LoadAnswer) -> None:
        if answer.status == 200:
            publisher.publish(answer.request)

    async def a_minute() -> None:
        nonlocal sent_to_ms
        # After a failure the payments of the last minute are sent at once, and earlier ones left out.
        start_ms = max(sent_to_ms, now_ms() - _LOAD_MS)
        sent_to_ms = start_ms + _LOAD_MS
        payments = later.between(start_ms, sent_to_ms)
        due_s = np.array([max(0, payment.event_time_ms - now_ms()) / 1000 for payment in payments])
        bodies = stamped(shifted(iter(payments), lambda: now_ms() >= shift_ms))
        await run_arrivals(live.parts.target, bodies, due_s, on_answer=on_answer)
        await asyncio.sleep(max(0, sent_to_ms - now_ms()) / 1000)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(send_until(is_over, a_minute, say))


async def send_until(
    is_over: Callable[[], bool], load: Callable[[], Awaitable[object]], say: Callable[[str], object]
) -> None:
    """Run a load after the other until `is_over`, whatever the load does then. If one fails, say why and go on."""
    while not is_over():
        sending = asyncio.ensure_future(load())
        while not sending.done() and not is_over():
            await asyncio.wait([sending], timeout=_LOOK_EVERY_S)
        if not sending.done():
            sending.cancel()
            await asyncio.wait([sending], timeout=_STOP_S)
        elif (error := sending.exception()) is not None:
            if not isinstance(error, (PaywardenError, OSError)):
                raise error
            say(f"sending payments failed and starts again: {error}")
            await asyncio.sleep(_AGAIN_S)
