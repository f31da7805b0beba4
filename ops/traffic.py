"""Simulated payments as requests to the endpoint, stamped with the time they are sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import uvloop

from schemas.errors import InvalidEvent
from schemas.scoring_pb2 import ScoreRequest
from scoring.load import Answer, LoadReport, run_load
from streams.simulator import simulate

_OPTIONAL = ("device_id", "ip", "mcc", "country", "channel", "utc_offset_minutes")
# Enough cards that one comes back minutes later, as in life.
_CARDS, _DAYS = 20_000, 2


def now_ms() -> int:
    """The time as payments carry it."""
    return time.time_ns() // 1_000_000


def requests_of(payments: pa.Table, *, id_prefix: str) -> list[ScoreRequest]:
    """A request for each row of a payments table; payment ids get a prefix, times are left as they are."""
    return [
        ScoreRequest(
            payment_id=id_prefix + row["payment_id"],
            event_time_ms=row["event_time_ms"],
            card_id=row["card_id"],
            merchant_id=row["merchant_id"],
            amount_minor=row["amount_minor"],
            currency=row["currency"],
            **{name: row[name] for name in _OPTIONAL if row.get(name) is not None},
        )
        for row in payments.to_pylist()
    ]


def stamped(requests: Iterator[ScoreRequest]) -> Iterator[bytes]:
    """Bodies for a load: each request dated when it is taken, which is when it is sent."""
    for request in requests:
        request.event_time_ms = now_ms()
        yield request.SerializeToString()


def repeated(requests: list[ScoreRequest]) -> Iterator[ScoreRequest]:
    """The requests over and over, each time under new payment ids."""
    round_number = 0
    while True:
        for request in requests:
            again = ScoreRequest()
            again.CopyFrom(request)
            again.payment_id = f"{request.payment_id}-{round_number}"
            yield again
        round_number += 1


def run(
    target: str,
    bodies: Iterator[bytes],
    *,
    rate: float,
    seconds: float,
    on_answer: Callable[[Answer], None] | None = None,
) -> LoadReport:
    """Drive one open-loop load to its end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_load(target, bodies, rate=rate, seconds=seconds, on_answer=on_answer))


def run_simulated_load(target: str, *, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """`paywarden load`: simulated payments at a fixed rate. Raises Misconfigured, InvalidEvent."""
    if seed < 0:
        raise InvalidEvent(f"must be at least 0, got {seed}", field="seed")
    payments, _ = simulate(cards=_CARDS, days=_DAYS, seed=seed)
    prefix = f"load-{now_ms():x}-"
    requests = requests_of(payments.slice(0, min(len(payments), max(1, int(rate * seconds * 1.2)))), id_prefix=prefix)
    return asdict(run(target, stamped(repeated(requests)), rate=rate, seconds=seconds))
