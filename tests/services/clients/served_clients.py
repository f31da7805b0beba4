"""Scoring hosts that are restarted, stopped and killed while a client's driver puts load on them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.state.outbox import OutboxDamaged, OutboxReader, workers
from tests.services.clients.client_drivers import Driver
from tests.services.ports import free_port
from tests.services.product.processes import PaywardenProcess, wait_until
from tests.services.product.scoring_server import PATIENT, Server

WORKERS = 2
# A host says for a second that it stops; clients close connections that they have not used for less than that.
DRAIN = "drain_delay_ms = 1000\n"
_READ_AT_ONCE = 10_000
_END_TIMEOUT_S = 60.0


class Host:
    """One scoring host with an address that stays."""

    def __init__(self, folder: Path, *, patient: bool = True) -> None:
        """`patient`: it refuses no call for being late."""
        folder.mkdir()
        more = PATIENT if patient else ""
        self._server = Server(folder, port=free_port(), more=more, serve=DRAIN, answered_max=4_000_000)
        self._start()

    @property
    def url(self) -> str:
        return self._server.target

    def _start(self, *arguments: str) -> None:
        self._server.start("--workers", str(WORKERS), *arguments)
        self._server.listening(WORKERS)

    def restart(self) -> None:
        """End the host with SIGTERM, and start it again."""
        assert self._server.parent.stop() == 0, self._server.log()
        self._start()

    def take_over(self) -> None:
        """Start a host that takes the ports over, and wait for the end of the one before."""
        before: PaywardenProcess = self._server.parent
        self._start("--take-over")
        wait_until(lambda: before.process.poll() is not None, "the host before ends")
        before.stop()

    def kill_worker(self, rng: random.Random) -> None:
        """Kill a worker, as a crash would end it, and wait for its end: else the next kill might leave no worker."""
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = rng.choice(self._server.listening(WORKERS))
            worker.kill()
            worker.wait(_END_TIMEOUT_S)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop all processes of the host (SIGSTOP) until the block ends."""
        parent = psutil.Process(self._server.parent.pid)
        pids = [parent.pid, *(child.pid for child in parent.children(recursive=True))]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)

    def decisions(self) -> Counter[str]:
        """Returns how often each payment was decided, by the host's outboxes."""
        counts: Counter[str] = Counter()
        for worker in workers(self._server.outbox):
            reader = OutboxReader(self._server.outbox, worker)
            position = reader.oldest()
            while True:
                try:
                    records = reader.read(position, _READ_AT_ONCE)
                except OutboxDamaged:
                    # A killed worker has left half a record, which it has not answered. The companion passes it, too.
                    if (following := reader.after_damage(position)) is None:
                        break
                    position = following
                    continue
                if not records:
                    break
                position = records[-1][0]
                counts.update(OutboxEntry.FromString(data).request.payment_id for _, data in records)
        return counts

    def close(self) -> None:
        self._server.__exit__()


@contextmanager
def running_hosts(folder: Path, count: int) -> Iterator[list[Host]]:
    """Run hosts until the block ends."""
    with ExitStack() as stack:
        hosts = []
        for number in range(count):
            host = Host(folder / f"host-{number}")
            stack.callback(host.close)
            hosts.append(host)
        yield hosts


def load_with_restarts(
    drivers: Mapping[str, Driver], hosts: Sequence[Host], load: Mapping[str, Any], restarts: int
) -> dict[str, dict[str, Any]]:
    """Run a load of each driver while one host after the other restarts, by SIGTERM and by a take-over in turns.

    Returns the reports, with the `restarts` that were done while the loads ran.
    """
    _begin(drivers, load)
    began = time.monotonic()
    until = began + load["seconds"]
    done, longest_s = 0, 0.0
    # The last restart must lie within the load.
    while done < restarts and began + longest_s < until:
        host = hosts[done % len(hosts)]
        if (done + done // len(hosts)) % 2 == 0:
            host.restart()
        else:
            host.take_over()
        done += 1
        longest_s, began = max(longest_s, time.monotonic() - began), time.monotonic()
    return {name: report | {"restarts": done} for name, report in _reports(drivers, load).items()}


def load_with_kills(
    drivers: Mapping[str, Driver], host: Host, load: Mapping[str, Any], kills: int, *, seed: int = 1
) -> dict[str, dict[str, Any]]:
    """Run a load of each driver while workers of a host are killed.

    Returns the reports once every payment has a decision, with `kills` and `duplicates`.
    """
    rng = random.Random(seed)
    _begin(drivers, load)
    every_s = load["seconds"] / (kills + 1)
    begin = time.monotonic()
    for number in range(kills):
        time.sleep(max(0.0, begin + (number + 1) * every_s - time.monotonic()))
        host.kill_worker(rng)
    reports = _reports(drivers, load)
    ids = {name: [f"{load['id']}-{name}-{n}" for n in range(report["calls"])] for name, report in reports.items()}
    # The client asks again about its stand-ins from a second later on.
    every = {payment_id for each in ids.values() for payment_id in each}
    wait_until(lambda: every <= host.decisions().keys(), "every payment has a decision", every_s=0.2)
    decided = host.decisions()
    return {
        name: report | {"kills": kills, "duplicates": sum(decided[payment_id] > 1 for payment_id in ids[name])}
        for name, report in reports.items()
    }


def _begin(drivers: Mapping[str, Driver], load: Mapping[str, Any]) -> None:
    for name, driver in drivers.items():
        driver.tell(load={**load, "id": f"{load['id']}-{name}"})


def _reports(drivers: Mapping[str, Driver], load: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: driver.answer(load["seconds"] + 120.0)["load"] for name, driver in drivers.items()}
