"""The scoring path end to end, compared with the services that most teams would build instead.

Measured: `paywarden serve` with one worker on one core, and the load on the other. Answers a second over HTTP (64
connections, a request on each) and gRPC (8 connections with 8 calls each; 64 with one each), and latency in an open
loop with Poisson arrivals at half of HTTP's capacity. Compared with: a FastAPI service that gets its features from
the caller, our scorer behind grpcio, and a bare echo, all on the same core with the same load, in turns. Every figure
is the median of the rounds. Nothing is stubbed; the load's process does the companion's work on mirror and outbox.
Used for: the capacity of a worker, and how it compares.

    python -m perf.scoring [--entities N] [--rounds N] [--seconds S] [--json FILE]

If the load is slower than the server, as for echo, a maximum is that of the load. The server's CPU time a request
(`…_cpu_us`) does not depend on it, and stands next to each figure. Needs the packages of the extra `perf`. As root,
lift the limit of real-time threads meanwhile (`sysctl kernel.sched_rt_runtime_us=-1`): a worker at full load fills its
core, and Linux stops it for 50 ms of each second. Since Linux 6.12 ordinary threads still get a part of that core:
`core_wait_ms` says how long the worker waited for it in a load of twice `--seconds`. The build of Python matters to all
but the echo: distributions build it with profile-guided optimisation, others may not.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.target import LoadOptions
from perf.tools.measuring import (
    LATENCY_OPTIONS,
    Measured,
    Scenario,
    arguments_of,
    finish,
    in_turns,
    median_of,
    print_rounds,
    warn_of_limit,
)
from perf.tools.servers import Server, metrics_text, pin_load, running, serving
from perf.worlds.scoring_world import FASTAPI_FEATURES, World, built_world

# The other servers refuse nothing, so ours must not either: deadlines are longer than a busy machine needs.
_PATIENT = {"PAYWARDEN_ADMISSION_DEADLINE_MS": "2000", "PAYWARDEN_ADMISSION_WAIT_MS_MAX": "1000"}
_HTTP = LoadOptions(connections=64, connections_max=64)
_GRPC = LoadOptions(connections=8, streams=8)
_GRPC_SINGLE = LoadOptions(connections=64, streams=1)
_JSON = LoadOptions(content_type="application/json", connections=64, connections_max=64)
# The requirement: at least this many times as fast.
REQUIRED = {"http_to_fastapi": 6.0, "http_to_echo": 0.2, "grpc_to_grpcio": 4.0}


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--entities", {"type": int, "default": 1_000_000, "help": "in the mirror, at least"}),
        ("--rounds", {"type": int, "default": 5, "help": "that are counted"}),
        ("--seconds", {"type": float, "default": 3.0, "help": "of each load"}),
    )
    warn_of_limit()
    pin_load()
    with ExitStack() as stack:
        world = stack.enter_context(built_world(arguments.entities))
        figures = _measure(world, stack, arguments.rounds, arguments.seconds)
    finish(figures, arguments.json)


def _measure(world: World, stack: ExitStack, rounds: int, seconds: float) -> dict[str, float]:
    ours = stack.enter_context(serving(world.config, environment=_PATIENT))
    fastapi = stack.enter_context(
        running("perf.peers.baseline_fastapi", str(world.fastapi_model.resolve()), ready_path="/readyz")
    )
    grpcio = stack.enter_context(running("perf.peers.baseline_grpcio", str(world.config)))
    echo = stack.enter_context(running("perf.peers.echo"))
    bodies = stamped_bodies(world.requests, id_prefix="perf")
    rows = _fastapi_bodies()
    assert ours.grpc is not None
    assert grpcio.grpc is not None
    scenarios = [
        Scenario("http", ours, ours.http, bodies, _HTTP, seconds),
        Scenario("grpc", ours, ours.grpc, bodies, _GRPC, seconds),
        Scenario("grpc_single_stream", ours, ours.grpc, bodies, _GRPC_SINGLE, seconds),
        Scenario("fastapi", fastapi, f"{fastapi.http}/score", rows, _JSON, seconds),
        Scenario("grpcio", grpcio, grpcio.grpc, bodies, _GRPC, seconds),
        Scenario("echo", echo, echo.http, bodies, _HTTP, seconds),
    ]
    most = in_turns(scenarios, rounds)
    print_rounds(
        "as many as are answered", "answers/s", {k: [m.report.ok_per_second for m in v] for k, v in most.items()}
    )
    print_rounds("p99 meanwhile", "ms", {k: [m.report.p99_ms for m in v] for k, v in most.items()})
    print_rounds("CPU of the server", "µs an answer", {k: [m.server_cpu_us for m in v] for k, v in most.items()})
    maxima = {name: median_of(each, lambda one: one.report.ok_per_second) for name, each in most.items()}
    cpu = {name: median_of(each, lambda one: one.server_cpu_us) for name, each in most.items()}
    stages = _stages(scenarios[0], seed=rounds + 1)
    address = f"{fastapi.http}/score"
    half, json_options = maxima["http"] / 2, replace(LATENCY_OPTIONS, content_type="application/json")
    latency = in_turns(
        [
            Scenario("http", ours, ours.http, bodies, LATENCY_OPTIONS, 2 * seconds, half),
            Scenario("fastapi", fastapi, address, rows, json_options, 2 * seconds, maxima["fastapi"] / 2),
            # The latency without any work: that of the load, the kernel, and two processes that wake up.
            Scenario("echo", echo, echo.http, bodies, LATENCY_OPTIONS, 2 * seconds, half),
        ],
        rounds,
    )
    for name, each in latency.items():
        print_rounds(f"{name} at half of it, open loop", "ms", _latencies(each))
    return (
        {f"{name}_max_per_second": value for name, value in maxima.items()}
        | {f"{name}_max_p99_ms": median_of(each, lambda one: one.report.p99_ms) for name, each in most.items()}
        | {f"{name}_cpu_us": value for name, value in cpu.items()}
        | _latency_figures(latency)
        | _ratios(maxima, cpu)
        | {f"stage_{name}_us": value for name, value in stages.items()}
        | {"entities": world.entities, "rounds": rounds}
    )


def _fastapi_bodies() -> Iterator[bytes]:
    """Yield different rows again and again; their values do not matter to the cost."""
    rng = np.random.default_rng(2)
    rows = np.round(rng.lognormal(1, 1, (2000, FASTAPI_FEATURES)), 4).tolist()
    return itertools.cycle([json.dumps({"features": row}).encode() for row in rows])


def _latencies(measured: Sequence[Measured]) -> dict[str, list[float]]:
    return {
        name: [getattr(one.report, name) for one in measured]
        for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms", "lag_p99_ms")
    } | {"core_wait_ms": [one.core_wait_ms for one in measured]}


def _latency_figures(latency: Mapping[str, Sequence[Measured]]) -> dict[str, float]:
    figures = {}
    for name, measured in latency.items():
        prefix = "" if name == "http" else f"{name}_"
        for quantile, values in _latencies(measured).items():
            figures[prefix + quantile] = float(np.median(values))
        figures[f"{prefix}rate"] = float(np.median([one.report.sent / one.report.seconds for one in measured]))
        figures[f"{prefix}not_ok"] = float(sum(one.report.sent - one.report.ok for one in measured))
    return figures


def _ratios(maxima: Mapping[str, float], cpu: Mapping[str, float]) -> dict[str, float]:
    """Return and prints the required ratios, as measured and by the servers' CPU time."""
    figures: dict[str, float] = {}
    for name, required in REQUIRED.items():
        ours, theirs = name.split("_to_")
        figures |= {name: maxima[ours] / maxima[theirs], f"{name}_by_cpu": cpu[theirs] / cpu[ours]}
        if figures[name] < required:
            print(f"{ours} is {figures[name]:.2f} times {theirs}, below the {required:g} that are required")
    return figures


def _stages(scenario: Scenario, seed: int) -> dict[str, float]:
    """Return and prints microseconds a payment of each stage in one more round, as the worker timed them."""
    before = _stage_sums(scenario.server)
    whole_us = scenario.run(seed).server_cpu_us
    after = _stage_sums(scenario.server)
    stages = {
        name: (seconds - before[name][0]) / max(1.0, count - before[name][1]) * 1e6
        for name, (seconds, count) in after.items()
        if name != "wait"
    }
    stages["front"] = whole_us - sum(stages.values())
    return stages | {"all": whole_us}


def _stage_sums(server: Server) -> dict[str, tuple[float, float]]:
    """Return seconds and payments of each stage, over the chunks that were timed."""
    sums: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(metrics_text(server)):
        for sample in family.samples:
            if sample.name in ("paywarden_stage_seconds_sum", "paywarden_stage_seconds_count"):
                sums[sample.labels["stage"], sample.name.rpartition("_")[2]] = sample.value
    return {stage: (sums[stage, "sum"], sums[stage, "count"]) for stage in dict.fromkeys(stage for stage, _ in sums)}


if __name__ == "__main__":
    main()
