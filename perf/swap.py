"""Swaps of the bundle while a worker answers: does any call fail, do calls get slower, does memory stay?

Measured, on one worker of `paywarden serve`, first over HTTP and then over gRPC: its capacity, in a closed loop; then,
in turns, an open loop of five seconds at half of that, and the same while `[serve] bundle` is turned over from one to
the next of three bundles of one size, each time with SIGHUP, until the worker has taken it up. The bundles were checked
before. Two of them are in memory at a time, so each swap loads one and unloads another.

    python -m perf.swap [--swaps N] [--pause S] [--fresh] [--entities N] [--json FILE]

With `--fresh` each swap is to a bundle that the host has never seen: another process copies, loads and checks it, here
on the core of the worker. `--pause` is the time from the end of a swap to the next.

`failed` counts calls that got no 200, of all loads; `…_failed_quiet` are those of the loads without swaps. Of the
failed, `…_shed` were refused at once because the estimated wait was too long, and `…_late` after their deadline.
`…_lag_p99_ms` is how late the load itself was: it shares the machine with whatever else runs. A process of its own
asks for the swaps and reads the worker's counts; it yields to the load. `p99_ratio` is the larger of the two protocols'
p99 with swaps to that without, each the median of its loads. `resident_ratio` is the worker's anonymous resident memory
after the swaps to that before them, when each bundle has been loaded once, and the larger of the two protocols'. The
mirror and the decision cache, which are mapped, do not count: they fill up with use. `swap_ms_p50` and `_max` count
from the signal to the worker's count.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from paywarden.models.bundle.bundle import MANIFEST, read_manifest
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.ops.wiring import ServeSettings
from paywarden.schemas.settings import read_source
from paywarden.scoring.metrics.shared import totals
from perf.measuring import arguments_of, drive, finish
from perf.scoring_world import World, built_world
from perf.servers import pin_load, serving

_OPTIONS = LoadOptions(connections=8, streams=8)
_SECONDS = 5.0
# What a swap takes at most; a worker that has not taken it up by then never will.
_SWAP_TIMEOUT_S = 30.0
# The load has the core first.
_NICENESS = 10
_SWAPS = "paywarden_swaps_total"


class Swaps:
    """A process that turns a link over from bundle to bundle, and measures how long the worker takes to follow.

    It begins when it is told to, and stops when it is told again.
    """

    def __init__(self, link: Path, bundles: Sequence[Path], supervisor: int, metrics: Path, pause_s: float) -> None:
        self._link, self._bundles, self._supervisor = link, cycle(bundles), supervisor
        self._metrics, self._pause_s = metrics, pause_s
        self.took_ms = list[float]()
        fork = multiprocessing.get_context("fork")
        self._told, told = fork.Pipe()
        self._process = fork.Process(target=self._serve, args=(told,), daemon=True)
        self._process.start()

    def run(self, count: int) -> None:
        """Swap this often. Raises RuntimeError if a swap does not happen."""
        self._told.send(count)
        self._take()

    def begin(self) -> None:
        """Swap again and again, with pauses."""
        self._told.send(0)

    def stop(self) -> None:
        """End what `begin` began, and note how long each swap took. Raises RuntimeError if one did not happen."""
        self._told.send(0)
        self._take()

    def _take(self) -> None:
        took, trouble = self._told.recv()
        if trouble:
            raise RuntimeError(trouble)
        self.took_ms += took

    def _serve(self, told: Connection) -> None:
        os.nice(_NICENESS)
        while True:
            count = told.recv()
            try:
                took = [self._swap() for _ in range(count)] if count else self._swapped_until(told)
            except RuntimeError as error:
                told.send(([], str(error)))
            else:
                told.send((took, ""))

    def _swapped_until(self, told: Connection) -> list[float]:
        took = []
        while not told.poll(self._pause_s):
            took.append(self._swap())
        told.recv()
        return took

    def _swap(self) -> float:
        before = self._count()
        _turn_over(self._link, next(self._bundles))
        began = time.monotonic()
        os.kill(self._supervisor, signal.SIGHUP)
        while self._count() == before:
            if time.monotonic() > began + _SWAP_TIMEOUT_S:
                raise RuntimeError("the worker does not take up the other bundle")
            time.sleep(0.02)
        return 1000 * (time.monotonic() - began)

    def _count(self) -> int:
        # From the worker's own file: /metrics is rendered once a second.
        return sum(slots[0] for series, slots in totals(self._metrics).items() if series.name == _SWAPS)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--swaps", {"type": int, "default": 200, "help": "over both protocols"}),
        ("--pause", {"type": float, "default": 0.3, "help": "seconds between swaps"}),
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
        swaps = Swaps(link, bundles, server.process.pid, metrics, arguments.pause)
        swaps.run(3)
        swaps.took_ms.clear()
        (worker,) = server.worker_pids()
        bodies = stamped_bodies(world.requests, id_prefix="swap")
        figures: dict[str, float] = {}
        for name, target in (("http", f"{server.http}/v1/score"), ("grpc", server.grpc)):
            rate = drive(run_closed(target, bodies, seconds=4.0, options=_OPTIONS)).ok_per_second / 2
            figures |= _measured(name, target, bodies, rate, swaps, len(swaps.took_ms) + arguments.swaps // 2, worker)
        figures |= {
            "swaps": len(swaps.took_ms),
            "failed": sum(value for name, value in figures.items() if name.endswith("_failed")),
            "p99_ratio": max(figures["http_p99_ratio"], figures["grpc_p99_ratio"]),
            "resident_ratio": max(figures["http_resident_ratio"], figures["grpc_resident_ratio"]),
            "swap_ms_p50": float(np.median(swaps.took_ms)),
            "swap_ms_max": max(swaps.took_ms),
        }
        assert server.worker_pids() == [worker], "the worker was restarted"
    finish(figures, arguments.json)


def _measured(
    name: str, target: str, bodies: Iterator[bytes], rate: float, swaps: Swaps, count: int, worker: int
) -> dict[str, float]:
    """Returns the figures of one protocol: loads without swaps, and as many with `count` of them, in turns."""
    quiet: list[LoadReport] = []
    busy: list[LoadReport] = []
    resident_kb = 0.0

    def load() -> LoadReport:
        return drive(run_load(target, bodies, rate=rate, seconds=_SECONDS, options=_OPTIONS))

    while len(swaps.took_ms) < count:
        quiet.append(load())
        # The load itself takes memory: connections and buffers of a busy worker.
        resident_kb = resident_kb or _resident_kb(worker)
        swaps.begin()
        busy.append(load())
        swaps.stop()
    p99_ms, swapping_p99_ms = (float(np.median([each.p99_ms for each in loads])) for loads in (quiet, busy))
    both = [*quiet, *busy]
    return {
        f"{name}_calls": sum(load.sent for load in both),
        f"{name}_failed": _failed(both),
        f"{name}_failed_quiet": _failed(quiet),
        f"{name}_shed": sum(load.shed for load in both),
        f"{name}_late": sum(load.deadline_exceeded for load in both),
        f"{name}_rate": rate,
        f"{name}_lag_p99_ms": float(np.median([load.lag_p99_ms for load in both])),
        f"{name}_p99_ms": p99_ms,
        f"{name}_p99_ms_swapping": swapping_p99_ms,
        f"{name}_p99_ratio": swapping_p99_ms / p99_ms,
        f"{name}_resident_mb": resident_kb / 1024,
        f"{name}_resident_ratio": _resident_kb(worker) / resident_kb,
    }


def _failed(loads: Iterable[LoadReport]) -> int:
    return sum(load.sent - load.ok for load in loads)


def _resident_kb(worker: int) -> float:
    status = Path(f"/proc/{worker}/status").read_text(encoding="utf-8")
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))


@contextmanager
def _linked(world: World, count: int) -> Iterator[tuple[Path, list[Path]]]:
    """Let the configuration name a link, and give it with the bundles that it leads to in turn."""
    with tempfile.TemporaryDirectory(prefix="paywarden-swap-") as name:
        folder = Path(name)
        bundles = [_renamed(world.bundle, folder / f"bundle-{number}") for number in range(count)]
        assert len({read_manifest(bundle).digest for bundle in bundles}) == count
        link = folder / "current"
        _turn_over(link, bundles[-1])
        text = world.config.read_text(encoding="utf-8")
        served = f'bundle = "{link}"\nruntime = "{folder / "serve"}"'
        world.config.write_text(text.replace(f'bundle = "{world.bundle.resolve()}"', served), encoding="utf-8")
        yield link, bundles


def _renamed(bundle: Path, copy: Path) -> Path:
    """Returns a copy with the same trees and another name: the cost of a swap does not depend on what the trees say."""
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
