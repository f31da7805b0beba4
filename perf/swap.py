"""Swaps of the bundle while a worker answers: does any call fail, do calls get slower, does memory stay?

Measured, on one worker of `paywarden serve`, first over HTTP and then over gRPC: its capacity, in a closed loop; then,
in turns, open loops of two and a half seconds at half of that: `quiet`, and `swapping`, in which `[serve] bundle` is
turned over from one to the next of three bundles of one size, each time with SIGHUP, until new workers serve it.

    failed            calls that got no 200, of all loads; `…_failed_quiet` are those of the quiet ones
    p99_ratio         p99 with swaps to that of the quiet loads, medians of the loads; the larger of the two protocols'
    private_ratio     the most private memory of all of the host's processes during swaps to that before, likewise
    swap_ms_p50, _max from the signal until the supervisor's count of swaps has risen

    python -m perf.swap [--swaps N] [--pause S] [--entities N] [--json FILE]

Threads of the load ask for the swaps, look at the supervisor's count, and add up the memory.
`…_lag_p99_ms` is how late the load itself was: it shares the machine.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from threading import Event

import numpy as np

from paywarden.models.bundle.bundle import read_manifest
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.ops.wiring import ServeSettings
from paywarden.schemas.settings import read_source
from paywarden.scoring.metrics.shared_metrics import totals
from perf.tools.measuring import arguments_of, drive, finish
from perf.tools.processes import private_kib
from perf.tools.servers import Server, pin_load, serving
from perf.worlds.bundles import renamed
from perf.worlds.scoring_world import World, built_world

# As many connections in every load, so that only swaps change the worker's memory.
_OPTIONS = LoadOptions(connections=8, connections_max=8, streams=8)
# Short loads in many turns: a moment of other work on the machine is in few of them.
_SECONDS = 2.5
# The longest time of a swap: a host that has not followed by then never will.
_SWAP_TIMEOUT_S = 30.0
_LOOK_S = 0.005
_MEMORY_LOOK_S = 0.1
_BUNDLES = 3


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--swaps", {"type": int, "default": 200, "help": "over both protocols"}),
        ("--pause", {"type": float, "default": 0.3, "help": "seconds between swaps"}),
        ("--entities", {"type": int, "default": 100_000, "help": "in the mirror, at least"}),
    )
    pin_load()
    with (
        built_world(arguments.entities) as world,
        _linked(world) as (link, bundles),
        serving(world.config) as server,
    ):
        assert server.grpc is not None
        metrics = Path(read_source(str(world.config)).section("serve", ServeSettings).metrics)
        bodies = stamped_bodies(world.requests, id_prefix="swap")
        figures: dict[str, float] = {}
        swaps = _Swaps(link, bundles, server.process.pid, metrics, arguments.pause)
        for name, target in (("http", server.http), ("grpc", server.grpc)):
            wanted = len(swaps.took_ms) + arguments.swaps // 2
            figures |= _measured(name, target, bodies, swaps, wanted, server)
        figures |= {
            "swaps": len(swaps.took_ms),
            "failed": figures["http_failed"] + figures["grpc_failed"],
            **{name: max(figures[f"http_{name}"], figures[f"grpc_{name}"]) for name in ("p99_ratio", "private_ratio")},
            "swap_ms_p50": float(np.median(swaps.took_ms)),
            "swap_ms_max": max(swaps.took_ms),
        }
    finish(figures, arguments.json)


def _measured(
    name: str, target: str, bodies: Iterator[bytes], swaps: _Swaps, wanted: int, server: Server
) -> dict[str, float]:
    """Return the figures of one protocol: quiet loads and loads with swaps in turns, until there are `wanted` swaps."""
    rate = drive(run_closed(target, bodies, seconds=4.0, options=_OPTIONS)).ok_per_second / 2
    quiet, swapping, private_ratio = list[LoadReport](), list[LoadReport](), 0.0

    def load() -> LoadReport:
        return drive(run_load(target, bodies, rate=rate, seconds=_SECONDS, options=_OPTIONS))

    while len(swaps.took_ms) < wanted or not quiet:
        quiet.append(load())
        before = private_kib(server.process.pid)
        with swaps.again_and_again(), _most_private(server) as most_kib:
            swapping.append(load())
        private_ratio = max(private_ratio, most_kib[0] / before)
    p99_ms, swapping_p99_ms = (float(np.median([each.p99_ms for each in loads])) for loads in (quiet, swapping))
    return {
        f"{name}_rate": rate,
        f"{name}_calls": sum(each.sent for each in (*quiet, *swapping)),
        f"{name}_failed": sum(each.sent - each.ok for each in (*quiet, *swapping)),
        f"{name}_failed_quiet": sum(each.sent - each.ok for each in quiet),
        f"{name}_lag_p99_ms": float(np.median([each.lag_p99_ms for each in swapping])),
        f"{name}_p99_ms": p99_ms,
        f"{name}_p99_ms_swapping": swapping_p99_ms,
        f"{name}_p99_ratio": swapping_p99_ms / p99_ms,
        f"{name}_private_ratio": private_ratio,
    }


class _Swaps:
    """Turns a link over from bundle to bundle in a thread, and measures how long the host takes to follow."""

    def __init__(self, link: Path, bundles: Sequence[Path], supervisor: int, metrics: Path, pause_s: float) -> None:
        self._link, self._bundles, self._supervisor = link, cycle(bundles), supervisor
        self._metrics, self._pause_s = metrics, pause_s
        self.took_ms = list[float]()

    @contextmanager
    def again_and_again(self) -> Iterator[None]:
        """Swap until the block ends. Raises RuntimeError if the host did not follow once."""
        over = Event()
        with ThreadPoolExecutor(1) as pool:
            swapping = pool.submit(self._swap_until, over)
            try:
                yield
            finally:
                over.set()
            swapping.result()

    def _swap_until(self, over: Event) -> None:
        while not over.wait(self._pause_s):
            before = self._count()
            _turn_over(self._link, next(self._bundles))
            began = time.monotonic()
            os.kill(self._supervisor, signal.SIGHUP)
            while self._count() == before:
                if time.monotonic() > began + _SWAP_TIMEOUT_S:
                    raise RuntimeError("the host does not bring the other bundle into service")
                time.sleep(_LOOK_S)
            self.took_ms.append(1000 * (time.monotonic() - began))

    def _count(self) -> int:
        return sum(slots[0] for one, slots in totals(self._metrics).items() if one.name == "paywarden_swaps_total")


@contextmanager
def _most_private(server: Server) -> Iterator[list[int]]:
    """Give a list of one number: at the end, the most private memory of the host's processes, in KiB."""
    most, over = [0], Event()

    def look() -> None:
        while not over.wait(_MEMORY_LOOK_S):
            most[0] = max(most[0], private_kib(server.process.pid))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield most
        finally:
            over.set()
        looking.result()


@contextmanager
def _linked(world: World) -> Iterator[tuple[Path, list[Path]]]:
    """Let the configuration name a link, and give it with the bundles that it leads to in turn."""
    with tempfile.TemporaryDirectory(prefix="paywarden-swap-") as name:
        folder = Path(name)
        bundles = [renamed(world.bundle, folder / f"bundle-{number}") for number in range(_BUNDLES)]
        assert len({read_manifest(bundle).digest for bundle in bundles}) == _BUNDLES
        link = folder / "current"
        _turn_over(link, bundles[-1])
        text = world.config.read_text(encoding="utf-8")
        served = f'bundle = "{link}"\nruntime = "{folder / "serve"}"'
        world.config.write_text(text.replace(f'bundle = "{world.bundle.resolve()}"', served), encoding="utf-8")
        yield link, bundles


def _turn_over(link: Path, bundle: Path) -> None:
    unfinished = link.with_name("next")
    unfinished.symlink_to(bundle)
    os.replace(unfinished, link)


if __name__ == "__main__":
    main()
