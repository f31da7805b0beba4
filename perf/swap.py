"""Swaps of the bundle while a worker answers: does any call fail, do calls get slower, does memory stay?

Measured, on one worker of `paywarden serve`, first over HTTP and then over gRPC: its capacity, in a closed loop; then,
in turns, three open loops of two and a half seconds at half of that:

1. `quiet`: nothing else happens;
2. `asked`: the supervisor gets a SIGHUP as often as in 3, and finds nothing new;
3. `swapping`: `[serve] bundle` is turned over from one to the next of three bundles of one size, each time with SIGHUP,
   until a new worker has taken the sockets over. The bundles were checked before. Each swap loads one in the
   supervisor, forks a worker that inherits it, and ends the worker before.

    python -m perf.swap [--swaps N] [--pause S] [--rate R] [--fresh] [--entities N] [--json FILE]

With `--fresh` each swap is to a bundle that the host has never seen: another process copies, loads and checks it, here
on the core of the worker. `--pause` is the time from the end of a swap to the next. `--rate` gives a load another rate
than half of the capacity.

`failed` counts calls that got no 200, of all loads; `…_failed_quiet` are those of the quiet ones. Among the failed,
`…_shed` were refused at once because the estimated wait was too long, and `…_late` after their deadline. `p99_ratio` is
the larger of the two protocols' p99 with swaps to that of the quiet loads, each the median of its loads; `asked_ratio`
is the same of the loads with signals alone. The difference of the two is the cost of a swap without its signal.
`…_lag_p99_ms` and `…_lag_p99_ms_swapping` are how late the load itself was: it shares the machine with whatever else
runs. A process of its own asks for the swaps, and runs only when nothing else wants its core. `resident_ratio` is the
memory that all processes of the host have each for itself, without mapped files: the most in a swapping load to that
before it, and the larger of the two protocols'. `swap_ms_p50` and `_max` count from the signal to the supervisor's
count.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil

from paywarden.models.bundle.bundle import MANIFEST, read_manifest
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.ops.wiring import ServeSettings
from paywarden.schemas.settings import read_source
from paywarden.scoring.metrics.shared_metrics import count_reader
from perf.tools.measuring import arguments_of, drive, finish
from perf.tools.servers import Server, pin_load, serving
from perf.worlds.scoring_world import World, built_world

_OPTIONS = LoadOptions(connections=8, streams=8)
# Short loads in many turns: a moment of other work on the machine is in few of them.
_SECONDS = 2.5
# The longest time of a swap: a worker that has not taken it up by then never will.
_SWAP_TIMEOUT_S = 30.0
_LOOK_S = 0.005
# A signal without a swap is followed by as many looks as one with a swap.
_ASKED_S = 0.05
_SWAPS = "paywarden_swaps_total"
_PRIVATE_LOOK_S = 0.1


class Swaps:
    """A process that turns a link over from bundle to bundle, and measures how long the worker takes to follow.

    `run` makes a number of swaps. `begin` makes swaps until `stop`.
    """

    def __init__(
        self, link: Path, bundles: Sequence[Path], supervisor: int, count: Callable[[], int], pause_s: float
    ) -> None:
        """`count`: the swaps that the worker has made."""
        self._link, self._bundles, self._supervisor = link, cycle(bundles), supervisor
        self._count, self._pause_s = count, pause_s
        self.took_ms = list[float]()
        fork = multiprocessing.get_context("fork")
        self._told, told = fork.Pipe()
        self._process = fork.Process(target=self._serve, args=(told,), daemon=True)
        self._process.start()

    def run(self, count: int) -> None:
        """Swap this often. Raises RuntimeError if a swap does not happen."""
        self._told.send((count, True))
        self._take()

    def begin(self, *, swaps: bool) -> None:
        """Swap again and again, with pauses; without `swaps` only send signals."""
        self._told.send((0, swaps))

    def stop(self) -> None:
        """End what `begin` began, and note how long each swap took. Raises RuntimeError if one did not happen."""
        self._told.send(None)
        self._take()

    def _take(self) -> None:
        took, trouble = self._told.recv()
        if trouble:
            raise RuntimeError(trouble)
        self.took_ms += took

    def _serve(self, told: Connection) -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        while True:
            count, swaps = told.recv()
            try:
                took = [self._swap() for _ in range(count)] if count else self._swapped_until(told, swaps=swaps)
            except RuntimeError as error:
                told.send(([], str(error)))
            else:
                told.send((took, ""))

    def _swapped_until(self, told: Connection, *, swaps: bool) -> list[float]:
        took = []
        while not told.poll(self._pause_s):
            if swaps:
                took.append(self._swap())
            else:
                self._ask()
        told.recv()
        return took

    def _ask(self) -> None:
        """Send a signal that changes nothing."""
        os.kill(self._supervisor, signal.SIGHUP)
        until = time.monotonic() + _ASKED_S
        while time.monotonic() < until:
            self._count()
            time.sleep(_LOOK_S)

    def _swap(self) -> float:
        before = self._count()
        _turn_over(self._link, next(self._bundles))
        began = time.monotonic()
        os.kill(self._supervisor, signal.SIGHUP)
        while self._count() == before:
            if time.monotonic() > began + _SWAP_TIMEOUT_S:
                raise RuntimeError("no worker takes up the other bundle")
            time.sleep(_LOOK_S)
        return 1000 * (time.monotonic() - began)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--swaps", {"type": int, "default": 200, "help": "over both protocols"}),
        ("--pause", {"type": float, "default": 0.3, "help": "seconds between swaps"}),
        ("--rate", {"type": float, "default": 0.0, "help": "calls a second; 0: half of the capacity"}),
        ("--fresh", {"action": "store_true", "help": "each swap to a bundle that was never checked"}),
        ("--entities", {"type": int, "default": 100_000, "help": "in the mirror, at least"}),
    )
    pin_load()
    with (
        built_world(arguments.entities) as world,
        _linked(world, arguments.swaps + 3 if arguments.fresh else 3) as (link, bundles),
        serving(world.config) as server,
    ):
        assert server.grpc is not None
        metrics = Path(read_source(str(world.config)).section("serve", ServeSettings).metrics)
        swaps = Swaps(link, bundles, server.process.pid, lambda: _swaps_of(metrics), arguments.pause)
        swaps.run(3)
        swaps.took_ms.clear()
        bodies = stamped_bodies(world.requests, id_prefix="swap")
        figures: dict[str, float] = {}
        for name, target in (("http", f"{server.http}/v1/score"), ("grpc", server.grpc)):
            rate = arguments.rate
            if not rate:
                rate = drive(run_closed(target, bodies, seconds=4.0, options=_OPTIONS)).ok_per_second / 2
            figures |= _measured(name, target, bodies, rate, swaps, len(swaps.took_ms) + arguments.swaps // 2, server)
        figures |= {
            "swaps": len(swaps.took_ms),
            "failed": sum(value for name, value in figures.items() if name.endswith("_failed")),
            "p99_ratio": max(figures["http_p99_ratio"], figures["grpc_p99_ratio"]),
            "asked_ratio": max(figures["http_asked_ratio"], figures["grpc_asked_ratio"]),
            "resident_ratio": max(figures["http_resident_ratio"], figures["grpc_resident_ratio"]),
            "swap_ms_p50": float(np.median(swaps.took_ms)),
            "swap_ms_max": max(swaps.took_ms),
        }
    finish(figures, arguments.json)


def _measured(
    name: str, target: str, bodies: Iterator[bytes], rate: float, swaps: Swaps, count: int, server: Server
) -> dict[str, float]:
    """Returns the figures of one protocol: quiet loads, with signals, and with `count` swaps in all, in turns."""
    quiet: list[LoadReport] = []
    asked: list[LoadReport] = []
    swapping: list[LoadReport] = []
    resident_ratio = 0.0

    def load() -> LoadReport:
        return drive(run_load(target, bodies, rate=rate, seconds=_SECONDS, options=_OPTIONS))

    while len(swaps.took_ms) < count:
        quiet.append(load())
        swaps.begin(swaps=False)
        asked.append(load())
        swaps.stop()
        usual_kb = _private_kb(server)
        swaps.begin(swaps=True)
        with _most_private(server) as most_kb:
            swapping.append(load())
        swaps.stop()
        resident_ratio = max(resident_ratio, most_kb[0] / usual_kb)
    p99_ms, asked_p99_ms, swapping_p99_ms = (
        float(np.median([each.p99_ms for each in loads])) for loads in (quiet, asked, swapping)
    )
    loads = [*quiet, *asked, *swapping]
    return {
        f"{name}_calls": sum(load.sent for load in loads),
        f"{name}_failed": _failed(loads),
        f"{name}_failed_quiet": _failed(quiet),
        f"{name}_shed": sum(load.shed for load in loads),
        f"{name}_late": sum(load.deadline_exceeded for load in loads),
        f"{name}_rate": rate,
        f"{name}_lag_p99_ms": float(np.median([load.lag_p99_ms for load in quiet])),
        f"{name}_lag_p99_ms_swapping": float(np.median([load.lag_p99_ms for load in swapping])),
        f"{name}_p99_ms": p99_ms,
        f"{name}_p99_ms_asked": asked_p99_ms,
        f"{name}_p99_ms_swapping": swapping_p99_ms,
        f"{name}_asked_ratio": asked_p99_ms / p99_ms,
        f"{name}_p99_ratio": swapping_p99_ms / p99_ms,
        f"{name}_private_mb": usual_kb / 1024,
        f"{name}_resident_ratio": resident_ratio,
    }


def _failed(loads: Iterable[LoadReport]) -> int:
    return sum(load.sent - load.ok for load in loads)


def _swaps_of(metrics: Path) -> int:
    """Returns the swaps that the supervisor has counted. It writes its file again for each count."""
    return count_reader(metrics, "supervisor", _SWAPS)()


def _private_kb(server: Server) -> float:
    """Returns the memory that the host's processes have each for itself, without mapped files."""
    parent = psutil.Process(server.process.pid)
    return sum(_private_kb_of(process.pid) for process in (parent, *parent.children()))


