"""The deployer orders only a release that was checked, whatever the checker does."""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from paywarden.models.bundle.version import Version
from paywarden.schemas.errors import BundleRefused
from paywarden.schemas.private_files import make_private_folder
from paywarden.scoring.metrics.release import CHECK, swap_failures
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.server.deployment.deployer import CheckLimits, Deployer, HostProcesses
from paywarden.scoring.server.deployment.deployment_file import (
    Deployment,
    ReleasePaths,
    release_key,
    write_deployment,
)
from paywarden.scoring.server.deployment.releases import (
    Release,
    ReleaseOrders,
    Serving,
    orders_path,
    read_orders,
)

SALT = "00" * 16


@dataclass
class Source:
    """Prepares a release named like its bundle, which is what the configuration says.

    `how` is called with the name first, in the checker.
    """

    config: Path
    how: Callable[[str], object] = lambda _: None
    refusal: str = ""

    def serve(self, bundle: str) -> None:
        """Write the configuration again."""
        unfinished = self.config.with_suffix(".new")
        unfinished.write_text(bundle, encoding="utf-8")
        unfinished.replace(self.config)

    def wanted(self) -> Deployment:
        return Deployment(ReleasePaths(self.config.read_text(encoding="utf-8")))

    def refusal_of(self, _: Deployment) -> str:
        return self.refusal

    def load(self, _: ReleasePaths) -> Release:
        raise NotImplementedError("a deployer loads no code")

    def prepare(self, paths: ReleasePaths, ready: Path) -> str:
        self.how(paths.bundle)
        (ready / paths.bundle).mkdir(exist_ok=True)
        return paths.bundle


class Host:
    """A deployer whose checkers are forks of this process."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.source, self.folder = Source(folder.parent / "paywarden.toml"), folder
        self.source.serve("a")
        self.failures = swap_failures(MetricsRegistry(), CHECK)
        self.served, self.pid, self.forks = list[Serving](), 0, 0
        # The releases that cannot be loaded although they were checked, and those that were unloaded.
        self.damaged, self.closed = set[str](), list[str]()
        self.fork: Callable[[Callable[[], int]], int] = self._fork
        self.deployer = Deployer(
            self.source,
            folder,
            self._load("a"),
            catalogue="c0ffee",
            failures=self.failures,
            processes=HostProcesses(lambda work: self.fork(work), self._load, self.served.append),
            limits=CheckLimits(**more),
        )

    @property
    def orders(self) -> ReleaseOrders:
        return read_orders(orders_path(self.folder, os.getpid()))

    def begin(self) -> None:
        """Look once, with a checker under way after it."""
        self.deployer.look(time.monotonic())

    def end(self) -> None:
        """Wait for the checker's end, if there is one."""
        if not self.deployer._pid:
            return
        pid, status = os.waitpid(self.pid, 0)
        assert self.deployer.ended(pid, os.waitstatus_to_exitcode(status))

    def swap(self) -> ReleaseOrders:
        self.deployer.hang_up()
        self.begin()
        self.end()
        return self.orders

    def _load(self, key: str) -> Release:
        if key in self.damaged:
            raise BundleRefused(f"prepared bundle {key}: it is gone or damaged")
        bundle = SimpleNamespace(
            manifest=SimpleNamespace(model_version=f"m-{key}"), close=lambda: self.closed.append(key)
        )
        return Release(key, [cast(Any, bundle)], cast(Any, None), ())

    def _fork(self, work: Callable[[], int]) -> int:
        self.forks += 1
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os._exit(work())
            finally:
                os._exit(70)
        return self.pid


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "serve")
    yield made
    made.deployer.close()
    assert not orders_path(made.folder, os.getpid()).exists()


def test_a_checked_release_is_ordered_and_what_decided_is_the_way_back(host: Host) -> None:
    assert host.orders == ReleaseOrders("a")
    host.source.serve("b")
    assert host.swap() == ReleaseOrders("b", "a")
    host.source.serve("c")
    assert host.swap() == ReleaseOrders("c", "b")
    # Nothing orders "a" any more.
    assert sorted(path.name for path in (host.folder / "ready").iterdir()) == ["b", "c"]
    assert [list(serving.releases) for serving in host.served] == [["a", "b"], ["a", "b", "c"]]
    assert host.failures.value == 0
    # Workers of a generation may be started again until another one has taken over.
    host.deployer.keep(host.served)
    assert host.closed == ["a"]
    host.deployer.keep([])
    assert host.closed == ["a"]


def dies(_: str) -> None:
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def refuses(name: str) -> None:
    raise BundleRefused(f"bundle {name}: model.txt has a wrong checksum")


