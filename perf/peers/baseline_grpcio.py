"""Our scorer behind grpcio's own server, as most teams would write it: a thread pool, the scorer under a lock.

Mirror, bundle, checks and outbox are those of `paywarden serve`; only the front differs. A generic handler passes the
bytes to our parser without generated code between them.

    python -m perf.peers.baseline_grpcio CONFIG          prints its address, serves until SIGTERM
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from perf.worlds.scoring_host import open_host, scorer_of

_METHOD = "/paywarden.scoring.v1.Scoring/Score"
# Further threads would only wait for the lock.
_THREADS = 8


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, score: Any) -> None:
        self._method = grpc.unary_unary_rpc_method_handler(score)

    def service(self, details: Any) -> Any:
        return self._method if details.method == _METHOD else None


def main() -> None:
    made = scorer_of(open_host(Path(sys.argv[1])), "grpcio")
    lock = threading.Lock()

    def score(body: bytes, _: Any) -> bytes:
        now_ms = time.time_ns() // 1_000_000
        with lock:
            (result,) = made.score([body], now_ms)
        assert isinstance(result, bytes), "every request of a world can be answered"
        return result

    server = grpc.server(ThreadPoolExecutor(_THREADS), handlers=(_Handler(score),))
    print(f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
