"""Keep the console's copy of the registry's log equal to the topic's, where hosts share it (`[models] topic`).

A scoring host has a companion that does so. A console on a machine of its own has none: without this it would show its
folder alone, and no proposal from another machine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from paywarden.ops.console.pages import Missing
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import PaywardenError

_log = logging.getLogger(__name__)
_EVERY_S, _RETRY_S = 1.0, 2.0


class Log(Protocol):
    """The log that hosts share: SharedLog."""

    def sync(self) -> object:
        """Make copy and topic equal. Raises PaywardenError."""


class RegistryFollower:
    """Follows the topic; `run` is its thread's work."""

    def __init__(self, opens: Callable[[], AbstractContextManager[Log]], clock: Callable[[], int] = now_ms) -> None:
        self._opens, self._clock = opens, clock
        self._since_ms, self._why = clock(), "it is being read"

    def run(self, stop: threading.Event) -> None:
        """Follow the topic until `stop` is set, through any outage."""
        while not stop.is_set():
            try:
                with self._opens() as log:
                    while not stop.is_set():
                        log.sync()
                        self._since_ms, self._why = self._clock(), ""
                        stop.wait(_EVERY_S)
            except PaywardenError as error:
                if self._why != str(error):
                    _log.warning("the console cannot read the topic of the model registry: %s", error)
                self._why = str(error)
                stop.wait(_RETRY_S)

    def missing(self) -> list[Missing]:
        """Returns that the topic cannot be read, while it cannot."""
        return [Missing("The topic of the model registry", self._since_ms, self._why)] if self._why else []
