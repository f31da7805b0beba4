"""A mapped list answers like the set of its entries, for any value, even if its file changes or vanishes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Set
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.policy.mapped_list import MappedList, write_mapped_list
from paywarden.schemas.errors import Misconfigured

# Few letters, so that texts meet; half of a surrogate pair, which has no UTF-8.
TEXTS = st.text("ab\0é\ud800", max_size=4)
ENTRIES = st.sets(TEXTS.filter(lambda text: text and "\0" not in text), max_size=40)


@given(ENTRIES, st.lists(TEXTS, max_size=20))
def test_a_mapped_list_is_the_set_of_its_entries(entries: set[str], others: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list"
        write_mapped_list(path, entries)
        content = path.read_bytes()
        write_mapped_list(path, sorted(entries, reverse=True))
        assert path.read_bytes() == content
        mapped: Set[str] = MappedList(path)
    assert (mapped == entries, len(mapped), sorted(mapped)) == (True, len(entries), sorted(entries))
    joined = "\0".join(sorted(entries))
    for text in (*entries, *others, joined, joined[:-1], ""):
        assert (text in mapped) == (text in entries)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list"
    write_mapped_list(path, {f"c-{number}" for number in range(100)})
    content = path.read_bytes()
    for damaged in (b"", content[:20], content[:60], content[:-1], content + b"\0", b"{" + content[1:]):
        path.write_bytes(damaged)
        with pytest.raises(Misconfigured, match="wanted a mapped list"):
            MappedList(path)


MANY = {f"c-{number}" for number in range(20_000)}


def test_a_list_whose_file_is_cut_short_or_written_over_answers_as_before(tmp_path: Path) -> None:
    """Each process that had the file mapped was killed by the next look at it."""
    path = tmp_path / "list"
    found = MappedList(path, write_mapped_list(path, MANY))
    path.chmod(0o600)
    path.write_bytes(b"x" * path.stat().st_size)
    os.truncate(path, 0)
    assert "c-19999" in found
    assert "c-20000" not in found
    assert set(found) == MANY


def test_a_list_of_which_a_byte_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list"
    checksum = write_mapped_list(path, MANY)
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match=r"list: the list is damaged: wanted the checksum [0-9a-f]{8}, got"):
        MappedList(path, checksum)


def test_a_pipe_in_place_of_a_list_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list")
    with pytest.raises(OSError, match="no regular file"):
        MappedList(tmp_path / "list")
