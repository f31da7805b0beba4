"""`paywarden serve` before its workers: what a signal does that comes while it starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from paywarden.ops import wiring
from paywarden.ops.cli import cli
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.server import hang_ups


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_reload_while_the_host_starts_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd takes an end by SIGHUP for a clean one, and a library is built for a minute."""

    def reloaded(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        raise Misconfigured("the start went on")

    monkeypatch.setattr(wiring, "scoring_host", reloaded)
    done = CliRunner().invoke(cli, ["serve"])
    assert str(done.exception) == "the start went on"
    # Held, and not forgotten.
    assert hang_ups.held()
