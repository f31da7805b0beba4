"""The command `paywarden companion`, around the companion itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from paywarden.ops import cli, wiring
from paywarden.streams.health import gc_tuning


def test_a_companion_sets_its_first_objects_aside_before_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Built:
        def run(self, stop: object) -> None:  # noqa: ARG002
            done.append("has worked")

    @contextmanager
    def companion(*_: object, **__: object) -> Iterator[Built]:
        done.append("made")
        yield Built()

    @contextmanager
    def ending(_: str) -> Iterator[SimpleNamespace]:
        # The real one ends this process.
        yield SimpleNamespace(stop=None, timeout_s=0.0)

    monkeypatch.setattr(cli, "_ending", ending)
    monkeypatch.setattr(wiring, "companion", companion)
    monkeypatch.setattr(wiring, "companion_stop_timeout_s", lambda _: 1.0)
    monkeypatch.setattr(gc_tuning, "settle_collection", lambda: done.append("settled"))
    result = CliRunner().invoke(cli.cli, ["companion"])
    assert result.exit_code == 0, result.output
    assert done == ["made", "settled", "has worked"]
