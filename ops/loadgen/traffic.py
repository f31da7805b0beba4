"""Turns simulated payments into requests to the endpoint, dated when they are sent.

Where a project declares fields, the requests have plausible values of them (features/datasets/made_columns.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import uvloop

from paywarden.features.datasets.made_columns import with_declared_columns
from paywarden.features.datasets.simulator import simulate
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import LoadAnswer, run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.schemas.request_proto import request_class

_OPTIONAL = ("device_id", "ip", "mcc", "country", "channel", "utc_offset_minutes")
# Enough cards that each comes back only minutes later, as in reality. A longer load repeats them with new ids.
_CARDS, _DAYS = 20_000, 2


def requests_of(payments: pa.Table, *, id_prefix: str, fields: PaymentFields = TABLE_ALONE) -> list[ScoreRequest]:
    """Returns a request for each row of a payments table. Payment ids get a prefix; times stay as they are.

    Declared fields are taken as far as the table has columns of their names.
    """
    message = request_class(fields)
    optional = (*_OPTIONAL, *(field.name for field in fields.declared))
    return [
        message(
            payment_id=id_prefix + row["payment_id"],
            event_time_ms=row["event_time_ms"],
            card_id=row["card_id"],
            merchant_id=row["merchant_id"],
            amount_minor=row["amount_minor"],
            currency=row["currency"],
            **{name: row[name] for name in optional if row.get(name) is not None},
        )
        for row in payments.to_pylist()
    ]


def stamped(requests: Iterator[ScoreRequest]) -> Iterator[bytes]:
    """Yields bodies for a load. Each request is dated when it is taken, which is when it is sent."""
    for request in requests:
        request.event_time_ms = now_ms()
        yield request.SerializeToString()


def run(
    target: str,
    bodies: Iterator[bytes],
    *,
    rate: float,
    seconds: float,
    on_answer: Callable[[LoadAnswer], None] | None = None,
) -> LoadReport:
    """Run an open-loop load to its end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_load(target, bodies, rate=rate, seconds=seconds, on_answer=on_answer))


def run_simulated_load(
    target: str,
    *,
    rate: float | None,
    seconds: float,
    seed: int,
    arrivals: str = "poisson",
    options: LoadOptions,
    fields: PaymentFields = TABLE_ALONE,
) -> dict[str, Any]:
    """Run the load of `paywarden load`. Without a rate a new payment leaves for every answer.

    The payments have values of all declared `fields`.

    Raises Misconfigured, InvalidEvent.
    """
    if seed < 0:
        raise InvalidEvent(f"must be at least 0, got {seed}", field="seed")
    payments, _ = simulate(cards=_CARDS, days=_DAYS, seed=seed)
    # Five characters of the time keep the ids of two loads within a day apart.
    bodies = stamped_bodies(
        requests_of(with_declared_columns(payments, fields, seed=seed), id_prefix="", fields=fields),
        id_prefix=f"load{now_ms() // 100 % 16**5:05x}",
        content_type=options.content_type,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if rate is None:
            return asdict(runner.run(run_closed(target, bodies, seconds=seconds, options=options)))
        load = run_load(target, bodies, rate=rate, seconds=seconds, arrivals=arrivals, seed=seed, options=options)
        return asdict(runner.run(load))
