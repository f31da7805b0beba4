"""The index of decisions as commands and the console open it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from paywarden.ops.wiring.decision_parts import decision_index
from paywarden.schemas.settings import Source


@pytest.mark.parametrize("is_there", [False, True])
def test_only_the_user_of_the_process_can_read_the_index(tmp_path: Path, is_there: bool) -> None:
    """It was readable for everybody on the host, with the ids of all cards."""
    path = tmp_path / "decisions.duckdb"
    source = Source({"decision_index": {"path": str(path)}}, {})
    before = os.umask(0o022)
    try:
        if is_there:
            with decision_index(source):
                pass
            path.chmod(0o644)
        with decision_index(source) as (index, _):
            # DuckDB begins the file of changes with the first one.
            with index.database.transaction() as transaction:
                transaction.execute("CREATE TABLE more (number INTEGER)")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
            assert modes == {path.name: 0o600, f"{path.name}.wal": 0o600}
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
