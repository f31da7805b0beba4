from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from paywarden.scoring.metrics import exposition
from paywarden.scoring.metrics.exposition import RENDER_EVERY_S, MetricsRenderer, RenderingAbsent, SharedRendering


class Pipe:
    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK)

    def asked(self) -> int:
        """Returns how many bytes the worker has written since the last call."""
        try:
            return len(os.read(self.read_fd, 65536))
        except BlockingIOError:
            return 0


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.read_fd)
    os.close(made.write_fd)


def test_the_metrics_are_rendered_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, texts = [100.0], [f"text {number}".encode() for number in range(3)]
    monkeypatch.setattr(exposition, "render", lambda _: texts.pop(0))
    renderer = MetricsRenderer(tmp_path, lambda: now[0])
    assert [renderer.text() for _ in range(100)] == [b"text 0"] * 100
    now[0] += RENDER_EVERY_S / 2
    renderer.publish()
    assert (tmp_path / "metrics.txt").read_bytes() == b"text 0"
    now[0] += RENDER_EVERY_S / 2
    for _ in range(10):
        renderer.publish()
    assert (tmp_path / "metrics.txt").read_bytes() == b"text 1"
    # A host may ask for a token for its metrics: nobody else may read them here.
    assert (tmp_path / "metrics.txt").stat().st_mode & 0o777 == 0o600


def test_a_worker_asks_once_for_all_and_sends_a_fresh_text_at_once(tmp_path: Path, pipe: Pipe) -> None:
    async def main() -> None:
        shared = SharedRendering(tmp_path, pipe.write_fd)
        waiting = [shared.text() for _ in range(20)]
        assert pipe.asked() == 1
        (tmp_path / "metrics.txt").write_bytes(b"a 1\n")
        for each in waiting:
            assert isinstance(each, asyncio.Future)
            assert await each == b"a 1\n"
        assert shared.text() == b"a 1\n"
        assert pipe.asked() == 0

    asyncio.run(main())


def test_an_old_text_is_not_sent_and_its_absence_is_told(
    tmp_path: Path, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        path = tmp_path / "metrics.txt"
        path.write_bytes(b"old")
        os.utime(path, (1, 1))
        shared = SharedRendering(tmp_path, pipe.write_fd)
        waiting = shared.text()
        assert isinstance(waiting, asyncio.Future)
        with pytest.raises(RenderingAbsent, match="admin process"):
            await waiting
        # It comes back by itself.
        again = shared.text()
        assert isinstance(again, asyncio.Future)
        path.write_bytes(b"new")
        assert await again == b"new"

    monkeypatch.setattr(exposition, "_PATIENCE_S", 0.05)
    asyncio.run(main())


def test_a_pipe_that_is_full_or_has_no_reader_does_not_hold_the_worker_up(tmp_path: Path, pipe: Pipe) -> None:
    async def main() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe.write_fd, b"x" * 4096)
        waiting = SharedRendering(tmp_path, pipe.write_fd).text()
        (tmp_path / "metrics.txt").write_bytes(b"text")
        assert isinstance(waiting, asyncio.Future)
        assert await waiting == b"text"

    asyncio.run(main())
