"""Exploration: always within its budget, replayable, and unbiased when weighed by the propensity."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.policy.exploration import (
    Exploration,
    ExplorationSettings,
    FileLedger,
    read_exploration_key,
)
from paywarden.schemas.errors import Misconfigured

KEY, DAY_MS = bytes(range(16)), 86_400_000
SETTINGS = ExplorationSettings(share=0.25, budget_minor_a_day=100_000, payment_minor_max=8_000)


def exploration(path: Path, settings: ExplorationSettings = SETTINGS, *, key: bytes = KEY) -> Exploration:
    return Exploration(settings, key=key, ledger=FileLedger(path))


def declined(explored: Exploration, payment: int, amount: int, now_ms: int = DAY_MS) -> tuple[str, float]:
    found = explored.explore("decline", ["score"], payment_id=f"p-{payment}", amount=amount, now_ms=now_ms)
    return found.action, found.propensity


@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 6)), max_size=200),
    st.integers(1, 12),
    st.sampled_from([0.1, 0.5]),
)
def test_the_budget_of_a_day_holds_whatever_comes_and_wherever_the_clock_goes(
    payments: list[tuple[int, int]], host_count: int, share: float
) -> None:
    settings = ExplorationSettings(share=share, budget_minor_a_day=30_000, payment_minor_max=9_000, hosts=host_count)
    spent, newest = 0, 0
    with TemporaryDirectory() as folder:
        hosts = [exploration(Path(folder, str(number)), settings) for number in range(host_count)]
        for number, (amount, day) in enumerate(payments):
            if day > newest:
                newest, spent = day, 0
            action, _ = declined(hosts[number % host_count], number, amount, day * DAY_MS + 5)
            if action == "approve":
                assert amount <= 9_000
                # A host that has not had a payment of the newest day adds to what it spent on an earlier one.
                spent += amount
    # At most one budget a day, also if the clock goes back and forth between days.
    assert spent <= 30_000 * (newest + 1)


def test_one_host_never_spends_more_than_its_part_on_a_day(tmp_path: Path) -> None:
    explored = exploration(tmp_path / "spent", replace(SETTINGS, hosts=4))
    amounts = [1_000 + number % 900 for number in range(5_000)]
    approved = sum(each for number, each in enumerate(amounts) if declined(explored, number, each)[0] == "approve")
    assert 25_000 - 1_900 < approved <= 25_000


def test_weighed_by_the_propensity_the_explored_are_all_that_were_declined(tmp_path: Path) -> None:
    settings = ExplorationSettings(share=0.1, budget_minor_a_day=1 << 50, payment_minor_max=8_000)
    explored, amounts = exploration(tmp_path / "spent", settings), np.random.default_rng(0).integers(0, 8_000, 20_000)
    weight = value = 0.0
    for number, amount in enumerate(amounts.tolist()):
        action, propensity = declined(explored, number, amount)
        if action == "approve":
            weight += 1 / propensity
            value += amount / propensity
        else:
            assert propensity == 0.9
    assert weight == pytest.approx(len(amounts), rel=0.1)
    assert value == pytest.approx(float(amounts.sum()), rel=0.1)


def test_the_same_payment_gets_the_same_coin_and_another_key_another_one(tmp_path: Path) -> None:
    path = tmp_path / "spent"
    one, again, other = exploration(path), exploration(path), exploration(path, key=bytes(16))
    ids = [f"p-{number}" for number in range(200)]
    assert [one.coin(each) for each in ids] == [again.coin(each) for each in ids]
    assert [one.coin(each) for each in ids] != [other.coin(each) for each in ids]


@pytest.mark.parametrize(
    ("action", "reasons", "amount"),
    [
        ("approve", [], 10),
        ("review", ["score"], 10),
        ("decline", ["rule:sanctions"], 10),
        ("decline", ["score", "rule:sanctions"], 10),
        ("decline", ["score"], 8_001),
        ("decline", ["score"], -1),
    ],
)
def test_nothing_else_is_explored(tmp_path: Path, action: str, reasons: list[str], amount: int) -> None:
    settings = ExplorationSettings(share=0.5, budget_minor_a_day=1_000_000, payment_minor_max=8_000)
    explored = exploration(tmp_path / "spent", settings)
    for number in range(50):
        found = explored.explore(action, reasons, payment_id=f"p-{number}", amount=amount, now_ms=DAY_MS)
        assert found == (action, reasons, 1.0)


def test_a_ledger_in_a_file_outlives_its_process_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "run" / "exploration"
    ledger = FileLedger(path)
    for day, amount, newest, spent in ((3, 10, 3, 10), (3, 5, 3, 15), (2, 1, 3, 16), (5, 7, 5, 7)):
        ledger.spend(day, amount)
        # No close: as after kill -9.
        again = FileLedger(path)
        assert [again.spent(other) for other in range(7)] == [spent if other <= newest else 0 for other in range(7)]
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Misconfigured, match="exploration: cannot keep the spent budget in"):
        FileLedger.require(tmp_path)


def test_a_ledger_has_its_room_on_disk_before_anything_is_spent(tmp_path: Path) -> None:
    """A disk that was full killed the worker (SIGBUS) at the first payment that it explored."""
    path = tmp_path / "spent"
    FileLedger(path).close()
    assert path.stat().st_blocks > 0
    # Somebody has taken the room away.
    os.truncate(path, 0)
    os.truncate(path, 16)
    FileLedger(path).close()
    assert path.stat().st_blocks > 0


HALF = ExplorationSettings(share=0.5, budget_minor_a_day=90_000, payment_minor_max=900)


def approved(explored: Exploration, day: int) -> int:
    """How many of 1,000 payments of 9.00 are approved: at most the budget's 100."""
    return [declined(explored, number, 900, day * DAY_MS)[0] for number in range(1_000)].count("approve")


