"""Compare today's compiled code with the bytes that the last release wrote; see tests/parity/golden.py."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from tests.parity import golden

KEPT: dict[str, Any] = json.loads(golden.PATH.read_text(encoding="utf-8"))


@cache
def made() -> dict[str, Any]:
    return golden.made()


@pytest.mark.parametrize("part", sorted(KEPT))
def test_compiled_code_gives_the_bytes_of_an_earlier_version(part: str) -> None:
    assert made()[part] == KEPT[part]


def test_every_computed_part_is_in_the_golden_file() -> None:
    assert made().keys() == KEPT.keys()
