"""A host for perf.gateway: the real HTTP front with a constant answer that names the host.

    python -m perf.worlds.gateway_host NAME [--takes-us N]    prints its address and `health:PORT`, serves until SIGTERM

With `--takes-us` each payment takes that long, so the host has a known capacity and refuses payments beyond it (429).
"""

from __future__ import annotations

import argparse
import asyncio
import time

import uvloop

from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.engine.batching.batcher import AdmissionSettings, Chunk, MicroBatcher
from paywarden.scoring.http.front import HttpServer
from paywarden.scoring.http.settings import HttpSettings
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker import HttpMetrics
from paywarden.scoring.net.listeners import open_listener, reserve_port
from paywarden.scoring.requests import fast_requests
from perf.worlds.constant_scorer import ConstantScorer, euro_intake
from tests.services.hosts.always_well import always_well


class NamedScorer(ConstantScorer):
    """Answers with the host's name as the model's version."""

    def __init__(self, name: str, takes_s: float) -> None:
        super().__init__()
        self._rest = ScoreResponse(action="approve", model_version=name).SerializeToString()
        self._takes_s = takes_s

    def score(self, chunk: Chunk, now_ms: int) -> list[bytes]:
        """Returns the same answer for each payment, but for its id. The requests must be usual."""
        if self._takes_s:
            time.sleep(self._takes_s * len(chunk.bodies))
        ids = self._reader.read(chunk.bodies, now_ms).ids
        return [b"\n" + bytes([len(payment_id)]) + payment_id + self._rest for payment_id in ids]


async def _serve(name: str, takes_us: float) -> None:
    # Otherwise the first payments wait for the compiler.
    fast_requests.warm_up()
    # Without a limit of its own a host is never late, so that only the gateway is measured.
    patient = AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000)
    batcher = MicroBatcher(
        NamedScorer(name, takes_us / 1e6),
        intake=euro_intake(),
        settings=AdmissionSettings() if takes_us else patient,
    )
    metrics = HttpMetrics.declare(MetricsRegistry())
    server = HttpServer(batcher, HttpSettings(), metrics=metrics, metrics_text=lambda: b"")
    with reserve_port("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        await server.start(open_listener("127.0.0.1", port, backlog=1024))
        with always_well() as health:
            print(f"http://127.0.0.1:{port}\nhealth:{health}", flush=True)
            await asyncio.get_running_loop().create_future()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--takes-us", type=float, default=0.0)
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.name, arguments.takes_us))


if __name__ == "__main__":
    main()
