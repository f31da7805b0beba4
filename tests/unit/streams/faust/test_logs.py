"""A line of code that logs without end appears once in a while."""

from __future__ import annotations

import asyncio
import logging

import pytest

from paywarden.streams.faust.logs import Seldom, calm_logs, is_no_cancellation


def record(line: int, number: int = 0) -> logging.LogRecord:
    return logging.LogRecord("aiokafka.conn", logging.ERROR, "conn.py", line, "no connection to %s", (number,), None)


def test_a_repeated_log_line_appears_once_and_others_are_not_held_back() -> None:
    now = 100.0
    seldom = Seldom(every_s=10, clock=lambda: now)
    assert seldom.filter(record(1))
    assert not seldom.filter(record(1, number=2))
    assert seldom.filter(record(2))
    now = 109.9
    assert not seldom.filter(record(1))
    now = 110.0
    assert seldom.filter(record(1))


def crash(error: BaseException) -> logging.LogRecord:
    """Return what Faust logs when this error has ended a service."""
    message = "[^---Agent*: watch]: Crashed reason=%r"
    return logging.LogRecord(
        "faust.agents.agent", logging.ERROR, "x.py", 1, message, (error,), (type(error), error, None)
    )


def test_a_cancelled_agent_is_no_crash_and_any_other_error_is() -> None:
    assert not is_no_cancellation(crash(asyncio.CancelledError()))
    assert is_no_cancellation(crash(ValueError("odd")))
    assert is_no_cancellation(record(1))


def test_a_cancelled_service_of_faust_writes_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """When Faust does not stop in time, asyncio cancels its agents: the log once had a traceback of each."""
    from mode import Service

    calm_logs()

    async def end(error: BaseException) -> None:
        try:
            raise error  # noqa: TRY301
        except BaseException as raised:  # noqa: BLE001 - as Faust does
            await Service().crash(raised)

    asyncio.run(end(asyncio.CancelledError()))
    assert caplog.records == []
    asyncio.run(end(ValueError("odd")))
    assert "ValueError('odd')" in caplog.text
