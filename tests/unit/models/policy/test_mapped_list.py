"""A mapped list answers as the set of its entries does, whatever is asked."""

from __future__ import annotations

import tempfile
from collections.abc import Set
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.policy.mapped_list import MappedList, can_be_mapped, write_mapped_list
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


def test_a_short_list_and_one_with_a_zero_byte_are_no_mapped_lists() -> None:
    many = {f"c-{number}" for number in range(10_000)}
    assert can_be_mapped(many)
    assert not can_be_mapped(many - {"c-0"})
    assert not can_be_mapped(many | {"c\0"})
