"""Every `paywarden …` in a block of a page is a command that exists, with options that it has. Nothing is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click

from tests.checkout import CHECKOUT
from tests.unit.ops.monitoring.test_runbook import check

_PAGES = [
    CHECKOUT / "README.md",
    *sorted(path for path in (CHECKOUT / "docs").rglob("*.md") if "reference" not in path.parts),
]
# At the beginning of a line, or behind what a shell takes before a command. A colon behind it is an error that it says.
_COMMAND = re.compile(r"(?:^|[$(|;&] ?|as_unit |exec )(?:sudo -u \w+ )?paywarden ((?!:).*)")
# The end of a command: a comment or words to the reader, or a shell operator.
_END = re.compile(r"\s#|\s{2,}|\s?[|>&;)]|\s2>")


def documented() -> Iterator[tuple[str, str]]:
    """Yields page and words of each command."""
    for path in _PAGES:
        for block in re.findall(r"^ *```[^\n]*\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if (found := _COMMAND.search(line.strip())) and "──►" not in line:
                    # Several spaces may also stand where a line was broken.
                    text = re.sub(r"  +(?=--)", " ", found[1])
                    yield path.relative_to(CHECKOUT).as_posix(), _END.split(text)[0]


def test_commands_in_documents_exist_with_these_options() -> None:
    commands = list(documented())
    wrong = []
    for page, text in commands:
        # The page's own ellipsis may stand for nothing or for a value, and a variable of the shell for any command.
        tried = {text.replace("…", ""), text.replace("…", "x")}
        faults = []
        for each in tried if "$part" not in text else ():
            try:
                check(shlex.split(each))
                break
            except (click.UsageError, ValueError) as error:
                faults.append(str(error))
        else:
            wrong += [(page, text, faults)] if faults else []
    assert wrong == []
    assert len(commands) > 150