def _private_kb_of(pid: int) -> float:
    total, is_file = 0.0, False
    # It may have ended.
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
            name, *values = line.split()
            if not name.endswith(":"):
                # The line of a mapping: addresses, permissions, offset, device, inode.
                is_file = values[3] != "0"
            elif name in ("Private_Clean:", "Private_Dirty:") and not is_file:
                total += float(values[0])
    return total


@contextmanager
def _most_private(server: Server) -> Iterator[list[float]]:
    """Give a list whose one number is, at the end, the most that `_private_kb` has returned."""
    most, over = [_private_kb(server)], threading.Event()

    def look() -> None:
        while not over.wait(_PRIVATE_LOOK_S):
            most[0] = max(most[0], _private_kb(server))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


@contextmanager
def _linked(world: World, count: int) -> Iterator[tuple[Path, list[Path]]]:
    """Let the configuration name a link, and give it with the bundles that it leads to in turn."""
    with tempfile.TemporaryDirectory(prefix="paywarden-swap-") as name:
        folder = Path(name)
        bundles = [renamed(world.bundle, folder / f"bundle-{number}") for number in range(count)]
        assert len({read_manifest(bundle).digest for bundle in bundles}) == count
        link = folder / "current"
        _turn_over(link, bundles[-1])
        text = world.config.read_text(encoding="utf-8")
        served = f'bundle = "{link}"\nruntime = "{folder / "serve"}"'
        world.config.write_text(text.replace(f'bundle = "{world.bundle.resolve()}"', served), encoding="utf-8")
        yield link, bundles


def renamed(bundle: Path, copy: Path) -> Path:
    """Returns a copy with the same trees and another name: the trees' content does not change the cost of a swap."""
    shutil.copytree(bundle, copy)
    content = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    content["model_version"] = copy.name
    (copy / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return copy


def _turn_over(link: Path, bundle: Path) -> None:
    unfinished = link.with_name("next")
    unfinished.symlink_to(bundle)
    os.replace(unfinished, link)


if __name__ == "__main__":
    main()
