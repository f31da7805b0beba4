from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.services.made_once import made_once
from tests.services.missing_tools import CHROMIUM
from tests.services.product.processes import run_paywarden


@pytest.fixture(scope="session")
def history() -> Path:
    """The folder of a simulated month. Do not change its files."""

    def make(folder: Path) -> None:
        done = run_paywarden("simulate", "--cards", "800", "--days", "30", "--seed", "4", "--out", str(folder))
        assert done.returncode == 0, done.stderr

    return made_once("history", make)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window; a test makes contexts of it."""
    playwright_api = pytest.importorskip("playwright.sync_api", reason=CHROMIUM.reason)
    with (
        playwright_api.sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])) as browser,
    ):
        yield browser
