from __future__ import annotations

from pathlib import Path

import pytest

from paywarden.ops.commands.run import warm_up
from paywarden.ops.commands.run.warm_up import WarmUpPart
from paywarden.schemas.errors import TemporaryFailure


def test_every_part_is_compiled_and_named_and_byte_code_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in many images, where each start would compile all that it imports.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    assert sorted(warm_up.warm_up()) == ["features", "modules", "scoring"]
    written = {path.name.partition(".")[0] for path in tmp_path.rglob("*.pyc")}
    assert {"cli", "supervisor", "http_front", "companion", "pipeline", "scoring_parts"} <= written


def test_a_part_that_cannot_be_compiled_is_one_line_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        warm_up, "PARTS", (WarmUpPart("whole", "pass"), WarmUpPart("broken", "raise OSError('no room')"))
    )
    with pytest.raises(TemporaryFailure, match=r"^cannot compile broken: OSError: no room$"):
        list(warm_up.warm_up())
