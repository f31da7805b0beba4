"""Fixtures of the tests of a whole worker behind its HTTP front."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from paywarden.scoring.net.tokens import Tokens
from tests.worlds.endpoint.http_worker import BANK, SHOP, Worker


@pytest.fixture
def in_worker(tmp_path: Path) -> Callable[..., None]:
    """Runs a coroutine with a worker, in an event loop as a worker has it."""

    def run(steps: Callable[[Worker], Awaitable[None]], **settings: Any) -> None:
        async def main() -> None:
            worker = Worker(tmp_path, **settings)
            try:
                await steps(worker)
            finally:
                worker.close()
                # Connections end in the loop.
                await asyncio.sleep(0.01)

        uvloop.run(main())

    return run


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    file = tmp_path / "tokens"
    file.write_text(f"shop:{SHOP}\nbank:{BANK}\n")
    file.chmod(0o600)
    return Tokens(str(file))
