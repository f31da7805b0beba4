"""A worker's tasks for releases, beside its loop, run in one thread, in order."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable

import pytest

from paywarden.models.bundle.prepared_bundle import no_rest
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.server.deployment.releases import ReleaseOrders
from paywarden.scoring.server.worker_swap import Chores, ReleaseSwitch
from tests.patience import PATIENCE_S


def test_chores_are_done_in_order_in_one_thread_which_a_bug_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    chores, done = Chores(), queue.SimpleQueue[tuple[int, int, float]]()
    ours = sys.getswitchinterval()

    def noted(number: int) -> Callable[[Callable[[], object]], object]:
        return lambda _: done.put((number, threading.get_ident(), sys.getswitchinterval()))

    def fails(_: object) -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        for work in (noted(0), fails, noted(1), noted(2), noted(3)):
            chores.do(work)
        found = [done.get(timeout=PATIENCE_S) for _ in range(4)]
    assert [number for number, _, _ in found] == [0, 1, 2, 3]
    assert {thread for _, thread, _ in found} != {threading.get_ident()}
    assert len({thread for _, thread, _ in found}) == 1
    # While it works, it gives the interpreter back after a fifth of a millisecond.
    assert [interval for _, _, interval in found] == pytest.approx([0.0002] * 4)
    assert ours > 0.0002
    assert [record.getMessage() for record in caplog.records] == ["a bug ended the work on a release"]


def test_a_bug_in_the_loading_of_a_release_is_a_failure_and_others_are_loaded_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ReleaseSwitch, "_load_one", fails)
    switch = ReleaseSwitch.__new__(ReleaseSwitch)
    with caplog.at_level(logging.ERROR):
        found = switch._load(ReleaseOrders(1, "a"), ["a"], no_rest)
    assert isinstance(found, Misconfigured)
    assert "a bug ended the loading" in caplog.text
