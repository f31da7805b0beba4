from __future__ import annotations

from pathlib import Path

import pytest

from paywarden.models.policy import lists as policy_lists
from paywarden.models.policy.lists import read_lists
from paywarden.schemas.errors import Misconfigured


def test_entries_come_from_the_settings_and_from_files(tmp_path: Path) -> None:
    file = tmp_path / "more.txt"
    file.write_text("# of our shops\nm-2\n\n  m-3  \nm-2\n", encoding="utf-8")
    assert read_lists({"shops": ("m-1", f"@{file}"), "none": ()}) == {
        "shops": {"m-1", "m-2", "m-3"},
        "none": frozenset(),
    }


def test_an_entry_that_is_empty_or_too_long_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"^policy\.lists shops, entry 2: wanted an entry of 1 to 256 bytes"):
        read_lists({"shops": ("a", "")})
    (tmp_path / "a.txt").write_text("a\n" + 257 * "b", encoding="utf-8")
    with pytest.raises(Misconfigured, match=r"^policy\.lists shops: .*a\.txt, line 2: wanted an entry"):
        read_lists({"shops": (f"@{tmp_path / 'a.txt'}",)})


def test_a_name_that_conditions_cannot_use_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"^policy\.lists own shops: name: wanted"):
        read_lists({"own shops": ("a",)})


def test_a_list_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_lists, "ENTRIES_MAX", 2)
    read_lists({"a": ("x", "y", "x")})
    with pytest.raises(Misconfigured, match=r"^policy\.lists a: wanted at most 2 entries"):
        read_lists({"a": ("x", "y", "z")})
