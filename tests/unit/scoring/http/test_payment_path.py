"""docs/internals/payment-cost.md names every file that a usual payment runs through."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tests.checkout import CHECKOUT
from tests.worlds.endpoint.http_worker import Worker, request

_ROOMS = ("scoring", "features", "models", "schemas")


def test_the_page_of_costs_names_every_file_on_a_payments_way(tmp_path: Path) -> None:
    crossed, status = asyncio.run(_crossed(tmp_path))
    assert status == 200
    assert "scoring/engine/scorer.py" in crossed
    page = (CHECKOUT / "docs/internals/payment-cost.md").read_text(encoding="utf-8")
    assert sorted(file for file in crossed if f"`{file}`" not in page) == []


async def _crossed(tmp_path: Path) -> tuple[set[str], int]:
    worker = Worker(tmp_path)
    worker.scorer.open_mirror()
    caller = await worker.connect()
    crossed = set[str]()

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(CHECKOUT) and file.relative_to(CHECKOUT).parts[0] in _ROOMS:
            crossed.add(str(file.relative_to(CHECKOUT)))

    sys.setprofile(note)
    try:
        reply = await caller.ask(request(7, "usual"))
    finally:
        sys.setprofile(None)
        worker.close()
    return crossed, reply.status
