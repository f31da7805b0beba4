"""The log: any change of its bytes is found, and no writer leaves a line that another cannot read."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from functools import cache, partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.registry import entries as kinds
from paywarden.models.registry.entries import FORM, Entry, entry_of, signed_entry
from paywarden.models.registry.model_log import LogFile, RegistryLog, log_of
from paywarden.models.registry.verification import problems_of
from paywarden.schemas.errors import Misconfigured, RegistryRefused
from paywarden.schemas.signed_lines import FIRST
from tests.worlds.rollout.registry import Writer, key_of, people_of

PEOPLE = people_of()
FIELDS = ("by", "key", "kind", "previous", "registry", "signature", "time_ms", "what", "why")
# Workers of a test are forked: a spawned one would import everything again.
FORK = multiprocessing.get_context("fork")


@cache
def small_log() -> bytes:
    """Three entries of two people."""
    writer = Writer()
    for name in ("anna", "ben", "anna"):
        writer.add(kinds.CLOCK_SET, name)
    return writer.content


def note(log: RegistryLog, by: str = "anna", why: str = "a test") -> Entry:
    return signed_entry(
        key_of(by),
        registry="paywarden",
        previous=log.head,
        time_ms=1,
        kind=kinds.CLOCK_SET,
        by=by,
        why=why,
        what={},
    )


def test_a_late_rollback_that_was_removed_or_moved_is_found(tmp_path: Path) -> None:
    """Two hosts were apart: the chain has nothing behind the first of their entries that names it."""
    writer, file = Writer(), LogFile(tmp_path / "log.jsonl")
    fork = writer.add(kinds.CLOCK_SET, "anna").digest
    writer.add(kinds.CLOCK_SET, "ben")
    for by in ("anna", "ben"):
        writer.add(kinds.ROLLED_BACK, by, previous=fork)
    *_, first, second = entries = writer.log.entries
    file.append(lambda _: entries)
    noted = file.remembered()
    assert noted[0] == second.digest
    assert problems_of(file.path.read_bytes(), PEOPLE, noted=noted, elsewhere=entries) == []
    for others in ((second,), (second, first)):
        changed = b"".join(entry.line + b"\n" for entry in (*entries[:2], *others))
        assert log_of(changed).entries
        (told,) = problems_of(changed, PEOPLE, noted=noted)
        assert "has other lines up to the remembered head" in told
        (told,) = problems_of(changed, PEOPLE, elsewhere=entries)
        assert "lacks 1 entries" in told or "in another order than the other copy" in told
    # The next entry does not hide it.
    file.path.write_bytes(changed)
    file.append(lambda log: [note(log)])
    assert file.remembered() == noted


def test_entries_cut_off_at_the_end_are_found_by_a_head_or_by_another_copy() -> None:
    whole = log_of(small_log())
    for count in range(len(whole.entries)):
        cut = b"".join(entry.line + b"\n" for entry in whole.entries[:count])
        # Nothing in the bytes that are left can say so.
        assert problems_of(cut, PEOPLE) == []
        assert "lacks the remembered head" in problems_of(cut, PEOPLE, heads=[whole.head])[0]
        (told,) = problems_of(cut, PEOPLE, elsewhere=whole.entries)
        assert f"lacks {len(whole.entries) - count} entries of the other copy" in told
    assert problems_of(small_log(), PEOPLE, heads=[whole.entries[1].digest], elsewhere=whole.entries[:2]) == []


def test_an_entry_of_another_key_under_a_known_name_is_found() -> None:
    forged = json.loads(small_log().splitlines()[-1])
    stranger = Writer(log_of(small_log())).entry(kinds.CLOCK_SET, "eve")
    forged["signature"] = json.loads(stranger.line)["signature"]
    line = json.dumps(forged, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    content = b"\n".join([*small_log().splitlines()[:-1], line, b""])
    assert problems_of(content, PEOPLE) == ["line 3 of the log is damaged: the signature of anna is wrong"]
    (told,) = problems_of(small_log() + stranger.line + b"\n", PEOPLE)
    assert "line 4: the key" in told


@given(
    why=st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable() and text.strip()),
    what=st.dictionaries(
        st.text(max_size=5),
        st.one_of(
            st.text(max_size=20),
            st.integers(-(2**63), 2**63 - 1),
            st.booleans(),
            st.none(),
            st.lists(st.text(max_size=5), max_size=3),
            st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        ),
        max_size=4,
    ),
    time_ms=st.integers(0, 10**13),
)
def test_an_entry_is_read_as_it_was_written(why: str, what: dict[str, kinds.Value], time_ms: int) -> None:
    entry = signed_entry(
        key_of("anna"),
        registry="paywarden",
        previous=FIRST,
        time_ms=time_ms,
        kind=kinds.ROLLOUT_STEP,
        by="anna",
        why=why,
        what=what,
    )
    read = entry_of(FORM.read(entry.line))
    assert (read, read.digest) == (entry, entry.digest)
    assert b"\n" not in entry.line


@given(
    line=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.just("\ud800"),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=9),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
        st.dictionaries(st.sampled_from(FIELDS), st.none() | st.just("\ud800") | st.just({"\ud800": "x"})).map(
            lambda changed: json.dumps({**json.loads(small_log().splitlines()[0]), **changed}).encode()
        ),
    )
)
def test_bytes_that_nobody_has_signed_are_refused_in_one_line(line: bytes) -> None:
    with pytest.raises(RegistryRefused) as caught:
        log_of(small_log() + line + b"\n")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("why", ""), ("why", "a\nb"), ("why", "x" * 1001), ("by", "an na"), ("previous", "0"), ("time_ms", -1)],
)
def test_what_cannot_be_part_of_an_entry_is_refused_by_its_name(field: str, value: str | int) -> None:
    right = {"registry": "paywarden", "previous": FIRST, "time_ms": 1, "by": "anna", "why": "x"}
    with pytest.raises(RegistryRefused, match=field):
        signed_entry(key_of("anna"), kind=kinds.CLOCK_SET, what={}, **{**right, field: value})  # type: ignore[arg-type]
    with pytest.raises(RegistryRefused, match="what: wanted"):
        signed_entry(key_of("anna"), kind=kinds.CLOCK_SET, what={"share": 0.5}, **right)  # type: ignore[arg-type, dict-item]


def test_an_unfinished_last_line_is_left_out_and_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    file.path.write_bytes(small_log())
    file.path.chmod(0o600)
    line = note(log_of(small_log()), why="größer").line + b"\n"
    for length in (1, 6, 7, 100, line.index(b"\xc3") + 1, len(line) - 2, len(line) - 1, len(line)):
        file.path.write_bytes(small_log() + line[:length])
        log = file.read()
        is_whole = length == len(line)
        assert (len(log.entries), log.torn_bytes) == ((4, 0) if is_whole else (3, length))
        (entry,) = file.append(lambda log: [note(log)])
        assert file.path.read_bytes() == small_log() + (line if is_whole else b"") + entry.line + b"\n"


def test_a_cut_is_remembered_beside_the_log_whatever_is_written_next(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    assert file.remembered()[0] == ""
    file.append(lambda _: log_of(small_log()).entries)
    head = file.read().head
    assert file.remembered()[0] == head
    whole = file.path.read_bytes()
    file.path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    (told,) = problems_of(file.path.read_bytes(), PEOPLE, heads=[file.remembered()[0]])
    assert f"lacks the remembered head {head}" in told
    file.append(partial(noted, number=1))
    assert file.remembered()[0] == head, "the next entry does not hide it"
    # A command that removes entries on purpose says so.
    file.replace(lambda log: log.entries[:1])
    assert file.remembered()[0] == file.read().head
    file.append(partial(noted, number=2))
    assert file.remembered()[0] == file.read().head


def test_a_damaged_log_is_neither_read_nor_written(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    damaged = small_log().replace(b"a test", b"a text", 1)
    file.path.write_bytes(damaged)
    with pytest.raises(RegistryRefused, match=r"log, line 2 does not fit the line before it"):
        file.append(lambda log: [note(log)])
    assert file.path.read_bytes() == damaged
    file.path.write_bytes(small_log() + b"\x00" * 100 + b"\n")
    with pytest.raises(RegistryRefused, match=r"log, line 4 is damaged"):
        file.read()


def test_an_entry_that_does_not_fit_is_not_written(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    file.append(lambda log: [note(log)])
    before = file.path.read_bytes()
    with pytest.raises(RegistryRefused, match="does not name the last entry"):
        file.append(lambda _: [note(RegistryLog())])
    assert file.path.read_bytes() == before
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_log_that_others_can_write_to_is_not_read(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    file.append(lambda log: [note(log)])
    file.path.chmod(0o666)
    with pytest.raises(Misconfigured, match="can be written by others"):
        file.read()


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LogFile(tmp_path / "log")
    file.append(lambda log: [note(log)])
    before, write = file.path.read_bytes(), os.write

    def full(descriptor: int, content: bytes) -> int:
        if len(content) < 100:
            raise OSError(28, "No space left on device")
        return write(descriptor, content[: len(content) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Misconfigured, match="No space left"):
        file.append(lambda log: [note(log)])
    assert file.path.read_bytes() == before


def noted(log: RegistryLog, number: int, by: str = "anna") -> list[Entry]:
    return [note(log, by, f"number {number}")]


def append_many(path: Path, by: str, count: int) -> None:
    for number in range(count):
        LogFile(path).append(partial(noted, by=by, number=number))


def test_two_processes_that_append_at_once_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writers = [FORK.Process(target=append_many, args=(path, name, 25)) for name in ("anna", "ben")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    log = LogFile(path).read()
    for name in ("anna", "ben"):
        assert [entry.why for entry in log.entries if entry.by == name] == [f"number {n}" for n in range(25)]
    assert problems_of(path.read_bytes(), PEOPLE) == []


def test_a_writer_that_is_killed_leaves_every_entry_that_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def write(reported: int) -> None:
        number = 0
        while True:
            (entry,) = LogFile(path).append(partial(noted, number=number))
            os.write(reported, entry.digest.encode())
            number += 1

    seen: list[str] = []
    for kill in range(5):
        read_end, write_end = os.pipe()
        writer = FORK.Process(target=write, args=(write_end,))
        writer.start()
        os.close(write_end)
        seen += [os.read(read_end, 64).decode() for _ in range(kill + 1)]
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        while rest := os.read(read_end, 64):
            seen.append(rest.decode())
        os.close(read_end)
        # The lock of the dead writer is free, and its unfinished line is cut off.
        LogFile(path).append(lambda log: [note(log)])
    log = LogFile(path).read()
    assert log.torn_bytes == 0
    assert set(seen) <= {entry.digest for entry in log.entries}
