"""The commands of the runbook's pages: the lines of their blocks of code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from tests.checkout import CHECKOUT

PAGES = CHECKOUT / "docs" / "operate" / "runbook"


@dataclass(frozen=True)
class Command:
    """A line of a page, without its comment."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """Returns the words of the first program of the line, with its own name as the first."""
        return shlex.split(re.split(r" \| |; ", self.text)[0])

    @property
    def program(self) -> str:
        return self.words[0]


def commands() -> Iterator[Command]:
    """Yields every command of every page."""
    for page in sorted(PAGES.glob("*.md")):
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.splitlines():
                if text := re.sub(r"\s+# .*", "", line).strip():
                    yield Command(page.stem, text)
