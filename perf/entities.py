"""The cost of more entities: the same requests with ten thousand, a million and ten million profiles.

Measured, on one worker of `paywarden serve`: answers a second over HTTP in a closed loop, the worker's CPU time an
answer, and latency in an open loop with Poisson arrivals, at half of the capacity of the smallest world. The worlds
come one after the other, because ten million profiles take gigabytes of memory. Requests are the same payments, spread
evenly over all copies of the world, which is the worst case for caches. Used for: whether a look-up costs the same in a
large mirror.

    python -m perf.entities [--counts 10000,1000000] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import statistics
from pathlib import Path

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.errors import Misconfigured
from perf.tools.measuring import LATENCY_OPTIONS, Scenario, arguments_of, finish, in_turns
from perf.tools.servers import pin_load, serving
from perf.worlds.scoring_world import built_world

_HTTP = LoadOptions(connections=64, connections_max=64)
_SECONDS = 3.0


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--counts", {"default": "10000,1000000,10000000", "help": "of entities, with commas, the smallest first"}),
        ("--rounds", {"type": int, "default": 3, "help": "of each load"}),
    )
    pin_load()
    figures: dict[str, float] = {}
    rate = 0.0
    for count in map(int, arguments.counts.split(",")):
        try:
            measured = _measure(count, rate, arguments.rounds)
        except Misconfigured as error:
            print(f"{count} entities are left out: {error}")
            continue
        rate = rate or measured["max_per_second"] / 2
        figures |= {f"{name}_{count}": value for name, value in measured.items()}
    finish(figures, arguments.json)


def _measure(count: int, rate: float, rounds: int) -> dict[str, float]:
    with built_world(count) as world, serving(world.config) as server:
        bodies = stamped_bodies(world.requests, id_prefix="many")
        most = in_turns([Scenario("max", server, server.http, bodies, _HTTP, _SECONDS)], rounds)["max"]
        per_second = statistics.median(one.report.ok_per_second for one in most)
        latency = in_turns(
            [Scenario("open", server, server.http, bodies, LATENCY_OPTIONS, _SECONDS, rate or per_second / 2)], rounds
        )["open"]
        mirror_bytes = sum(file.stat().st_blocks * 512 for file in Path(world.mirror.path).iterdir())
        return {
            "entities": world.entities,
            "mirror_bytes": mirror_bytes,
            "max_per_second": per_second,
            "cpu_us": statistics.median(one.server_cpu_us for one in most),
            "rate": rate or per_second / 2,
        } | {
            name: statistics.median(getattr(one.report, name) for one in latency)
            for name in ("p50_ms", "p99_ms", "p999_ms")
        }


if __name__ == "__main__":
    main()
