from __future__ import annotations

from pathlib import Path

import pytest

from tests.services.made_once import made_once
from tests.services.product.processes import run_paywarden


@pytest.fixture(scope="session")
def history() -> Path:
    """The folder of a simulated month. Do not change its files."""

    def make(folder: Path) -> None:
        done = run_paywarden("simulate", "--cards", "800", "--days", "30", "--seed", "4", "--out", str(folder))
        assert done.returncode == 0, done.stderr

    return made_once("history", make)
