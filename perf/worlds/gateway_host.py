"""A host for perf.gateway: the real HTTP front with a constant answer that names the host.

    python -m perf.worlds.gateway_host NAME [--takes-us N]    prints its address and `health:PORT`, serves until SIGTERM

With `--takes-us` each payment takes that long, so the host has a known capacity and refuses payments beyond it (429).
"""

from __future__ import annotations

import argparse
import signal
import time

from paywarden.ops.times import now_ms
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.batching.batcher import AdmissionSettings, Chunk
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.requests import fast_requests
from tests.services.hosts.always_well import always_well
from tests.worlds.endpoint.http_world import serving


class NamedScorer:
    """Approves each payment, with the host's name as the model's version (see Scorer in the batcher)."""

    def __init__(self, name: str, takes_s: float) -> None:
        # Two serialised messages, one after the other, are one message with the fields of both.
        self._rest = ScoreResponse(action="approve", model_version=name).SerializeToString()
        self._takes_s = takes_s

    def score(self, chunk: Chunk, now_ms: int) -> list[bytes]:  # noqa: ARG002
        """Return the same answer for each payment, but for its id."""
        if self._takes_s:
            time.sleep(self._takes_s * len(chunk.bodies))
        ids = (ScoreRequest.FromString(body).payment_id for body in chunk.bodies)
        return [ScoreResponse(payment_id=each).SerializeToString() + self._rest for each in ids]

    def readiness(self) -> list[str]:
        """Return no reason against traffic."""
        return []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--takes-us", type=float, default=0.0)
    arguments = parser.parse_args()
    # Otherwise the first payments wait for the compiler.
    fast_requests.warm_up()
    # Without a limit of its own a host is never late, so that only the gateway is measured.
    patient = AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000)
    admission = AdmissionSettings() if arguments.takes_us else patient
    scorer = NamedScorer(arguments.name, arguments.takes_us / 1e6)
    with serving(HttpSettings(), scorer=scorer, admission=admission, clock_ms=now_ms) as host, always_well() as health:
        print(f"http://127.0.0.1:{host.port}\nhealth:{health}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
