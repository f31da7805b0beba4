"""The documents hold what they promise: lengths, links, and names of files that exist.

README.md: docs/operate/deplot.md does not exist
docs/guarantees.md: `tests/unit/streams/drift/test_count.py` does not exist
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout import CHECKOUT

_ROOTS = ("schemas", "features", "models", "scoring", "streams", "ops", "perf", "tests", "docs")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_IN_BACKTICKS = re.compile(r"`([^`\n]+)`")
_FILE = re.compile(rf"(?:{'|'.join(_ROOTS)})/[\w./-]+\.\w+")
# A part of a name that stands for others, as in `schemas/avsc/TOPIC.avsc`.
_PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b(?!\.md)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def _documents() -> Iterator[Path]:
    """Every .md file of the repository, but for those that tools have put there (.venv, .services, node_modules)."""
    yield from sorted(CHECKOUT.glob("*.md"))
    for root in _ROOTS:
        yield from sorted(path for path in (CHECKOUT / root).rglob("*.md") if "node_modules" not in path.parts)


def _named(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


def _prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def _anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(_prose(path)))
    return {heading.strip().replace(" ", "-") for heading in headings}


def _broken_links(document: Path) -> Iterator[str]:
    for link in _LINK.findall(_prose(document)):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists():
            yield f"{_named(document)}: {link} does not exist"
        elif anchor and target.suffix == ".md" and anchor not in _anchors(target):
            yield f"{_named(document)}: {link} names no heading of {_named(target)}"


def _unknown_files(document: Path) -> Iterator[str]:
    for words in _IN_BACKTICKS.findall(_prose(document)):
        for name in words.split():
            file, _, test = name.partition("::")
            if not _FILE.fullmatch(file) or _PLACEHOLDER.search(file):
                continue
            if not (CHECKOUT / file).exists():
                yield f"{_named(document)}: `{file}` does not exist"
            elif test and not re.search(rf"\bdef {re.escape(test)}\b", (CHECKOUT / file).read_text(encoding="utf-8")):
                yield f"{_named(document)}: `{file}` has no {test}"


@pytest.mark.parametrize(("name", "lines_max"), [("README.md", 100), ("ARCHITECTURE.md", 200)])
def test_the_first_documents_stay_short(name: str, lines_max: int) -> None:
    assert len((CHECKOUT / name).read_text(encoding="utf-8").splitlines()) <= lines_max


def test_the_readme_counts_what_a_first_production_takes() -> None:
    """It says how many settings the page of deployment sets, and which commands it runs."""
    readme = " ".join((CHECKOUT / "README.md").read_text(encoding="utf-8").split())
    page = (CHECKOUT / "docs/operate/deploy.md").read_text(encoding="utf-8").partition("## On machines with systemd")[2]
    settings = tomllib.loads(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])
    assert sum(map(len, settings.values())) == 17
    assert "one file with seventeen settings, and seven commands" in readme
    commands = re.findall(r"`([a-z ]+)`", readme.partition("and seven commands,")[2].partition(". Before")[0])
    assert len(commands) == 7
    assert re.findall(r"^\| \d \|.*?\| `paywarden ([a-z ]+)`", page, re.MULTILINE) == commands
    run = page.partition("## The image")[0]
    assert [
        name for name in commands if not re.search(rf"(?:as_unit|bin/paywarden|paywarden-){{0,1}}[ -]?{name}", run)
    ] == []


def test_every_link_between_documents_resolves() -> None:
    assert [problem for document in _documents() for problem in _broken_links(document)] == []


def test_every_file_that_a_document_names_exists() -> None:
    assert [problem for document in _documents() for problem in _unknown_files(document)] == []


def test_every_guarantee_names_a_test_that_exists() -> None:
    guarantees = CHECKOUT / "docs/guarantees.md"
    lines = guarantees.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("- ")]
    assert rows, "the page has no guarantees"
    without = [row for row in rows if not re.search(r"`tests/[\w./]+/test_\w+\.py[`:]", row)]
    assert without == []


def test_every_alert_has_a_page_in_the_runbook() -> None:
    alerts = re.findall(r"- alert: (\w+)", (CHECKOUT / "ops/alerts.yml").read_text(encoding="utf-8"))
    pages = {path.stem for path in (CHECKOUT / "docs/operate/runbook").glob("Paywarden*.md")}
    assert pages == set(alerts)


def test_no_two_files_of_a_root_have_one_name() -> None:
    """A name in a message, a trace or a talk leads to one file."""
    for root in ("schemas", "features", "models", "scoring", "streams", "ops", "perf"):
        paths = [path for path in (CHECKOUT / root).rglob("*.py") if "clients" not in path.parts]
        names = Counter(path.name for path in paths if path.name != "__init__.py")
        assert [name for name, count in names.items() if count > 1] == []
