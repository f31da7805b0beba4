"""Files that workers map: created again when gone or cut short, alone and under a running host; mapped ahead."""

from __future__ import annotations

import contextlib
import http.client
import mmap
import os
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.models.policy.policy import OVERLAY_ABSENT
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.server.mapped_files import MappedFile, map_pages
from paywarden.scoring.state.mirror_writer import MirrorWriter
from paywarden.scoring.state.overlay.overlay_files import MARKS_FILE
from paywarden.scoring.state.overlay.overlay_marks import OverlayMarks
from tests.patience import PATIENCE_S
from tests.services.product.processes import wait_until
from tests.services.product.scoring_server import Server

SIZE = 10_000


class Prepared:
    """A file of SIZE zeros that is made as the claims of payments are; `error` is raised in place of that."""

    def __init__(self, path: Path) -> None:
        self.path, self.error = path, ""
        self.file = MappedFile(str(path), self.prepare, "all is lost")

    def prepare(self) -> None:
        if self.error:
            raise Misconfigured(self.error)
        if self.path.exists() and self.path.stat().st_size == SIZE:
            return
        new = self.path.with_suffix(".new")
        new.write_bytes(bytes(SIZE))
        new.replace(self.path)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared(tmp_path / "claims")


def test_a_file_that_is_as_it_was_made_is_left_alone(prepared: Prepared) -> None:
    before = prepared.path.stat()
    assert not prepared.file.repair()
    os.truncate(prepared.path, SIZE + 1)
    assert not prepared.file.repair()
    assert prepared.path.stat().st_ino == before.st_ino


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, None])
def test_a_file_that_is_gone_or_cut_short_is_made_anew_and_told(
    prepared: Prepared, size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    if size is None:
        prepared.path.unlink()
    else:
        os.truncate(prepared.path, size)
    assert prepared.file.repair()
    assert prepared.path.stat().st_size == SIZE
    assert caplog.text.count("was deleted or cut short: it is created again, and all is lost") == 1
    assert not prepared.file.repair()


def test_a_file_of_another_host_in_its_place_is_left_alone(prepared: Prepared) -> None:
    """A host that takes over with other settings has put it there."""
    other = prepared.path.with_suffix(".other")
    other.write_bytes(bytes(10))
    other.replace(prepared.path)
    assert not prepared.file.repair()


def test_a_file_that_cannot_be_made_is_told_once_and_tried_again(
    prepared: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    prepared.path.unlink()
    prepared.error = "no space left"
    assert [prepared.file.repair() for _ in range(3)] == [False] * 3
    assert caplog.text.count("cannot be created again yet: no space left") == 1
    prepared.error = ""
    assert prepared.file.repair()


class Host(Server):
    """A server with two workers and the overlay."""

    sent = 0

    def has_mapped(self, path: Path, *, alone: bool) -> bool:
        """Whether both workers have the file that is at a path now; `alone`: and none that was there before."""
        found = []
        for process in psutil.Process(self.parent.pid).children():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8").splitlines()
                found.append({int(line.split()[4]) for line in lines if str(path) in line.split()})
        now = file_of(path)
        return sum(now in files and (files == {now} or not alone) for files in found) == 2

    def pay_next(self) -> list[str] | str:
        """Returns the flags of an answer to a new payment, or why there is none."""
        self.sent += 1
        payment = ScoreRequest(
            payment_id=f"p-{self.sent}",
            event_time_ms=time.time_ns() // 1_000_000,
            card_id="c",
            merchant_id="m",
            amount_minor=1,
            currency="EUR",
        )
        address = urllib.parse.urlsplit(self.target).netloc
        with closing(http.client.HTTPConnection(address, timeout=PATIENCE_S)) as client:
            try:
                client.request(
                    "POST", "/v1/score", payment.SerializeToString(), {"Content-Type": "application/x-protobuf"}
                )
                answer = client.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                return type(error).__name__
        return list(ScoreResponse.FromString(body).flags) if answer.status == 200 else str(answer.status)


def file_of(path: Path) -> int:
    """Returns which file is at a path: its inode, or 0."""
    return path.stat().st_ino if path.exists() else 0


def is_another(path: Path, before: int) -> bool:
    return file_of(path) not in (0, before)


@pytest.mark.parametrize("name", ["answered", "overlay"])
def test_a_host_whose_mapped_file_is_cut_short_goes_on_with_a_new_one(tmp_path: Path, name: str) -> None:
    """Workers died of the missing pages, and so did those that were started in their place, until a new start."""
    overlay = tmp_path / "overlay"
    with Host(tmp_path, more=f'[overlay]\nenabled = true\npath = "{overlay}"\npayments_max = 4096\n') as host:
        writer = MirrorWriter(host.mirror)
        writer.apply({}, {0: 1}, time.time_ns() // 1_000_000)
        writer.close()
        host.start("--workers", "2")
        host.listening(2)
        path = tmp_path / name
        whole = path.stat().st_size
        for size in (0, 5000, whole // 2, None):
            wait_until(lambda: isinstance(host.pay_next(), list), "a payment is answered")
            before = path.stat().st_ino
            if size is None:
                path.unlink()
            else:
                os.truncate(path, size)
            # The kernel gives each connection to one of the workers.
            for _ in range(20):
                host.pay_next()
            wait_until(partial(is_another, path, before), "the file is created again", every_s=0.05)
            assert path.stat().st_size == whole
            made = path.stat().st_ino
            # A worker that goes on may keep pages of an old overlay; it reads the new one.
            wait_until(lambda: host.has_mapped(path, alone=name == "answered"), "all workers have it", every_s=0.05)
            wait_until(lambda: all(isinstance(host.pay_next(), list) for _ in range(20)), "both workers answer")
            assert path.stat().st_ino == made, "it is created again once for each cut"
        # Equal lines within two minutes are written once.
        assert f"{path} was deleted or cut short: it is created again" in host.log()
        assert "bug" not in host.log()


def test_a_host_whose_marks_are_cut_short_answers_without_the_overlay_until_they_are_whole(tmp_path: Path) -> None:
    """The companion writes the marks: workers that touch a missing page end, and those after them use no marks."""
    overlay = OverlaySettings(enabled=True, path=str(tmp_path / "overlay"), payments_max=4096, lifetime_ms=200)
    more = f'[overlay]\nenabled = true\npath = "{overlay.path}"\npayments_max = 4096\nlifetime_ms = 200\n'
    with Host(tmp_path, more=more) as host:
        with closing(MirrorWriter(host.mirror)) as writer:
            writer.apply({}, {0: 1}, time.time_ns() // 1_000_000)
            newest = writer.newest_transaction()

        def marked() -> OverlayMarks:
            marks = OverlayMarks(overlay, FeatureEngine().plan, host.mirror.path)
            marks.open_mirror(newest)
            return marks

        def answers_have(flag: bool) -> bool:
            flags = [host.pay_next() for _ in range(12)]
            return all(isinstance(one, list) and (OVERLAY_ABSENT in one) is flag for one in flags)

        marks = marked()
        host.start("--workers", "2")
        host.listening(2)
        wait_until(lambda: answers_have(False), "the marks are trusted")
        path = Path(host.mirror.path) / MARKS_FILE
        for size in (0, 5000):
            # This process must not touch them any more.
            marks.close()
            os.truncate(path, size)
            wait_until(lambda: answers_have(True), "all answers say that the overlay is absent")
            marks = marked()
            wait_until(lambda: answers_have(False), "the marks are trusted again")
        assert "bug" not in host.log()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on a memory file system, of a system that maps pages ahead: Linux 5.14."""
    release = [int(part) for part in os.uname().release.split(".")[:2] if part.isdigit()]
    if not Path("/dev/shm").is_dir() or release < [5, 14]:
        pytest.skip("there is no memory file system, or pages cannot be mapped ahead")
    with tempfile.TemporaryDirectory(prefix="paywarden-test-", dir="/dev/shm") as folder:
        yield Path(folder)


def mapped_bytes(pid: int | str, path: Path) -> int:
    """Returns how many bytes of a file a process has mapped, page by page."""
    resident, is_here = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            is_here = str(path) in line.split()
        elif is_here and line.startswith("Rss:"):
            resident += int(line.split()[1]) << 10
    return resident


@pytest.mark.parametrize("left", [1 << 22, (1 << 20) + 5])
def test_the_pages_of_a_file_in_memory_are_mapped_as_far_as_it_goes(memory: Path, left: int) -> None:
    path = memory / "file"
    path.write_bytes(bytes(1 << 22))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        os.truncate(path, left)
        assert mapped_bytes("self", path) == 0
        assert map_pages(path) == left & -mmap.PAGESIZE
        # The kernel may map the page with the file's last bytes, too.
        assert 0 <= mapped_bytes("self", path) - (left & -mmap.PAGESIZE) <= mmap.PAGESIZE


def test_a_file_that_is_gone_or_not_mapped_is_no_failure(memory: Path) -> None:
    assert map_pages(memory / "absent") == 0
    (memory / "file").write_bytes(bytes(1 << 20))
    assert map_pages(memory / "file") == 0


def test_a_worker_that_listens_has_its_files_mapped(memory: Path) -> None:
    """Otherwise its first payments waited for thousands of page faults."""
    with Host(memory, more=f'[overlay]\nenabled = true\npath = "{memory}/overlay"\npayments_max = 4096\n') as host:
        writer = MirrorWriter(host.mirror)
        writer.apply({b"card:%d" % number: bytes(200) for number in range(5000)}, {0: 1}, time.time_ns() // 1_000_000)
        writer.close()
        host.start("--workers", "1")
        host.listening(1)
        (worker,) = (each.pid for each in psutil.Process(host.parent.pid).children() if has_file(each, "answered"))
        for path in (memory / "answered", memory / "overlay", host.mirror.data_file):
            status = path.stat()
            assert mapped_bytes(worker, path) >= min(status.st_size, status.st_blocks * 512) & -mmap.PAGESIZE
        # The mirror's file is longer than what it has memory for, and to map the rest would take memory.
        assert host.mirror.data_file.stat().st_blocks * 512 < 8 << 20


def has_file(process: psutil.Process, name: str) -> bool:
    """Whether a process has mapped a file of this name."""
    with contextlib.suppress(OSError):
        return f"/{name}\n" in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
    return False
