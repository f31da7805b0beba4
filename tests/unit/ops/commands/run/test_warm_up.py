from __future__ import annotations

import pytest

from paywarden.ops.commands.run import warm_up
from paywarden.ops.commands.run.warm_up import WarmUpPart
from paywarden.schemas.errors import TemporaryFailure


def test_every_part_is_compiled_and_named() -> None:
    assert sorted(warm_up.warm_up()) == ["features", "scoring"]


def test_a_part_that_cannot_be_compiled_is_one_line_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        warm_up, "PARTS", (WarmUpPart("whole", "pass"), WarmUpPart("broken", "raise OSError('no room')"))
    )
    with pytest.raises(TemporaryFailure, match=r"^cannot compile broken: OSError: no room$"):
        list(warm_up.warm_up())
