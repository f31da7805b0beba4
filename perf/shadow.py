"""A challenger in the shadow: does every decision get a partner, do callers wait longer, and what does it cost?

Measured, on all cores of the machine: `paywarden serve` with one worker, `companion`, `stream` and Kafka. First the
capacity of the whole: the payments of a closed loop, by the time until Kafka has their decisions. Then an open loop at
a share of it, in turns without and with `paywarden shadow run`, whose one challenger is a copy of the served bundle.

    paired_share    decisions that got a partner, once the challenger has no more to read
    p99_ratio       the callers' p99 with the challenger to that without, medians of the rounds
    cpu_ratio       CPU time of serve, companion and challenger to that of serve and companion, likewise
    shadow_us       the challenger's CPU time a decision

    python -m perf.shadow [--load 0.75] [--seconds 15] [--rounds 3] [--cards 5000] [--json FILE]

Needs the services that `make services` fetches.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paywarden.ops.demo.processes import DemoPart, Parts, running_parts
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from perf.tools.measuring import arguments_of, drive, finish
from perf.tools.processes import cpu_seconds
from perf.worlds.bundles import renamed
from perf.worlds.kafka_world import kafka_world

_OPTIONS = LoadOptions(connections=16, connections_max=16)
_CLOSED_S, _WARM_S = 10.0, 3.0
_PATIENCE_S, _LOOK_S = 60.0, 0.1


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--load", {"type": float, "default": 0.75, "help": "share of the capacity"}),
        ("--seconds", {"type": float, "default": 15.0, "help": "of each load"}),
        ("--rounds", {"type": int, "default": 3, "help": "without and with the challenger"}),
        ("--cards", {"type": int, "default": 5_000, "help": "that pay"}),
    )
    with kafka_world() as world:
        requests = world.prepare(arguments.cards).requests
        copy = renamed(world.folder / "bundle", world.folder / "challenger")
        config = world.write_config(more=f'[[shadow.challengers]]\nname = "{copy.name}"\nbundle = "{copy}"\n')
        with running_parts(config, world.folder) as parts:
            parts.wait_until_ready(print)
            figures = _System(parts, config, requests).measure(arguments.load, arguments.seconds, arguments.rounds)
    finish(figures, arguments.json)


@dataclass(frozen=True)
class _Round:
    """A load, and the CPU time of the host's processes; with a challenger also its share and its decisions."""

    report: LoadReport
    cpu_s: float
    shadow_cpu_s: float = 0.0
    paired: float = 0.0


class _System:
    """The running system, without and with a challenger."""

    def __init__(self, parts: Parts, config: Path, requests: list[ScoreRequest]) -> None:
        self._parts, self._config, self._requests = parts, config, requests
        self._runs = 0

    def measure(self, load: float, seconds: float, rounds: int) -> dict[str, float]:
        drive(run_closed(self._parts.target, self._bodies(), seconds=_WARM_S, options=_OPTIONS))
        capacity = self._capacity()
        rate = load * capacity
        print(f"capacity {capacity:.0f}/s, rate {rate:.0f}/s", flush=True)
        quiet, shadowed = list[_Round](), list[_Round]()
        for _ in range(rounds):
            quiet.append(self._round(rate, seconds))
            with self._shadow() as shadow:
                shadowed.append(self._round(rate, seconds, shadow))
        paired = sum(one.paired for one in shadowed)
        return {
            "capacity_per_second": capacity,
            "rate": rate,
            "paired_share": paired / sum(one.report.ok for one in shadowed),
            "p99_ratio": _p99_ms(shadowed) / _p99_ms(quiet),
            "cpu_ratio": _cpu_us(shadowed) / _cpu_us(quiet),
            "shadow_us": sum(one.shadow_cpu_s for one in shadowed) / max(1.0, paired) * 1e6,
            "cpu_us_quiet": _cpu_us(quiet),
            "cpu_us_shadow": _cpu_us(shadowed),
            "p99_ms_quiet": _p99_ms(quiet),
            "p99_ms_shadow": _p99_ms(shadowed),
        }

    def _capacity(self) -> float:
        """Return how many payments a second are answered and shipped while the load takes all it can get."""
        before, began = self._shipped(), time.monotonic()
        answered = drive(run_closed(self._parts.target, self._bodies(), seconds=_CLOSED_S, options=_OPTIONS)).ok
        while (left := before + answered - self._shipped()) > 0:
            if time.monotonic() > began + _CLOSED_S + _PATIENCE_S:
                raise RuntimeError(f"the companion does not ship: {left} decisions wait")
            time.sleep(_LOOK_S)
        return answered / (time.monotonic() - began)

    def _shipped(self) -> int:
        return self._parts.part("companion").reading().total("paywarden_companion_decisions_shipped_total")

    def _round(self, rate: float, seconds: float, shadow: DemoPart | None = None) -> _Round:
        self._open(rate, _WARM_S)
        before = 0.0 if shadow is None else _evaluated(shadow)
        host_cpu_s, shadow_cpu_s = self._cpu_s(), 0.0 if shadow is None else cpu_seconds(shadow.pid)
        report = self._open(rate, seconds)
        host_cpu_s = self._cpu_s() - host_cpu_s
        if shadow is None:
            return _Round(report, host_cpu_s)
        # The challenger evaluates its last batches after the load has ended, and their CPU time counts.
        paired = _evaluated(shadow) - before
        shadow_cpu_s = cpu_seconds(shadow.pid) - shadow_cpu_s
        return _Round(report, host_cpu_s + shadow_cpu_s, shadow_cpu_s, paired)

    def _open(self, rate: float, seconds: float) -> LoadReport:
        return drive(run_load(self._parts.target, self._bodies(), rate=rate, seconds=seconds))

    def _bodies(self) -> Iterator[bytes]:
        self._runs += 1
        return stamped_bodies(self._requests, id_prefix=f"s{self._runs}")

    def _cpu_s(self) -> float:
        return sum(cpu_seconds(self._parts.pids[part]) for part in ("serve", "companion"))

    @contextmanager
    def _shadow(self) -> Iterator[DemoPart]:
        command = [sys.executable, "-P", "-m", "paywarden", "--config", str(self._config), "shadow", "run"]
        log = self._config.with_name("shadow.log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )
            shadow = DemoPart("shadow", process, log)
            try:
                _wait(shadow, lambda: shadow.reading().total("paywarden_shadow_up") == 1)
                yield shadow
            finally:
                shadow.ask_to_stop()
                shadow.wait(_PATIENCE_S)


def _wait(shadow: DemoPart, is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not is_done():
        shadow.read_address()
        if shadow.has_ended() or time.monotonic() > deadline:
            raise RuntimeError(f"the challenger is not ready, or does not catch up: {shadow.last_line()}")
        time.sleep(_LOOK_S)


def _evaluated(shadow: DemoPart) -> float:
    """Return the decisions with a partner once the challenger has nothing left to read: two looks agree that it has."""
    looks = list[float]()
    while len(looks) < 2 or looks[-1] != looks[-2]:
        _wait(shadow, lambda: shadow.reading().total("paywarden_shadow_waiting_bytes") == 0)
        time.sleep(2.0)
        looks.append(shadow.reading().total("paywarden_shadow_evaluated_total"))
    return looks[-1]


def _p99_ms(rounds: list[_Round]) -> float:
    return statistics.median(one.report.p99_ms for one in rounds)


def _cpu_us(rounds: list[_Round]) -> float:
    return statistics.median(one.cpu_s / one.report.ok * 1e6 for one in rounds)


if __name__ == "__main__":
    main()
