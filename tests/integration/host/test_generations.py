"""New generations of workers take the sockets over under load, over HTTP and gRPC, and no call is lost."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, ReleasePaths, write_deployment
from tests.services.product.processes import PaywardenProcess, samples, wait_until
from tests.services.product.scoring_server import PATIENT, PAYMENT, Server
from tests.worlds.small import small_world

FIRST, OTHER = small_world.trained_bundle, small_world.other_bundle
SWAPS = 20
RATE = 150.0
# A call may wait for a machine that does something else, but not for ever. Few connections are in use all the time: one
# that is idle for 0.6 s is closed, and a caller who sends in that very moment has to send again.
OPTIONS = LoadOptions(connections=4, connections_max=4, streams=8, timeout_ms=60_000)


class Load:
    """Calls at a fixed rate from a thread of its own, until the `with` block ends."""

    def __init__(self, target: str, prefix: str) -> None:
        self._over = threading.Event()
        self._target, self._bodies = target, stamped_bodies([ScoreRequest.FromString(PAYMENT)], id_prefix=prefix)
        self.reports: list[LoadReport] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        bodies = iter(lambda: None if self._over.is_set() else next(self._bodies), None)
        # The bodies end it.
        self.reports.append(asyncio.run(run_load(self._target, bodies, rate=RATE, seconds=3600.0, options=OPTIONS)))


class Host:
    """A host with two workers, and a load on each of its ports."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(folder, more=PATIENT, answered_max=1_000_000)
        self.parent: PaywardenProcess = self.server.start("--workers", "2")
        self.grpc = self.parent.first_line()
        self.server.listening(2)
        self.file = folder / "serve" / DEPLOYMENT
        self.bundles = {name: small_world.copied_bundle(folder / name, made()) for name, made in
                        (("first", FIRST), ("other", OTHER))}  # fmt: skip

    def paths(self, name: str) -> ReleasePaths:
        bundle = self.bundles[name]
        return ReleasePaths(str(bundle), "", read_manifest(bundle).digest, policy_digest(PolicySettings(), {}))

    def order(self, active: str, previous: str) -> None:
        """Write the deployment file, and send SIGHUP: the host looks at once."""
        write_deployment(self.file, Deployment(self.paths(active), self.paths(previous)))
        os.kill(self.parent.pid, signal.SIGHUP)

    def swap(self, active: str, previous: str) -> float:
        """Swap, and wait until all workers serve it; returns the seconds that it took."""
        before, began = self.swaps(), time.monotonic()
        self.order(active, previous)
        wait_until(lambda: self.swaps() == before + 1, f"{active} is served", every_s=0.01)
        return time.monotonic() - began

    def swaps(self) -> int:
        """Returns how many swaps the log tells of: the metrics come a second later."""
        return self.server.log().count("decides from now on")

    def metric(self, name: str, *labels: str) -> float:
        return samples(self.server.target).get((name, *labels), 0.0)

    def children(self) -> dict[int, psutil.Process]:
        return {child.pid: child for child in psutil.Process(self.parent.pid).children()}

    def private_bytes(self) -> int:
        """Returns the memory that the workers and the admin process have each for itself."""
        found = 0
        for child in self.children().values():
            with contextlib.suppress(psutil.Error):
                found += child.memory_full_info().uss
        return found

    @contextlib.contextmanager
    def loads(self, name: str) -> Iterator[list[Load]]:
        """Run both loads; at the end every call was answered."""
        with Load(f"{self.server.target}/v1/score", f"h{name}") as http, Load(self.grpc, f"g{name}") as grpc:
            wait_until(lambda: self.metric("paywarden_http_requests_total", "score", "200") >= 0, "it answers")
            yield [http, grpc]
        for load in (http, grpc):
            (report,) = load.reports
            assert report.sent > 0
            lost = report.shed, report.deadline_exceeded, report.unavailable, report.unanswered, report.errors
            assert lost == (0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("generations"))
    with made.server:
        yield made


def test_twenty_swaps_in_turn_lose_no_call(host: Host, record_property: Callable[[str, object], None]) -> None:
    host.swap("other", "first")
    host.swap("first", "other")
    with host.loads("a"):
        time.sleep(1.0)
        usual, most, over = host.private_bytes(), [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.02):
                most[0] = max(most[0], host.private_bytes())

        watching = threading.Thread(target=watch)
        watching.start()
        seconds = [host.swap(*("other", "first")[:: 1 if number % 2 == 0 else -1]) for number in range(SWAPS)]
        over.set()
        watching.join()
    record_property("seconds_of_swaps", seconds)
    record_property("private_bytes", {"usual": usual, "most": most[0], "ratio": most[0] / usual})
    wait_until(lambda: host.metric("paywarden_swaps_total") == SWAPS + 2, "each swap is counted")
    assert host.metric("paywarden_swap_failures_total", "take_up") == 0
    # Every place has one worker again, with the admin process beside them.
    wait_until(lambda: len(host.children()) == 3, "the old workers have ended")


def test_new_workers_that_cannot_begin_leave_the_old_ones_serving(host: Host) -> None:
    host.server.listening(2)
    wait_until(lambda: len(host.children()) == 3, "the old workers of earlier swaps have ended")
    old, swaps = host.children(), host.swaps()
    # Nobody writes to the outbox of the number that is free, which is the first new worker's.
    outboxes = [Path(host.server.outbox.directory) / f"worker-{number}" for number in range(3)]
    free = next(path for path in outboxes if is_unlocked(path / "lock"))
    (free / "lock").rename(free / "kept")
    (free / "lock").mkdir()
    with host.loads("b"):
        host.order("other", "first")
        wait_until(lambda: "cannot be taken up" in host.server.log(), "the release is given up")
        assert host.children().keys() == old.keys()
        assert host.swaps() == swaps
        line = next(line for line in host.server.log().splitlines() if "cannot be taken up" in line)
        assert f"{read_manifest(host.bundles['first']).model_version} goes on: {free.name.replace('-', ' ')} " in line
        wait_until(lambda: host.metric("paywarden_swap_failures_total", "take_up") == 1, "the metric counts it")
        # Somebody repairs it and asks again, and it is served.
        (free / "lock").rmdir()
        (free / "kept").rename(free / "lock")
        host.swap("other", "first")
        host.swap("first", "other")


def is_unlocked(path: Path) -> bool:
    """Return whether no process writes to the outbox with this lock."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_way_back_needs_no_check_and_no_file_of_the_bundle(host: Host, tmp_path: Path) -> None:
    host.swap("other", "first")
    wait_until(lambda: len(host.children()) == 3, "the old workers have ended")
    shutil.rmtree(host.file.parent / "ready")
    for name in ("first", "other"):
        os.rename(host.bundles[name], tmp_path / name)
    paths = {name: ReleasePaths(str(host.bundles[name]), "", read_manifest(tmp_path / name).digest,
                                policy_digest(PolicySettings(), {})) for name in ("first", "other")}  # fmt: skip
    with host.loads("c"):
        swaps = host.swaps()
        write_deployment(host.file, Deployment(paths["first"], paths["other"]))
        os.kill(host.parent.pid, signal.SIGHUP)
        wait_until(lambda: host.swaps() == swaps + 1, "the way back is taken", every_s=0.01)
    assert "the swap is not made" not in host.server.log()
