"""The report of a worker's end: its supervisor counts bugs apart from failures."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.server import worker as workers


@pytest.mark.parametrize(
    ("error", "code", "logged"),
    [
        (Misconfigured("a setting is wrong"), 1, "worker 3: a setting is wrong"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), 1, "worker 3: Too many open files"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "worker 3: No space left on device"),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), workers.BUG, "worker 3: a bug ended it"),
        (ValueError("a bug"), workers.BUG, "worker 3: a bug ended it"),
    ],
)
def test_a_worker_for_which_a_host_has_no_room_ended_of_no_bug(
    error: Exception, code: int, logged: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker without a free descriptor logged a traceback at each start."""

    async def work(*_: object) -> None:
        raise error

    monkeypatch.setattr(workers, "_work", work)
    nobody: Any = None
    assert workers.worker_main(nobody, 3, nobody, 0, lambda: None, 0, nobody) == code
    assert [record.getMessage() for record in caplog.records] == [logged]
    assert (caplog.records[0].exc_info is not None) == (code == workers.BUG)
