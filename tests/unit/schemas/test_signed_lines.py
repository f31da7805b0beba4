"""Signed, chained lines: no change of their bytes goes unseen, whatever the log says in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.schemas.signed_lines import FIRST, Chain, DamagedLine, LineForm, SignedLine, chained_lines, write_head

COUNT = 4


def problem(content: Mapping[str, Any]) -> str:
    is_right = isinstance(content["text"], str) and isinstance(content["previous"], str)
    return "" if is_right else "text: wanted a text"


FORM = LineForm(b"a test\n", frozenset({"previous", "text"}), 1000, problem)
LATE = "late"


@cache
def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def line_of(text: str, previous: str = FIRST, *, form: LineForm = FORM, key: str = "anna") -> SignedLine:
    return form.sign(key_of(key), {"previous": previous, "text": text})


def is_late(line: SignedLine) -> bool:
    return bool(line.content["text"] == LATE)


@cache
def whole() -> bytes:
    lines, head = [], FIRST
    for number in range(COUNT):
        line = line_of(f"é {number}", head)
        head = line.digest
        lines.append(line.line + b"\n")
    return b"".join(lines)


def damage(content: bytes, signer: str = "anna", *, has_late: bool = False) -> str:
    """Returns what a reader of the log finds; empty for a log as it was written.

    The reader knows the head that was noted when the last line was written.
    """
    key, head = key_of(signer).public_key(), FIRST
    try:
        for line, _ in chained_lines(BytesIO(content), FORM, "log", is_late if has_late else None):
            if not line.is_signed_by(key):
                return "a wrong signature"
            head = line.digest
    except DamagedLine as error:
        return str(error)
    return "" if head == FORM.read(whole().splitlines()[-1]).digest else "another head"


def changes() -> Iterator[bytes]:
    """Every byte of a log changed, removed or doubled; every line removed, doubled or moved; every end cut off."""
    content = whole()
    for place in range(len(content)):
        before, byte, after = content[:place], content[place], content[place + 1 :]
        yield from (before + bytes([byte ^ 1 << place % 8]) + after, before + b"\n" + after, before + after, before)
        yield before + bytes([byte, byte]) + after
    lines = content.splitlines(keepends=True)
    for place, line in enumerate(lines):
        others = lines[:place] + lines[place + 1 :]
        yield b"".join(others)
        for target in range(len(lines) + 1):
            yield b"".join([*lines[:target], line, *lines[target:]])
            yield b"".join([*others[:target], line, *others[target:]])


def test_any_byte_that_is_changed_removed_or_moved_is_found() -> None:
    assert damage(whole()) == ""
    for has_late in (False, True):
        made = [one for one in changes() if one != whole() and one != whole() + b"\n"]
        assert [one for one in made if not damage(one, has_late=has_late)] == []


@settings(deadline=None)
@given(st.permutations(range(COUNT)), st.integers(0, COUNT))
def test_lines_that_are_shuffled_or_left_out_are_found(order: list[int], count: int) -> None:
    lines = whole().splitlines(keepends=True)
    changed = b"".join(lines[place] for place in order[:count])
    assert bool(damage(changed)) == (changed != whole())


def test_the_first_damaged_line_is_named() -> None:
    lines = whole().splitlines(keepends=True)
    assert damage(b"".join([lines[0], *lines[2:]])).startswith("log, line 2 does not fit the line before it")
    assert damage(whole() + b"{}\n") == f"log, line {COUNT + 1} is damaged: it is no entry in JSON"
    assert "more than 1000 bytes" in damage(whole() + b"x" * 1001)


def test_bytes_without_the_end_of_a_line_are_no_line() -> None:
    line = line_of("next", FORM.read(whole().splitlines()[-1]).digest).line
    for length in range(1, len(line) + 1):
        assert damage(whole() + line[:length]) == ""


def test_a_late_line_may_name_any_line_before_it_and_comes_once() -> None:
    first = line_of("first")
    second, late = line_of("second", first.digest), line_of(LATE, first.digest)
    chain = Chain(has_late=True)
    assert [chain.take(one, may_be_late=is_late(one)) for one in (first, second, late)] == [False, False, True]
    with pytest.raises(DamagedLine, match="is there twice"):
        chain.take(late, may_be_late=True)
    for line in (line_of("other", first.digest), line_of(LATE, "f" * 64)):
        with pytest.raises(DamagedLine, match="does not fit"):
            chain.take(line, may_be_late=is_late(line))
    assert chain.head == late.digest


def test_a_signature_counts_for_one_key_and_one_kind_of_log() -> None:
    line = line_of("text")
    assert line.is_signed_by(key_of("anna").public_key())
    assert not line.is_signed_by(key_of("ben").public_key())
    other = LineForm(b"another log\n", FORM.fields, FORM.bytes_max, problem)
    assert not other.read(line.line).is_signed_by(key_of("anna").public_key())
    assert damage(whole(), "ben") == "a wrong signature"


@given(
    st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["previous", "signature", "text", "more"]),
        st.none() | st.floats() | st.text(max_size=3) | st.just("\ud800") | st.just("mG0="),
    ).map(lambda content: json.dumps({**json.loads(whole().splitlines()[0]), **content}).encode())
)
def test_other_bytes_are_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\Ait .*|\Aa text is no Unicode|\Atext: wanted") as refused:
        FORM.read(content)
    assert "\n" not in str(refused.value)


def test_a_content_that_no_line_can_have_is_refused() -> None:
    for text, why in ((1, "wanted a text"), ("\ud800", "no Unicode"), ("x" * 1000, "at most 1000 bytes")):
        with pytest.raises(ValueError, match=why):
            line_of(text)  # type: ignore[arg-type]


def test_a_head_is_replaced_whole_and_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.head"
    for content in (b"one", b"two"):
        write_head(path, content)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (content, 0o600)
    assert list(tmp_path.iterdir()) == [path]

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    write_head(path, b"six")
    assert path.read_bytes() == b"six"
