"""Read the lists that conditions use: entries in the configuration, or files with one entry per line."""

from __future__ import annotations

import datetime
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import open_regular

# A list of this size takes about 100 MB, shared by the workers of a host.
ENTRIES_MAX = 1_000_000
# The longest id that a payment may have.
ENTRY_BYTES_MAX = 256
# All entries with the ends of their lines.
FILE_BYTES_MAX = ENTRIES_MAX * (ENTRY_BYTES_MAX + 2)
_DATED = re.compile(r"(.+)_until_([0-9]{8})")
_PLAIN_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def is_plain_name(name: str) -> bool:
    """Whether a list, rule or segment may have this name: short, and usable in reasons and metrics."""
    return _PLAIN_NAME.fullmatch(name) is not None


def day_of(text: str) -> datetime.date:
    """Returns a day such as 2026-12-31. Raises ValueError."""
    return datetime.datetime.strptime(text, "%Y-%m-%d").date()


def end_of_day_ms(day: str) -> int:
    """Returns the first millisecond after a UTC day such as 2026-12-31. Raises ValueError."""
    start = datetime.datetime.combine(day_of(day), datetime.time(), datetime.UTC)
    return (int(start.timestamp()) + 86_400) * 1000


def dated_name(name: str, day: str) -> str:
    """Returns the name of the list of a list's entries until a day; of those without end for "". Raises ValueError."""
    return f"{name}_until_{day_of(day).isoformat().replace('-', '')}" if day else name


def split_name(name: str) -> tuple[str, str]:
    """Returns the name and the day of such a list; the day is "" for any other."""
    if (found := _DATED.fullmatch(name)) is not None:
        with suppress(ValueError):
            return found[1], datetime.datetime.strptime(found[2], "%Y%m%d").date().isoformat()
    return name, ""


def dated_lists(names: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """Returns for a list the lists of its entries that end: the first millisecond after the day, and the name."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in sorted(names):
        base, day = split_name(name)
        if day:
            found.setdefault(base, []).append((end_of_day_ms(day), name))
    return found


def read_lists(lists: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    """Returns the entries of each list, including those in files. Raises Misconfigured naming list, file and line."""
    return {name: _read_list(f"policy.lists {name}", name, entries) for name, entries in lists.items()}


def list_problems(name: str, entries: Iterable[str]) -> list[str]:
    """Returns everything for which `read_lists` would refuse a list: the first problem of each file and of the list."""
    entries = tuple(entries)
    files = [(entry,) for entry in entries if entry.startswith("@")]
    problems = []
    for part in (entries, *files):
        try:
            read_lists({name: part})
        except Misconfigured as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _read_list(where: str, name: str, entries: Iterable[str]) -> frozenset[str]:
    if not is_plain_name(name):
        raise Misconfigured(f"{where}: name: wanted at most 64 of a to z, 0 to 9 and _")
    texts: set[str] = set()
    for place, entry in _entries_of(where, entries):
        if not entry or len(entry.encode()) > ENTRY_BYTES_MAX:
            raise Misconfigured(f"{place}: wanted an entry of 1 to {ENTRY_BYTES_MAX} bytes")
        texts.add(entry)
        if len(texts) > ENTRIES_MAX:
            raise Misconfigured(f"{where}: wanted at most {ENTRIES_MAX} entries")
    return frozenset(texts)


def _entries_of(where: str, entries: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields each entry with its place in the configuration or file, for messages."""
    for number, entry in enumerate(entries):
        if entry.startswith("@"):
            yield from _lines_of(where, Path(entry[1:]))
        else:
            yield f"{where}, entry {number + 1}", entry


def _lines_of(where: str, path: Path) -> Iterator[tuple[str, str]]:
    """Yields the stripped lines of a file, except empty ones and those that begin with #."""
    try:
        with open_regular(path) as content, io.TextIOWrapper(content, encoding="utf-8") as file:
            size = os.fstat(file.fileno()).st_size
            if size > FILE_BYTES_MAX:
                raise Misconfigured(f"{where}: {path} has {size} bytes, wanted at most {FILE_BYTES_MAX}")
            for number, line in enumerate(file):
                if (entry := line.strip()) and not entry.startswith("#"):
                    yield f"{where}: {path}, line {number + 1}", entry
    except OSError as error:
        raise Misconfigured(f"{where}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Misconfigured(f"{where}: {path} is not UTF-8 text") from error
