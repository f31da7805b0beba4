"""A mirror is read to the end in a process of its own, which finds damage wherever it is, or dies of it."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from paywarden.scoring.state.mirror import MirrorSettings, MirrorWriter
from paywarden.scoring.state.mirror_check import MirrorCheck
from tests.services.product.processes import wait_until

SIZE_MB = 16


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The file of a mirror of 2,000 profiles."""
    with closing(MirrorWriter(MirrorSettings(path=str(tmp_path / "mirror"), size_mb=SIZE_MB))) as writer:
        profiles: dict[bytes, bytes | None] = {b"card:%05d" % number: os.urandom(400) for number in range(2_000)}
        writer.apply(profiles, {0: 1}, time.time_ns() // 1_000_000)
    return tmp_path / "mirror" / "data.mdb"


def found(data: Path) -> str:
    """Returns what a check finds."""
    check = MirrorCheck(str(data.parent), SIZE_MB)
    check.begin()
    results: list[str] = []

    def is_over() -> bool:
        results.append(check.damage())
        return check._process is None

    wait_until(is_over, "the check is over", every_s=0.05)
    return results[-1]


def test_a_whole_mirror_has_no_damage(data: Path) -> None:
    assert found(data) == ""


@pytest.mark.parametrize("damage", ["odd bytes", "no pages", "cut short"])
def test_damage_is_found_wherever_it_is(data: Path, damage: str) -> None:
    content = bytearray(data.read_bytes())
    # The two first pages say where the others are.
    if damage == "odd bytes":
        for at in range(8192, len(content), 97):
            content[at] ^= 0x55
    elif damage == "no pages":
        content[8192:] = bytes(len(content) - 8192)
    else:
        del content[len(content) // 2 :]
    data.write_bytes(content)
    assert found(data) != ""


def test_one_check_runs_at_a_time_with_pauses_and_a_killed_one_says_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def begin(*_: object, **__: object) -> subprocess.Popen[bytes]:
        begun.append(popen(["sleep", "1000"]))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", begin)
    now_s = 100.0
    check = MirrorCheck(str(data.parent), SIZE_MB, lambda: now_s)
    check.begin()
    check.begin()
    assert (len(begun), check.damage()) == (1, "")
    begun[0].kill()
    begun[0].wait()
    assert check.damage() == ""
    check.begin()
    assert len(begun) == 1
    now_s += 40.0
    check.begin()
    assert len(begun) == 2
    # One that hangs is ended.
    now_s += 1000.0
    assert check.damage() == ""
    assert begun[1].poll() is not None
    now_s += 40.0
    check.begin()
    check.close()
    assert (len(begun), begun[2].poll() is not None, check.damage()) == (3, True, "")