@pytest.mark.parametrize("size", [0, 7, 15])
def test_a_ledger_that_is_cut_short_kills_no_worker_and_its_day_counts_as_spent(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each worker was killed (SIGBUS) by the next payment that it could have explored."""
    path = tmp_path / "spent"
    workers = [exploration(path, HALF) for _ in range(2)]
    assert declined(workers[0], 0, 900)[1] < 1
    os.truncate(path, size)
    assert [approved(worker, 1) for worker in workers] == [0, 0]
    assert caplog.messages == [f"exploration: {path} is damaged: the budget of this day counts as spent"]
    assert approved(workers[1], 2) == 100


def test_a_ledger_whose_bytes_were_changed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spent"
    worker = exploration(path, HALF)
    path.write_bytes(struct.pack("<qq", 1, -5))
    assert approved(worker, 1) == 0
    path.write_bytes(struct.pack("<qq", 90_000, 0))
    # A clock that was ahead does the same.
    assert (approved(worker, 2), approved(worker, 3)) == (100, 0)
    assert [line.partition(":")[2].partition(":")[0].removeprefix(f" {path} ") for line in caplog.messages] == [
        "is damaged",
        "is damaged, or the clock was ahead",
    ]
    path.unlink()


@pytest.mark.parametrize("kind", ["deleted", "a folder", "a named pipe", "a link"])
def test_a_ledger_that_something_else_replaces_stops_exploration_alone_until_it_is_back(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that started ended at once, and so did the one in its place: nobody was answered."""
    path, known = tmp_path / "spent", exploration(tmp_path / "spent", HALF)
    assert approved(known, 1) == 100
    path.unlink()
    if kind != "deleted":
        if kind == "a folder":
            path.mkdir()
        elif kind == "a named pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("elsewhere")
        for worker in (known, exploration(path, HALF)):
            caplog.clear()
            assert approved(worker, 2) == 0
            assert len(caplog.messages) <= 1
        path.rmdir() if kind == "a folder" else path.unlink()
    # The amount that this process knows is spent.
    assert approved(known, 1) == 0
    assert approved(exploration(path, HALF), 1) == 0
    assert approved(known, 2) == 100
    assert all("\n" not in line for line in caplog.messages)


def test_a_ledger_that_a_stranger_has_locked_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("paywarden.models.policy.exploration._LOCKED_OUT_S", 0.0)
    path = tmp_path / "spent"
    worker, stranger = exploration(path, HALF), FileLedger(path)
    assert stranger.hold()
    assert approved(worker, 1) == 0
    assert caplog.messages == [f"exploration: {path} is locked by another process, and nothing is explored meanwhile"]
    stranger.close()
    assert approved(worker, 1) == 100


def test_a_disk_without_room_for_what_is_spent_stops_exploration_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = exploration(tmp_path / "spent", HALF)

    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", no_room)
    assert approved(worker, 1) == 0
    monkeypatch.undo()
    assert approved(worker, 1) == 100
    assert len([line for line in caplog.messages if "cannot be written, and nothing is explored" in line]) == 1


def test_workers_that_share_a_ledger_spend_one_budget_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    settings = ExplorationSettings(share=0.5, budget_minor_a_day=30_000, payment_minor_max=900)
    ledgers = [FileLedger(tmp_path / "spent") for _ in range(3)]
    workers = [Exploration(settings, key=KEY, ledger=ledger) for ledger in ledgers]
    approved = [declined(workers[number % 3], number, 900)[0] for number in range(300)].count("approve")
    assert approved == 30_000 // 900
    assert ledgers[0].hold()
    assert not ledgers[1].hold()
    assert declined(workers[1], 0, 1, 9 * DAY_MS) == ("decline", 1.0)
    # The kernel closes the files of a process that is killed.
    ledgers[0].close()
    assert declined(workers[1], 0, 1, 9 * DAY_MS)[1] < 1


def test_a_key_file_holds_hex_digits_and_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("000102030405060708090a0b0c0d0e0f\n")
    assert read_exploration_key(str(path)) == KEY
    for text in ("0001", "no key", "00" * 65):
        path.write_text(text)
        with pytest.raises(Misconfigured, match="must hold 32 to 128 hex digits") as refused:
            read_exploration_key(str(path))
        assert text not in str(refused.value).replace(str(path), "")
    for missing in ("", str(tmp_path / "none")):
        with pytest.raises(Misconfigured, match=r"exploration.key_file"):
            read_exploration_key(missing)
