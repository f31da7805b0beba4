"""A line of code that logs without end is heard once in a while."""

from __future__ import annotations

import logging

from streams.faust_logs import Seldom


def record(line: int, number: int = 0) -> logging.LogRecord:
    return logging.LogRecord("aiokafka.conn", logging.ERROR, "conn.py", line, "no connection to %s", (number,), None)


def test_a_repeated_line_comes_through_once_in_the_time_and_others_are_not_held_back() -> None:
    now = 100.0
    seldom = Seldom(every_s=10, clock=lambda: now)
    assert seldom.filter(record(1))
    assert not seldom.filter(record(1, number=2))
    assert seldom.filter(record(2))
    now = 109.9
    assert not seldom.filter(record(1))
    now = 110.0
    assert seldom.filter(record(1))
