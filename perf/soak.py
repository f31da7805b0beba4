"""A worker under load for many minutes: do its memory and its latencies grow?

Measured, on one worker of `paywarden serve`, in an open loop with Poisson arrivals at half of its capacity over HTTP.
For each minute: the worker's anonymous memory (mirror and decision cache are shared files), p50, p99 and p99.9, and the
pauses of the garbage collector. The first minute does not count, because buffers grow to their size in it. Used for:
whether a million requests leave anything behind. A host with a thousand payments a second gets ten million in three
hours.

    python -m perf.soak [--minutes N] [--entities N] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Iterator

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import run_closed, run_load
from paywarden.ops.loadgen.target import LoadOptions
from perf.tools.measuring import LATENCY_OPTIONS, arguments_of, drive, finish
from perf.tools.processes import memory_kib
from perf.tools.servers import Server, metrics_text, pin_load, serving
from perf.worlds.scoring_world import built_world

_CAPACITY = LoadOptions(connections=64, connections_max=64)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--minutes", {"type": int, "default": 10, "help": "that are counted"}),
        ("--entities", {"type": int, "default": 100_000, "help": "in the mirror, at least"}),
    )
    pin_load()
    with built_world(arguments.entities) as world, serving(world.config) as server:
        bodies = stamped_bodies(world.requests, id_prefix="soak")
        most = drive(run_closed(server.http, bodies, seconds=4.0, options=_CAPACITY)).ok_per_second
        minutes = [_minute(server, bodies, most / 2, number) for number in range(arguments.minutes + 1)][1:]
    answered = sum(one["answered"] for one in minutes)
    first, last = minutes[0], minutes[-1]
    # Growth counts from the end of the first minute that counts.
    since = (answered - first["answered"]) / 1e6
    figures = {
        "rate": most / 2,
        "answered": answered,
        "not_ok": sum(one["not_ok"] for one in minutes),
        "memory_first_mib": first["mib"],
        "memory_last_mib": last["mib"],
        "memory_growth_kib_per_million": (last["mib"] - first["mib"]) * 1024 / since if since else 0.0,
        "p99_first_ms": first["p99_ms"],
        "p99_last_ms": last["p99_ms"],
    }
    finish(figures, arguments.json)


def _minute(server: Server, bodies: Iterator[bytes], rate: float, number: int) -> dict[str, float]:
    before = _pauses(server)
    report = drive(run_load(server.http, bodies, rate=rate, seconds=60.0, seed=number, options=LATENCY_OPTIONS))
    figures = {name: getattr(report, name) for name in ("p50_ms", "p99_ms", "p999_ms")}
    figures |= {"answered": report.ok, "not_ok": report.sent - report.ok, "pauses": _pauses(server) - before}
    figures["mib"] = sum(memory_kib("RssAnon", pid) for pid in server.worker_pids()) / 1024
    print(f"minute {number}: " + ", ".join(f"{name} {value:,.2f}" for name, value in figures.items()), flush=True)
    return figures


def _pauses(server: Server) -> float:
    """Return how often the worker has collected garbage so far."""
    name = "paywarden_gc_pause_seconds_count "
    return sum(float(line[len(name) :]) for line in metrics_text(server).splitlines() if line.startswith(name))


if __name__ == "__main__":
    main()
