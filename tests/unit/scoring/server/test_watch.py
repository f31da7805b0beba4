"""A worker's periodic checks: a step that fails stops no other step, and is tried again."""

from __future__ import annotations

import asyncio
import logging

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.server.watch import WorkerMustEnd, WorkerWatch, declare_failures


class Steps:
    """Steps that fail as a test says, and what was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.error: Exception | None = None
        self.is_in_use = True
        self.failures = declare_failures(MetricsRegistry())
        steps = {"mirror": lambda: self.done.append("mirror"), "tokens": self._tokens, "outbox": self._outbox}
        steps["unshipped"] = lambda: self.done.append("unshipped")
        self.watch = WorkerWatch(steps, self.failures, lambda: self.done.append("beat"), round_s=0.001)

    def _tokens(self) -> bool:
        self.done.append("tokens")
        return self.is_in_use

    def _outbox(self) -> None:
        if self.error is not None:
            raise self.error
        self.done.append("outbox")

    def failed(self) -> dict[str, int]:
        return {step: counter.value for step, counter in self.failures.items() if counter.value}


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), Misconfigured("damaged"), ValueError("a bug")])
def test_a_failed_step_keeps_no_other_from_running_and_is_tried_again(error: Exception) -> None:
    steps = Steps()
    steps.error = error
    for _ in range(2):
        steps.watch.make_round()
    assert steps.done == ["mirror", "tokens", "unshipped", "beat"] * 2
    steps.done.clear()
    steps.error = None
    steps.watch.make_round()
    assert steps.done == ["mirror", "tokens", "outbox", "unshipped", "beat"]
    assert steps.failed() == {"outbox": 2}


def test_a_failure_is_logged_when_it_is_new_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    steps = Steps()
    for error in (OSError(24, "no files"), OSError(24, "no files again"), OSError(5, "no disk"), None, None):
        steps.error = error
        steps.watch.make_round()
    assert [record.getMessage() for record in caplog.records] == [
        "the watch over outbox fails, and tries again: [Errno 24] no files",
        "the watch over outbox fails, and tries again: [Errno 5] no disk",
        "the watch over outbox works again",
    ]


def test_a_step_that_has_logged_its_failure_itself_is_only_counted(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps()
    steps.is_in_use = False
    steps.watch.make_round()
    assert steps.failed() == {"tokens": 1}
    assert not caplog.records


def test_the_watch_ends_only_when_the_worker_must(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps()

    async def until_it_must() -> None:
        steps.error = OSError(24, "no files")
        watch = asyncio.create_task(steps.watch.run())
        while steps.done.count("beat") < 3:
            await asyncio.sleep(0)
        steps.error = WorkerMustEnd("the parent is gone")
        await watch

    asyncio.run(until_it_must())
    assert caplog.records[-1].getMessage() == "the parent is gone: stopping"
    # Its last round was not whole, so the heart did not beat.
    assert steps.done[-1] == "tokens"
