"""Filters the log of Faust and its Kafka client: warnings only, and none of them a hundred times.

Faust logs every service that it starts. aiokafka, while a broker is away, writes some ten lines for every tenth of
a second of it. And when Faust does not stop in time, asyncio cancels the tasks that are left, which Faust logs as a
crash of each agent, with a traceback.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from aiokafka.errors import KafkaError

EVERY_S = 10.0


class Seldom(logging.Filter):
    """Lets each line of code log once in `every_s` seconds."""

    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s, self._clock = every_s, clock
        # One entry for each line of code that logs, so it stays small.
        self._next: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this record may be logged."""
        kind, now = (record.pathname, record.lineno), self._clock()
        if now < self._next.get(kind, now):
            return False
        self._next[kind] = now + self._every_s
        return True


def is_no_cancellation(record: logging.LogRecord) -> bool:
    """False for a service's crash by a cancellation: somebody ended it, nothing has failed in it."""
    kind = record.exc_info[0] if record.exc_info else None
    is_cancellation = kind is not None and issubclass(kind, asyncio.CancelledError)
    # Faust puts the service's name before the message.
    return not (is_cancellation and "Crashed reason=" in str(record.msg))


class Brief(logging.Filter):
    """Removes the stack from a logged error of Kafka's client: the error itself is enough.

    Faust logs the same stack for each of its services that the error passes through.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: every record is logged."""
        if record.exc_info and isinstance(record.exc_info[1], KafkaError):
            record.exc_info = None
        return True


def calm_logs() -> None:
    """Set the levels and filters for the whole process. Call it once Faust is imported."""
    for name in ("faust", "mode", "aiokafka"):
        logging.getLogger(name).setLevel(logging.WARNING)
    seldom, brief = Seldom(), Brief()
    # A logger does not filter its children's lines, so each gets the filters.
    for name in list(logging.root.manager.loggerDict):
        package = name.split(".")[0]
        if package == "aiokafka":
            logging.getLogger(name).addFilter(seldom)
        elif package in ("faust", "mode"):
            logging.getLogger(name).addFilter(is_no_cancellation)
            logging.getLogger(name).addFilter(brief)
