"""Durations as people type them."""

from __future__ import annotations

import pytest

from paywarden.schemas.durations import duration_ms_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0s", 0), ("150ms", 150), ("90s", 90_000), ("10m", 600_000), ("1.5h", 5_400_000), ("2 d", 172_800_000)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: int) -> None:
    assert duration_ms_of(text) == expected


@pytest.mark.parametrize(
    "text", ["", "1", "d", "1w", "1D", "-1d", "1 \td", "1d\n", "७d", "1h30m", "nan", ".5h", "1e3s", 30]
)
def test_anything_else_is_none(text: object) -> None:
    assert duration_ms_of(text) is None


def test_a_duration_longer_than_any_clock_is_none() -> None:
    assert duration_ms_of("999999999999d") is None