def has_no_room(name: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)


def has_no_room_for_its_result(_: str) -> None:
    """In the checker: nobody else's files are meant."""

    def write_text(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    Path.write_text = write_text  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (dies, "the process that checks it ended with -11"),
        (lambda _: os.kill(os.getpid(), signal.SIGKILL), "the process that checks it ended with -9"),
        (lambda _: 1 // 0, "the process that checks it ended with 70"),
        (refuses, "bundle b: model.txt has a wrong checksum"),
        (has_no_room, "No space left on device: b"),
        (has_no_room_for_its_result, "the process that checks it cannot write to {folder}: No space left on device"),
    ],
)
def test_a_check_that_fails_changes_nothing_and_says_so(
    host: Host, how: Callable[[str], object], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    host.source.serve("b")
    host.source.how = how
    with caplog.at_level(logging.ERROR):
        assert host.swap() == ReleaseOrders("a")
    assert [record.getMessage() for record in caplog.records] == [
        f"the swap is not made, and what decides goes on: {line.format(folder=host.folder)}"
    ]
    assert (host.served, host.failures.value) == ([], 1)
    host.source.how = lambda _: None
    assert host.swap() == ReleaseOrders("b", "a")
    assert [path.name for path in host.folder.glob("check-*")] == []


def test_a_killed_checker_is_run_again(host: Host) -> None:
    """Otherwise the host would serve another release than its file names, until a person looks."""
    host.source.how = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    host.source.serve("b")
    assert host.swap() == ReleaseOrders("a")
    host.source.how = lambda _: None
    host.deployer.look(host.deployer._again.at)
    host.end()
    assert (host.forks, host.orders) == (2, ReleaseOrders("b", "a"))


def test_another_deployment_file_ends_the_checker_of_the_one_before(host: Host) -> None:
    """A way back waits for no check."""
    path = host.folder / "deployment.json"
    host.source.how = lambda name: signal.pause() if name == "b" else None
    write_deployment(path, Deployment(ReleasePaths("b")))
    host.begin()
    write_deployment(path, Deployment(ReleasePaths("c")))
    host.begin()
    host.end()
    host.begin()
    host.end()
    assert (host.forks, host.failures.value, host.orders.active) == (2, 0, "c")


def test_a_check_that_takes_too_long_is_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = Host(tmp_path / "serve", timeout_s=0.0)
    host.source.serve("b")
    host.source.how = lambda _: signal.pause()
    host.deployer.hang_up()
    host.begin()
    host.begin()
    host.end()
    assert "took more than 0 s" in caplog.text
    assert host.orders == ReleaseOrders("a")
    host.deployer.close()


def test_a_deployment_file_that_was_refused_is_looked_at_again_until_it_can_be_served(host: Host) -> None:
    """After a disk was full for a moment, a host stayed at its old release until a SIGHUP."""
    path = host.folder / "deployment.json"
    host.source.how = has_no_room
    write_deployment(path, Deployment(ReleasePaths("b")))
    host.begin()
    host.end()
    pauses = []
    for _ in range(9):
        pauses.append(host.deployer._again.at - time.monotonic())
        forks = host.forks
        host.deployer.look(host.deployer._again.at)
        host.end()
        assert host.forks == forks + 1
    assert all(pause <= min(5.0 * 2**number, 600) for number, pause in enumerate(pauses))
    assert pauses[-1] > 300
    assert host.orders.active == "a"
    host.source.how = lambda _: None
    host.deployer.look(host.deployer._again.at)
    host.end()
    assert host.orders.active == "b"
    forks = host.forks
    host.deployer.look(time.monotonic() + 2000)
    assert (host.forks, host.deployer._pid) == (forks, 0)


def test_what_the_configuration_asks_for_is_looked_at_when_somebody_says_so(host: Host) -> None:
    host.source.serve("b")
    host.source.how = refuses
    host.swap()
    host.source.how = lambda _: None
    host.deployer.look(time.monotonic() + 1000)
    assert (host.deployer._pid, host.orders.active) == (0, "a")


@pytest.mark.parametrize("how", [dies, lambda _: 1 // 0])
def test_a_bundle_that_crashes_its_checker_is_not_tried_again(host: Host, how: Callable[[str], object]) -> None:
    host.source.how = how
    write_deployment(host.folder / "deployment.json", Deployment(ReleasePaths("b")))
    host.begin()
    host.end()
    host.deployer.look(time.monotonic() + 1000)
    assert (host.deployer._pid, host.failures.value) == (0, 1)


def takes_all(_: str) -> None:
    taken = []
    while True:
        taken.append(bytearray(2**24))


def test_a_library_that_takes_all_memory_ends_its_checker_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(tmp_path / "serve", memory_bytes=2**28)
    host.source.serve("b")
    host.source.how = takes_all
    with caplog.at_level(logging.ERROR):
        assert host.swap() == ReleaseOrders("a")
    assert "the process that checks it wanted more than 0.2 GiB of memory" in caplog.text
    host.source.how = lambda _: None
    assert host.swap().active == "b"
    host.deployer.close()


def test_a_fork_that_fails_changes_nothing(host: Host) -> None:
    def fails(_: Callable[[], int]) -> int:
        raise OSError(errno.EAGAIN, "no process")

    host.fork = fails
    host.deployer.hang_up()
    host.begin()
    assert (host.orders, host.failures.value) == (ReleaseOrders("a"), 1)


def test_a_deployment_file_is_noticed_and_two_releases_stay_ready(host: Host) -> None:
    path = host.folder / "deployment.json"
    blue, green = ReleasePaths("b"), ReleasePaths("g")
    for active, previous in ((blue, None), (green, blue), (blue, green)):
        write_deployment(path, Deployment(active, previous, active, "r", 5000, SALT))
        host.deployer._due = 0.0
        host.begin()
        host.end()
        assert host.orders == ReleaseOrders(
            active.bundle, previous.bundle if previous else "", active.bundle, "r", 5000, SALT
        )
    path.write_text("{", encoding="utf-8")
    host.deployer._due = 0.0
    host.begin()
    host.end()
    assert (host.orders.active, host.failures.value) == ("b", 1)


def test_a_way_back_does_not_fail_because_another_release_is_gone(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    def refuses_x(name: str) -> None:
        if name == "x":
            raise BundleRefused("bundle x: there is no manifest.json")

    host.source.how = refuses_x
    path = host.folder / "deployment.json"
    write_deployment(path, Deployment(ReleasePaths("b"), ReleasePaths("x"), ReleasePaths("x"), "r", 500, SALT))
    assert host.swap() == ReleaseOrders("b", "", "", "r", 0, SALT)
    assert (caplog.text.count("a release cannot be kept ready"), host.failures.value) == (2, 2)


def test_a_release_that_is_named_by_its_digests_needs_no_file_any_more(host: Host) -> None:
    key = release_key(Version("ab" * 32, "cd" * 32))
    (host.folder / "ready" / key).mkdir()
    host.source.how = refuses
    named = ReleasePaths("gone", "", "ab" * 32, "cd" * 32)
    write_deployment(host.folder / "deployment.json", Deployment(named))
    assert host.swap() == ReleaseOrders(key)
    assert (host.forks, host.failures.value) == (0, 0)


def test_a_file_that_the_registry_does_not_allow_changes_nothing(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.source.refusal = "active: wanted a version that the registry has promoted"
    write_deployment(host.folder / "deployment.json", Deployment(ReleasePaths("b", "", "bb", "pp")))
    assert host.swap() == ReleaseOrders("a")
    assert (host.forks, host.failures.value) == (0, 1)
    assert "deployment.json: active: wanted a version that the registry has promoted" in caplog.text
    host.source.refusal = ""
    assert host.swap().active == "b"


def test_left_over_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "serve"
    folder.mkdir()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    for name in (f"orders-{pid}.json", f"check-{pid}.json"):
        (folder / name).touch()
    Host(folder).deployer.close()
    assert [path.name for path in folder.iterdir()] == ["ready"]


def looks(host: Host) -> None:
    """Look as often as it takes to repair something, with a checker in between."""
    for _ in range(3):
        host.deployer._due = 0.0
        host.begin()
        host.end()


def test_a_folder_that_somebody_deletes_is_made_again_and_keeps_no_swap_from_being_made(host: Host) -> None:
    """No swap and no way back was possible any more until `serve` was started again."""
    host.source.serve("b")
    host.swap()
    shutil.rmtree(host.folder)
    looks(host)
    host.source.serve("c")
    assert host.swap().active == "c"
    shutil.rmtree(host.folder / "ready")
    host.source.serve("d")
    assert host.swap().active == "d"


def test_orders_are_private_from_the_start(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """The companion makes the folder private with all that is in it. Open ones looked as if somebody changed them."""
    host.source.serve("b")
    wanted = host.swap()
    make_private_folder(host.folder)
    looks(host)
    assert host.orders == wanted
    assert "was changed" not in caplog.text


def test_a_deployment_file_with_a_name_that_no_file_can_have_changes_nothing(host: Host) -> None:
    """A zero byte in a path raises ValueError, which ended the supervisor, and with it the host."""
    path = host.folder / "deployment.json"
    for bundle in ("/b\\u0000", "/b\\ud800"):
        path.write_text(f'{{"version": 1, "active": {{"bundle": "{bundle}"}}}}', encoding="utf-8")
        assert host.swap().active == "a"
    assert host.failures.value == 2


@pytest.mark.parametrize("damage", ["emptied", "deleted"])
def test_orders_that_somebody_damages_are_written_again(
    host: Host, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers read the candidate's share from them."""
    host.source.serve("b")
    wanted, path, served = host.swap(), orders_path(host.folder, os.getpid()), len(host.served)
    if damage == "emptied":
        os.truncate(path, 0)
    else:
        path.unlink()
    looks(host)
    assert (host.orders, len(host.served)) == (wanted, served + 1)
    assert "orders-" in caplog.text
    looks(host)
    assert len(host.served) == served + 1
    os.truncate(path, 0)
    host.source.serve("c")
    assert host.swap() == ReleaseOrders("c", "b")


def test_a_checked_release_that_cannot_be_loaded_is_prepared_again(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """It was damaged after its check, and no worker has heard of it."""
    host.source.serve("b")
    host.damaged = {"b"}
    assert host.swap() == ReleaseOrders("a")
    assert (host.served, host.failures.value) == ([], 1)
    assert "what decides goes on: prepared bundle b: it is gone or damaged" in caplog.text
    host.damaged.clear()
    host.deployer.look(host.deployer._again.at)
    host.end()
    assert (host.orders, host.failures.value) == (ReleaseOrders("b", "a"), 1)


def test_a_bug_in_the_loading_of_a_release_ends_no_host_and_others_are_loaded_later(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(host.deployer, "_load", lambda _: 1 // 0)
        host.source.serve("b")
        assert host.swap() == ReleaseOrders("a")
    assert "what decides goes on: release b: ZeroDivisionError" in caplog.text
    host.source.serve("c")
    assert host.swap() == ReleaseOrders("c", "a")


def test_a_release_is_in_memory_for_the_way_back_whatever_happens_to_its_files(host: Host) -> None:
    host.source.serve("b")
    host.swap()
    host.damaged = {"a", "b"}
    shutil.rmtree(host.folder / "ready")
    path = host.folder / "deployment.json"
    for active, previous in (("a", "b"), ("b", "a")):
        write_deployment(path, Deployment(ReleasePaths(active), ReleasePaths(previous)))
        assert host.swap() == ReleaseOrders(active, previous)
    assert host.failures.value == 0


def test_orders_that_no_worker_could_serve_are_taken_back_and_tried_again_later(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    before = host.orders
    host.source.serve("b")
    host.swap()
    host.deployer.give_up(Serving(before, {"a": host._load("a")}), "worker 1 ended with -9")
    assert host.orders == before
    assert "a release cannot be taken up, and m-a goes on: worker 1 ended with -9" in caplog.text
    host.deployer.keep([])
    assert host.closed == ["b"]
    host.deployer.look(host.deployer._again.at)
    host.end()
    assert host.orders.active == "b"


@pytest.mark.parametrize(("candidate", "share", "restored"), [("c", 700, 700), ("c", 0, 0), ("d", 700, 0), ("", 0, 0)])
def test_a_rollback_among_orders_that_no_worker_could_serve_holds(
    host: Host, candidate: str, share: int, restored: int
) -> None:
    path = host.folder / "deployment.json"
    write_deployment(path, Deployment(ReleasePaths("b"), None, ReleasePaths("c"), "r", 500, SALT))
    proven = host.swap()
    refused = Deployment(ReleasePaths("x"), None, ReleasePaths(candidate) if candidate else None, "r", share, SALT)
    write_deployment(path, refused)
    host.swap()
    host.deployer.give_up(host.served[0], "worker 1 ended with -9")
    assert host.orders == host.served[-1].orders == replace(proven, share=restored)


def test_a_disk_without_room_for_the_orders_puts_the_swap_off(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor believed that it had ordered the release, and did not report it when it was asked again."""

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    host.source.serve("b")
    monkeypatch.setattr("paywarden.scoring.server.deployment.deployer.write_orders", no_room)
    assert host.swap() == ReleaseOrders("a")
    assert host.failures.value == 1
    looks(host)
    assert host.orders == ReleaseOrders("a")
    monkeypatch.undo()
    # Nobody asks again.
    looks(host)
    assert host.orders == ReleaseOrders("b", "a")
