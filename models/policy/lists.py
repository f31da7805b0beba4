"""Lists that conditions ask about: written in the configuration, or in files of one entry a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from paywarden.schemas.errors import Misconfigured

# Some 100 MB in each process, shared by the workers of a host.
ENTRIES_MAX = 1_000_000
# As long as an id may be.
ENTRY_BYTES_MAX = 256
_PLAIN_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def is_plain_name(name: str) -> bool:
    """Whether a list, rule or segment may be called so: short, and fit for a reason and a metric."""
    return _PLAIN_NAME.fullmatch(name) is not None


def read_lists(lists: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    """The entries of each list, those of files read. Raises Misconfigured naming list, file and line."""
    return {name: _read_list(f"policy.lists {name}", name, entries) for name, entries in lists.items()}


def list_problems(name: str, entries: Iterable[str]) -> list[str]:
    """Everything for which `read_lists` would refuse a list: of its files each, of the entries of one the first."""
    entries = tuple(entries)
    files = [(entry,) for entry in entries if entry.startswith("@")]
    found = []
    for part in (entries, *files):
        try:
            read_lists({name: part})
        except Misconfigured as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _read_list(where: str, name: str, entries: Iterable[str]) -> frozenset[str]:
    if not is_plain_name(name):
        raise Misconfigured(f"{where}: name: wanted at most 64 of a to z, 0 to 9 and _")
    found: set[str] = set()
    for place, entry in _entries_of(where, entries):
        if not entry or len(entry.encode()) > ENTRY_BYTES_MAX:
            raise Misconfigured(f"{place}: wanted an entry of 1 to {ENTRY_BYTES_MAX} bytes")
        found.add(entry)
        if len(found) > ENTRIES_MAX:
            raise Misconfigured(f"{where}: wanted at most {ENTRIES_MAX} entries")
    return frozenset(found)


def _entries_of(where: str, entries: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each entry with its place."""
    for number, entry in enumerate(entries):
        if entry.startswith("@"):
            yield from _lines_of(where, Path(entry[1:]))
        else:
            yield f"{where}, entry {number + 1}", entry


def _lines_of(where: str, path: Path) -> Iterator[tuple[str, str]]:
    """Lines of a file without the space around them; empty ones and those that begin with # are left out."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if (entry := line.strip()) and not entry.startswith("#"):
                    yield f"{where}: {path}, line {number + 1}", entry
    except OSError as error:
        raise Misconfigured(f"{where}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Misconfigured(f"{where}: {path} is not UTF-8 text") from error
