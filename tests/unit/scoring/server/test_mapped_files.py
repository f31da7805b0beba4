"""Files that workers map: a host ends when one is gone or cut short, and maps them ahead."""

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
from pathlib import Path

import psutil
import pytest

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.models.policy.policy import OVERLAY_ABSENT
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.server.mapped_files import MappedFile, map_pages
from paywarden.scoring.state.overlay.overlay_files import MARKS_FILE
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.companion.overlay_marks import OverlayMarks
from tests.patience import PATIENCE_S
from tests.services.product.processes import wait_until
from tests.services.product.scoring_server import Server

SIZE = 10_000


@pytest.fixture
def mapped(tmp_path: Path) -> MappedFile:
    return MappedFile(str(tmp_path / "claims"), lambda: (tmp_path / "claims").write_bytes(bytes(SIZE)))


@pytest.mark.parametrize("size", [SIZE, SIZE + 1])
def test_a_file_that_is_as_long_as_it_was_is_no_trouble(mapped: MappedFile, tmp_path: Path, size: int) -> None:
    os.truncate(tmp_path / "claims", size)
    assert mapped.trouble() == ""


@pytest.mark.parametrize("size", [0, SIZE - 1])
def test_a_file_that_was_cut_short_is_named(mapped: MappedFile, tmp_path: Path, size: int) -> None:
    os.truncate(tmp_path / "claims", size)
    assert mapped.trouble() == f"{tmp_path}/claims was cut short"


def test_a_file_that_was_deleted_is_named(mapped: MappedFile, tmp_path: Path) -> None:
    (tmp_path / "claims").unlink()
    assert mapped.trouble() == f"{tmp_path}/claims was deleted"


def test_a_file_of_another_host_in_its_place_is_left_alone(mapped: MappedFile, tmp_path: Path) -> None:
    """A host that takes over with other settings has put it there."""
    (tmp_path / "other").write_bytes(bytes(10))
    (tmp_path / "other").replace(tmp_path / "claims")
    assert mapped.trouble() == ""


class Host(Server):
    """A server with two workers and the overlay."""

    sent = 0

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


@pytest.mark.parametrize("name", ["answered", "overlay"])
@pytest.mark.parametrize("size", [0, 5000, None])
def test_a_host_whose_mapped_file_is_gone_ends_and_starts_again(tmp_path: Path, name: str, size: int | None) -> None:
    path = tmp_path / name
    more = f'[overlay]\nenabled = true\npath = "{tmp_path}/overlay"\npayments_max = 4096\n'
    with Host(tmp_path, more=more) as host:
        writer = MirrorWriter(host.mirror)
        writer.apply({}, {0: 1}, time.time_ns() // 1_000_000)
        writer.close()
        host.start("--workers", "2")
        host.listening(2)
        wait_until(lambda: isinstance(host.pay_next(), list), "a payment is answered")
        if size is None:
            path.unlink()
        else:
            os.truncate(path, size)
        wait_until(lambda: host.parent.process.poll() is not None, "the host has ended")
        assert host.parent.stop() == 1
        how = "deleted" if size is None else "cut short"
        assert f"{path} was {how}: the host ends, and its next start makes it" in host.log()
        host.start("--workers", "2")
        host.listening(2)
        wait_until(lambda: isinstance(host.pay_next(), list), "a payment is answered")


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
